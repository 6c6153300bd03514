//! INIT: what is asked of the kernel, and the record of it that a later client process resumes from.

use super::abi::{self, IO_BYTES, IO_PAGES, Out, UNIQUE_RESEND, init, notify};
use super::buffers::Pinned;
use super::decode::{Header, InitIn, Layout, Message, Op};
use super::slots::{SlotFile, Slots};
use crate::keeper::sys;
use bytes::{BufMut, Bytes, BytesMut};
use nix::poll::PollFlags;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Background requests (read-ahead, asynchronous direct I/O) in flight.
const BACKGROUND: u16 = 128;
/// Time stamps are exact to this many nanoseconds.
const TIME_GRANULARITY: u32 = 1;
/// Backing files of passthrough may not be stacked themselves.
const STACK_DEPTH: u32 = 1;

/// Format of [`InitRecord`].
const RECORD_VERSION: u8 = 1;
/// Version, layout bits, length of the reply.
const RECORD_HEAD: usize = 4;
const LAYOUT_SETXATTR_EXT: u8 = 1;
const LAYOUT_POSIX_ACL: u8 = 2;
const LAYOUT_RESEND: u8 = 4;

/// Wanted where the kernel has it; a flag is here only if everything that it changes is handled (PROTOCOL 43).
///
/// Never: WRITEBACK_CACHE (the kernel would own size and mtime), ATOMIC_O_TRUNC (open would become a mutation),
/// SECURITY_CTX (contexts are not stored), HANDLE_KILLPRIV_V2 (every write would have to drop file capabilities).
const WANTED: u64 = init::ASYNC_READ
    | init::EXPORT_SUPPORT
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::POSIX_ACL
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::SETXATTR_EXT
    | init::INIT_EXT
    | init::CREATE_SUPP_GROUP
    | init::DIRECT_IO_ALLOW_MMAP
    | init::PASSTHROUGH
    | init::HAS_RESEND
    | init::ALLOW_IDMAP;

/// Asked for when locks go to the cluster.
const LOCKS: u64 = init::POSIX_LOCKS | init::FLOCK_LOCKS;

/// What a mount asks for beyond what every mount does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitOptions {
    /// flock(2) and fcntl(2) locks are sent here. Holds for the life of the connection.
    pub locks: bool,
}

/// The negotiated INIT, opaque to whoever keeps it: version, layout bits and the reply as the kernel got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitRecord(pub Bytes);

impl InitRecord {
    fn new(layout: u8, reply: &[u8]) -> InitRecord {
        let mut bytes = BytesMut::with_capacity(RECORD_HEAD + reply.len());
        bytes.put_slice(&[RECORD_VERSION, layout]);
        bytes.put_u16_le(reply.len() as u16); // 64
        bytes.put_slice(reply);
        InitRecord(bytes.freeze())
    }

    /// Takes it apart. An error when another version of this program wrote it in a format of its own: the mount cannot
    /// be resumed.
    pub fn open(&self) -> io::Result<Negotiated> {
        let damaged = || io::Error::new(io::ErrorKind::InvalidData, "the INIT record is damaged or of a newer version");
        let (head, reply) = self.0.split_at_checked(RECORD_HEAD).ok_or_else(damaged)?;
        let len = usize::from(u16::from_le_bytes([head[2], head[3]]));
        if head[0] != RECORD_VERSION || reply.len() != len {
            return Err(damaged());
        }
        let has = |bit: u8| head[1] & bit != 0;
        Ok(Negotiated {
            layout: Layout { setxattr_ext: has(LAYOUT_SETXATTR_EXT) },
            posix_acl: has(LAYOUT_POSIX_ACL),
            resend: has(LAYOUT_RESEND),
            reply: self.0.slice(RECORD_HEAD..),
        })
    }
}

/// What [`InitRecord`] says.
#[derive(Clone, Debug)]
pub struct Negotiated {
    /// Layouts of requests.
    pub layout: Layout,
    /// The kernel asks for access control lists before it judges.
    pub posix_acl: bool,
    /// The kernel can send requests again.
    pub resend: bool,
    reply: Bytes,
}

impl Negotiated {
    /// The whole answer to an INIT that is read (again).
    pub fn reply(&self, raw_unique: u64) -> Vec<u8> {
        let mut out = Out::default();
        out.put(&self.reply);
        out.finish(0, raw_unique, 0).to_vec()
    }
}

/// Answer to an INIT.
enum Answer {
    /// Settled.
    Record(InitRecord),
    /// The kernel speaks a newer major version and asks again in ours.
    AskAgain,
    /// This kernel is too old or of another kind.
    Refused,
}

