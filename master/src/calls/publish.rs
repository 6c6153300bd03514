//! Rights of nodes to mount volumes, for orchestrators that attach and detach.

use crate::core::{Core, Halt, Step, halt};
use fusefs_cluster_state::{Command, Outcome, command};
use fusefs_types::{
    FsError, VolumeId,
    cluster::{MasterReply, PublishSpec},
};

impl Core {
    pub(super) async fn add_mounter(&self, node: &str) -> Step<MasterReply> {
        self.commit(Command::AddMounter((node.to_owned(), self.now_ns()))).await?;
        Ok(MasterReply::Ok)
    }

    pub(super) async fn publish_volume(&self, spec: &PublishSpec) -> Step<MasterReply> {
        match self.commit(Command::Publish(spec.clone())).await? {
            Outcome::Publication(p) => Ok(MasterReply::Published(p)),
            _ => halt(FsError::Io, "the masters' log answered something else than was asked"),
        }
    }

    /// Answered when the sessions of the right have ended at every partition (PROTOCOL 11); until then the call waits.
    pub(super) async fn unpublish_volume(&self, volume: &str, part: &str, node: &str) -> Step<MasterReply> {
        let (volume, part, node) = (volume.to_owned(), part.to_owned(), node.to_owned());
        let withdraw = command::Unpublish { volume, part, node, at_ns: self.now_ns() };
        self.commit(Command::Unpublish(withdraw.clone())).await?;
        self.kick.notify_waiters();
        while self.still_fencing(&withdraw) {
            if !self.leads() {
                return Err(Halt::Again);
            }
            self.news().await;
        }
        Ok(MasterReply::Ok)
    }

    fn still_fencing(&self, c: &command::Unpublish) -> bool {
        self.view(|s| {
            let Some(volume) = s.live_volume(&c.volume) else { return false };
            let mut left = s.publications_of(volume.id).filter(|p| p.ending && p.part == c.part);
            left.any(|p| c.node.is_empty() || p.node == c.node)
        })
    }

    pub(super) async fn list_publications(&self, volume: VolumeId) -> Step<MasterReply> {
        self.barrier().await?;
        let all = volume.0 == 0;
        Ok(MasterReply::Publications(
            self.view(|s| s.publications().filter(|p| all || p.volume == volume).cloned().collect()),
        ))
    }
}
