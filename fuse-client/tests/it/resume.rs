//! One process of a mount "dies" with requests in its hands, the next one finishes them: both recovery modes, no
//! application error. The dying process plays dead ([`Serving::abandon`]); what it held is really unanswered in the kernel.

use crate::cluster::{Client, Cluster, Hold};
use crate::kmount::{DEADLINE, Kept, unmount};
use crate::mounted::usable;
use fusefs_fuse_client::fuse::kernel::{
    InitOptions, InitRecord, Notification, Recovery, ServeSettings, Serving, SlotFile, handshake, handshake_in_slots,
    poison, serve,
};
use fusefs_types::{Ino, ids::MountId};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::runtime::Runtime;

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Waits for a state that other threads bring about.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let end = tokio::time::Instant::now() + DEADLINE;
    while !reached() {
        assert!(tokio::time::Instant::now() < end, "waited too long: {what}");
        std::thread::yield_now();
    }
}

/// One client process: its vfs, its runtime, its threads.
pub struct Process {
    pub client: Client,
    pub serving: Serving,
    pub runtime: Runtime,
}

impl Process {
    pub fn start(cluster: &Arc<Cluster>, kept: &Kept) -> Process {
        Process::start_with(cluster, kept, |_| {})
    }
    pub fn start_with(cluster: &Arc<Cluster>, kept: &Kept, change: impl FnOnce(&mut ServeSettings)) -> Process {
        let runtime = runtime();
        let inside = runtime.enter();
        let client = cluster.client();
        drop(inside);
        let serving = kept.serve_with(client.vfs.clone(), runtime.handle().clone(), false, change);
        Process { client, serving, runtime }
    }
    /// The process after the one that `old` was part of.
    pub fn after(old: &Client, cluster: &Arc<Cluster>, kept: &Kept, dedupe: bool) -> Process {
        let runtime = runtime();
        let inside = runtime.enter();
        let mount = old.vfs.settings().mount;
        let mount = if dedupe { mount } else { MountId(mount.0 + 1000) };
        let client = cluster.successor_with(old, |s| s.mount = mount);
        drop(inside);
        let serving = kept.serve(client.vfs.clone(), runtime.handle().clone(), true);
        Process { client, serving, runtime }
    }
    /// Ends it as a SIGKILL would, while applications go on. Each reader takes one more request along; should all
    /// applications wait already, these are the questions of two more, which end with the successor.
    pub fn die_at_work(self, root: &Path) -> (Client, [JoinHandle<bool>; 2]) {
        self.serving.abandon();
        let last = [1, 2].map(|i| {
            let path = root.join(format!("absent-{}-{i}", self.client.rq().unique));
            std::thread::spawn(move || path.exists())
        });
        self.serving.wait().unwrap();
        self.runtime.shutdown_background();
        (self.client, last)
    }
    /// Ends it as a SIGKILL would, with two more requests in the hands of its readers.
    fn die(self, root: &Path) -> (Client, [JoinHandle<io::Result<()>>; 2]) {
        self.serving.abandon();
        let last = ["last1", "last2"].map(|name| {
            let path = root.join(name).join("dir");
            std::thread::spawn(move || std::fs::create_dir(path))
        });
        self.serving.wait().unwrap();
        self.runtime.shutdown_background();
        (self.client, last)
    }
    pub fn end(self, kept: &mut Kept) {
        kept.unmount().unwrap();
        self.serving.wait().unwrap();
        self.runtime.shutdown_background();
    }
}

type App = JoinHandle<io::Result<()>>;

fn app(f: impl FnOnce() -> io::Result<()> + Send + 'static) -> App {
    std::thread::spawn(f)
}

/// Changes, each in a directory of its own: the kernel lets only one at a time into a directory.
fn changes(root: &Path) -> Vec<(&'static str, App)> {
    let at = |name: &str| root.join(name).join("name");
    let other = |name: &str| root.join(name).join("other");
    let (create, mkdir, rename, unlink, rmdir) = (at("create"), at("mkdir"), at("rename"), at("unlink"), at("rmdir"));
    let (renamed, symlink, link, chmod) = (other("rename"), at("symlink"), at("link"), at("chmod"));
    let linked = other("link");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o751);
    vec![
        ("create", app(move || File::create_new(create).map(drop))),
        ("mkdir", app(move || std::fs::create_dir(mkdir))),
        ("rename", app(move || std::fs::rename(rename, renamed))),
        ("unlink", app(move || std::fs::remove_file(unlink))),
        ("rmdir", app(move || std::fs::remove_dir(rmdir))),
        ("symlink", app(move || std::os::unix::fs::symlink("target", symlink))),
        ("link", app(move || std::fs::hard_link(link, linked))),
        ("chmod", app(move || std::fs::set_permissions(chmod, mode))),
    ]
}