fn negotiate(asked: &InitIn, options: InitOptions) -> Answer {
    if asked.major > abi::MAJOR {
        return Answer::AskAgain;
    }
    if asked.major < abi::MAJOR || asked.minor < abi::MINOR_MIN {
        return Answer::Refused;
    }
    let wanted = WANTED | if options.locks { LOCKS } else { 0 };
    let flags = wanted & asked.flags;
    let mut out = Out::default();
    out.u32(abi::MAJOR).u32(abi::MINOR).u32(asked.max_readahead.min(IO_BYTES)).u32(flags as u32);
    out.u16(BACKGROUND).u16(BACKGROUND * 3 / 4).u32(IO_BYTES).u32(TIME_GRANULARITY).u16(IO_PAGES).u16(0);
    let depth = if flags & init::PASSTHROUGH != 0 { STACK_DEPTH } else { 0 };
    out.u32((flags >> 32) as u32).u32(depth).zeros(6 * 4);
    let bit = |flag: u64, bit: u8| if flags & flag != 0 { bit } else { 0 };
    let layout = bit(init::SETXATTR_EXT, LAYOUT_SETXATTR_EXT)
        | bit(init::POSIX_ACL, LAYOUT_POSIX_ACL)
        | bit(init::HAS_RESEND, LAYOUT_RESEND);
    Answer::Record(InitRecord::new(layout, out.body()))
}

/// Reads INIT from a fresh fd and answers it; an error when somebody did before. `keep` stores the record BEFORE the reply is written, so that whoever comes
/// after a crash either finds INIT unanswered or knows the answer.
pub fn handshake(fd: BorrowedFd<'_>, keep: impl FnOnce(&InitRecord) -> io::Result<()>) -> io::Result<InitRecord> {
    handshake_with(fd, InitOptions::default(), keep)
}

/// As [`handshake`], with options. EPROTO when the kernel is too old (before Linux 5.4); the mount is then dead.
pub fn handshake_with(
    fd: BorrowedFd<'_>,
    options: InitOptions,
    keep: impl FnOnce(&InitRecord) -> io::Result<()>,
) -> io::Result<InitRecord> {
    let device = File::from(fd.try_clone_to_owned()?);
    // An INIT that a process read which died at once comes again; kernels without RESEND refuse this, and lose it.
    let _ = (&device).write(&resend());
    private(&device, options, keep)
}

/// An earlier process answered INIT, and the record of its answer died with it and its holders.
fn lost() -> io::Error {
    io::Error::other("INIT was answered by a process that is gone, and nobody knows how")
}

/// INIT is there for whoever reads until somebody answers: the kernel queues it with the mount, and again when it is asked
/// to. Where nothing is there it would be waited for in vain.
fn expected(device: &File) -> io::Result<()> {
    sys::readiness(device.as_fd(), PollFlags::POLLIN, 0).map(drop).ok_or_else(lost)
}

/// As [`handshake_with`]; where the kernel cannot send INIT again (or with `always`), it is read into a slot, so that the
/// next process has it if this one dies before the reply was written.
pub fn handshake_in_slots(
    fd: BorrowedFd<'_>,
    options: InitOptions,
    file: SlotFile,
    always: bool,
    keep: impl FnOnce(&InitRecord) -> io::Result<()>,
) -> io::Result<InitRecord> {
    let device = File::from(fd.try_clone_to_owned()?);
    if !always && (&device).write(&resend()).is_ok() {
        return private(&device, options, keep);
    }
    let (slots, mut keep) = (Slots::open(file)?, Some(keep));
    for mut held in slots.occupied()? {
        let record = answer(&device, held.message(), options, &mut keep)?;
        held.release();
        if let Some(record) = record {
            return Ok(record);
        }
    }
    expected(&device)?;
    loop {
        // The others are free: nothing but INIT was ever read.
        let mut held = slots.take(Duration::ZERO)?.ok_or_else(|| io::Error::other("no free slot for INIT"))?;
        let read = (&device).read(held.buffer());
        if read.is_err() {
            held.release();
        }
        if retried(read)?.is_none() {
            continue;
        }
        let record = answer(&device, held.message(), options, &mut keep)?;
        held.release();
        if let Some(record) = record {
            return Ok(record);
        }
    }
}

