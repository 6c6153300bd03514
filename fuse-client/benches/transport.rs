//! CPU per request through our own transport beside fuser, over the same in-memory partition, in one run:
//! `cargo bench -p fusefs-fuse-client --bench transport` (root, Linux). Printed, not asserted.
//!
//! Counted is the CPU time of the whole process: the calling thread, the readers and the runtime. Rounds of the transports
//! alternate, and medians are shown, so that a busy machine shifts all of them alike.

#[cfg(target_os = "linux")]
#[allow(dead_code)]
#[path = "../tests/it/cluster.rs"]
mod cluster;
#[cfg(target_os = "linux")]
#[allow(dead_code)]
#[path = "../tests/it/kmount.rs"]
mod kmount;

#[cfg(target_os = "linux")]
fn main() {
    linux::main();
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("skipped: our own transport is for Linux");
}

#[cfg(target_os = "linux")]
mod linux {
    use crate::cluster::Cluster;
    use crate::kmount::{Kept, unmount};
    use fusefs_fuse_client::fuse::{MountSettings, mount};
    use nix::sys::resource::{UsageWho, getrusage};
    use nix::sys::time::TimeValLike;
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::path::Path;
    use std::time::Duration;

    const ROUNDS: usize = 7;
    const STATS: u32 = 20_000;
    const CREATES: u32 = 2_000;
    const WRITES: u32 = 2_000;
    const NAMES: [&str; 3] = ["own (RESEND)", "own (slots)", "fuser"];

    /// One turn of one transport: CPU µs per operation.
    #[derive(Clone, Copy)]
    struct Costs {
        fstat: f64,
        create: f64,
        write: f64,
    }

    pub fn main() {
        let device = File::options().read(true).write(true).open("/dev/fuse");
        if device.is_err() || !nix::unistd::geteuid().is_root() {
            println!("skipped: /dev/fuse cannot be opened here, or this is not root");
            return;
        }
        let mut turns: Vec<[Costs; 3]> = Vec::new();
        for _ in 0..ROUNDS {
            turns.push([0, 1, 2].map(turn));
        }
        println!("{:<14} {:>22} {:>36} {:>22}", "", "uncached fstat", "create + close + unlink", "4 KiB write");
        for (i, name) in NAMES.iter().enumerate() {
            let median = |of: fn(&Costs) -> f64| {
                let mut all: Vec<f64> = turns.iter().map(|t| of(&t[i])).collect();
                all.sort_by(f64::total_cmp);
                all[ROUNDS / 2]
            };
            let (fstat, create, write) = (median(|c| c.fstat), median(|c| c.create), median(|c| c.write));
            println!("{name:<14} {fstat:>15.2} CPU-us {create:>29.2} CPU-us {write:>15.2} CPU-us");
        }
    }

    fn turn(which: usize) -> Costs {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let inside = runtime.enter();
        let hour = Duration::from_secs(3600);
        let client = Cluster::new().client_with(|s| (s.attr_validity, s.entry_validity) = (hour, hour));
        drop(inside);
        if which == 2 {
            let mut settings = MountSettings::new(dir.path(), "fusefs#bench");
            settings.fuser = true;
            let mounted = mount(&settings, client.vfs.clone(), runtime.handle().clone()).unwrap();
            let costs = measure(dir.path());
            unmount(dir.path()).unwrap();
            mounted.wait().unwrap();
            return costs;
        }
        let mut kept = Kept::mount(dir.path(), which == 1).unwrap();
        let serving = kept.serve(client.vfs.clone(), runtime.handle().clone(), false);
        let costs = measure(dir.path());
        kept.unmount().unwrap();
        serving.wait().unwrap();
        costs
    }

    fn measure(root: &Path) -> Costs {
        let file = File::create(root.join("f")).unwrap();
        stat(&file);
        let fstat = cpu(STATS, |_| stat(&file));
        let create = cpu(CREATES, |i| {
            let path = root.join(format!("n{i}"));
            drop(File::create_new(&path).unwrap());
            std::fs::remove_file(path).unwrap();
        });
        let block = [7u8; 4096];
        let write = cpu(WRITES, |i| {
            std::os::unix::fs::FileExt::write_all_at(&file, &block, u64::from(i) * 4096).unwrap();
        });
        file.sync_all().unwrap();
        Costs { fstat, create, write }
    }

    fn cpu(count: u32, mut work: impl FnMut(u32)) -> f64 {
        let before = used();
        (0..count).for_each(&mut work);
        (used() - before).as_nanos() as f64 / 1000.0 / f64::from(count)
    }

    fn used() -> Duration {
        let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
        let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
        Duration::from_micros(micros as u64)
    }

    /// Always one GETATTR: the kernel's own copy does not count.
    #[allow(unsafe_code)]
    fn stat(file: &File) {
        // SAFETY: `statx` is plain data; the path is an empty C string and the result is written into a local.
        let done = unsafe {
            let mut out: libc::statx = std::mem::zeroed();
            let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC;
            libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_BASIC_STATS, &mut out)
        };
        assert_eq!(done, 0);
    }
}
