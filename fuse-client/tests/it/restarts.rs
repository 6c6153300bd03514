//! Applications at work while the client process dies again and again at whatever moment it is: no error, nothing done
//! twice, nothing lost. Names only: without a journal, what was written dies with the process.

use crate::cluster::Cluster;
use crate::kmount::Kept;
use crate::mounted::usable;
use crate::resume::{Process, until};
use crate::rng::{Random, seeds};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

const APPLICATIONS: u64 = 4;
const DEATHS: u64 = 12;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    File,
    Directory,
    Link(String),
}

fn same<T: std::fmt::Debug + PartialEq>(is: T, must_be: T) -> io::Result<()> {
    if is == must_be { Ok(()) } else { Err(io::Error::other(format!("{is:?} instead of {must_be:?}"))) }
}

/// One application: it knows what its directory must look like.
struct Application {
    dir: PathBuf,
    rng: Random,
    nodes: BTreeMap<String, Node>,
    next: u64,
}

impl Application {
    fn new(dir: &Path, seed: u64) -> Application {
        Application { dir: dir.into(), rng: Random::new(seed), nodes: BTreeMap::new(), next: 0 }
    }
    fn some(&mut self) -> Option<(String, Node)> {
        let n = self.nodes.len();
        let at = if n == 0 { 0 } else { self.rng.below(n) };
        self.nodes.iter().nth(at).map(|(name, node)| (name.clone(), node.clone()))
    }
    fn make(&mut self) -> io::Result<()> {
        self.next += 1;
        let name = format!("n{}", self.next);
        let path = self.dir.join(&name);
        let node = match self.rng.below(3) {
            0 => std::fs::File::create_new(path).map(|_| Node::File)?,
            1 => std::fs::create_dir(path).map(|()| Node::Directory)?,
            _ => std::os::unix::fs::symlink(&name, path).map(|()| Node::Link(name.clone()))?,
        };
        self.nodes.insert(name, node);
        Ok(())
    }
    fn step(&mut self) -> io::Result<()> {
        let Some((name, node)) = self.some().filter(|_| self.nodes.len() > 3) else { return self.make() };
        let path = self.dir.join(&name);
        match self.rng.below(6) {
            0 | 1 => return self.make(),
            2 => {
                match node {
                    Node::Directory => std::fs::remove_dir(path)?,
                    _ => std::fs::remove_file(path)?,
                }
                self.nodes.remove(&name);
            }
            3 => {
                self.next += 1;
                let to = format!("n{}", self.next);
                std::fs::rename(path, self.dir.join(&to))?;
                self.nodes.remove(&name);
                self.nodes.insert(to, node);
            }
            4 => {
                let kind = std::fs::symlink_metadata(&path)?;
                assert_eq!(
                    (kind.is_dir(), kind.is_symlink()),
                    (node == Node::Directory, matches!(node, Node::Link(_)))
                );
                assert_eq!(kind.nlink(), if node == Node::Directory { 2 } else { 1 });
            }
            _ => self.check()?,
        }
        Ok(())
    }
    fn check(&self) -> io::Result<()> {
        let mut seen = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            seen.push(entry?.file_name().into_string().unwrap());
        }
        seen.sort();
        let mut want: Vec<_> = self.nodes.keys().cloned().collect();
        want.sort();
        same(seen, want)?;
        for (name, node) in &self.nodes {
            if let Node::Link(to) = node {
                same(std::fs::read_link(self.dir.join(name))?, PathBuf::from(to))?;
            }
        }
        Ok(())
    }
}

/// What the applications saw while `deaths` processes died. Without `dedupe` the successors do not know what was done.
fn at_work(slots: bool, seed: u64, deaths: u64, dedupe: bool) -> io::Result<()> {
    let (cluster, dir) = (Cluster::new(), tempfile::tempdir().unwrap());
    let mut kept = Kept::mount(dir.path(), slots).unwrap();
    let mut process = Process::start(&cluster, &kept);
    process.client.meta.set_lag();
    let (stop, steps) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let start = |i: u64| {
        let own = dir.path().join(format!("app{i}"));
        std::fs::create_dir(&own).unwrap();
        let mut app = Application::new(&own, seed * 100 + i);
        let (stop, steps) = (stop.clone(), steps.clone());
        std::thread::spawn(move || {
            while !stop.load(Relaxed) {
                app.step().inspect_err(|_| stop.store(true, Relaxed))?;
                steps.fetch_add(1, Relaxed);
            }
            app.check()
        })
    };
    let apps: Vec<_> = (0..APPLICATIONS).map(start).collect();
    let (mut again, mut died, mut rng) = (0, 0, Random::new(seed));
    while died < deaths && !stop.load(Relaxed) {
        let goal = steps.load(Relaxed) + 5 + rng.below(50) as u64;
        until("applications get on", || stop.load(Relaxed) || steps.load(Relaxed) >= goal);
        if stop.load(Relaxed) {
            break;
        }
        // Some attributes are old at every death.
        cluster.clock.advance_ms(300);
        let (old, last) = process.die_at_work(dir.path());
        process = Process::after(&old, &cluster, &kept, dedupe);
        process.client.meta.set_lag();
        let s = process.serving.stats();
        last.into_iter().for_each(|asked| assert!(!asked.join().unwrap()));
        again += s.resent.load(Relaxed) + s.reserved.load(Relaxed) + s.rewritten.load(Relaxed);
        died += 1;
    }
    stop.store(true, Relaxed);
    let seen = apps.into_iter().map(|app| app.join().unwrap()).fold(Ok(()), io::Result::and);
    let steps = steps.load(Relaxed);
    println!("seed {seed}, slots {slots}: {died} deaths, {steps} steps, {again} requests finished by a successor");
    assert!(again >= died, "every death leaves the requests of the readers");
    process.end(&mut kept);
    seen
}

#[test]
fn a_client_that_dies_again_and_again_is_not_noticed() {
    if !usable() {
        return;
    }
    for seed in seeds(2) {
        for slots in [false, true] {
            let seen = at_work(slots, seed, DEATHS, true);
            assert!(seen.is_ok(), "seed {seed} (FUSEFS_SEED={seed}), slots {slots}: {seen:?}");
        }
    }
}

/// The negative control: half of what was left unanswered had been done.
#[test]
fn successors_that_do_not_know_what_was_done_are_noticed() {
    if !usable() {
        return;
    }
    for slots in [false, true] {
        let seen = at_work(slots, 1, 20 * DEATHS, false);
        println!("slots {slots}: {seen:?}");
        assert!(seen.is_err());
    }
}
