//! Small items that the processes of a mount write for each other, as text.

use crate::keeper::sys;

/// Names of items. The keeper does not know them.
pub mod names {
    /// /dev/fuse.
    pub const FUSE: &str = "fuse";
    /// Negotiated INIT (written by the client).
    pub const INIT: &str = "init";
    /// Journal files: this and a number.
    pub const JOURNAL: &str = "journal.";
    /// Memory file with the table of open handles.
    pub const HANDLES: &str = "handles";
    /// Memory file with request slots, for kernels without RESEND.
    pub const SLOTS: &str = "slots";
    /// [`super::super::SLOTS_MODE`] when slots are to be used on every kernel.
    pub const RECOVERY: &str = "recovery";
    /// Session of the mount (written by the client).
    pub const SESSION: &str = "session";
    /// Id of the kernel connection, 16 bytes.
    pub const MOUNT: &str = "mount";
    /// Options of the mount, for the client.
    pub const SPEC: &str = "spec";
    /// Executable of the client.
    pub const BINARY: &str = "binary";
    /// Which client works: a [`super::ClientRecord`].
    pub const CLIENT: &str = "client";
    /// How the mount ended: a [`super::EndRecord`].
    pub const ENDED: &str = "ended";
    /// Directories of the mount.
    pub const DIRS: &str = "dirs";
    /// What proves to the masters that this mount may have a session (only where somebody else mounts for the client).
    pub const CREDENTIAL: &str = "credential";
    /// How a hosted mount ended: a [`super::Outcome`].
    pub const OUTCOME: &str = "outcome";
    /// Session of a journal that cannot be replayed and has to be put aside.
    pub const PARK: &str = "park";
}

/// Exit code of a client that asks to put the journal aside and start with a fresh one.
pub const EXIT_PARK: i32 = 75;

/// How far a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It has the journal and prepares.
    Starting,
    /// It answers the kernel.
    Serving,
    /// It answers the kernel with errors until the unmount, because the session is gone.
    Poisoned,
}

/// The client at work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// Process.
    pub pid: u32,
    /// Its start time: a number that was given to another process later is not taken for it.
    pub start: u64,
    /// How far it is.
    pub phase: Phase,
}

impl ClientRecord {
    /// Of this process.
    pub fn own(phase: Phase) -> ClientRecord {
        let pid = std::process::id();
        ClientRecord { pid, start: sys::start_time(pid).unwrap_or(0), phase }
    }
    /// Whether that process still runs.
    pub fn alive(&self) -> bool {
        sys::start_time(self.pid) == Some(self.start)
    }
    /// As text.
    pub fn encode(&self) -> Vec<u8> {
        let phase = match self.phase {
            Phase::Starting => "starting",
            Phase::Serving => "serving",
            Phase::Poisoned => "poisoned",
        };
        format!("{} {} {phase}", self.pid, self.start).into_bytes()
    }
    /// From text.
    pub fn decode(bytes: &[u8]) -> Option<ClientRecord> {
        let mut words = std::str::from_utf8(bytes).ok()?.split(' ');
        let (pid, start) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let phase = match words.next()? {
            "starting" => Phase::Starting,
            "serving" => Phase::Serving,
            "poisoned" => Phase::Poisoned,
            _ => return None,
        };
        Some(ClientRecord { pid, start, phase })
    }
}

/// The end of a mount, as its last client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndRecord {
    /// Bytes that are not in the store.
    pub unflushed: u64,
    /// Whether the cluster had ended the session before.
    pub poisoned: bool,
}

impl EndRecord {
    /// As text.
    pub fn encode(&self) -> Vec<u8> {
        format!("{} {}", self.unflushed, u8::from(self.poisoned)).into_bytes()
    }
    /// From text.
    pub fn decode(bytes: &[u8]) -> Option<EndRecord> {
        let (unflushed, poisoned) = std::str::from_utf8(bytes).ok()?.split_once(' ')?;
        Some(EndRecord { unflushed: unflushed.parse().ok()?, poisoned: poisoned == "1" })
    }
}

/// The end of a hosted mount, for whoever mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Unmounted; so many bytes are not in the store but in the journal.
    Ended(u64),
    /// The journal belongs to a session that is over. It has to be put aside, then the mount may begin again.
    Park,
    /// The client could not start; why is in its log.
    Failed(String),
}

impl Outcome {
    /// As text.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Outcome::Ended(unflushed) => format!("ended {unflushed}"),
            Outcome::Park => "park".into(),
            Outcome::Failed(why) => format!("failed {why}"),
        }
        .into_bytes()
    }
    /// From text.
    pub fn decode(bytes: &[u8]) -> Option<Outcome> {
        let text = std::str::from_utf8(bytes).ok()?;
        match text.split_once(' ') {
            None => (text == "park").then_some(Outcome::Park),
            Some(("ended", n)) => n.parse().ok().map(Outcome::Ended),
            Some(("failed", why)) => Some(Outcome::Failed(why.into())),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_come_back() {
        for o in [Outcome::Ended(0), Outcome::Ended(9), Outcome::Park, Outcome::Failed("code 1".into())] {
            assert_eq!(Outcome::decode(&o.encode()), Some(o));
        }
        for bad in [&b""[..], b"ended", b"ended x", b"dancing 1", b"\xff"] {
            assert_eq!(Outcome::decode(bad), None);
        }
    }

    #[test]
    fn records_come_back_and_rubbish_is_none() {
        for phase in [Phase::Starting, Phase::Serving, Phase::Poisoned] {
            let r = ClientRecord::own(phase);
            assert_eq!(ClientRecord::decode(&r.encode()), Some(r));
            assert!(r.alive());
            assert!(!ClientRecord { start: r.start + 1, ..r }.alive());
        }
        let e = EndRecord { unflushed: 7, poisoned: true };
        assert_eq!(EndRecord::decode(&e.encode()), Some(e));
        for bad in [&b""[..], b"1", b"1 2", b"x y serving", b"1 2 dancing", b"\xff"] {
            assert_eq!(ClientRecord::decode(bad), None);
        }
        assert_eq!(EndRecord::decode(b"12"), None);
    }
}
