//! Real mounts, with the partition of `cluster.rs` behind them, on our own transport in both recovery modes and on fuser.
//! Skipped, and said so, where /dev/fuse cannot be opened or this is not root.

use crate::cluster::{Client, Cluster};
use crate::kmount::Kept;
use crate::local::{Op, STEPS, assert_same, on_directory, random_op, tree_of_directory};
use crate::rng::{Random, seeds};
use fusefs_fuse_client::Settings;
use fusefs_fuse_client::fuse::kernel::Serving;
use fusefs_fuse_client::fuse::{
    MountError, MountSettings, Mounted, Unmounter, mount, mount_filesystem, mountinfo, passthrough,
};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

pub fn usable() -> bool {
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let ok = device.is_ok() && nix::unistd::geteuid().is_root();
    if !ok {
        assert!(std::env::var_os("CI").is_none(), "/dev/fuse cannot be opened here, so nothing would be tested");
        println!("skipped: /dev/fuse cannot be opened here, or this is not root");
    }
    ok
}

/// Who speaks with the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transport {
    Fuser,
    Resend,
    Slots,
}

const TRANSPORTS: [Transport; 3] = [Transport::Resend, Transport::Slots, Transport::Fuser];

enum AnyMount {
    Fuser(Mounted),
    Own(Kept, Option<Serving>),
}

impl AnyMount {
    fn new(transport: Transport, client: &Client, dir: &Path, runtime: &tokio::runtime::Handle) -> AnyMount {
        if transport == Transport::Fuser {
            let mut settings = MountSettings::new(dir, "fusefs#test");
            settings.fuser = true;
            return AnyMount::Fuser(mount(&settings, client.vfs.clone(), runtime.clone()).unwrap());
        }
        let kept = Kept::mount(dir, transport == Transport::Slots).unwrap();
        let serving = kept.serve(client.vfs.clone(), runtime.clone(), false);
        AnyMount::Own(kept, Some(serving))
    }
    fn unmount(&mut self) -> std::io::Result<()> {
        match self {
            AnyMount::Fuser(m) => {
                // Children that other tests start have our files open for a moment.
                crate::kmount::unmount(m.mountpoint())?;
                m.wait_timeout(crate::kmount::DEADLINE).then_some(()).ok_or(std::io::ErrorKind::TimedOut.into())
            }
            AnyMount::Own(kept, serving) => {
                kept.unmount()?;
                let serving = serving.take().unwrap();
                let (dropped, late) = (&serving.stats().dropped_replies, &serving.stats().late_replies);
                assert_eq!((dropped.load(Relaxed), late.load(Relaxed)), (0, 0));
                serving.wait()
            }
        }
    }
}