/// Questions and writes.
fn questions(root: &Path, written: &Arc<File>, read: &Arc<File>) -> Vec<(&'static str, App)> {
    let (listed, opened) = (root.join("listed"), root.join("opened/name"));
    let (written, read) = (written.clone(), read.clone());
    let write = move || {
        let layout = vec![7u8; (1 << 20) + 4096];
        let from = layout.as_ptr().align_offset(4096);
        written.write_all_at(&layout[from..from + (1 << 20)], 1 << 20)
    };
    let read = move || {
        let mut room = vec![0u8; 8192];
        let from = room.as_ptr().align_offset(4096);
        read.read_exact_at(&mut room[from..from + 4096], 0)?;
        assert!(room[from..from + 4096].iter().all(|b| *b == 3));
        Ok(())
    };
    vec![
        ("readdir", app(move || std::fs::read_dir(listed).map(|d| assert_eq!(d.count(), 1)))),
        ("open", app(move || File::open(opened).map(drop))),
        ("direct write", app(write)),
        ("direct read", app(read)),
    ]
}

/// Directories and files that the applications expect; returns two files open for direct I/O.
fn prepare(root: &Path) -> [Arc<File>; 2] {
    let dirs = ["create", "mkdir", "rename", "unlink", "rmdir", "symlink", "link", "chmod", "listed", "opened"];
    for name in dirs.iter().chain(&["last1", "last2"]) {
        std::fs::create_dir(root.join(name)).unwrap();
    }
    for name in ["rename", "unlink", "link", "chmod", "listed", "opened"] {
        std::fs::write(root.join(name).join("name"), name).unwrap();
    }
    std::fs::create_dir(root.join("rmdir/name")).unwrap();
    ["written", "read"].map(|name| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).custom_flags(libc::O_DIRECT);
        let file = options.open(root.join(name)).unwrap();
        let layout = vec![3u8; 8192];
        let from = layout.as_ptr().align_offset(4096);
        file.write_all_at(&layout[from..from + 4096], 0).unwrap();
        file.sync_all().unwrap();
        Arc::new(file)
    })
}

/// Results of the applications after one process died and the next finished their requests.
fn killed_once(slots: bool, dedupe: bool) -> Vec<(&'static str, io::Result<()>)> {
    let cluster = Cluster::new();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    let mut kept = Kept::mount(&root, slots).unwrap();
    let first = Process::start(&cluster, &kept);
    let [written, read] = prepare(&root);
    let meta = first.client.meta.clone();
    // Changes are executed, but their replies do not come.
    meta.hold(Hold { replies: true, ..Hold::default() });
    let mut apps = changes(&root);
    until("the changes wait", || first.serving.waiting() == apps.len());
    // Everything known has become old: questions have to be asked, and are not answered.
    cluster.clock.advance_ms(1001);
    meta.hold(Hold { reads: true, replies: true, writes: false });
    apps.extend(questions(&root, &written, &read));
    until("all wait", || first.serving.waiting() == apps.len());
    let waiting = apps.len() as u64;
    let (old, last) = first.die(&root);
    let next = Process::after(&old, &cluster, &kept, dedupe);
    let mut results: Vec<_> = apps.into_iter().map(|(name, app)| (name, app.join().unwrap())).collect();
    results.extend(last.map(|app| ("the readers' last", app.join().unwrap())));
    let stats = next.serving.stats();
    let again = if slots { &stats.reserved } else { &stats.resent };
    assert_eq!(again.load(Relaxed), waiting + 2, "slots {slots}");
    assert_eq!((stats.late_replies.load(Relaxed), stats.dropped_replies.load(Relaxed)), (0, 0));
    if dedupe {
        verify(&root, &written);
    }
    drop((written, read));
    next.end(&mut kept);
    results
}

