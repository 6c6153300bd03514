//! Real files: lock, list, export, discard, park.

use super::{BOOT, MOUNT};
use crate::rig::{TestClock, body};
use fusefs_data_path::{
    DataPath, Settings, WriteContext,
    journal::{self, Journal, JournalError, JournalSettings},
    object::MemoryStore,
    testing::ModelSink,
    writer::Unlimited,
};
use fusefs_types::{Ino, SessionId};
use std::{
    fs::{File, OpenOptions},
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, mpsc},
};

const FILE: u64 = 1 << 20;
const LOCK_ME: &str = "FUSEFS_TEST_LOCK_ME";

fn open(dir: &Path) -> Vec<File> {
    let open = |i| OpenOptions::new().read(true).write(true).open(dir.join(format!("journal.{i}"))).expect("open");
    (0..4).map(open).collect()
}

/// A client process that was killed with pending bytes in two files.
async fn pending(dir: &Path) {
    let files = journal::create_files(dir, 4, FILE).expect("create");
    Journal::format(&files, MOUNT, BOOT).expect("format");
    let journal = Journal::open(files).expect("open");
    let incarnation = journal.begin_incarnation(BOOT).expect("begin");
    journal.set_session(SessionId(0xfeed), 3).expect("session");
    let sink = ModelSink::new(1);
    [7, 8].iter().for_each(|i| _ = sink.create(Ino(*i)));
    let (store, clock) = (MemoryStore::new(), Arc::new(TestClock::default()));
    let owner = (SessionId(0xfeed), incarnation);
    let settings = JournalSettings::new(journal);
    let credits = Arc::new(Unlimited::default());
    let path = DataPath::with_journal(store, sink, clock, owner, Settings::default(), credits, settings);
    let path = path.expect("data path");
    for (ino, at, len) in [(7, 100, 50), (8, 0, 300_000), (7, 120, 10)] {
        path.write(Ino(ino), at, body(len, ino as u8).into(), WriteContext::default()).await.expect("write");
    }
}

#[tokio::test(start_paused = true)]
async fn people_can_list_export_and_discard() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
    pending(dir.path()).await;
    let summary = journal::inspect(&open(dir.path())).expect("inspect");
    assert_eq!((summary.header.mount, summary.header.session, summary.header.attach), (MOUNT, SessionId(0xfeed), 3));
    assert_eq!(summary.header.incarnation.0, 1);
    let seen: Vec<_> = summary.files.iter().map(|f| (f.ino.0, f.writes, f.bytes, f.end)).collect();
    // A record holds at most a quarter of a file.
    assert_eq!(seen, [(7, 2, 60, 150), (8, 2, 300_000, 300_000)]);
    let out = dir.path().join("out");
    assert_eq!(journal::export(&open(dir.path()), &out).expect("export"), summary);
    let mut want = vec![0; 100];
    want.extend(body(50, 7));
    want[120..130].copy_from_slice(&body(10, 7));
    assert_eq!(std::fs::read(out.join("ino-7")).expect("exported"), want);
    assert_eq!(std::fs::read(out.join("ino-8")).expect("exported"), body(300_000, 8));
    let list = std::fs::read_to_string(out.join("journal.txt")).expect("listing");
    assert!(list.contains("7 120 10 "), "{list}");
    assert!(journal::export(&open(dir.path()), &out).is_err(), "nothing is overwritten");
    journal::discard(open(dir.path())).expect("discard");
    assert!(journal::inspect(&open(dir.path())).expect("inspect").is_clean());
}

#[tokio::test(start_paused = true)]
async fn parked_journals_stay_readable_and_make_room_for_new_ones() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
    pending(dir.path()).await;
    let parked = journal::park(dir.path()).expect("park");
    assert_eq!(journal::inspect(&open(&parked)).expect("inspect").files.len(), 2);
    pending(dir.path()).await;
    assert_ne!(journal::park(dir.path()).expect("park again"), parked);
    assert!(journal::park(dir.path()).is_err(), "nothing there");
}

#[test]
fn other_versions_are_refused_before_anything_is_touched() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
    let files = journal::create_files(dir.path(), 4, FILE).expect("create");
    assert!(matches!(Journal::open(open(dir.path())), Err(JournalError::NoHeader)));
    Journal::format(&files, MOUNT, BOOT).expect("format");
    std::os::unix::fs::FileExt::write_all_at(&files[0], &[2, 0], 1024 + 8).expect("write");
    assert!(matches!(Journal::open(open(dir.path())), Err(JournalError::Version(2))));
    assert!(journal::create_files(dir.path(), 4, FILE).is_err(), "existing files are not taken");
    let mode = std::os::unix::fs::PermissionsExt::mode(&files[0].metadata().expect("metadata").permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// The other process of the next test; does nothing in a normal run.
#[test]
fn lock_holder() {
    let Some(path) = std::env::var_os(LOCK_ME) else { return };
    let file = OpenOptions::new().read(true).write(true).open(path).expect("open");
    Journal::lock(&file).expect("lock");
    println!("locked");
    std::io::stdout().flush().expect("flush");
    let _ = std::io::stdin().read(&mut [0; 1]); // until the parent kills us or ends
}

#[test]
fn the_lock_is_free_when_its_holder_is_dead() {
    let dir = tempfile::tempdir_in("/var/tmp").expect("tempdir");
    let files = journal::create_files(dir.path(), 4, FILE).expect("create");
    let mut child = Command::new(std::env::current_exe().expect("test binary"))
        .args(["--exact", "journal::tools::lock_holder", "--nocapture"])
        .env(LOCK_ME, dir.path().join("journal.0"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("spawn");
    let mut lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
    assert!(lines.any(|l| l.expect("line").contains("locked")));
    assert_eq!(journal::holder(&files[0]).expect("holder"), Some(child.id() as i32));
    let (send, got) = mpsc::channel();
    let file = files[0].try_clone().expect("clone");
    let waiter = std::thread::spawn(move || {
        Journal::lock(&file).expect("lock");
        send.send(()).expect("send");
        file
    });
    assert!(got.try_recv().is_err(), "the other process still has it");
    child.kill().expect("kill");
    child.wait().expect("wait");
    got.recv_timeout(std::time::Duration::from_secs(10)).expect("freed by the kernel");
    let _file = waiter.join().expect("thread");
    assert_eq!(journal::holder(&files[0]).expect("holder"), None, "our own lock does not conflict with us");
}
