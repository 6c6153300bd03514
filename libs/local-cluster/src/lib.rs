//! A whole cluster on this machine: every role in this process ([`inproc`]) or as child processes ([`process`]) that can
//! be killed, paused and restarted. Used by `fusefs dev`, tests and benches.

pub mod dir;
pub mod inproc;
pub mod process;
pub mod system;

pub use dir::{ClusterDir, Shape};
pub use inproc::{InprocCluster, Tuning};
pub use process::{Child, ProcessCluster};
pub use system::{SystemClock, SystemRng};