fn verify(root: &Path, written: &File) {
    written.sync_all().unwrap();
    let meta = |path: &str| std::fs::symlink_metadata(root.join(path));
    assert!(meta("create/name").unwrap().is_file() && meta("mkdir/name").unwrap().is_dir());
    assert!(meta("rename/name").is_err() && std::fs::read(root.join("rename/other")).unwrap() == b"rename");
    assert!(meta("unlink/name").is_err() && meta("rmdir/name").is_err());
    assert_eq!(std::fs::read_link(root.join("symlink/name")).unwrap(), Path::new("target"));
    assert_eq!((meta("link/name").unwrap().nlink(), meta("chmod/name").unwrap().mode() & 0o7777), (2, 0o751));
    let all = std::fs::read(root.join("written")).unwrap();
    assert!(all.len() == 2 << 20 && all[..4096] == [3; 4096] && all[1 << 20..].iter().all(|b| *b == 7));
    assert!(meta("last1/dir").unwrap().is_dir() && meta("last2/dir").unwrap().is_dir());
}

#[test]
fn requests_of_a_dead_process_are_finished_by_the_next() {
    if !usable() {
        return;
    }
    for slots in [false, true] {
        for (name, result) in killed_once(slots, true) {
            assert!(result.is_ok(), "slots {slots}, {name}: {result:?}");
        }
    }
}

/// The negative control: requests that were executed and not answered are executed again under other names.
#[test]
fn without_the_stored_replies_applications_see_ghosts() {
    if !usable() {
        return;
    }
    for slots in [false, true] {
        let ghosts: Vec<_> = killed_once(slots, false).into_iter().filter(|(_, r)| r.is_err()).map(|r| r.0).collect();
        for name in ["create", "mkdir", "unlink", "rmdir"] {
            assert!(ghosts.contains(&name), "slots {slots}: {ghosts:?}");
        }
    }
}

/// INIT was read, and its reader died before or after it kept the record.
#[test]
fn an_unanswered_init_is_answered_by_the_next() {
    if !usable() {
        return;
    }
    for slots in [false, true] {
        let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
        let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
        let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions");
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("fusefs#test"), dir.path(), Some("fuse.fusefs"), flags, Some(options.as_str())).unwrap();
        let device_fd = || std::os::fd::AsFd::as_fd(&device);
        let file = SlotFile::create().unwrap();
        let shake = |kept: &mut Option<InitRecord>| {
            let keep = |record: &InitRecord| {
                *kept = Some(record.clone());
                Err(io::Error::other("died"))
            };
            if slots {
                handshake_in_slots(device_fd(), InitOptions::default(), file.try_clone().unwrap(), true, keep)
            } else {
                handshake(device_fd(), keep)
            }
        };
        // The first died before its record was kept, the second before its reply was written.
        let (mut lost, mut kept) = (None, None);
        assert!(shake(&mut lost).is_err() && shake(&mut kept).is_err());
        assert!(lost.is_some() && lost == kept);
        let runtime = runtime();
        let inside = runtime.enter();
        let client = cluster.client();
        drop(inside);
        let (vfs, handle) = (client.vfs.clone(), runtime.handle().clone());
        let settings = ServeSettings::new(if slots { Recovery::Slots(file) } else { Recovery::Resend });
        let serving = serve(device.try_clone().unwrap().into(), kept.unwrap(), true, vfs, handle, settings).unwrap();
        std::fs::write(dir.path().join("f"), b"served").unwrap();
        assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), b"served");
        unmount(dir.path()).unwrap();
        serving.wait().unwrap();
    }
}

/// Readers that end while the kernel connection lives are a fault of this process, not an unmount: nothing may be closed.
#[test]
fn readers_that_fail_are_told_from_an_unmount() {
    if !usable() {
        return;
    }
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut kept = Kept::mount(dir.path(), false).unwrap();
    let runtime = runtime();
    let inside = runtime.enter();
    let client = cluster.client();
    drop(inside);
    let ends_on = |fd: std::os::fd::OwnedFd| {
        let settings = ServeSettings::new(Recovery::Resend);
        let (vfs, handle) = (client.vfs.clone(), runtime.handle().clone());
        serve(fd, kept.init.clone(), false, vfs, handle, settings).unwrap().wait()
    };
    // Lives as far as poll(2) can tell, and cannot be read.
    assert!(ends_on(File::open("/").unwrap().into()).is_err());
    // Cannot be read either, and is gone.
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    ends_on(writer.into()).unwrap();
    kept.unmount().unwrap();
}

