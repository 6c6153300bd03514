//! The pure state as a raft state machine.

use fusefs_cluster_state::{Applied, ClusterState, Command};
use fusefs_raft_host::{Frozen, LogPos, Machine, Stop};
use std::{io, sync::Arc};

/// State behind an `Arc`: freezing is a pointer copy; the first command after it copies the state once.
#[derive(Default)]
pub struct MasterMachine {
    state: Arc<ClusterState>,
}

impl MasterMachine {
    /// The state.
    pub fn state(&self) -> &ClusterState {
        &self.state
    }
}

impl Machine for MasterMachine {
    type Reply = Applied;

    fn apply(&mut self, _: LogPos, payload: &[u8]) -> Result<Applied, Stop> {
        let command = Command::decode(payload)
            .map_err(|_| Stop("a command of the masters' log is unknown to this binary: upgrade it".to_owned()))?;
        Ok(Arc::make_mut(&mut self.state).apply(&command))
    }

    fn freeze(&self) -> Box<dyn Frozen> {
        Box::new(FrozenState(self.state.clone()))
    }

    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()> {
        self.state = Arc::new(ClusterState::read_from(from)?);
        Ok(())
    }
}

struct FrozenState(Arc<ClusterState>);

impl Frozen for FrozenState {
    fn write_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        self.0.write_to(out)
    }
}
