//! Valid messages of every opcode, cut everywhere, changed everywhere; and the corpus in `tests/corpus`.

use super::*;
use crate::fuse::kernel::abi::op::*;
use proptest::prelude::*;
use std::path::PathBuf;

const LONG: Layout = Layout { setxattr_ext: true };

/// A message under construction.
#[derive(Clone, Default)]
struct Build(Vec<u8>);

impl Build {
    fn u32(mut self, v: u32) -> Build {
        self.0.extend(v.to_ne_bytes());
        self
    }
    fn u64(mut self, v: u64) -> Build {
        self.0.extend(v.to_ne_bytes());
        self
    }
    fn bytes(mut self, b: &[u8]) -> Build {
        self.0.extend(b);
        self
    }
    fn name(self, n: &str) -> Build {
        self.bytes(n.as_bytes()).bytes(&[0])
    }
    fn message(self, opcode: u32) -> Vec<u8> {
        self.with_extensions(opcode, &[])
    }
    fn with_extensions(self, opcode: u32, extensions: &[u8]) -> Vec<u8> {
        let len = IN_HEADER + self.0.len() + extensions.len();
        let head = Build::default().u32(len as u32).u32(opcode).u64(UNIQUE_RESEND | 6).u64(77).u32(1).u32(2).u32(3);
        head.u32((extensions.len() / 8) as u32).bytes(&self.0).bytes(extensions).0
    }
}

fn b() -> Build {
    Build::default()
}

fn lock() -> Build {
    b().u64(1).u64(2).u64(3).u64(4).u32(1).u32(9).u32(abi::LK_FLOCK).u32(0)
}

fn copy() -> Build {
    b().u64(1).u64(2).u64(3).u64(4).u64(5).u64(6).u64(0)
}

fn read_in() -> Build {
    b().u64(8).u64(4096).u32(100).u32(0).u64(0).u32(0).u32(0)
}

fn setattr_in() -> Build {
    let head = b().u32(0x1ff).u32(0).u64(0).u64(10).u64(0).u64(-2i64 as u64).u64(20).u64(30).u32(1).u32(2).u32(3);
    head.u32(0o644).u32(0).u32(5).u32(6).u32(0)
}

fn groups_of(gids: &[u32]) -> Vec<u8> {
    let size = (12 + 4 * gids.len()).next_multiple_of(8);
    let mut ext = b().u32(size as u32).u32(EXT_GROUPS).u32(gids.len() as u32);
    for g in gids {
        ext = ext.u32(*g);
    }
    ext.0.resize(size, 0);
    ext.0
}

fn init_in() -> InitIn {
    InitIn { major: 7, minor: 45, max_readahead: 131072, flags: u64::from(abi::init::INIT_EXT as u32) | (3 << 32) }
}