#[test]
fn a_mount_that_cannot_go_on_answers_estale_and_unmounts() {
    if !usable() {
        return;
    }
    for slots in [false, true] {
        // Poisoned while it serves.
        let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
        let mut kept = Kept::mount(dir.path(), slots).unwrap();
        let process = Process::start(&cluster, &kept);
        let root = dir.path().to_path_buf();
        std::fs::create_dir(root.join("last1")).unwrap();
        std::fs::create_dir(root.join("last2")).unwrap();
        process.client.meta.hold(Hold { writes: true, ..Hold::default() });
        let path = root.join("d");
        let waiting = app(move || std::fs::create_dir(path));
        until("it waits", || process.serving.waiting() == 1);
        process.serving.poison();
        let stale = |r: io::Result<()>| assert_eq!(r.unwrap_err().raw_os_error(), Some(libc::ESTALE), "slots {slots}");
        stale(waiting.join().unwrap());
        stale(std::fs::create_dir(root.join("e")));
        process.end(&mut kept);

        // Poisoned instead of resumed.
        let mut kept = Kept::mount(dir.path(), slots).unwrap();
        let process = Process::start(&cluster, &kept);
        std::fs::create_dir(root.join("busy")).unwrap();
        process.client.meta.hold(Hold { writes: true, ..Hold::default() });
        let path = root.join("busy/d");
        let waiting = app(move || std::fs::create_dir(path));
        until("it waits", || process.serving.waiting() == 1);
        let (_, last) = process.die(&root);
        let (fd, init, recovery) = (kept.device(), kept.init.clone(), kept.recovery());
        let poisoned = std::thread::spawn(move || poison(fd, &init, recovery));
        stale(waiting.join().unwrap());
        last.into_iter().for_each(|app| stale(app.join().unwrap()));
        stale(std::fs::metadata(root.join("f")).map(drop));
        kept.unmount().unwrap();
        poisoned.join().unwrap().unwrap();
    }
}

#[test]
fn notifications_reach_the_kernel() {
    if !usable() {
        return;
    }
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut kept = Kept::mount(dir.path(), false).unwrap();
    // The kernel keeps everything for an hour.
    let runtime = runtime();
    let inside = runtime.enter();
    let hour = Duration::from_secs(3600);
    let client = cluster.client_with(|s| (s.attr_validity, s.entry_validity) = (hour, hour));
    drop(inside);
    let serving = kept.serve(client.vfs.clone(), runtime.handle().clone(), false);
    let (path, notifier) = (dir.path().join("f"), serving.notifier());
    std::fs::write(&path, b"1234").unwrap();
    let ino = Ino(std::fs::metadata(&path).unwrap().ino());
    let counted = AtomicU64::new(0);
    let asked = |what: &str| {
        let before = serving.stats().requests.load(Relaxed);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 4, "{what}");
        counted.store(serving.stats().requests.load(Relaxed) - before, Relaxed);
        counted.load(Relaxed)
    };
    asked("warm up");
    assert_eq!(asked("cached"), 0);
    notifier.send(&Notification::InvalInode { ino, offset: 0, len: 0 }).unwrap();
    assert_eq!(asked("attributes"), 1);
    let name = bytes::Bytes::from_static(b"f");
    for expire_only in [false, true] {
        notifier.send(&Notification::InvalEntry { parent: Ino::ROOT, name: name.clone(), expire_only }).unwrap();
        assert!(asked("name") >= 1, "expire only: {expire_only}");
        assert_eq!(asked("cached again"), 0);
    }
    let none = bytes::Bytes::from_static(b"none");
    notifier.send(&Notification::InvalEntry { parent: Ino::ROOT, name: none, expire_only: false }).unwrap();
    let (open, mut four) = (File::open(&path).unwrap(), [0; 4]);
    for want in [b"1234", b"abcd"] {
        open.read_exact_at(&mut four, 0).unwrap();
        assert_eq!(&four, want, "the kernel's pages");
        let data = bytes::Bytes::from_static(b"abcd");
        notifier.send(&Notification::Store { ino, offset: 0, data }).unwrap();
    }
    drop(open);
    notifier.send(&Notification::Delete { parent: Ino::ROOT, child: ino, name }).unwrap();
    assert!(asked("removed for the kernel only") >= 1);
    notifier.send(&Notification::Resend).unwrap();
    notifier.send_later(Notification::InvalInode { ino, offset: -1, len: 0 });
    drop(notifier);
    kept.unmount().unwrap();
    serving.wait().unwrap();
}
