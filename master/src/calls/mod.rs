//! The calls as the leader answers them.

mod info;
mod nodes;
mod publish;
mod sessions;
mod stores;
mod volumes;

use crate::core::{Ask, Core, Step};
use fusefs_cluster_state::{ClusterState, Command};
use fusefs_types::{
    ClusterId,
    cluster::{MasterCall, MasterReply},
    ops::Envelope,
};

impl Core {
    /// Answers a call as the leader.
    pub(crate) async fn lead(&self, envelope: &Envelope, call: &MasterCall, ask: &Ask) -> Step<MasterReply> {
        self.named().await?;
        match call {
            MasterCall::Register(node) => self.register(node).await,
            MasterCall::Heartbeat(h) => self.heartbeat(h).await,
            MasterCall::Info => self.info().await,
            MasterCall::AddStore(store) => self.add_store(store).await,
            MasterCall::ListStores => self.list_stores().await,
            MasterCall::ProbeStore(name) => self.probe_store(name).await,
            MasterCall::CreateVolume(spec) => self.create_volume(spec, ask).await,
            MasterCall::GetVolume(name) => self.get_volume(name).await,
            MasterCall::ListVolumes => self.list_volumes().await,
            MasterCall::ExpandVolume(name, capacity, inodes) => self.expand_volume(name, *capacity, *inodes).await,
            MasterCall::DeleteVolume(name, force) => self.delete_volume(name, *force, ask).await,
            MasterCall::GetMap(volume) => self.get_map(*volume).await,
            MasterCall::OpenSession(request) => self.open_session(envelope, request).await,
            MasterCall::RenewSession(session, token) => self.renew_session(*session, *token).await,
            MasterCall::AttachSession(session, partition, token) => {
                self.attach_session(*session, *partition, *token).await
            }
            MasterCall::CloseSession(session, token, leftovers) => {
                self.close_session(*session, *token, *leftovers).await
            }
            MasterCall::RevokeSession(session) => self.revoke_session(*session, ask).await,
            MasterCall::SessionsOf(partition) => self.sessions_of(*partition).await,
            MasterCall::ListSessions(volume) => self.list_sessions(*volume).await,
            MasterCall::StoreAccess(volume) => self.store_access(*volume).await,
            MasterCall::AddMounter(node) => self.add_mounter(node).await,
            MasterCall::PublishVolume(spec) => self.publish_volume(spec).await,
            MasterCall::UnpublishVolume(volume, part, node) => self.unpublish_volume(volume, part, node).await,
            MasterCall::ListPublications(volume) => self.list_publications(*volume).await,
            MasterCall::MountToken(volume, node, generation) => self.mount_token(volume, node, *generation).await,
        }
    }

    /// The first leader of a new cluster names it.
    pub(crate) async fn named(&self) -> Step<ClusterId> {
        let name = self.view(ClusterState::cluster);
        if name.0 != 0 {
            return Ok(name);
        }
        self.commit(Command::Init(ClusterId(self.rng.next_u128()))).await?;
        Ok(self.view(ClusterState::cluster))
    }

    /// Reads after it see everything that was answered before the call, by whichever leader. Also what makes a refusal or
    /// a lease true: a leader that was cut off does not know that it has been replaced.
    pub(crate) async fn barrier(&self) -> Step<()> {
        Ok(self.log.barrier().await?)
    }
}
