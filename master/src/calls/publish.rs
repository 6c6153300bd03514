//! Rights of nodes to mount volumes, for orchestrators that attach and detach.

use crate::core::{Core, Halt, NS_PER_S, Step, halt};
use fusefs_cluster_state::{Command, Outcome, command};
use fusefs_types::{
    FsError, VolumeId,
    auth::MountClaim,
    cluster::{MasterReply, Publication, PublishSpec},
};

/// How long a mount token is good for, in seconds: a week. A mount needs one whenever its client starts, so whoever keeps
/// the mount asks for a new one from time to time.
const MOUNT_TOKEN_S: u64 = 7 * 24 * 3600;

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

    /// A token for a right that exists. It says nothing that the cluster token's holder could not do himself.
    pub(super) async fn mount_token(&self, volume: &str, node: &str, generation: u64) -> Step<MasterReply> {
        self.barrier().await?;
        let found = self.view(|s| {
            let volume = s.live_volume(volume)?.id;
            let held = |p: &Publication| p.node == node && p.generation == generation && !p.ending;
            s.publications_of(volume).any(held).then_some(volume)
        });
        let Some(volume) = found else {
            return halt(FsError::Fenced, "the volume is not attached to this node (any more)");
        };
        let expires_s = (self.now_ns() / NS_PER_S).saturating_add(MOUNT_TOKEN_S);
        let claim = MountClaim { volume, generation, node: node.to_owned(), expires_s };
        Ok(MasterReply::MountToken(self.token.as_ref().map(|t| t.mount_token(&claim)).unwrap_or_default()))
    }

    pub(super) async fn list_publications(&self, volume: VolumeId) -> Step<MasterReply> {
        self.barrier().await?;
        let all = volume.0 == 0;
        Ok(MasterReply::Publications(
            self.view(|s| s.publications().filter(|p| all || p.volume == volume).cloned().collect()),
        ))
    }
}
