//! `fusefs upgrade`: another executable takes over under load, by the same path as after a crash. The new client prepares
//! first and waits for the journal; only then the old one is killed. If the new one does not serve in time, the old
//! executable comes back.

use super::{
    Phase,
    child::{Process, start_client},
    record::names,
    run::{Client, Supervisor},
};
use crate::keeper::{Item, protocol::Message, server::now_ms};
use std::os::fd::{AsFd, OwnedFd};

/// One upgrade in progress.
pub(super) struct Upgrade {
    pub candidate: Process,
    pub deadline_ms: u64,
    binary: OwnedFd,
    asked_by: u64,
    /// The old client was told to go: the new one is there and waits for the journal.
    pub committed: bool,
}

impl Supervisor {
    /// Starts the new client beside the old one.
    pub(super) fn start_upgrade(&mut self, asked_by: u64, binary: OwnedFd, timeout_ms: u32) {
        if self.upgrade.is_some() {
            return self.tell(asked_by, &Message::Error("another upgrade of this mount is running".into()));
        }
        if self.connection_gone() {
            return self.tell(asked_by, &Message::Error("the mount is ending".into()));
        }
        match start_client(binary.as_fd(), &self.dirs, &self.plan.common_args, &self.plan.labels, true) {
            Ok(candidate) => {
                let deadline_ms = now_ms() + u64::from(timeout_ms);
                self.upgrade = Some(Upgrade { candidate, deadline_ms, binary, asked_by, committed: false });
            }
            Err(e) => self.tell(asked_by, &Message::Error(format!("the new executable cannot be started: {e}"))),
        }
    }

    /// A client said hello; if it is the new one, the old one goes.
    pub(super) fn candidate_is_there(&mut self, pid: u32) {
        let Some(upgrade) = self.upgrade.as_mut().filter(|u| u.candidate.pid == pid && !u.committed) else { return };
        upgrade.committed = true;
        self.restart_at_ms = None;
        if let Some(old) = &self.client {
            old.process.kill();
        }
    }

    /// The new client serves.
    pub(super) fn upgrade_done(&mut self, phase: Phase) {
        let Some(upgrade) = self.upgrade.take() else { return };
        let Upgrade { candidate, binary, asked_by, .. } = upgrade;
        if let Some(old) = self.client.replace(Client { process: candidate, phase }) {
            old.process.end(); // it has the journal no more
        }
        self.keep(names::BINARY, Item { bytes: Vec::new(), fd: Some(binary) });
        self.serves();
        self.tell(asked_by, &Message::Ok);
    }

    /// The new client does not: back to the old executable.
    pub(super) fn upgrade_failed(&mut self, reason: &str) {
        let Some(upgrade) = self.upgrade.take() else { return };
        tracing::error!(reason, "the upgrade is rolled back");
        upgrade.candidate.end();
        let text = if upgrade.committed {
            format!("{reason}; the old version serves again")
        } else {
            format!("{reason}; the old version was not touched")
        };
        if self.client.as_ref().is_none_or(|c| crate::keeper::sys::ended(c.process.pidfd.as_fd())) {
            if let Some(old) = self.client.take() {
                old.process.end();
            }
            self.start_client();
        }
        self.tell(upgrade.asked_by, &Message::Error(text));
    }
}
