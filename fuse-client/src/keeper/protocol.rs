//! Messages between the processes of one mount: one datagram each, over a unix socket that keeps message boundaries
//! (SOCK_SEQPACKET), fds beside them as SCM_RIGHTS.
//!
//! ```text
//! message = version u8, kind u8, fields;   text = length u16, bytes;   blob = length u32, bytes    (little-endian)
//! ```
//!
//! Decoding checks every bound and never panics: what does not fit exactly is [`Malformed`], and the connection ends.

/// Version of this protocol. Another one is refused, so that a half-done update is told instead of misread.
pub const VERSION: u8 = 1;
/// Longest message.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Longest name of an item.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest value of an item.
pub const ITEM_BYTES_MAX: usize = 48 * 1024;
/// Most items of one mount, and most names in one answer.
pub const ITEMS_MAX: usize = 64;
/// Most arguments of a watched command.
pub const ARGS_MAX: usize = 256;
/// Most fds with one message that mean something.
pub const FDS_MAX: usize = 3;

/// A message that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a malformed message, or one of another version")]
pub struct Malformed;

/// One message. Fds travel beside it; which ones is said at each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Keep this item (replacing the one of that name); at most one fd. Answer: `Ok`, after which the sender may let go.
    Put {
        /// Name.
        name: String,
        /// Value, opaque.
        bytes: Vec<u8>,
    },
    /// Answer: `Item` with its fd, or `Missing`.
    Get {
        /// Name.
        name: String,
    },
    /// Answer: `Names`.
    List,
    /// As `List`, for holders of many mounts: the names that follow this one. Answer: `Names`, none at the end.
    ListAfter {
        /// A name; `-` comes before all others.
        name: String,
    },
    /// Forget an item. Answer: `Ok`.
    Remove {
        /// Name.
        name: String,
    },
    /// Start this command again when the process behind the first fd ends. Fds: pidfd, executable, and optionally what
    /// becomes its standard input. Answer: `Ok`.
    Watch {
        /// Arguments after the program's name.
        args: Vec<Vec<u8>>,
    },
    /// Let everything go and end. Answer: `Ok`.
    End,
    /// A client says that it is there, before it touches anything. No answer.
    Hello,
    /// To the supervisor: replace the client by the executable whose fd comes along; the old one comes back when the new
    /// one does not serve in time. Answer when decided: `Ok` or `Error`.
    Upgrade {
        /// How long the new client may take.
        timeout_ms: u32,
    },
    /// To a hosted supervisor that has been given all items: start a client that serves. Answer: `Ok`.
    Begin,
    /// To the client: are you alive? Answer: `Pong` with the same number.
    Ping(u64),
    /// Yes.
    Pong(u64),
    /// Done.
    Ok,
    /// An item; its fd comes along if it has one.
    Item {
        /// Value.
        bytes: Vec<u8>,
    },
    /// No such item.
    Missing,
    /// Names of all items.
    Names(Vec<String>),
    /// Refused, in words.
    Error(String),
}

impl Message {
    /// Wire form.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, self.kind()];
        match self {
            Message::Put { name, bytes } => {
                text(&mut out, name.as_bytes());
                blob(&mut out, bytes);
            }
            Message::Get { name } | Message::Remove { name } | Message::ListAfter { name } => {
                text(&mut out, name.as_bytes())
            }
            Message::Watch { args } => list(&mut out, args.iter().map(Vec::as_slice)),
            Message::Upgrade { timeout_ms } => out.extend(timeout_ms.to_le_bytes()),
            Message::Ping(n) | Message::Pong(n) => out.extend(n.to_le_bytes()),
            Message::Item { bytes } => blob(&mut out, bytes),
            Message::Names(names) => list(&mut out, names.iter().map(|n| n.as_bytes())),
            Message::Error(e) => text(&mut out, e.as_bytes()),
            Message::List | Message::End | Message::Hello | Message::Ok | Message::Missing | Message::Begin => {}
        }
        out
    }

    fn kind(&self) -> u8 {
        match self {
            Message::Put { .. } => 1,
            Message::Get { .. } => 2,
            Message::List => 3,
            Message::Remove { .. } => 4,
            Message::Watch { .. } => 5,
            Message::End => 6,
            Message::ListAfter { .. } => 7,
            Message::Hello => 16,
            Message::Upgrade { .. } => 17,
            Message::Ping(_) => 18,
            Message::Pong(_) => 19,
            Message::Begin => 20,
            Message::Ok => 64,
            Message::Item { .. } => 65,
            Message::Missing => 66,
            Message::Names(_) => 67,
            Message::Error(_) => 68,
        }
    }

    /// Parses one datagram; every byte must belong to it.
    pub fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
        let mut r = Fields(bytes);
        if bytes.len() > MESSAGE_BYTES_MAX || r.u8()? != VERSION {
            return Err(Malformed);
        }
        let message = match r.u8()? {
            1 => Message::Put { name: r.name()?, bytes: r.blob()? },
            2 => Message::Get { name: r.name()? },
            3 => Message::List,
            4 => Message::Remove { name: r.name()? },
            5 => Message::Watch { args: r.list(ARGS_MAX)?.into_iter().map(<[u8]>::to_vec).collect() },
            6 => Message::End,
            7 => Message::ListAfter { name: r.name()? },
            16 => Message::Hello,
            17 => Message::Upgrade { timeout_ms: r.u32()? },
            18 => Message::Ping(r.u64()?),
            19 => Message::Pong(r.u64()?),
            20 => Message::Begin,
            64 => Message::Ok,
            65 => Message::Item { bytes: r.blob()? },
            66 => Message::Missing,
            67 => Message::Names(r.list(ITEMS_MAX)?.into_iter().map(name).collect::<Result<_, _>>()?),
            68 => Message::Error(String::from_utf8_lossy(r.text()?).into_owned()),
            _ => return Err(Malformed),
        };
        if r.0.is_empty() { Ok(message) } else { Err(Malformed) }
    }
}

