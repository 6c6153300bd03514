//! A real mount.