fn private(
    mut device: &File,
    options: InitOptions,
    keep: impl FnOnce(&InitRecord) -> io::Result<()>,
) -> io::Result<InitRecord> {
    let (mut buffer, mut keep) = (Pinned::new(abi::REQUEST_BYTES)?, Some(keep));
    expected(device)?;
    loop {
        let Some(n) = retried(device.read(buffer.ready()?))? else { continue };
        let message = buffer.bytes().get(..n).unwrap_or_default();
        if let Some(record) = answer(device, message, options, &mut keep)? {
            return Ok(record);
        }
    }
}

/// None = to be read again.
fn retried(read: io::Result<usize>) -> io::Result<Option<usize>> {
    match read {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOENT)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Answers one message. None = INIT is still to come. `keep` is used up by the record.
fn answer(
    mut device: &File,
    message: &[u8],
    options: InitOptions,
    keep: &mut Option<impl FnOnce(&InitRecord) -> io::Result<()>>,
) -> io::Result<Option<InitRecord>> {
    let Ok(header) = Header::parse(message) else { return Ok(None) };
    let Ok(Message { op: Op::Init(asked), .. }) = Message::parse(message, Layout::default()) else {
        // Before INIT the kernel sends nothing else.
        let _ = device.write(Out::default().finish(-libc::EIO, header.raw_unique, 0));
        return Err(lost());
    };
    match negotiate(&asked, options) {
        Answer::Record(record) => {
            keep.take().map_or(Ok(()), |keep| keep(&record))?;
            device.write_all(&record.open()?.reply(header.raw_unique))?;
            Ok(Some(record))
        }
        Answer::AskAgain => {
            let mut out = Out::default();
            out.u32(abi::MAJOR).u32(abi::MINOR).zeros(56);
            device.write_all(out.finish(0, header.raw_unique, 0))?;
            Ok(None)
        }
        Answer::Refused => {
            let _ = device.write(Out::default().finish(-libc::EPROTO, header.raw_unique, 0));
            Err(io::Error::from_raw_os_error(libc::EPROTO))
        }
    }
}

/// The message that asks the kernel to send again what earlier processes read and did not answer.
pub(super) fn resend() -> [u8; abi::OUT_HEADER] {
    let mut message = [0; abi::OUT_HEADER];
    message.copy_from_slice(Out::default().finish(notify::RESEND, 0, 0));
    message
}

const _: () = assert!(UNIQUE_RESEND == 1 << 63);

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(flags: u64) -> InitIn {
        InitIn { major: 7, minor: 45, max_readahead: 128 << 10, flags }
    }

    #[test]
    fn only_what_the_kernel_has_is_taken_and_the_reply_has_its_size() {
        let Answer::Record(record) = negotiate(&ask(u64::MAX), InitOptions::default()) else { panic!() };
        let open = record.open().unwrap();
        assert!(open.layout.setxattr_ext && open.posix_acl && open.resend);
        assert_eq!(open.reply(9).len(), 80);
        let flags = u32::from_ne_bytes(open.reply[12..16].try_into().unwrap());
        assert_eq!(u64::from(flags) & LOCKS, 0);
        for never in [1u64 << 3, 1 << 16, 1 << 28, 1 << 31] {
            assert_eq!(u64::from(flags) & never, 0);
        }
        let Answer::Record(plain) = negotiate(&ask(init::BIG_WRITES), InitOptions { locks: true }) else { panic!() };
        let open = plain.open().unwrap();
        assert!(!open.layout.setxattr_ext && !open.resend);
        assert_eq!(open.reply[12..16], (init::BIG_WRITES as u32).to_ne_bytes());
        let Answer::Record(locks) = negotiate(&ask(u64::MAX), InitOptions { locks: true }) else { panic!() };
        let flags = u32::from_ne_bytes(locks.open().unwrap().reply[12..16].try_into().unwrap());
        assert_eq!(u64::from(flags) & LOCKS, LOCKS);
    }

    #[test]
    fn other_versions_are_told_apart() {
        let with = |major, minor| negotiate(&InitIn { major, minor, ..ask(0) }, InitOptions::default());
        assert!(matches!(with(8, 0), Answer::AskAgain));
        assert!(matches!(with(6, 99), Answer::Refused));
        assert!(matches!(with(7, 30), Answer::Refused));
        assert!(matches!(with(7, 99), Answer::Record(_)));
    }

    #[test]
    fn a_damaged_record_is_refused() {
        let Answer::Record(record) = negotiate(&ask(u64::MAX), InitOptions::default()) else { panic!() };
        for len in 0..record.0.len() {
            assert!(InitRecord(record.0.slice(..len)).open().is_err());
        }
        let mut newer = record.0.to_vec();
        newer[0] = RECORD_VERSION + 1;
        assert!(InitRecord(newer.into()).open().is_err());
    }
}
