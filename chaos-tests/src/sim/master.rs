//! The masters as a script: one volume, its map, sessions and attachments. Always in agreement with themselves; how
//! real masters fail is their own suite's matter.

use crate::sim::{
    lock,
    net::Net,
    world::{CLUSTER, NODES, VOLUME, volume},
};
use bytes::Bytes;
use fusefs_types::{
    FsError, Ino, PartitionId, SessionId, StoreId,
    cluster::{
        LeaseGrant, MasterCall, MasterRefusal, MasterReply, NodeCall, SessionGrant, StoreCredentials, StoreKind,
        StoreRecord, VolumeMap,
    },
    limits,
    ops::Envelope,
    txn::Internal,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

#[derive(Default)]
struct State {
    map: VolumeMap,
    /// Attached partitions by session; None = ended.
    sessions: BTreeMap<SessionId, Option<BTreeSet<PartitionId>>>,
}

/// The scripted masters.
#[derive(Default)]
pub struct Master(Mutex<State>);

fn refuse(error: FsError, message: &str) -> MasterRefusal {
    MasterRefusal { error, message: message.into(), leader: None }
}

/// The object store of the volume; nothing is ever put there.
pub fn store() -> StoreRecord {
    StoreRecord {
        id: StoreId(1),
        name: "mem".into(),
        kind: StoreKind::Memory,
        endpoint: "simulation".into(),
        region: String::new(),
        bucket: String::new(),
        prefix: "s".into(),
        path_style: true,
        credential: String::new(),
        probe: Vec::new(),
    }
}

impl Master {
    /// Publishes the map.
    pub fn publish(&self, map: VolumeMap) {
        lock(&self.0).map = map;
    }

    /// The map.
    pub fn map(&self) -> VolumeMap {
        lock(&self.0).map.clone()
    }

    /// Answers one call.
    pub async fn handle(&self, net: &Net, call: &MasterCall) -> Result<MasterReply, MasterRefusal> {
        match call {
            MasterCall::Register(_) => Ok(MasterReply::Registered(CLUSTER)),
            MasterCall::Heartbeat(_) => Ok(MasterReply::Ok),
            MasterCall::GetMap(_) => Ok(MasterReply::Map(self.map())),
            MasterCall::StoreAccess(_) => Ok(MasterReply::StoreAccess(store(), StoreCredentials::default())),
            MasterCall::OpenSession(request) => {
                let mut state = lock(&self.0);
                // A repeated request of the same mount is the same session.
                let session = SessionId(request.mount.0);
                state.sessions.entry(session).or_insert_with(|| Some(BTreeSet::new()));
                Ok(MasterReply::Session(Box::new(SessionGrant {
                    cluster: CLUSTER,
                    session,
                    token: request.token,
                    secret: Bytes::new(),
                    lease_ms: limits::LEASE_MS,
                    volume: volume(),
                    map: state.map.clone(),
                    store: store(),
                    credentials: StoreCredentials::default(),
                    root: Ino::ROOT,
                    credit: (u64::MAX, u64::MAX),
                })))
            }
            MasterCall::RenewSession(session, _) => match lock(&self.0).sessions.get(session) {
                Some(Some(_)) => {
                    Ok(MasterReply::Lease(LeaseGrant { ms: limits::LEASE_MS, map_generation: 1, space: None }))
                }
                _ => Err(refuse(FsError::Stale, "the session ended")),
            },
            MasterCall::AttachSession(session, partition, token) => match lock(&self.0).sessions.get_mut(session) {
                Some(Some(attached)) => {
                    attached.insert(*partition);
                    Ok(MasterReply::Attached(*token))
                }
                _ => Err(refuse(FsError::Stale, "the session ended")),
            },
            MasterCall::CloseSession(session, ..) => self.close(net, *session).await,
            _ => Err(refuse(FsError::NotSupported, "not in the script")),
        }
    }

    /// Ends a session at every partition it is attached to, then forgets it.
    async fn close(&self, net: &Net, session: SessionId) -> Result<MasterReply, MasterRefusal> {
        let attached = match lock(&self.0).sessions.get(&session) {
            Some(Some(attached)) => attached.clone(),
            _ => return Ok(MasterReply::Ok),
        };
        for partition in attached {
            let end = Internal::EndSession { session, revoked: false };
            let mut done = false;
            for node in (0..NODES).cycle().take(60 * NODES) {
                let Some(live) = net.live(node) else { continue };
                let envelope = Envelope { cluster: CLUSTER, volume: VOLUME, deadline_ms: 2_000, ..Envelope::default() };
                done = live.core.call(envelope, NodeCall::Command(partition, end.clone())).await.is_ok();
                if done {
                    break;
                }
                crate::sim::env::pause_ms(50).await;
            }
            if !done {
                return Err(refuse(FsError::Unavailable, "a partition could not be told"));
            }
        }
        lock(&self.0).sessions.insert(session, None);
        Ok(MasterReply::Ok)
    }
}
