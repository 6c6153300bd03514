//! Sessions: open, renew, attach, close, revoke. Renewals are leader memory; everything else is committed.

use crate::core::{Ask, Core, Halt, Step, halt};
use bytes::Bytes;
use fusefs_cluster_state::{Command, Outcome, command, record::Session};
use fusefs_types::{
    FsError, Ino, PartitionId, SessionId, Token, VolumeId,
    auth::MountClaim,
    cluster::{LeaseGrant, MasterReply, Publication, SessionGrant, SessionRequest, SessionStatus},
    ops::Envelope,
};

const WITHDRAWN: &str = "the volume is not attached to this node any more";

impl Core {
    pub(super) async fn open_session(&self, envelope: &Envelope, r: &SessionRequest) -> Step<MasterReply> {
        let claim = self.mount_claim(envelope);
        if let Some(claim) = &claim {
            self.check_claim(claim, r).await?;
        }
        let resume = r.session.0 != 0;
        // The top bit of a session id marks objects that metanodes write.
        let session = if resume { r.session } else { SessionId((self.rng.next_u128() >> 1).max(1)) };
        let open = command::OpenSession {
            volume: r.volume.clone(),
            session,
            resume,
            mount: r.mount,
            token: r.token,
            client: r.client.clone(),
            read_only: r.read_only,
            at_ns: self.now_ns(),
        };
        match self.commit(Command::OpenSession(open)).await? {
            Outcome::Session(session, token) => {
                let volume = self.view(|s| s.session(session).map(|x| x.volume));
                if claim.is_some_and(|c| volume.is_some_and(|v| v != c.volume)) {
                    return halt(FsError::Fenced, WITHDRAWN); // another volume got the name in this moment
                }
                self.grant(session, token).await
            }
            _ => halt(FsError::Io, "the masters' log answered something else than was asked"),
        }
    }

    /// Whether a mount token's attachment exists and the request stays within it: its volume, its sessions, no writing
    /// beyond its right.
    async fn check_claim(&self, claim: &MountClaim, r: &SessionRequest) -> Step<()> {
        self.barrier().await?;
        self.view(|s| {
            if s.live_volume(&r.volume).is_none_or(|v| v.id != claim.volume) {
                return halt(FsError::Unauthenticated, "the mount token is for another volume");
            }
            let held = |p: &&Publication| p.generation == claim.generation && p.node == claim.node && !p.ending;
            let Some(right) = s.publications_of(claim.volume).find(held) else {
                return halt(FsError::Fenced, WITHDRAWN);
            };
            if !right.writer && !r.read_only {
                return halt(FsError::Unauthenticated, "the mount token is for reading only");
            }
            let named = |x: &&Session| x.id == r.session || (r.mount.0 != 0 && x.mount == r.mount);
            if s.sessions().filter(named).any(|x| x.volume != claim.volume || x.token.attach != claim.generation) {
                return halt(FsError::Unauthenticated, "the session is not of the mount token's attachment");
            }
            Ok(())
        })
    }

    async fn grant(&self, session: SessionId, token: Token) -> Step<MasterReply> {
        self.memory.lock().renewed.insert(session, self.clock.boot_ns());
        let found = self.view(|s| {
            let volume = s.session(session).and_then(|x| s.volume(x.volume))?;
            Some((volume.clone(), s.store(volume.store)?.clone(), s.cluster()))
        });
        let Some((volume, store, cluster)) = found else {
            return halt(FsError::NotFound, "the volume was deleted meanwhile");
        };
        let credentials = self.stores.credentials(&store).await?;
        let Some(map) = self.map(volume.id) else {
            return halt(FsError::NotFound, "the volume was deleted meanwhile");
        };
        let usage = self.memory.lock().usage(&volume.partitions);
        let secret = self.token.as_ref().map(|t| t.session_secret(session, volume.id));
        Ok(MasterReply::Session(Box::new(SessionGrant {
            cluster,
            session,
            token,
            secret: secret.map_or_else(Bytes::new, |s| Bytes::copy_from_slice(&s)),
            lease_ms: self.settings.lease_ms,
            credit: (credit(volume.capacity, usage.bytes), credit(volume.inodes, usage.inodes)),
            volume: volume.record(usage),
            map,
            store,
            credentials,
            root: Ino::ROOT,
        })))
    }

