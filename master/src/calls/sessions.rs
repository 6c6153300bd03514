//! Sessions: open, renew, attach, close, revoke. Renewals are leader memory; everything else is committed.

use crate::core::{Ask, Core, Halt, Step, halt};
use bytes::Bytes;
use fusefs_cluster_state::{Command, Outcome, command, record::Session};
use fusefs_types::{
    FsError, Ino, PartitionId, SessionId, Token, VolumeId,
    cluster::{MasterReply, SessionGrant, SessionRequest, SessionStatus},
};

impl Core {
    pub(super) async fn open_session(&self, r: &SessionRequest) -> Step<MasterReply> {
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
            Outcome::Session(session, token) => self.grant(session, token).await,
            _ => halt(FsError::Io, "the masters' log answered something else than was asked"),
        }
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
            Some((x.token, s.volume(x.volume).map_or(0, |v| v.generation)))
        });
        let Some((highest, generation)) = found else {
            return halt(FsError::Stale, "the session was ended by the cluster; mount again");
        };
        if token < highest {
            return halt(FsError::Fenced, "a newer incarnation or attachment of this session exists");
        }
        self.memory.lock().renewed.insert(session, self.clock.boot_ns());
        Ok(MasterReply::Lease(self.settings.lease_ms, generation))
    }

    pub(super) async fn attach_session(&self, s: SessionId, p: PartitionId, token: Token) -> Step<MasterReply> {
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
