//! Knobs of the data path, resolved once by the role that uses it.

use fusefs_types::limits;
use std::time::Duration;

/// Settings of one [`crate::DataPath`].
#[derive(Clone, Debug)]
pub struct Settings {
    /// Dirty bytes (with bookkeeping) held in memory before writers wait.
    pub dirty_bytes_max: u64,
    /// Objects uploaded at the same time.
    pub uploads_max: usize,
    /// Range reads in flight at the same time, demand and read-ahead together.
    pub fetches_max: usize,
    /// Bytes of the block cache.
    pub cache_bytes: u64,
    /// Bytes of cached extent maps (with their inline bytes).
    pub map_bytes: u64,
    /// Furthest read-ahead of one stream in bytes; 0 turns it off.
    pub readahead_bytes: u64,
    /// Plain bytes of one range read.
    pub fetch_bytes: u64,
    /// Small dirty data rides inline up to this many bytes per commit; 0 turns it off.
    pub inline_bytes: usize,
    /// Dirty data is sealed for commit at this age, so that it is committed before `limits::DIRTY_AGE_MAX_MS`.
    pub dirty_age: Duration,
    /// Longest wait of a FLUSH (close) before EIO; the data stays and is retried (PROTOCOL 39).
    pub close_timeout: Duration,
    /// Longest wait of reads, writes and fsync; None waits as long as it takes.
    pub io_timeout: Option<Duration>,
    /// Objects are created with If-None-Match (only where the probe found it working).
    pub conditional_put: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            dirty_bytes_max: 256 << 20,
            uploads_max: 16,
            fetches_max: 32,
            cache_bytes: 256 << 20,
            map_bytes: 32 << 20,
            readahead_bytes: 16 << 20,
            fetch_bytes: 1 << 20,
            inline_bytes: limits::INLINE_COMMIT_BYTES_MAX,
            dirty_age: Duration::from_millis(limits::DIRTY_AGE_MAX_MS * 3 / 5),
            close_timeout: Duration::from_millis(limits::CLOSE_TIMEOUT_MS),
            io_timeout: None,
            conditional_put: false,
        }
    }
}