/// Every opcode, with what it must become.
fn samples() -> Vec<(Vec<u8>, Op<'static>)> {
    let read = ReadIn { fh: 8, offset: 4096, size: 100 };
    let l = LockIn { fh: 1, owner: 2, start: 3, end: 4, kind: 1, pid: 9, flock: true };
    let c = CopyIn { from: 2, to_node: 3, to_fh: 4, to: 5, len: 6, wide: false };
    let set = SetattrIn { valid: 0x1ff, size: 10, atime: (-2, 1), mtime: (20, 2), mode: 0o644, uid: 5, gid: 6 };
    let write = WriteIn { fh: 8, offset: 9, flags: 1, data: b"data" };
    let write_in = b().u64(8).u64(9).u32(4).u32(0).u64(0).u32(1).u32(0).bytes(b"data");
    let init = b().u32(7).u32(45).u32(131072).u32(abi::init::INIT_EXT as u32).u32(3).bytes(&[0; 44]);
    vec![
        (b().name("n").message(LOOKUP), Op::Lookup { name: b"n" }),
        (b().u64(3).message(FORGET), Op::Forget { lookups: 3 }),
        (b().u64(0).u64(0).message(GETATTR), Op::Getattr),
        (setattr_in().message(SETATTR), Op::Setattr(set)),
        (b().message(READLINK), Op::Readlink),
        (b().name("n").name("to").message(SYMLINK), Op::Symlink { name: b"n", target: b"to" }),
        (
            b().u32(0o100644).u32(5).u32(0o22).u32(0).name("n").message(MKNOD),
            Op::Mknod { name: b"n", mode: 0o100644, rdev: 5, umask: 0o22 },
        ),
        (b().u32(0o755).u32(0o22).name("n").message(MKDIR), Op::Mkdir { name: b"n", mode: 0o755, umask: 0o22 }),
        (b().name("n").message(UNLINK), Op::Unlink { name: b"n" }),
        (b().name("n").message(RMDIR), Op::Rmdir { name: b"n" }),
        (
            b().u64(9).name("a").name("b").message(RENAME),
            Op::Rename { name: b"a", new_node: 9, new_name: b"b", flags: 0 },
        ),
        (
            b().u64(9).u32(1).u32(0).name("a").name("b").message(RENAME2),
            Op::Rename { name: b"a", new_node: 9, new_name: b"b", flags: 1 },
        ),
        (b().u64(9).name("n").message(LINK), Op::Link { node: 9, name: b"n" }),
        (b().u32(2).u32(0).message(OPEN), Op::Open { flags: 2 }),
        (read_in().message(READ), Op::Read(read)),
        (write_in.message(WRITE), Op::Write(write)),
        (b().message(STATFS), Op::Statfs),
        (
            b().u64(8).u32(2).u32(abi::RELEASE_FLOCK_UNLOCK).u64(5).message(RELEASE),
            Op::Release { fh: 8, owner: 5, flock_unlock: true },
        ),
        (b().u64(8).u32(1).u32(0).message(FSYNC), Op::Fsync { datasync: true }),
        (
            b().u32(3).u32(1).u32(0).u32(0).name("user.x").bytes(b"abc").message(SETXATTR),
            Op::Setxattr { name: b"user.x", value: b"abc", flags: 1 },
        ),
        (b().u32(9).u32(0).name("user.x").message(GETXATTR), Op::Getxattr { name: b"user.x", size: 9 }),
        (b().u32(9).u32(0).message(LISTXATTR), Op::Listxattr { size: 9 }),
        (b().name("user.x").message(REMOVEXATTR), Op::Removexattr { name: b"user.x" }),
        (b().u64(8).u64(0).u64(5).message(FLUSH), Op::Flush { fh: 8, owner: 5 }),
        (init.message(INIT), Op::Init(init_in())),
        (b().u32(2).u32(0).message(OPENDIR), Op::Opendir { flags: 2 }),
        (read_in().message(READDIR), Op::Readdir(read)),
        (b().u64(8).u32(0).u32(0).u64(0).message(RELEASEDIR), Op::Releasedir { fh: 8 }),
        (b().u64(8).u32(0).u32(0).message(FSYNCDIR), Op::Fsyncdir),
        (lock().message(GETLK), Op::Getlk(l)),
        (lock().message(SETLK), Op::Setlk { lock: l, wait: false }),
        (lock().message(SETLKW), Op::Setlk { lock: l, wait: true }),
        (b().u32(4).u32(0).message(ACCESS), Op::Access),
        (
            b().u32(2).u32(0o644).u32(0o22).u32(0).name("n").message(CREATE),
            Op::Create { name: b"n", flags: 2, mode: 0o644, umask: 0o22 },
        ),
        (b().u64(UNIQUE_RESEND | 8).message(INTERRUPT), Op::Interrupt { unique: 8 }),
        (b().u64(1).u32(512).u32(0).message(BMAP), Op::Bmap),
        (b().message(DESTROY), Op::Destroy),
        (b().u64(8).u32(0).u32(1).u64(2).u32(0).u32(0).message(IOCTL), Op::Ioctl),
        (b().u64(8).u64(1).u32(0).u32(5).message(POLL), Op::Poll { events: 5 }),
        (b().bytes(&[0; 40]).message(NOTIFY_REPLY), Op::NotifyReply),
        (
            b().u64(8).u64(1).u64(2).u32(3).u32(0).message(FALLOCATE),
            Op::Fallocate { fh: 8, offset: 1, len: 2, mode: 3 },
        ),
        (read_in().message(READDIRPLUS), Op::Readdirplus(read)),
        (b().u64(8).u64(-1i64 as u64).u32(3).u32(0).message(LSEEK), Op::Lseek { offset: -1, whence: 3 }),
        (copy().message(COPY_FILE_RANGE), Op::CopyFileRange(c)),
        (copy().message(COPY_FILE_RANGE_64), Op::CopyFileRange(CopyIn { wide: true, ..c })),
        (b().message(SETUPMAPPING), Op::Mapping),
        (b().message(REMOVEMAPPING), Op::Mapping),
        (b().u64(0).message(SYNCFS), Op::Syncfs),
        (
            b().u32(2).u32(0o600).u32(0).u32(0).name("#1").message(TMPFILE),
            Op::Tmpfile { flags: 2, mode: 0o600, umask: 0 },
        ),
        (b().u32(0).u32(0).u64(0).u32(0).u32(0xfff).message(STATX), Op::Statx),
        (b().message(54), Op::Unknown(54)),
        (b().message(7), Op::Unknown(7)),
        (b().message(19), Op::Unknown(19)),
        (b().message(u32::MAX), Op::Unknown(u32::MAX)),
    ]
}