/// A runtime, a mount of one partition on it, and a directory to mount on.
struct Rig {
    transport: Transport,
    mounted: Option<AnyMount>,
    cluster: Arc<Cluster>,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Rig {
    fn new(transport: Transport) -> Rig {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let inside = runtime.enter();
        let cluster = Cluster::new();
        let client = cluster.client();
        drop(inside);
        let dir = tempfile::tempdir().unwrap();
        let mounted = AnyMount::new(transport, &client, dir.path(), runtime.handle());
        Rig { transport, mounted: Some(mounted), cluster, dir, runtime }
    }
    fn path(&self) -> &Path {
        self.dir.path()
    }
    /// A second kernel's view of the same volume.
    fn second(&self) -> (AnyMount, tempfile::TempDir) {
        self.second_with(|_| {})
    }
    fn second_with(&self, change: impl FnOnce(&mut Settings)) -> (AnyMount, tempfile::TempDir) {
        let inside = self.runtime.enter();
        let client = self.cluster.client_with(change);
        drop(inside);
        let dir = tempfile::tempdir().unwrap();
        (AnyMount::new(self.transport, &client, dir.path(), self.runtime.handle()), dir)
    }
    /// Validities end for our caches; the kernel's own clock runs on its own.
    fn pass(&self) {
        self.cluster.clock.advance_ms(1001);
    }
    fn unmount(&mut self) {
        self.mounted.as_mut().unwrap().unmount().unwrap();
        self.mounted = None;
    }
}

#[test]
fn the_kernel_gets_a_file_system() {
    if usable() {
        TRANSPORTS.iter().for_each(|t| the_kernel_gets_a_file_system_on(*t));
    }
}

fn the_kernel_gets_a_file_system_on(transport: Transport) {
    let mut rig = Rig::new(transport);
    let root = rig.path().to_path_buf();
    let line = mountinfo::at(&mountinfo::read().unwrap(), &root).cloned().unwrap();
    assert_eq!((&*line.kind, &*line.source), ("fuse.fusefs", "fusefs#test"));
    if transport == Transport::Fuser {
        let read_ahead = std::fs::read_to_string(format!("/sys/class/bdi/{}/read_ahead_kb", line.device)).unwrap();
        assert_eq!(read_ahead.trim(), "1024");
    }

    let mut f = std::fs::OpenOptions::new().read(true).write(true).create_new(true).open(root.join("f")).unwrap();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    f.write_all(&data).unwrap();
    assert_eq!(f.metadata().unwrap().len(), 3_000_000);
    f.sync_all().unwrap();
    f.seek(SeekFrom::Start(0)).unwrap();
    let mut back = Vec::new();
    f.read_to_end(&mut back).unwrap();
    assert!(back == data);
    std::fs::remove_file(root.join("f")).unwrap();
    f.write_all_at(b"orphan", 0).unwrap();
    let mut six = [0; 6];
    f.read_exact_at(&mut six, 0).unwrap();
    assert_eq!((&six, f.metadata().unwrap().nlink()), (b"orphan", 0));
    drop(f);

    let mut log = std::fs::OpenOptions::new().append(true).create(true).open(root.join("log")).unwrap();
    log.write_all(b"one ").unwrap();
    log.write_all(b"two").unwrap();
    drop(log);
    assert_eq!(std::fs::read(root.join("log")).unwrap(), b"one two");
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink("log", root.join("sym")).unwrap();
    assert_eq!(std::fs::read(root.join("sym")).unwrap(), b"one two");
    assert!(nix::sys::statvfs::statvfs(&root).unwrap().blocks() > 0);
    assert_eq!(std::fs::metadata(&root).unwrap().ino(), 1);
    rig.unmount();
    assert!(mountinfo::at(&mountinfo::read().unwrap(), &root).is_none());
    assert_eq!(rig.cluster.usage().orphans, 0);
}

/// What only our own transport can say: birth times, masks, permission checks with access control lists asked for.
#[test]
fn the_negotiated_extras_work() {
    use std::os::unix::process::CommandExt;
    if !usable() {
        return;
    }
    let mut rig = Rig::new(Transport::Resend);
    let at = |name: &str| rig.path().join(name);
    std::fs::set_permissions(rig.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(at("f"), b"x").unwrap();
    assert!(std::fs::metadata(at("f")).unwrap().created().is_ok());
    let shell = format!("umask 027; cd {}; mkdir d; : > g; mkfifo p", rig.path().display());
    assert!(std::process::Command::new("sh").arg("-c").arg(shell).status().unwrap().success());
    let mode = |name: &str| std::fs::metadata(at(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("d"), mode("g"), mode("p")), (0o750, 0o640, 0o640));
    let may_read = |name: &str, gid: u32| {
        let mut cat = std::process::Command::new("cat");
        cat.arg(at(name)).uid(12345).gid(gid).stderr(std::process::Stdio::null());
        cat.status().unwrap().success()
    };
    nix::unistd::chown(&at("g"), None, Some(nix::unistd::Gid::from_raw(777))).unwrap();
    assert!(may_read("f", 12345) && may_read("g", 777) && !may_read("g", 12345));
    rig.unmount();
}

#[test]
fn random_operations_through_the_kernel_do_what_a_local_directory_does() {
    if !usable() {
        return;
    }
    for (i, seed) in seeds(4).into_iter().enumerate() {
        let mut rig = Rig::new(TRANSPORTS[i % TRANSPORTS.len()]);
        let local = tempfile::tempdir().unwrap();
        let mut rng = Random::new(seed);
        for step in 0..STEPS {
            let op = random_op(&mut rng);
            let (want, got) = (on_directory(local.path(), &op), on_directory(rig.path(), &op));
            let what = |r: &Result<Vec<u8>, i32>| r.as_ref().map(Vec::len).map_err(|e| *e);
            assert!(
                got == want,
                "seed {seed} step {step} (FUSEFS_SEED={seed}): {op:?}\n ours {:?}\nlocal {:?}",
                what(&got),
                what(&want)
            );
            if rng.below(50) == 0 {
                rig.pass();
            }
        }
        let want = tree_of_directory(local.path());
        assert_same(seed, &tree_of_directory(rig.path()), &want);
        let (mut other, dir) = rig.second();
        assert_same(seed, &tree_of_directory(dir.path()), &want);
        other.unmount().unwrap();
        rig.unmount();
    }
}

#[test]
fn two_mounts_are_close_to_open_consistent() {
    if usable() {
        TRANSPORTS.iter().for_each(|t| two_mounts_are_close_to_open_consistent_on(*t));
    }
}

fn two_mounts_are_close_to_open_consistent_on(transport: Transport) {
    let mut rig = Rig::new(transport);
    let (mut other, dir) = rig.second();
    let (a, b) = (rig.path().join("f"), dir.path().join("f"));
    std::fs::write(&a, b"first").unwrap();
    assert_eq!(std::fs::read(&b).unwrap(), b"first");
    for i in 0..30u8 {
        // Same size, so that only the version tells; no waiting: open has to ask.
        let (w, r) = if i % 2 == 0 { (&b, &a) } else { (&a, &b) };
        std::fs::OpenOptions::new().write(true).open(w).unwrap().write_all_at(&[i; 5], 0).unwrap();
        assert_eq!(std::fs::read(r).unwrap(), [i; 5], "round {i}");
    }
    // A name that this kernel remembers as absent and the other one has made: the kernel looks again.
    let (new_a, new_b) = (rig.path().join("new"), dir.path().join("new"));
    assert!(!new_a.exists());
    std::fs::write(&new_b, b"theirs").unwrap();
    let mut f = std::fs::OpenOptions::new().create(true).append(true).read(true).open(&new_a).unwrap();
    f.write_all(b" and ours").unwrap();
    drop(f);
    assert_eq!(std::fs::read(&new_b).unwrap(), b"theirs and ours");
    other.unmount().unwrap();
    rig.unmount();
}

#[test]
fn large_directories_and_direct_io_pass_the_kernel() {
    if usable() {
        TRANSPORTS.iter().for_each(|t| large_directories_and_direct_io_pass_the_kernel_on(*t));
    }
}

fn large_directories_and_direct_io_pass_the_kernel_on(transport: Transport) {
    let mut rig = Rig::new(transport);
    let d = rig.path().join("d");
    std::fs::create_dir(&d).unwrap();
    for i in 0..2500 {
        std::fs::File::create_new(d.join(format!("f{i}"))).unwrap();
    }
    let mut names: Vec<_> = std::fs::read_dir(&d).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 2500);
    // Caches that have dropped an entry before the kernel takes it must not lose the name.
    let (mut other, dir) = rig.second_with(|s| (s.inodes, s.dentries) = (16, 16));
    assert_eq!(std::fs::read_dir(dir.path().join("d")).unwrap().count(), 2500);
    assert!(std::fs::read_dir(dir.path().join("d")).unwrap().all(|e| e.unwrap().metadata().unwrap().is_file()));
    other.unmount().unwrap();
    std::fs::remove_dir_all(&d).unwrap();

    let file = rig.path().join("direct");
    let f = std::fs::OpenOptions::new().write(true).create(true).custom_flags(libc::O_DIRECT).open(&file).unwrap();
    let layout = vec![5u8; (1 << 20) + 4096];
    let at = layout.as_ptr().align_offset(4096);
    assert_eq!(f.write_at(&layout[at..at + (1 << 20)], 4096).unwrap(), 1 << 20);
    drop(f);
    let bytes = std::fs::read(&file).unwrap();
    assert!(bytes.len() == (1 << 20) + 4096 && bytes[..4096] == [0; 4096] && bytes[4096..].iter().all(|b| *b == 5));
    rig.unmount();
}

#[test]
fn wrong_mount_points_are_refused_with_a_reason() {
    if !usable() {
        return;
    }
    let rig = Rig::new(Transport::Fuser);
    let again = |path: &Path| {
        let fs = passthrough::Passthrough::new("/nonexistent");
        mount_filesystem(&MountSettings::new(path, "x"), fs).map(|_| ()).unwrap_err()
    };
    let busy = again(rig.path());
    assert!(matches!(busy, MountError::Busy { .. }), "{busy}");
    assert!(busy.to_string().contains("fusefs#test"), "{busy}");
    let missing = again(&rig.path().join("no/such"));
    assert!(matches!(missing, MountError::Missing(_)), "{missing}");
    let file = tempfile::NamedTempFile::new().unwrap();
    let not_dir = again(file.path());
    assert!(matches!(not_dir, MountError::NotADirectory(_)), "{not_dir}");
    // A busy mount stays mounted.
    let mut rig = rig;
    let held = std::fs::File::create(rig.path().join("held")).unwrap();
    assert!(Unmounter::new(rig.path()).unmount().is_err());
    assert!(rig.path().join("held").exists());
    drop(held);
    rig.unmount();
}

#[test]
fn the_passthrough_shows_its_directory() {
    if !usable() {
        return;
    }
    let (base, point) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let fs = passthrough::Passthrough::new(base.path());
    let mut mounted = mount_filesystem(&MountSettings::new(point.path(), "floor"), fs).unwrap();
    let local = tempfile::tempdir().unwrap();
    let mut rng = Random::new(5);
    for step in 0..300 {
        let op = random_op(&mut rng);
        if matches!(op, Op::Link(..)) {
            continue; // it says that it knows one name per file
        }
        let (want, got) = (on_directory(local.path(), &op), on_directory(point.path(), &op));
        assert_eq!(got, want, "step {step}: {op:?}");
    }
    let want = tree_of_directory(local.path());
    assert_same(5, &tree_of_directory(base.path()), &want);
    mounted.unmount().unwrap();
}

#[test]
fn a_dead_mount_is_detached_before_mounting() {
    if !usable() || !nix::unistd::geteuid().is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    // A connection whose device is closed at once is dead.
    let device = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&device);
    let options = format!("fd={fd},rootmode=40000,user_id=0,group_id=0");
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("dead"), dir.path(), Some("fuse.fusefs"), flags, Some(options.as_str())).unwrap();
    drop(device);
    assert_eq!(std::fs::metadata(dir.path()).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    let base = tempfile::tempdir().unwrap();
    std::fs::write(base.path().join("alive"), b"").unwrap();
    let fs = passthrough::Passthrough::new(base.path());
    let mut mounted = mount_filesystem(&MountSettings::new(dir.path(), "live"), fs).unwrap();
    assert!(dir.path().join("alive").exists());
    mounted.unmount().unwrap();
}
