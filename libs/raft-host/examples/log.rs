//! Durable appends per second of the log, for 1 and 64 groups, beside a bare preallocated log in the same run.
//!
//! `cargo run --release -p fusefs-raft-host --example log -- [DIRECTORY] [SECONDS]` (default target/bench-log, 2 s per
//! round). One appender per group, one entry of 200 bytes each at a time: it waits for its fdatasync, then appends the
//! next. Rounds of the two logs alternate, so that both see the same machine.
//!
//! The bare log is what group commit costs at least: a queue of bytes, one committer thread that writes length, CRC and
//! payload with one pwrite and one fdatasync into a file of 64 MiB that was zeroed before, and wraps; the same tasks
//! and wake-ups around it. CPU is that of the whole process, user and system, so the appenders are in both figures.

#![allow(clippy::disallowed_methods)] // a measurement reads the clock

use bytes::Bytes;
use fusefs_raft_host::{Disk, RealDisk, bench::BenchLog};
use fusefs_types::limits::LOG_SEGMENT_BYTES;
use nix::sys::resource::{UsageWho, getrusage};
use parking_lot::{Condvar, Mutex};
use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

const PAYLOAD: usize = 200;
const ROUNDS: usize = 4;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Default)]
struct Queue {
    buf: Vec<u8>,
    waiters: Vec<oneshot::Sender<()>>,
    closing: bool,
}

struct Bare {
    queue: Mutex<Queue>,
    condvar: Condvar,
    syncs: AtomicU64,
}

impl Bare {
    fn open(path: &Path) -> io::Result<(Arc<Bare>, std::thread::JoinHandle<io::Result<()>>)> {
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        let zeroes = vec![0; 1 << 20];
        for at in (0..LOG_SEGMENT_BYTES).step_by(zeroes.len()) {
            file.write_all_at(&zeroes, at)?;
        }
        file.sync_all()?;
        let bare =
            Arc::new(Bare { queue: Mutex::new(Queue::default()), condvar: Condvar::new(), syncs: AtomicU64::new(0) });
        let committer = Arc::clone(&bare);
        Ok((bare, std::thread::spawn(move || committer.commit(&file))))
    }

    fn commit(&self, file: &File) -> io::Result<()> {
        let mut at = 0;
        loop {
            let (buf, waiters) = {
                let mut queue = self.queue.lock();
                while queue.buf.is_empty() {
                    if queue.closing {
                        return Ok(());
                    }
                    self.condvar.wait(&mut queue);
                }
                (std::mem::take(&mut queue.buf), std::mem::take(&mut queue.waiters))
            };
            if at + buf.len() as u64 > LOG_SEGMENT_BYTES {
                at = 0;
            }
            file.write_all_at(&buf, at)?;
            file.sync_data()?;
            at += buf.len() as u64;
            self.syncs.fetch_add(1, Relaxed);
            for waiter in waiters {
                let _ = waiter.send(());
            }
        }
    }

    async fn append(&self, payload: &[u8]) -> Result<(), Failure> {
        let (tx, rx) = oneshot::channel();
        {
            let mut queue = self.queue.lock();
            queue.buf.extend_from_slice(&u32::try_from(payload.len())?.to_le_bytes());
            queue.buf.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
            queue.buf.extend_from_slice(payload);
            queue.waiters.push(tx);
        }
        self.condvar.notify_one();
        Ok(rx.await?)
    }

    fn close(&self) {
        self.queue.lock().closing = true;
        self.condvar.notify_one();
    }
}

/// What one kind of log did so far.
#[derive(Default, Clone)]
struct Figures {
    appends: u64,
    syncs: u64,
    wall: Duration,
    cpu: Duration,
    micros: Vec<u32>,
}

