//! The rows. Metadata rows build on each other's files in the order of [`METADATA`].
#![allow(clippy::disallowed_methods)] // a benchmark is where the raw clock is read

use super::Sample;
use crate::args::BenchArgs;
use anyhow::{Context, Result, bail, ensure};
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Write},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// Metadata rows, in running order.
pub const METADATA: &[&str] = &[
    "mkdir",
    "create",
    "stat",
    "readdir+stat",
    "open+close",
    "chmod",
    "rename",
    "unlink",
    "1 KiB write+close",
    "1 KiB open+read+close",
    "1 KiB overwrite",
    "unlink 1 KiB file",
    "rmdir",
];

/// Rows about data and trees.
pub const BULK: &[&str] = &[
    "write big + fsync",
    "read 1 MiB cold",
    "read 1 MiB warm",
    "read 4 KiB random cold",
    "read 4 KiB random warm",
    "untar",
    "find -printf %s cold",
    "rm -rf",
];

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn dir_of(base: &Path, thread: usize) -> PathBuf {
    base.join(format!("d{thread}"))
}

/// Runs one metadata row with `files` operations spread over `threads`.
pub fn metadata(row: &str, base: &Path, files: usize, threads: usize) -> Result<Sample> {
    let per = files.div_ceil(threads);
    for t in 0..threads {
        fs::create_dir_all(dir_of(base, t))?;
    }
    let start = Instant::now();
    let each = std::thread::scope(|s| -> Result<Vec<_>> {
        let handles: Vec<_> = (0..threads).map(|t| s.spawn(move || one_thread(row, &dir_of(base, t), per))).collect();
        let mut all = Vec::with_capacity(files);
        for h in handles {
            all.extend(h.join().map_err(|_| anyhow::anyhow!("a benchmark thread panicked"))??);
        }
        Ok(all)
    })?;
    Ok(Sample { wall: start.elapsed(), each })
}

fn one_thread(row: &str, dir: &Path, n: usize) -> Result<Vec<std::time::Duration>> {
    if row == "readdir+stat" {
        return readdir_stat(dir, n);
    }
    let block = vec![0x5a_u8; KIB];
    let mut each = Vec::with_capacity(n);
    for i in 0..n {
        let (d, f, g, k) = (
            dir.join(format!("dir{i}")),
            dir.join(format!("f{i}")),
            dir.join(format!("g{i}")),
            dir.join(format!("k{i}")),
        );
        let start = Instant::now();
        match row {
            "mkdir" => fs::create_dir(&d)?,
            "create" => drop(OpenOptions::new().write(true).create_new(true).open(&f)?),
            "stat" => {
                fs::metadata(&f)?;
            }
            "open+close" => drop(File::open(&f)?),
            "chmod" => fs::set_permissions(&f, Permissions::from_mode(0o600))?,
            "rename" => fs::rename(&f, &g)?,
            "unlink" => fs::remove_file(&g)?,
            "1 KiB write+close" => OpenOptions::new().write(true).create_new(true).open(&k)?.write_all(&block)?,
            "1 KiB open+read+close" => {
                let mut buffer = [0; KIB];
                File::open(&k)?.read_exact(&mut buffer)?;
                ensure!(buffer[..] == block[..], "{} does not hold what was written", k.display());
            }
            "1 KiB overwrite" => OpenOptions::new().write(true).open(&k)?.write_all(&block)?,
            "unlink 1 KiB file" => fs::remove_file(&k)?,
            "rmdir" => fs::remove_dir(&d)?,
            _ => bail!("unknown row {row}"),
        }
        each.push(start.elapsed());
    }
    Ok(each)
}

/// One listing with a stat of every entry counts as `n` operations of equal length.
fn readdir_stat(dir: &Path, n: usize) -> Result<Vec<std::time::Duration>> {
    let mut each = Vec::with_capacity(2 * n);
    let mut last = Instant::now();
    for entry in fs::read_dir(dir)? {
        entry?.metadata()?;
        each.push(last.elapsed());
        last = Instant::now();
    }
    Ok(each)
}

