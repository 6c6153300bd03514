//! Vocabulary of fusefs: identifiers, operations, errors, limits and the traits behind which the outside world hides.
//!
//! This crate is the only one that everything else may depend on. It does no I/O, reads no clock and knows no
//! protobuf; the rules in `docs/design/0001-boundaries.md` say what may depend on what.

pub mod attr;
pub mod auth;
pub mod cluster;
pub mod env;
pub mod envelope;
pub mod error;
pub mod extent;
pub mod hlc;
pub mod ids;
pub mod key;
pub mod limits;
pub mod lock;
pub mod name;
pub mod ops;
pub mod space;
pub mod stream;
pub mod txn;

pub use attr::{Attr, FileKind, Mode, Time};
pub use env::{Clock, Rng};
pub use error::{FsError, FsResult};
pub use extent::{Extent, ObjectId, Source};
pub use hlc::{Hlc, HlcClock};
pub use ids::*;
pub use key::{KeyRange, RangeKey, RangeSet};
pub use name::Name;