    pub(super) async fn renew_session(&self, session: SessionId, token: Token) -> Step<MasterReply> {
        self.barrier().await?;
        let found = self.view(|s| {
            let x = s.session(session).filter(|x| x.ending.is_none())?;
            Some((x.token, s.volume(x.volume).cloned()))
        });
        let Some((highest, volume)) = found else {
            return halt(FsError::Stale, "the session was ended by the cluster; mount again");
        };
        if token < highest {
            return halt(FsError::Fenced, "a newer incarnation or attachment of this session exists");
        }
        self.memory.lock().renewed.insert(session, self.clock.boot_ns());
        let map_generation = volume.as_ref().map_or(0, |v| v.generation);
        // Not inside the view: others look at the state while they have the memory.
        let space = volume.map(|v| v.record(self.memory.lock().usage(&v.partitions)).space());
        Ok(MasterReply::Lease(LeaseGrant { ms: self.settings.lease_ms, map_generation, space }))
    }

    pub(super) async fn attach_session(&self, s: SessionId, p: PartitionId, token: Token) -> Step<MasterReply> {
        // A client names its token itself: it must not move its session to the right of another node.
        let held = self.view(|st| st.session(s).map_or(0, |x| x.token.attach));
        if held != 0 && held != token.attach {
            return halt(FsError::Fenced, "the session was opened under another attach generation");
        }
        let attach = command::Attach { session: s, partition: p, token };
        match self.commit(Command::AttachSession(attach)).await? {
            Outcome::Token(token) => Ok(MasterReply::Attached(token)),
            _ => halt(FsError::Io, "the masters' log answered something else than was asked"),
        }
    }

    pub(super) async fn close_session(&self, session: SessionId, token: Token, leftovers: u64) -> Step<MasterReply> {
        self.end(session, Some(token), leftovers).await?;
        Ok(MasterReply::Ok)
    }

    /// "Fenced" is answered when every attached partition knows (PROTOCOL 11); until then the call waits.
    pub(super) async fn revoke_session(&self, session: SessionId, ask: &Ask) -> Step<MasterReply> {
        self.barrier().await?;
        if !ask.repeated && self.view(|s| s.session(session).is_none()) {
            return halt(FsError::NotFound, format!("no session {session}"));
        }
        self.end(session, None, 0).await?;
        while self.view(|s| s.session(session).is_some()) {
            if !self.leads() {
                return Err(Halt::Again);
            }
            self.news().await;
        }
        Ok(MasterReply::Ok)
    }

    pub(crate) async fn end(&self, session: SessionId, token: Option<Token>, leftovers: u64) -> Step<()> {
        let at_ns = self.now_ns();
        self.commit(Command::EndSession(command::EndSession { session, token, leftovers, at_ns })).await?;
        self.memory.lock().renewed.remove(&session);
        self.kick.notify_waiters();
        Ok(())
    }

    pub(super) async fn sessions_of(&self, partition: PartitionId) -> Step<MasterReply> {
        self.barrier().await?;
        Ok(MasterReply::Sessions(self.session_list(|s| s.attached.contains(&partition))))
    }

    pub(super) async fn list_sessions(&self, volume: VolumeId) -> Step<MasterReply> {
        self.barrier().await?;
        Ok(MasterReply::Sessions(self.session_list(|s| s.volume == volume)))
    }

    fn session_list(&self, wanted: impl Fn(&Session) -> bool) -> Vec<SessionStatus> {
        let memory = self.memory.lock();
        let now = self.clock.boot_ns();
        self.view(|s| {
            let found = s.sessions().filter(|x| wanted(x));
            found
                .map(|x| SessionStatus {
                    session: x.id,
                    volume: x.volume,
                    token: x.token,
                    client: x.client.clone(),
                    leased: x.ending.is_none() && memory.idle_ms(x.id, now) < self.settings.lease_ms,
                    attached: x.attached.iter().copied().collect(),
                    ending: x.ending.is_some(),
                })
                .collect()
        })
    }
}

/// What is left of a limit; unlimited stays unlimited.
fn credit(limit: u64, used: u64) -> u64 {
    if limit == 0 { u64::MAX } else { limit.saturating_sub(used) }
}
