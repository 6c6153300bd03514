//! The supervisor: `fusefs mount` itself. It mounts, opens the journal, starts keeper and client, holds duplicates of
//! every fd, and starts again whichever of the two dies; the keeper does the same for the supervisor (PROTOCOL 48).
//!
//! Nothing here touches the mount's path after the mount, and nothing unmounts while somebody may still serve.

mod adopt;
mod child;
mod control;
pub mod dirs;
mod held;
mod hosted;
mod journal;
pub mod record;
mod run;
mod setup;
mod unmount;
mod upgrade;

pub use adopt::{Adopted, adopt};
pub use control::{Processes, processes, request_upgrade, wait_for_end};
pub use held::{Held, HeldPlan, SHARED_NAME_SEPARATOR};
pub use hosted::host;
pub use record::{ClientRecord, EndRecord, Outcome, Phase, names};

use crate::fuse::{MountError, MountSettings};
use std::{ffi::OsString, io, path::PathBuf};

/// What a supervised mount is made from.
pub struct Plan {
    /// Where and how.
    pub mount: MountSettings,
    /// Directory of the journal; None = by mount point, see [`dirs`].
    pub state_dir: Option<PathBuf>,
    /// Size of a new journal, in bytes.
    pub journal_bytes: u64,
    /// Make the directory underneath unwritable.
    pub protect: bool,
    /// Keep requests in slots, as on kernels before 6.9, although this kernel could send them again.
    pub slots: bool,
    /// Kill a client that does not answer for [`WATCHDOG_MISSES`] seconds.
    pub watchdog: bool,
    /// Unmount when standard input ends.
    pub exit_with_parent: bool,
    /// Random id of the kernel connection.
    pub mount_id: u128,
    /// Opaque options for the client; item [`names::SPEC`].
    pub spec: Vec<u8>,
    /// Arguments that every process of ours gets (logging).
    pub common_args: Vec<OsString>,
    /// Words at the end of the clients' command lines, for people who look at ps.
    pub labels: Vec<OsString>,
    /// Called once when the mount serves for the first time.
    pub announce: Box<dyn FnMut()>,
}

/// Value of the item [`names::RECOVERY`].
pub const SLOTS_MODE: &[u8] = b"slots";

/// Unanswered pings, one per second, after which a client counts as stuck. Time in which the supervisor itself did not
/// run does not count; waiting requests never do (slow is not dead).
pub const WATCHDOG_MISSES: u32 = 5;

/// How a supervised mount ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Bytes that are not in the store; they are in the journal.
    pub unflushed: u64,
    /// Directory of the journal when it still holds something.
    pub journal: Option<PathBuf>,
}

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// Mounting.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The client ended before it ever served; it has said why.
    #[error("the mount did not start (its client ended with {0})")]
    Client(String),
    /// The keeper could not be started.
    #[error("the keeper cannot be started: {0}")]
    Keeper(io::Error),
    /// Directories, journal files.
    #[error("{0}: {1}")]
    File(String, io::Error),
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Mounts, serves until the end, cleans up. Must run before any other thread of the process exists (signals are taken
/// through an fd).
pub fn mount(plan: Plan) -> Result<Ended, SuperviseError> {
    setup::fresh(plan)?.run()
}
