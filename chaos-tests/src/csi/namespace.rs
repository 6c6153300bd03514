//! Mount namespaces: one per node, one per pod.

use anyhow::{Context, Result, bail};
use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// A mount namespace that lives as long as this value.
pub struct Namespace {
    /// Its only process waits for the end of its input, so nothing outlives the test.
    holder: Child,
    /// Mounts of ours that it was made with: somebody else's, never counted and never touched.
    foreign: Vec<Line>,
}

/// One mount of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// `major:minor`.
    pub device: String,
    /// Part of the file system.
    pub root: String,
    /// Where.
    pub point: PathBuf,
    /// Options of the mount.
    pub options: String,
    /// Source.
    pub source: String,
}

impl Namespace {
    /// A copy of `outer`'s mounts (or ours) after `script`, whose changes stay inside. `propagation` is how mounts of the
    /// outer one come in: `private` or `slave`.
    pub fn new(outer: Option<&Namespace>, propagation: &str, script: &str) -> Result<Namespace> {
        let script = format!("set -e; {script}; echo ready; exec cat");
        let mut words = outer.map(Namespace::enter).unwrap_or_default();
        words.extend(["unshare", "--mount", "--propagation", propagation, "sh", "-c", &script].map(String::from));
        let mut holder = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("unshare (util-linux) is needed")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("no pipe")?).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("no mount namespace ({}); this needs root: {script}", holder.wait()?);
        }
        let foreign = if outer.is_some() { Vec::new() } else { lines(holder.id())? };
        Ok(Namespace { holder, foreign })
    }

    /// Process inside.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Words that run the words after them inside.
    pub fn enter(&self) -> Vec<String> {
        vec!["nsenter".into(), format!("--mount=/proc/{}/ns/mnt", self.pid()), "--".into()]
    }

    /// A path of this namespace as others see it.
    pub fn path(&self, inside: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.pid()));
        root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Mounts of ours that were made here.
    pub fn mounts(&self) -> Result<Vec<Line>> {
        Ok(lines(self.pid())?.into_iter().filter(|l| !self.foreign.contains(l)).collect())
    }

    /// Mounts of ours at exactly this path.
    pub fn at(&self, point: &Path) -> Result<Vec<Line>> {
        Ok(self.mounts()?.into_iter().filter(|l| l.point == point).collect())
    }

    /// Runs a program inside and answers whether it succeeded, with what it said.
    pub fn run(&self, words: &[&str]) -> Result<(bool, String)> {
        let enter = self.enter();
        let out = Command::new(&enter[0]).args(&enter[1..]).args(words).stdin(Stdio::null()).output()?;
        let said = [out.stdout, out.stderr].concat();
        Ok((out.status.success(), String::from_utf8_lossy(&said).trim().to_owned()))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill(); // it may have ended
        let _ = self.holder.wait();
    }
}

fn lines(pid: u32) -> Result<Vec<Line>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/mountinfo"))?;
    Ok(text.lines().filter_map(parse).filter(|l| l.source.starts_with("fusefs#")).collect())
}

// 36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,errors=continue
fn parse(line: &str) -> Option<Line> {
    let mut words = line.split(' ');
    let (device, root, point) = (words.nth(2)?.into(), words.next()?.into(), words.next()?.into());
    let options = words.next()?.into();
    // The kernel writes # as an octal number.
    let source = words.skip_while(|w| *w != "-").nth(2)?.replace("\\043", "#");
    Some(Line { device, root, point, options, source })
}
