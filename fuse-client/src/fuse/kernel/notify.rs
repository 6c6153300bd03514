//! Messages to the kernel that nobody asked for.

use super::abi::{self, Out};
use super::encode::Root;
use super::init::resend;
use super::reply::Link;
use bytes::Bytes;
use fusefs_types::Ino;
use std::io::{self, IoSlice, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tokio::runtime::Handle;

/// One notification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notification {
    /// The inode's attributes are not valid any more; of its pages, `len` bytes from `offset` on (0 = to the end; a negative
    /// offset = none).
    InvalInode {
        /// Inode.
        ino: Ino,
        /// First byte, or negative.
        offset: i64,
        /// Bytes.
        len: i64,
    },
    /// A name is not valid any more.
    InvalEntry {
        /// Directory.
        parent: Ino,
        /// Name.
        name: Bytes,
        /// Only end its validity: open files, working directories and mounts below it stay.
        expire_only: bool,
    },
    /// Bytes for the kernel's page cache.
    Store {
        /// Inode.
        ino: Ino,
        /// Offset.
        offset: u64,
        /// Bytes.
        data: Bytes,
    },
    /// A name was removed; who watches it with inotify hears of it.
    Delete {
        /// Directory.
        parent: Ino,
        /// Inode that had the name.
        child: Ino,
        /// Name.
        name: Bytes,
    },
    /// Send again everything that was read and not answered.
    Resend,
}

/// Sends notifications. The kernel takes inode and page locks for most of them, and may wait there for a request that is
/// being served: never send from a thread that holds a lock, nor from one that reads requests (PROTOCOL 45).
#[derive(Clone)]
pub struct Notifier {
    pub(super) link: Arc<Link>,
    pub(super) root: Root,
    pub(super) runtime: Handle,
}

impl Notifier {
    /// Sends now, on this thread; it may block. Ok when the kernel does not know the inode or the name.
    pub fn send(&self, n: &Notification) -> io::Result<()> {
        if self.link.abandoned.load(Ordering::Acquire) {
            return Ok(());
        }
        match self.write(n) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            done => done,
        }
    }

    /// Sends from a thread of the runtime that may block; errors are logged. Order between calls is not kept.
    pub fn send_later(&self, n: Notification) {
        let this = self.clone();
        drop(self.runtime.spawn_blocking(move || {
            if let Err(error) = this.send(&n) {
                tracing::debug!(%error, ?n, "notification");
            }
        }));
    }

    fn write(&self, n: &Notification) -> io::Result<()> {
        let mut out = Out::default();
        let (code, name): (i32, &[u8]) = match n {
            Notification::InvalInode { ino, offset, len } => {
                out.u64(self.root.node(*ino)).u64(*offset as u64).u64(*len as u64);
                (abi::notify::INVAL_INODE, &[])
            }
            Notification::InvalEntry { parent, name, expire_only } => {
                let flags = if *expire_only { abi::notify::EXPIRE_ONLY } else { 0 };
                out.u64(self.root.node(*parent)).u32(name.len() as u32).u32(flags);
                (abi::notify::INVAL_ENTRY, name)
            }
            Notification::Store { ino, offset, data } => {
                out.u64(self.root.node(*ino)).u64(*offset).u32(data.len() as u32).u32(0);
                return self.parts(&mut out, abi::notify::STORE, &[data]);
            }
            Notification::Delete { parent, child, name } => {
                out.u64(self.root.node(*parent)).u64(self.root.node(*child)).u32(name.len() as u32).u32(0);
                (abi::notify::DELETE, name)
            }
            Notification::Resend => return self.link.write(&resend()),
        };
        // Names end in NUL here.
        if name.is_empty() { self.parts(&mut out, code, &[]) } else { self.parts(&mut out, code, &[name, &[0]]) }
    }

    fn parts(&self, out: &mut Out, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let extra = parts.iter().map(|p| p.len()).sum();
        let head = out.finish(code, 0, extra);
        let slices: Vec<IoSlice<'_>> = std::iter::once(head).chain(parts.iter().copied()).map(IoSlice::new).collect();
        (&self.link.device).write_vectored(&slices).map(|_| ())
    }
}