fn text(out: &mut Vec<u8>, bytes: &[u8]) {
    let n = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend(n.to_le_bytes());
    out.extend(&bytes[..usize::from(n)]);
}

fn blob(out: &mut Vec<u8>, bytes: &[u8]) {
    let n = bytes.len().min(ITEM_BYTES_MAX);
    out.extend((n as u32).to_le_bytes());
    out.extend(&bytes[..n]);
}

fn list<'a>(out: &mut Vec<u8>, parts: impl ExactSizeIterator<Item = &'a [u8]>) {
    out.extend(u16::try_from(parts.len()).unwrap_or(u16::MAX).to_le_bytes());
    parts.for_each(|p| text(out, p));
}

/// Names are short and plain, so that they can be logged.
fn name(bytes: &[u8]) -> Result<String, Malformed> {
    let plain = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-_.".contains(b);
    if bytes.is_empty() || bytes.len() > NAME_BYTES_MAX || !bytes.iter().all(plain) {
        return Err(Malformed);
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| Malformed)
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }
    fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }
    fn text(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.u16()?;
        self.take(usize::from(n))
    }
    fn name(&mut self) -> Result<String, Malformed> {
        name(self.text()?)
    }
    fn blob(&mut self) -> Result<Vec<u8>, Malformed> {
        let n = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        if n > ITEM_BYTES_MAX {
            return Err(Malformed);
        }
        self.take(n).map(<[u8]>::to_vec)
    }
    fn list(&mut self, most: usize) -> Result<Vec<&'a [u8]>, Malformed> {
        let n = usize::from(self.u16()?);
        if n > most {
            return Err(Malformed);
        }
        (0..n).map(|_| self.text()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all() -> Vec<Message> {
        vec![
            Message::Put { name: "journal.0".into(), bytes: vec![1, 2, 3] },
            Message::Get { name: "fuse".into() },
            Message::List,
            Message::Remove { name: "x".into() },
            Message::Watch { args: vec![b"mount".to_vec(), vec![0xff, 0]] },
            Message::End,
            Message::Hello,
            Message::Upgrade { timeout_ms: 30_000 },
            Message::Ping(7),
            Message::Begin,
            Message::ListAfter { name: "-".into() },
            Message::Pong(u64::MAX),
            Message::Ok,
            Message::Item { bytes: vec![9; ITEM_BYTES_MAX] },
            Message::Missing,
            Message::Names(vec!["a".into(), "b".into()]),
            Message::Error("no".into()),
        ]
    }

    #[test]
    fn messages_come_back_and_cuts_and_extra_bytes_are_refused() {
        for m in all() {
            let bytes = m.encode();
            assert!(bytes.len() <= MESSAGE_BYTES_MAX);
            assert_eq!(Message::decode(&bytes).as_ref(), Ok(&m));
            for cut in 0..bytes.len().min(200) {
                assert_eq!(Message::decode(&bytes[..cut]), Err(Malformed), "{m:?} cut to {cut}");
            }
            let longer = [&bytes[..], &[0]].concat();
            assert_eq!(Message::decode(&longer), Err(Malformed), "{m:?}");
            let other = [&[VERSION + 1], &bytes[1..]].concat();
            assert_eq!(Message::decode(&other), Err(Malformed), "{m:?} of another version");
        }
    }

    #[test]
    fn names_are_plain() {
        for bad in ["", "A", "a/b", "a b", &"x".repeat(NAME_BYTES_MAX + 1)] {
            let bytes = Message::Get { name: bad.into() }.encode();
            assert_eq!(Message::decode(&bytes), Err(Malformed), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), fix in any::<bool>()) {
            if let (true, Some(first)) = (fix, bytes.first_mut()) {
                *first = VERSION;
            }
            if let Ok(m) = Message::decode(&bytes) {
                prop_assert_eq!(m.encode(), bytes);
            }
        }

        #[test]
        fn flipped_bytes_never_panic(which in 0usize..15, at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = all()[which].encode();
            let i = at.index(bytes.len());
            bytes[i] = to;
            let _ = Message::decode(&bytes);
        }
    }
}
