//! The vfs on one real partition in this process, and a real mount of the same.

mod cache;
mod cluster;
mod local;
mod locks;
mod mounted;
mod rng;
mod tree;
mod two;