/// Runs one bulk row; answers rate and unit.
pub fn bulk(row: &str, dir: &Path, args: &BenchArgs) -> Result<(f64, &'static str)> {
    let big = dir.join("big");
    let bytes = args.big_mib as usize * MIB;
    if row.starts_with("read") && !big.exists() {
        write_big(&big, bytes)?;
    }
    let start = Instant::now();
    let (count, unit) = match row {
        "write big + fsync" => {
            write_big(&big, bytes)?;
            (args.big_mib as f64, "MiB/s")
        }
        "read 1 MiB cold" | "read 1 MiB warm" => {
            let start = prepare(&big, row)?;
            read_sequential(&big, bytes)?;
            return Ok((args.big_mib as f64 / start.elapsed().as_secs_f64(), "MiB/s"));
        }
        "read 4 KiB random cold" | "read 4 KiB random warm" => {
            let start = prepare(&big, row)?;
            let reads = read_random(&big, bytes, 2000)?;
            return Ok((reads as f64 / start.elapsed().as_secs_f64(), "ops/s"));
        }
        "untar" => return untar(dir, args.tar_files),
        "find -printf %s cold" => {
            ensure!(dir.join("tree").is_dir(), "the untar row must run first");
            drop_caches();
            let start = Instant::now();
            let out = Command::new("find")
                .arg(dir.join("tree"))
                .args(["-printf", "%s\\n"])
                .output()
                .context("running find")?;
            let lines = out.stdout.iter().filter(|b| **b == b'\n').count();
            return Ok((lines as f64 / start.elapsed().as_secs_f64(), "files/s"));
        }
        "rm -rf" => {
            let n = count_files(&dir.join("tree"))?;
            let start = Instant::now();
            ensure!(Command::new("rm").arg("-rf").arg(dir.join("tree")).status()?.success(), "rm -rf failed");
            return Ok((n as f64 / start.elapsed().as_secs_f64(), "files/s"));
        }
        _ => bail!("unknown row {row}"),
    };
    Ok((count / start.elapsed().as_secs_f64(), unit))
}

fn write_big(path: &Path, bytes: usize) -> Result<()> {
    let mut f = File::create(path)?;
    let mut block = vec![0_u8; MIB];
    for i in 0..bytes / MIB {
        // Incompressible enough, and different in every block.
        let mut x = i as u64 | 1;
        for chunk in block.chunks_exact_mut(8) {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&x.to_le_bytes());
        }
        f.write_all(&block)?;
    }
    f.sync_all()?;
    Ok(())
}

/// Cold: page cache dropped (needs root). Warm: read once before.
fn prepare(big: &Path, row: &str) -> Result<Instant> {
    if row.ends_with("cold") {
        drop_caches();
    } else {
        let bytes = fs::metadata(big)?.len() as usize;
        read_sequential(big, bytes)?;
    }
    Ok(Instant::now())
}

fn drop_caches() {
    // Without root the row measures a warm cache; nothing else depends on it.
    let _ = fs::write("/proc/sys/vm/drop_caches", "3");
}

fn read_sequential(path: &Path, bytes: usize) -> Result<()> {
    let mut f = File::open(path)?;
    let mut block = vec![0_u8; MIB];
    for _ in 0..bytes / MIB {
        f.read_exact(&mut block)?;
    }
    Ok(())
}

fn read_random(path: &Path, bytes: usize, reads: usize) -> Result<usize> {
    let f = File::open(path)?;
    let mut block = [0_u8; 4 * KIB];
    let blocks = (bytes / block.len()).max(1) as u64;
    let mut x = 88_172_645_463_325_252_u64;
    for _ in 0..reads {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        f.read_exact_at(&mut block, (x % blocks) * (4 * KIB) as u64)?;
    }
    Ok(reads)
}

/// Unpacks a generated archive (17 MB at 5,000 files) with the system's tar.
fn untar(dir: &Path, files: usize) -> Result<(f64, &'static str)> {
    let source = std::env::temp_dir().join(format!("fusefs-bench-src-{}", std::process::id()));
    let archive = source.with_extension("tar");
    fs::create_dir_all(source.join("tree"))?;
    for i in 0..files {
        let d = source.join("tree").join(format!("d{}", i / 100));
        if i % 100 == 0 {
            fs::create_dir_all(&d)?;
        }
        let len = 256 + (i * 7919) % 6300;
        fs::write(d.join(format!("file{i}.c")), vec![b'a' + (i % 26) as u8; len])?;
    }
    let tar = |args: &[&str], at: &Path| -> Result<()> {
        let status = Command::new("tar")
            .args(args)
            .arg(&archive)
            .arg("-C")
            .arg(at)
            .args(if args[0] == "-cf" { &["tree"][..] } else { &[] })
            .stdout(Stdio::null())
            .status();
        ensure!(status.context("running tar")?.success(), "tar failed");
        Ok(())
    };
    tar(&["-cf"], &source)?;
    fs::remove_dir_all(&source)?;
    let start = Instant::now();
    let result = tar(&["-xf"], dir);
    let wall = start.elapsed();
    fs::remove_file(&archive)?;
    result?;
    Ok((files as f64 / wall.as_secs_f64(), "files/s"))
}

fn count_files(dir: &Path) -> Result<usize> {
    let mut n = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        n += if entry.file_type()?.is_dir() { count_files(&entry.path())? } else { 1 };
    }
    Ok(n)
}
