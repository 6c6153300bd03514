//! Limits of the whole driver.

/// Largest request in bytes: several maps of 4 KiB and a thousand paths fit easily.
pub const REQUEST_BYTES_MAX: usize = 1 << 20;