impl Figures {
    fn rate(&self) -> f64 {
        self.appends as f64 / self.wall.as_secs_f64()
    }
    fn cpu_micros(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.appends as f64
    }
    fn print(&mut self, what: &str) {
        self.micros.sort_unstable();
        let at = |per_mille: usize| self.micros[(self.micros.len() - 1) * per_mille / 1000];
        println!(
            "{what}: {:>7.0} appends/s, {:>5.1} us CPU/append, {:.3} fsyncs/append, p50 {} us, p99 {} us",
            self.rate(),
            self.cpu_micros(),
            self.syncs as f64 / self.appends as f64,
            at(500),
            at(990),
        );
    }
}

fn cpu() -> Result<Duration, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |t: nix::sys::time::TimeVal| t.tv_sec() as u64 * 1_000_000 + t.tv_usec() as u64;
    Ok(Duration::from_micros(micros(usage.user_time()) + micros(usage.system_time())))
}

/// Runs `groups` appenders for `lasting`; adds what they did to `figures`.
async fn round<F, A>(groups: u64, lasting: Duration, figures: &mut Figures, append: F) -> Result<(), Failure>
where
    F: Fn(u64, u64) -> A + Clone + Send + Sync + 'static,
    A: Future<Output = Result<(), Failure>> + Send,
{
    let (start, before) = (Instant::now(), cpu()?);
    let tasks: Vec<_> = (1..=groups)
        .map(|group| {
            let append = append.clone();
            tokio::spawn(async move {
                let mut micros = Vec::with_capacity(1 << 16);
                for index in 0.. {
                    let at = Instant::now();
                    if at - start >= lasting {
                        break;
                    }
                    append(group, index).await?;
                    micros.push(u32::try_from(at.elapsed().as_micros())?);
                }
                Ok::<_, Failure>(micros)
            })
        })
        .collect();
    for task in tasks {
        let micros = task.await??;
        figures.appends += micros.len() as u64;
        figures.micros.extend(micros);
    }
    figures.wall += start.elapsed();
    figures.cpu += cpu()? - before;
    Ok(())
}

async fn ours(dir: &Path, groups: u64, lasting: Duration, figures: &mut Figures) -> Result<(), Failure> {
    let disk: Arc<dyn Disk> = RealDisk::open(dir)?;
    let log = Arc::new(BenchLog::open(Arc::clone(&disk), LOG_SEGMENT_BYTES)?);
    let payload = Bytes::from(vec![7; PAYLOAD]);
    let appender = Arc::clone(&log);
    round(groups, lasting, figures, move |group, index| {
        let (log, payload) = (Arc::clone(&appender), payload.clone());
        async move { Ok(log.append(group, index, payload).await?) }
    })
    .await?;
    figures.syncs += log.stats().fsyncs;
    log.close().await;
    disk.release();
    Ok(())
}

async fn bare(dir: &Path, groups: u64, lasting: Duration, figures: &mut Figures) -> Result<(), Failure> {
    let (bare, committer) = Bare::open(&dir.join("bare"))?;
    let appender = Arc::clone(&bare);
    round(groups, lasting, figures, move |_, _| {
        let bare = Arc::clone(&appender);
        async move { bare.append(&[7; PAYLOAD]).await }
    })
    .await?;
    figures.syncs += bare.syncs.load(Relaxed);
    bare.close();
    committer.join().map_err(|_| "the committer panicked")??;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "target/bench-log".into());
    let lasting = Duration::from_secs_f64(args.next().map_or(Ok(2.0), |a| a.parse())?);
    let dir = Path::new(&dir);
    std::fs::create_dir_all(dir)?;
    println!("{ROUNDS} rounds of {lasting:?} each in turn, {PAYLOAD} B entries, {}", dir.display());
    for groups in [1, 64] {
        let (mut own, mut floor) = (Figures::default(), Figures::default());
        for _ in 0..ROUNDS {
            ours(dir, groups, lasting, &mut own).await?;
            bare(dir, groups, lasting, &mut floor).await?;
        }
        own.print(&format!("{groups:>2} groups, log "));
        floor.print(&format!("{groups:>2} groups, bare"));
        println!(
            "{groups:>2} groups: CPU per append {:.2} x bare (target 1.3), appends/s {:.2} x bare",
            own.cpu_micros() / floor.cpu_micros(),
            own.rate() / floor.rate(),
        );
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
