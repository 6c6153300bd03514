//! Real mounts on a real cluster: POSIX suites, coherence between two clients, garbage collection, costs.

use anyhow::{Context, Result, ensure};
use fusefs_chaos_tests::stack::{Stack, eventually, sh};
use fusefs_local_cluster::Shape;
use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::MetadataExt,
    path::Path,
    process::Command,
    time::Duration,
};

const ONE: Shape = Shape { masters: 1, metanodes: 1 };
/// Of the 383 cases that ext4 passes here, at least this many must pass.
const PJDFSTEST_MIN: usize = 370;
const PJDFSTEST_CONFIG: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
utimensat = {}
utime_now = {}
stat_st_birthtime = {}
[settings]
naptime = 0.02
allow_remount = false
[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

fn stack(volume: &str, clients: usize, env: &[(&str, &str)]) -> Result<Stack> {
    let mut stack = Stack::start_with(ONE, env)?;
    stack.fusefs(&["volume", "create", volume])?;
    for _ in 0..clients {
        stack.mount(volume, &[])?;
    }
    Ok(stack)
}

#[test]
fn pjdfstest_passes() -> Result<()> {
    let stack = stack("posix", 1, &[])?;
    let config = stack.dir.root().join("pjdfstest.toml");
    fs::write(&config, PJDFSTEST_CONFIG)?;
    // The suite underflows for some lengths of the base path ("capacity overflow" in every enametoolong_path case); one
    // more character helps.
    for sub in ["p", "pp"] {
        let dir = stack.at(0).join(sub);
        fs::create_dir(&dir)?;
        fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        let out = Command::new("pjdfstest")
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(&dir)
            .output()
            .context("running pjdfstest")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        if text.contains("capacity overflow") && sub == "p" {
            continue;
        }
        let summary = text.lines().find(|l| l.starts_with("Summary:")).with_context(|| text.clone())?;
        for failed in text.lines().filter(|l| l.trim_end().ends_with("FAILED")) {
            println!("failed: {failed}");
        }
        println!("{summary}");
        let passed = summary
            .split(", ")
            .find_map(|p| p.strip_suffix(" passed"))
            .and_then(|n| n.parse::<usize>().ok())
            .context("no count")?;
        ensure!(passed >= PJDFSTEST_MIN, "{passed} cases passed, at least {PJDFSTEST_MIN} must:\n{text}");
        return Ok(());
    }
    anyhow::bail!("pjdfstest could not run at either path length")
}

#[test]
fn fsx_is_clean() -> Result<()> {
    let stack = stack("fsx", 1, &[])?;
    for seed in ["1", "20261121"] {
        let file = stack.at(0).join(format!("fsx{seed}")).display().to_string();
        sh(stack.at(0), "fsx", &["-N", "20000", "-S", seed, &file])?;
        println!("fsx -N 20000 -S {seed}: clean");
    }
    Ok(())
}

#[test]
fn open_after_close_shows_the_new_data_and_names_age_within_their_validity() -> Result<()> {
    let stack = stack("two", 2, &[])?;
    let (a, b) = (stack.at(0).join("f"), stack.at(1).join("f"));
    for round in 0..50_u32 {
        let (writer, reader) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        let text = vec![b'a' + (round % 26) as u8; 1 + round as usize * 997];
        fs::write(writer, &text)?;
        if round == 0 {
            eventually(Duration::from_secs(3), || Ok(reader.exists()))?;
        }
        ensure!(fs::read(reader)? == text, "round {round}: open after close did not show the new data");
    }
    let (mut stale, mut outside) = (0, 0);
    for round in 0..10 {
        let (x, y) = (stack.at(0).join(format!("n{round}")), stack.at(1).join(format!("n{round}")));
        ensure!(!y.exists(), "nothing there yet, and now cached as absent");
        fs::write(&x, b"x")?;
        #[allow(clippy::disallowed_methods)] // measures the staleness that is promised
        let start = std::time::Instant::now();
        while !y.exists() {
            stale += 1;
            // Validity of the client's and the kernel's copy, each one second.
            outside += usize::from(start.elapsed() > Duration::from_millis(2_500));
            ensure!(start.elapsed() < Duration::from_secs(10), "the name never appeared");
        }
    }
    println!("{stale} stale observations inside the window, {outside} outside");
    ensure!(outside == 0);
    Ok(())
}

#[test]
fn a_full_volume_refuses_writes_until_it_is_expanded() -> Result<()> {
    const SIZE: u64 = 16 << 20;
    let mut stack = Stack::start(ONE)?;
    stack.fusefs(&["volume", "create", "small", "--capacity", &SIZE.to_string()])?;
    let at = stack.mount("small", &[])?;
    let at = stack.at(at);
    let size = || -> Result<u64> {
        let s = nix::sys::statvfs::statvfs(at)?;
        Ok(s.blocks() * s.fragment_size())
    };
    ensure!(size()? == SIZE, "df shows {}", size()?);
    let text = |n: usize| vec![n as u8; 1 << 20];
    let write = |n: usize| -> std::io::Result<()> {
        let mut file = fs::File::create(at.join(n.to_string()))?;
        file.write_all(&text(n))?;
        file.sync_all()
    };
    let full = |e: &std::io::Error| e.raw_os_error() == Some(nix::libc::ENOSPC);
    let mut whole = 0;
    eventually(Duration::from_secs(60), || match write(whole) {
        Ok(()) => {
            whole += 1;
            Ok(false)
        }
        Err(e) if full(&e) => Ok(true),
        Err(e) => Err(e.into()),
    })?;
    println!("{whole} MiB of 16 were taken");
    ensure!(whole as u64 >= SIZE >> 20, "refused too early, after {whole} MiB");
    for n in 0..whole {
        ensure!(fs::read(at.join(n.to_string()))? == text(n), "file {n} was acknowledged");
    }
    stack.fusefs(&["volume", "expand", "small", "1GiB"])?;
    eventually(Duration::from_secs(30), || match write(whole) {
        Err(e) if full(&e) => Ok(false),
        other => Ok(other.map(|()| true)?),
    })?;
    ensure!(size()? == 1 << 30, "df shows {} after the expansion", size()?);
    Ok(())
}

#[test]
fn appends_of_two_clients_never_overwrite_each_other() -> Result<()> {
    let stack = stack("append", 2, &[])?;
    const LINES: usize = 200;
    std::thread::scope(|s| -> Result<()> {
        let run = |i: usize| {
            let path = stack.at(i).join("log");
            move || -> Result<()> {
                let mut f = fs::OpenOptions::new().create(true).append(true).open(path)?;
                for n in 0..LINES {
                    f.write_all(format!("client {i} line {n:06}\n").as_bytes())?;
                }
                Ok(())
            }
        };
        let (x, y) = (s.spawn(run(0)), s.spawn(run(1)));
        for h in [x, y] {
            h.join().map_err(|_| anyhow::anyhow!("writer panicked"))??;
        }
        Ok(())
    })?;
    let text = fs::read_to_string(stack.at(0).join("log"))?;
    let mut lines: Vec<_> = text.lines().collect();
    ensure!(lines.len() == 2 * LINES, "{} lines instead of {}", lines.len(), 2 * LINES);
    lines.sort_unstable();
    lines.dedup();
    ensure!(lines.len() == 2 * LINES, "lines were torn or doubled");
    Ok(())
}

#[test]
fn sparse_large_and_unlinked_files_work() -> Result<()> {
    let stack = stack("files", 1, &[])?;
    let path = stack.at(0).join("sparse");
    let f = fs::File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
    use std::os::unix::fs::FileExt;
    let far = 5 << 30;
    f.write_all_at(b"far away", far)?;
    f.write_all_at(b"start", 0)?;
    f.sync_all()?;
    let m = f.metadata()?;
    ensure!(m.len() == far + 8 && m.blocks() * 512 < 1 << 20, "{} bytes, {} blocks", m.len(), m.blocks());
    let mut buffer = [1; 8];
    f.read_exact_at(&mut buffer, 1 << 30)?;
    ensure!(buffer == [0; 8], "a hole must read as zeroes");
    f.set_len(3)?;
    f.set_len(10)?;
    let mut all = Vec::new();
    fs::File::open(&path)?.read_to_end(&mut all)?;
    ensure!(all == b"sta\0\0\0\0\0\0\0", "truncate down and up: {all:?}");
    fs::remove_file(&path)?;
    f.write_all_at(b"still open", 0)?;
    f.read_exact_at(&mut buffer, 0)?;
    ensure!(&buffer == b"still op", "an unlinked open file must work");
    Ok(())
}

fn fill(dir: &Path) -> Result<()> {
    fs::create_dir_all(dir)?;
    for i in 0..30 {
        fs::write(dir.join(format!("big{i}")), vec![i as u8; 300_000])?;
        fs::write(dir.join(format!("small{i}")), vec![i as u8; 500])?;
    }
    Ok(())
}

/// Graces in seconds instead of minutes.
const SHORT: &[(&str, &str)] = &[
    ("FUSEFS_OBJECT_GRACE_MS", "1000"),
    ("FUSEFS_SWEEP_GRACE_MS", "1000"),
    ("FUSEFS_LEASE_MS", "3000"),
    ("FUSEFS_SESSION_TTL_MS", "5000"),
];

#[test]
fn the_bucket_is_empty_after_files_and_volumes_are_deleted() -> Result<()> {
    let mut stack = stack("gone", 1, SHORT)?;
    fill(&stack.at(0).join("a"))?;
    ensure!(stack.objects()?.len() >= 30, "the files should be in the bucket");
    fs::remove_dir_all(stack.at(0).join("a"))?;
    eventually(Duration::from_secs(30), || Ok(stack.objects()?.is_empty()))
        .with_context(|| format!("left after rm: {:?}", stack.objects()))?;
    fill(&stack.at(0).join("b"))?;
    stack.clients[0].stop()?;
    ensure!(stack.objects()?.len() >= 30);
    stack.fusefs(&["volume", "delete", "gone", "--yes"])?;
    eventually(Duration::from_secs(30), || Ok(stack.objects()?.is_empty()))
        .with_context(|| format!("left after volume delete: {:?}", stack.objects()))
}

#[test]
fn a_killed_client_leaves_no_unreferenced_object() -> Result<()> {
    let mut stack = stack("sweep", 1, SHORT)?;
    fs::write(stack.at(0).join("kept"), vec![7; 1 << 20])?;
    let path = stack.at(0).join("torn");
    let writer = std::thread::spawn(move || -> std::io::Result<()> {
        let mut f = fs::File::create(path)?;
        for _ in 0..400 {
            f.write_all(&[9; 1 << 20])?;
        }
        Ok(())
    });
    eventually(Duration::from_secs(30), || Ok(stack.objects()?.len() >= 3))?;
    ensure!(stack.clients[0].kill(), "the client was not running");
    let _ = writer.join();
    stack.clients[0].start()?;
    ensure!(fs::read(stack.at(0).join("kept"))? == vec![7; 1 << 20], "a closed file must survive");
    let _ = fs::remove_file(stack.at(0).join("torn"));
    fs::remove_file(stack.at(0).join("kept"))?;
    eventually(Duration::from_secs(60), || Ok(stack.objects()?.is_empty()))
        .with_context(|| format!("left: {:?}", stack.objects()))
}

#[test]
fn wrong_addresses_names_and_keys_are_told_within_15_seconds() -> Result<()> {
    let stack = Stack::start(ONE)?;
    let run = |args: &[&str]| -> Result<String> {
        #[allow(clippy::disallowed_methods)] // the promise is about time
        let start = std::time::Instant::now();
        let out = stack.fusefs_raw(args)?;
        ensure!(!out.status.success(), "fusefs {args:?} should fail");
        ensure!(start.elapsed() < Duration::from_secs(20), "fusefs {args:?} took {:?}", start.elapsed());
        Ok(String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let dead = run(&["status", "--master", "127.0.0.1:1"])?;
    ensure!(dead.contains("127.0.0.1:1"), "{dead}");
    let bucket = run(&["store", "add", "other", &format!("{}/no-such-bucket", stack.s3.endpoint)])?;
    ensure!(bucket.contains("bucket"), "{bucket}");
    let refused = run(&["store", "add", "other", "http://127.0.0.1:1/bucket"])?;
    ensure!(refused.contains("127.0.0.1:1"), "{refused}");
    let volume = run(&["mount", "nosuch", stack.dir.root().join("m").to_str().context("path")?])?;
    ensure!(volume.contains("nosuch"), "{volume}");
    let name = run(&["volume", "create", "Not_A_Name"])?;
    ensure!(name.contains("Not_A_Name"), "{name}");
    println!("{dead}{bucket}{refused}{volume}{name}");
    Ok(())
}
