//! Metadata calls of the data path.

use super::icache::InodeCache;
use super::{ns, unexpected};
use crate::Meta;
use async_trait::async_trait;
use fusefs_data_path::{ExtentMap, MetaSink};
use fusefs_types::{
    Attr, Clock, FsResult, Ino,
    ids::{MountId, OpId, Origin},
    ops::{Append, Commit, CommitFile, Read, ReadReply, Write, WriteReply},
};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Carries commits to the partitions and what they answer into the inode cache, before the dirty overlay goes.
pub(super) struct Sink {
    meta: Arc<dyn Meta>,
    inodes: Arc<InodeCache>,
    clock: Arc<dyn Clock>,
    mount: MountId,
    attr_validity: Duration,
    /// Commits that an earlier process sent and whose outcome is not known yet.
    old: Mutex<HashSet<u64>>,
}

impl Sink {
    /// A sink that fills `inodes`.
    pub fn new(
        settings: &super::Settings,
        meta: Arc<dyn Meta>,
        inodes: Arc<InodeCache>,
        clock: Arc<dyn Clock>,
    ) -> Sink {
        let (mount, attr_validity) = (settings.mount, settings.attr_validity);
        Sink { meta, inodes, clock, mount, attr_validity, old: Mutex::default() }
    }

    fn op(&self, number: u64) -> OpId {
        OpId { mount: self.mount, origin: Origin::Journal, number, step: 0 }
    }

    async fn write(&self, op: OpId, write: Write) -> FsResult<(WriteReply, u64)> {
        let until = self.clock.boot_ns().saturating_add(ns(self.attr_validity));
        let reply = self.meta.write(op, write).await?;
        Ok((reply, until))
    }
}

#[async_trait]
impl MetaSink for Sink {
    fn begin(&self) -> u64 {
        self.meta.begin_journal()
    }

    fn resume(&self, unfinished: &[u64]) {
        self.old.lock().extend(unfinished);
        self.meta.resume_journal(unfinished);
    }

    fn settled(&self, number: u64) {
        self.meta.replied(self.op(number));
    }

    async fn commit(&self, number: u64, file: CommitFile) -> FsResult<Attr> {
        match self.write(self.op(number), Write::Commit(Commit { files: vec![file] })).await? {
            (WriteReply::Committed(attrs), until) if attrs.len() == 1 => {
                if self.old.lock().remove(&number) {
                    // Perhaps a stored reply, and later operations have changed the attributes since.
                    let valid = self.clock.boot_ns().saturating_add(ns(self.attr_validity));
                    self.inodes.expire(attrs[0].ino, valid);
                } else {
                    self.inodes.put(&attrs[0], until);
                }
                Ok(attrs[0])
            }
            _ => Err(unexpected("commit")),
        }
    }

    async fn append(&self, op: OpId, append: Append) -> FsResult<(u64, Attr)> {
        match self.write(op, Write::Append(append)).await? {
            (WriteReply::Appended { offset, attr }, until) => {
                self.inodes.put(&attr, until);
                Ok((offset, attr))
            }
            _ => Err(unexpected("append")),
        }
    }

    async fn extents(&self, ino: Ino, offset: u64, len: u64) -> FsResult<ExtentMap> {
        let until = self.clock.boot_ns().saturating_add(ns(self.attr_validity));
        match self.meta.read(Read::Extents { ino, offset, len }).await? {
            ReadReply::Extents { attr, extents, inline, end } => {
                self.inodes.put(&attr, until);
                Ok(ExtentMap { attr, extents, inline, end })
            }
            _ => Err(unexpected("extents")),
        }
    }
}
