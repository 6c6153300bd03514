//! File data: where bytes live, how they get there and how they come back (DESIGN §5, PROTOCOL 30-39).
//!
//! - [`object`]: the [`ObjectStore`] trait and its stores: S3, a directory, memory, a faulty wrapper, retries, the probe.
//! - [`layout`]: the object format (header, 64 KiB frames with CRCs), pure.
//! - [`reader`]: extents -> coalesced, verified range reads; block cache; read-ahead.
//! - [`writer`]: one queue per inode, uploads in parallel, commits in order ([`WriteLog`]).
//! - [`journal`]: what makes acknowledged writes survive the death of the client.
//! - [`DataPath`]: all of it for one mount.
//!
//! This is the only crate that names an S3 SDK. It needs a tokio runtime and follows its (possibly paused) time.

pub mod journal;
pub mod layout;
pub mod object;
mod pace;
mod path;
pub mod reader;
pub mod settings;
pub mod sink;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod writer;

pub use object::{ObjectStore, PutMode, StoreError};
pub use path::{Barrier, DataPath, Shutdown};
pub use settings::Settings;
pub use sink::{ExtentMap, MetaSink};
pub use writer::{Credits, DirtyAttr, WriteContext, WriteLog};