/// What a server does with a message: nothing of it may panic, and what it holds lies inside.
fn exercise(bytes: &[u8]) {
    let _ = Header::parse(bytes);
    for layout in [LONG, Layout::default()] {
        let Ok(message) = Message::parse(bytes, layout) else { continue };
        assert_eq!(message.header.len as usize, bytes.len());
        assert!(message.gids.len() <= GROUPS_MAX * (bytes.len() / 8));
        if let Op::BatchForget(inodes) = message.op {
            assert!(inodes.iter().count() * 16 <= bytes.len());
        }
    }
}

fn corpus() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "corpus"].iter().collect()
}

/// As [`exercise`]; an input that fails is kept in the corpus.
fn exercise_and_keep(bytes: &[u8]) {
    if let Err(panic) = std::panic::catch_unwind(|| exercise(bytes)) {
        let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        let kept = corpus().join(format!("fault-{sum:016x}.bin"));
        std::fs::write(&kept, bytes).unwrap();
        println!("kept as {}", kept.display());
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn every_opcode_becomes_what_it_says() {
    let samples = samples();
    let known: std::collections::BTreeSet<u32> =
        samples.iter().map(|(bytes, _)| Header::parse(bytes).unwrap().opcode).collect();
    for opcode in (1..=COPY_FILE_RANGE_64).filter(|o| *o != BATCH_FORGET) {
        assert!(known.contains(&opcode), "opcode {opcode}");
    }
    for (bytes, want) in &samples {
        let message = Message::parse(bytes, LONG).unwrap();
        assert_eq!(message.op, *want);
        let h = message.header;
        assert_eq!((h.unique(), h.resent(), h.node, h.uid, h.gid, h.pid), (6, true, 77, 1, 2, 3));
        assert!(message.gids.is_empty());
    }
    let forgets = b().u32(2).u32(0).u64(5).u64(1).u64(6).u64(2).message(BATCH_FORGET);
    let Op::BatchForget(inodes) = Message::parse(&forgets, LONG).unwrap().op else { panic!() };
    assert_eq!(inodes.iter().collect::<Vec<_>>(), [(5, 1), (6, 2)]);
    let short = b().u32(3).u32(1).name("user.x").bytes(b"abc").message(SETXATTR);
    let want = Op::Setxattr { name: b"user.x", value: b"abc", flags: 1 };
    assert_eq!(Message::parse(&short, Layout::default()).unwrap().op, want);
}

#[test]
fn extensions_are_taken_off_the_end() {
    let context = b().u32(24).u32(1).u32(3).u32(0).bytes(b"abc\0def\0").0;
    let ext = [context, groups_of(&[100, 200])].concat();
    let bytes = b().u32(0o755).u32(0).name("n").with_extensions(MKDIR, &ext);
    let message = Message::parse(&bytes, LONG).unwrap();
    assert_eq!(message.gids, [100, 200]);
    assert_eq!(message.op, Op::Mkdir { name: b"n", mode: 0o755, umask: 0 });
    // More groups than bytes, and an extension that says it has no length.
    let mut lying = groups_of(&[1]);
    lying[8..12].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(Message::parse(&b().name("n").with_extensions(LOOKUP, &lying), LONG).is_err());
    let empty = b().u32(0).u32(EXT_GROUPS).0;
    assert!(Message::parse(&b().name("n").with_extensions(LOOKUP, &empty), LONG).is_err());
}

#[test]
fn cut_messages_are_refused_and_never_panic() {
    for (bytes, _) in samples() {
        for len in 0..bytes.len() {
            exercise(&bytes[..len]);
            assert!(Message::parse(&bytes[..len], LONG).is_err());
            // A header that claims exactly what is there.
            let mut honest = bytes[..len].to_vec();
            if len >= 4 {
                honest[..4].copy_from_slice(&(len as u32).to_ne_bytes());
            }
            exercise(&honest);
        }
    }
    let lie = b().u64(8).u64(9).u32(5).u32(0).u64(0).u32(1).u32(0).bytes(b"data").message(WRITE);
    assert!(Message::parse(&lie, LONG).is_err(), "a write of more than there is");
    assert!(Message::parse(&b().u32(u32::MAX).u32(0).u64(1).message(BATCH_FORGET), LONG).is_err());
    assert!(Message::parse(&b().bytes(b"no end").message(LOOKUP), LONG).is_err());
}

#[test]
fn the_corpus_is_harmless() {
    let mut seen = 0;
    for file in std::fs::read_dir(corpus()).unwrap().map(|e| e.unwrap().path()) {
        if file.extension().is_some_and(|e| e == "bin") {
            let bytes = std::fs::read(file).unwrap();
            (0..=bytes.len()).for_each(|len| exercise(&bytes[..len]));
            seen += 1;
        }
    }
    assert!(seen >= 50, "the corpus has every opcode: {seen}");
}

/// Writes the samples into the corpus: `FUSEFS_WRITE_CORPUS=1 cargo test -p fusefs-fuse-client corpus`.
#[test]
fn the_corpus_can_be_written_anew() {
    if std::env::var_os("FUSEFS_WRITE_CORPUS").is_none() {
        return;
    }
    let groups = b().u32(0o755).u32(0).name("n").with_extensions(MKDIR, &groups_of(&[100]));
    let forgets = b().u32(2).u32(0).u64(5).u64(1).u64(6).u64(2).message(BATCH_FORGET);
    let all = samples().into_iter().map(|s| s.0).chain([groups, forgets]);
    for (i, bytes) in all.enumerate() {
        std::fs::write(corpus().join(format!("sample-{i:02}.bin")), bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_never_panic(
        opcode in 0u32..60,
        extensions in 0u16..8,
        body in proptest::collection::vec(any::<u8>(), 0..300),
        honest in any::<bool>(),
    ) {
        let mut bytes = Build(body).message(opcode);
        bytes[36..38].copy_from_slice(&extensions.to_ne_bytes());
        if !honest {
            bytes[0] ^= 1;
        }
        exercise_and_keep(&bytes);
    }

    #[test]
    fn changed_requests_never_panic(
        which in 0usize..54,
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..12),
        tail in proptest::collection::vec(any::<u8>(), 0..64),
    ) {
        let samples = samples();
        let mut bytes = samples[which % samples.len()].0.clone();
        bytes.extend(tail);
        for (at, value) in changes {
            let at = usize::from(at) % bytes.len();
            bytes[at] = value;
        }
        let len = (bytes.len() as u32).to_ne_bytes();
        exercise_and_keep(&bytes);
        bytes[..4].copy_from_slice(&len);
        exercise_and_keep(&bytes);
    }
}
