//! Sessions: open, attach, fence, end, and the look for what they left behind.

use crate::{ClusterState, apply::volume::no_volume, command::*, record::*, valid};
use fusefs_types::{FsError, Incarnation, SessionId, Token, cluster::VolumeState};
use std::collections::BTreeSet;

const FENCED: &str = "a newer incarnation or attachment of this session exists; this one must stop";
const ENDED: &str = "the session was ended by the cluster; mount again";

impl ClusterState {
    pub(super) fn open_session(&mut self, c: &OpenSession) -> Applied {
        let Some(volume) = self.live_volume(&c.volume).filter(|v| v.state == VolumeState::Ready).map(|v| v.id) else {
            return reject(FsError::NotFound, no_volume(&c.volume));
        };
        if c.client.len() > valid::TEXT_BYTES_MAX {
            return reject(FsError::Invalid, "the client's description is too long");
        }
        self.check_attach(volume, c.token)?;
        if c.resume {
            return self.resume_session(volume, c);
        }
        // The answer to the first try may have been lost: one kernel connection is one session.
        let again = |s: &&Session| c.mount.0 != 0 && s.mount == c.mount && s.volume == volume && s.ending.is_none();
        if let Some(s) = self.sessions.values().find(again) {
            let resume = OpenSession { session: s.id, ..c.clone() };
            return self.resume_session(volume, &resume);
        }
        let known = self.sessions.contains_key(&c.session) || self.sweeps.contains_key(&c.session);
        // The top bit marks objects that metanodes write, with the group's number in place of a session.
        if c.session.0 == 0 || c.session.0 >> 127 != 0 || known {
            return reject(FsError::Invalid, "the session id is not a fresh random one");
        }
        let token = at_least_first(c.token);
        self.sessions.insert(
            c.session,
            Session {
                id: c.session,
                volume,
                mount: c.mount,
                token,
                client: c.client.clone(),
                read_only: c.read_only,
                opened_ns: c.at_ns,
                attached: BTreeSet::new(),
                ending: None,
            },
        );
        Ok(Outcome::Session(c.session, token))
    }

    fn resume_session(&mut self, volume: fusefs_types::VolumeId, c: &OpenSession) -> Applied {
        let token = at_least_first(c.token);
        let s = self.open_session_mut(c.session)?;
        if s.volume != volume {
            return reject(FsError::Stale, "the session belongs to another volume");
        }
        if token < s.token || (token == s.token && s.mount != c.mount) {
            return reject(FsError::Fenced, FENCED);
        }
        s.token = token;
        s.mount = c.mount;
        s.client.clone_from(&c.client);
        s.read_only = c.read_only;
        Ok(Outcome::Session(s.id, token))
    }

    fn open_session_mut(&mut self, id: SessionId) -> Result<&mut Session, Reject> {
        match self.sessions.get_mut(&id).filter(|s| s.ending.is_none()) {
            Some(s) => Ok(s),
            None => reject(FsError::Stale, ENDED),
        }
    }

    pub(super) fn attach_session(&mut self, c: &Attach) -> Applied {
        let volume = self.partitions.get(&c.partition).map(|p| p.volume);
        if let Some(s) = self.sessions.get(&c.session).filter(|s| s.token.attach != c.token.attach) {
            self.check_attach(s.volume, c.token)?;
        }
        let s = self.open_session_mut(c.session)?;
        if volume != Some(s.volume) {
            return reject(FsError::Stale, "the partition does not belong to the session's volume");
        }
        if c.token < s.token {
            return reject(FsError::Fenced, FENCED);
        }
        s.token = c.token;
        s.attached.insert(c.partition);
        Ok(Outcome::Token(s.token))
    }

    pub(super) fn fence(&mut self, c: &Fence) -> Applied {
        let s = self.open_session_mut(c.session)?;
        s.token = s.token.max(c.token);
        Ok(Outcome::Token(s.token))
    }

    pub(super) fn end_session(&mut self, c: &EndSession) -> Applied {
        let Some(s) = self.sessions.get_mut(&c.session) else { return Ok(Outcome::Ok) };
        if c.token.is_some_and(|t| t < s.token) {
            return reject(FsError::Fenced, FENCED);
        }
        let revoked = c.token.is_none();
        if s.ending.is_none() {
            s.ending = Some(Ending { revoked, leftovers: c.leftovers, pending: s.attached.clone() });
        }
        self.finish_session(c.session, c.at_ns);
        Ok(Outcome::Ok)
    }

    pub(super) fn session_ended(&mut self, c: &SessionEnded) -> Applied {
        if let Some(ending) = self.sessions.get_mut(&c.session).and_then(|s| s.ending.as_mut()) {
            c.partitions.iter().for_each(|p| {
                ending.pending.remove(p);
            });
            self.finish_session(c.session, c.at_ns);
        }
        Ok(Outcome::Ok)
    }

    /// Removes an ended session once every partition knows; what it may have left behind is swept later.
    fn finish_session(&mut self, id: SessionId, at_ns: u64) {
        let done =
            |s: &Session| s.ending.as_ref().filter(|e| e.pending.is_empty()).map(|e| e.revoked || e.leftovers > 0);
        let Some(sweep) = self.sessions.get(&id).and_then(done) else { return };
        let Some(s) = self.sessions.remove(&id) else { return };
        let store = self.volumes.get(&s.volume).map(|v| v.store);
        if let (true, Some(store)) = (sweep, store) {
            let sweep = Sweep { session: id, volume: s.volume, store, since_ns: at_ns, round: SweepRound::First };
            self.sweeps.insert(id, sweep);
        }
        if s.token.attach != 0 {
            self.withdraw(s.volume);
        }
    }

    pub(super) fn sweep_done(&mut self, session: SessionId, round: SweepRound) -> Applied {
        match self.sweeps.get_mut(&session) {
            Some(s) if s.round == round && round == SweepRound::First => s.round = SweepRound::Second,
            Some(s) if s.round == round => {
                self.sweeps.remove(&session);
            }
            _ => {}
        }
        Ok(Outcome::Ok)
    }
}

/// Incarnations count from 1.
fn at_least_first(token: Token) -> Token {
    Token { incarnation: token.incarnation.max(Incarnation(1)), ..token }
}
