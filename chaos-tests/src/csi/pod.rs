//! Pods: a mount namespace each, in which of everything that the node mounted only the pod's own volume is visible.

use super::namespace::Namespace;
use crate::stack::eventually;
use anyhow::{Context, Result, ensure};
use std::{
    io::Write,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

/// How long the writes of a small file may take.
const WRITTEN: Duration = Duration::from_secs(20);

/// How the volume gets into the pod's namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The target itself, mountPropagation None: what is mounted later on the node is not seen.
    Private,
    /// The target itself, mountPropagation HostToContainer.
    Slave,
    /// The directory that holds the target, HostToContainer.
    Parent,
}

/// A pod's namespace.
pub struct Pod {
    /// Its mounts.
    pub namespace: Namespace,
    /// Where it has its volume.
    pub data: PathBuf,
}

impl Pod {
    /// Binds the volume that is published at `target` on `data` (an existing directory outside of `kubelet`), and takes
    /// everything else of the node's mounts away.
    pub fn start(node: &Namespace, kubelet: &Path, target: &Path, data: &Path, view: View) -> Result<Pod> {
        let (from, inside) = match view {
            View::Private | View::Slave => (target, PathBuf::new()),
            View::Parent => {
                (target.parent().context("a target has a parent")?, target.file_name().unwrap_or_default().into())
            }
        };
        let script = format!(
            "mount --rbind '{}' '{}' && umount --lazy --recursive '{}'",
            from.display(),
            data.display(),
            kubelet.display()
        );
        let propagation = if view == View::Private { "private" } else { "slave" };
        let namespace = Namespace::new(Some(node), propagation, &script)?;
        let data = if inside.as_os_str().is_empty() { data.to_owned() } else { data.join(inside) };
        Ok(Pod { namespace, data })
    }

    /// Words that run the words after them in the pod.
    pub fn enter(&self) -> Vec<String> {
        self.namespace.enter()
    }

    /// Writes a new file through a fresh open, syncs it, reads it back; Err with what went wrong. Never blocks us for good.
    pub fn writes(&self, name: &str, text: &str) -> Result<(), String> {
        let file = self.data.join(name);
        let script = "set -e; printf %s \"$2\" >\"$1\"; sync \"$1\"; cat \"$1\"";
        let file = file.display().to_string();
        match self.namespace.run(&["timeout", "-s", "KILL", "20", "sh", "-c", script, "sh", &file, text]) {
            Ok((true, said)) if said == text => Ok(()),
            Ok((_, said)) => Err(said),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Writes a new file and keeps it open, so that what was acknowledged is in the journal only: nothing of the writer is
    /// closed, not even a duplicate, because that would be a flush.
    pub fn leaves_open(&self, name: &str, text: &str) -> Result<OpenFile> {
        let file = self.data.join(name).display().to_string();
        let words = self.enter();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .args(["sh", "-c", "exec cat >\"$1\"", "sh", &file])
            .stdin(Stdio::piped())
            .spawn()?;
        child.stdin.as_mut().context("no pipe")?.write_all(text.as_bytes())?;
        let open = OpenFile(child);
        eventually(WRITTEN, || {
            let (_, said) = self.namespace.run(&["stat", "-c", "%s", &file])?;
            ensure!(said == text.len().to_string(), "{file} has {said} bytes");
            Ok(true)
        })?;
        Ok(open)
    }

    /// Reads a file through a fresh open.
    pub fn reads(&self, name: &str) -> Result<String, String> {
        let file = self.data.join(name).display().to_string();
        match self.namespace.run(&["timeout", "-s", "KILL", "20", "cat", &file]) {
            Ok((true, said)) => Ok(said),
            Ok((false, said)) => Err(said),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// A process of a pod that has a file open and does nothing.
pub struct OpenFile(Child);

impl Drop for OpenFile {
    fn drop(&mut self) {
        let _ = self.0.kill(); // it may have ended
        let _ = self.0.wait();
    }
}
