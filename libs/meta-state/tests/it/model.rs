//! Random sequences of operations against a tree of plain Rust values, written from the manual pages and not from the
//! code. After every sequence: the whole tree, attributes, contents and xattrs are equal, fsck is clean, a snapshot reads
//! back equal. Seed: FUSEFS_SEED (default 1), sequences: FUSEFS_SEQUENCES (default 2000); both are printed on failure
//! beside the shrunk sequence.

use crate::{snapshot::round_trip, util::*};
use bytes::Bytes;
use fusefs_types::{Attr, FileKind, FsError, FsResult, Hlc, Ino, Time, ops::*};
use proptest::{
    prelude::*,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use std::collections::BTreeMap;

/// An inode of the model.
#[derive(Clone, Debug)]
struct Node {
    ino: Ino,
    kind: FileKind,
    mode: u16,
    ids: (u32, u32),
    nlink: u32,
    /// Made without a name, and never got one.
    nameless: bool,
    times: [Time; 4],
    change: Hlc,
    parent: Ino,
    names: BTreeMap<String, usize>,
    data: Vec<u8>,
    backed: Vec<bool>,
    truncations: Vec<u64>,
    /// Directories: commands that changed the entries.
    entries_version: u64,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    target: Bytes,
}

const ATIME: usize = 0;
const MTIME: usize = 1;
const CTIME: usize = 2;

struct Model {
    nodes: Vec<Node>,
    next_ino: u64,
    stamp: Hlc,
    objects: u64,
}

/// One raw step; its numbers choose among what exists.
type Raw = (u8, [u8; 6]);

impl Model {
    fn new(root: &Attr) -> Model {
        let mut m = Model { nodes: vec![], next_ino: 2, stamp: root.change, objects: 0 };
        m.node(FileKind::Directory, 0o755, (0, 0));
        (m.nodes[0].ino, m.nodes[0].parent, m.next_ino) = (ROOT, ROOT, 2);
        m
    }
    fn node(&mut self, kind: FileKind, mode: u16, ids: (u32, u32)) -> usize {
        let ino = Ino(self.next_ino);
        self.next_ino += 1;
        self.nodes.push(Node {
            ino,
            kind,
            mode,
            ids,
            nlink: if kind == FileKind::Directory { 2 } else { 1 },
            nameless: false,
            times: [self.stamp.into(); 4],
            change: self.stamp,
            parent: Ino(0),
            names: BTreeMap::new(),
            data: vec![],
            backed: vec![],
            truncations: vec![],
            entries_version: 0,
            xattrs: BTreeMap::new(),
            target: Bytes::new(),
        });
        self.nodes.len() - 1
    }
    fn touch(&mut self, n: usize) {
        self.nodes[n].times[CTIME] = self.stamp.into();
        self.nodes[n].change = self.stamp;
    }
    fn touch_dir(&mut self, n: usize) {
        self.nodes[n].times[MTIME] = self.stamp.into();
        self.nodes[n].entries_version += u64::from(self.nodes[n].kind == FileKind::Directory);
        self.touch(n);
    }
    fn live_dir(&self, d: usize) -> FsResult<()> {
        match &self.nodes[d] {
            n if n.kind != FileKind::Directory => Err(FsError::NotDirectory),
            n if n.nlink == 0 => Err(FsError::NotFound),
            _ => Ok(()),
        }
    }
    fn create(&mut self, d: usize, name: &str, node: &NewNode, mode: u16, exclusive: bool) -> FsResult<usize> {
        self.live_dir(d)?;
        if let Some(n) = self.nodes[d].names.get(name) {
            return match self.nodes[*n].kind {
                FileKind::Regular if !exclusive && *node == NewNode::File => Ok(*n),
                FileKind::Directory if !exclusive && *node == NewNode::File => Err(FsError::IsDirectory),
                _ => Err(FsError::Exists),
            };
        }
        let kind = match node {
            NewNode::File => FileKind::Regular,
            NewNode::Directory => FileKind::Directory,
            NewNode::Symlink(_) => FileKind::Symlink,
            NewNode::Special(k, _) => *k,
        };
        let sgid = self.nodes[d].mode & 0o2000;
        let gid = if sgid != 0 { self.nodes[d].ids.1 } else { 20 };
        let n = self.node(kind, mode, (10, gid));
        match node {
            NewNode::Directory => {
                self.nodes[n].parent = self.nodes[d].ino;
                self.nodes[n].mode |= sgid;
                self.nodes[d].nlink += 1;
            }
            NewNode::Symlink(t) => (self.nodes[n].mode, self.nodes[n].target) = (0o777, t.clone()),
            _ => {}
        }
        self.nodes[d].names.insert(name.into(), n);
        self.touch_dir(d);
        Ok(n)
    }
    fn tmpfile(&mut self, d: usize, mode: u16) -> FsResult<usize> {
        self.live_dir(d)?;
        let gid = if self.nodes[d].mode & 0o2000 != 0 { self.nodes[d].ids.1 } else { 20 };
        let n = self.node(FileKind::Regular, mode, (10, gid));
        (self.nodes[n].nlink, self.nodes[n].nameless) = (0, true);
        Ok(n)
    }
    fn link(&mut self, n: usize, d: usize, name: &str) -> FsResult<()> {
        self.live_dir(d)?;
        if self.nodes[d].names.contains_key(name) {
            return Err(FsError::Exists);
        }
        if self.nodes[n].kind == FileKind::Directory {
            return Err(FsError::NotPermitted);
        }
        if self.nodes[n].nlink == 0 && !self.nodes[n].nameless {
            return Err(FsError::NotFound);
        }
        self.nodes[n].nameless = false;
        self.nodes[n].nlink += 1;
        self.touch(n);
        self.nodes[d].names.insert(name.into(), n);
        self.touch_dir(d);
        Ok(())
    }
    fn drop_name(&mut self, d: usize, n: usize) {
        if self.nodes[n].kind == FileKind::Directory {
            self.nodes[n].nlink = 0;
            self.nodes[d].nlink -= 1;
        } else {
            self.nodes[n].nlink -= 1;
        }
        self.touch(n);
    }
    fn unlink(&mut self, d: usize, name: &str, directory: bool) -> FsResult<usize> {
        self.live_dir(d)?;
        let n = *self.nodes[d].names.get(name).ok_or(FsError::NotFound)?;
        match (self.nodes[n].kind == FileKind::Directory, directory) {
            (true, false) => return Err(FsError::IsDirectory),
            (false, true) => return Err(FsError::NotDirectory),
            (true, true) if !self.nodes[n].names.is_empty() => return Err(FsError::NotEmpty),
            _ => {}
        }
        self.nodes[d].names.remove(name);
        self.drop_name(d, n);
        self.touch_dir(d);
        Ok(n)
    }
    /// Whether `n` is `d` or above it.
    fn above(&self, n: usize, d: usize) -> bool {
        let mut at = d;
        loop {
            if at == n {
                return true;
            }
            if at == 0 {
                return false;
            }
            at = self.nodes.iter().position(|x| x.ino == self.nodes[at].parent).unwrap();
        }
    }
    fn rename(&mut self, d: usize, a: &str, e: usize, b: &str, mode: RenameMode) -> FsResult<()> {
        self.live_dir(d)?;
        let n = *self.nodes[d].names.get(a).ok_or(FsError::NotFound)?;
        self.live_dir(e)?;
        let target = self.nodes[e].names.get(b).copied();
        let is_dir = |m: &Model, n: usize| m.nodes[n].kind == FileKind::Directory;
        match (target, mode) {
            (Some(_), RenameMode::NoReplace) => return Err(FsError::Exists),
            (None, RenameMode::Exchange) => return Err(FsError::NotFound),
            (Some(t), _) if t == n => return Ok(()),
            (Some(t), RenameMode::Replace) if is_dir(self, n) && !is_dir(self, t) => return Err(FsError::NotDirectory),
            (Some(t), RenameMode::Replace) if !is_dir(self, n) && is_dir(self, t) => return Err(FsError::IsDirectory),
            _ => {}
        }
        if d != e && is_dir(self, n) && self.above(n, e) {
            return Err(FsError::Invalid);
        }
        if let Some(t) = target {
            if mode == RenameMode::Exchange && d != e && is_dir(self, t) && self.above(t, d) {
                return Err(FsError::Invalid);
            }
            if mode == RenameMode::Replace && is_dir(self, t) && !self.nodes[t].names.is_empty() {
                return Err(FsError::NotEmpty);
            }
        }
        if mode == RenameMode::Exchange {
            let t = target.unwrap();
            self.nodes[d].names.insert(a.into(), t);
            self.arrive(t, d, e);
        } else {
            self.nodes[d].names.remove(a);
            if let Some(t) = target {
                self.drop_name(e, t);
            }
        }
        self.nodes[e].names.insert(b.into(), n);
        self.arrive(n, e, d);
        self.touch_dir(d);
        if d != e {
            self.touch_dir(e);
        }
        Ok(())
    }
    /// `n` now has its name in `e`, no more in `d`.
    fn arrive(&mut self, n: usize, e: usize, d: usize) {
        self.touch(n);
        if self.nodes[n].kind == FileKind::Directory {
            self.nodes[n].parent = self.nodes[e].ino;
            self.nodes[e].nlink += 1;
            self.nodes[d].nlink -= 1;
        }
    }
    fn truncate(&mut self, n: usize, size: usize) -> FsResult<()> {
        match self.nodes[n].kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(FsError::IsDirectory),
            _ => return Err(FsError::Invalid),
        }
        let node = &mut self.nodes[n];
        if size < node.data.len() {
            node.truncations.push(size as u64);
        }
        node.data.resize(size, 0);
        node.backed.truncate(size.min(node.backed.len()));
        node.backed.resize(size, false);
        self.touch_dir(n);
        Ok(())
    }
    fn lay(&mut self, n: usize, offset: usize, bytes: &[u8], limit: usize, backed: bool) {
        let node = &mut self.nodes[n];
        let end = (offset + bytes.len()).min(limit);
        if offset >= end {
            return;
        }
        if backed && end > node.data.len() {
            node.data.resize(end, 0);
            node.backed.resize(end, false);
        }
        for i in offset..end.min(node.data.len()) {
            (node.data[i], node.backed[i]) = (bytes[i - offset], backed);
        }
    }
}

const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

struct Run {
    rig: Rig,
    m: Model,
}

impl Run {
    fn new() -> Run {
        let rig = Rig::new();
        let m = Model::new(&rig.attr(ROOT));
        let mut run = Run { rig, m };
        let root = run.rig.attr(ROOT);
        run.m.nodes[0].times = [root.atime, root.mtime, root.ctime, root.btime];
        run.m.nodes[0].change = root.change;
        run
    }
    /// Executes on both sides; equal results, and the stamp is the larger of the leader's and the last one + 1.
    fn both<T>(&mut self, write: Write, model: impl FnOnce(&mut Model) -> FsResult<T>) -> Option<(WriteReply, T)> {
        let before = self.rig.stamp();
        if self.rig.number % 5 == 4 {
            self.rig.clock = self.rig.clock.saturating_sub(500); // a new leader with a slow clock
        }
        let text = format!("{write:?}");
        let real = self.rig.write(write);
        self.m.stamp = Hlc(self.rig.clock.max(before.0 + 1));
        assert_eq!(self.rig.stamp(), self.m.stamp);
        match (real, model(&mut self.m)) {
            (Ok(r), Ok(t)) => Some((r, t)),
            (Err(a), Err(b)) => {
                assert_eq!(a, b, "{text}");
                None
            }
            (real, model) => panic!("{text}: {real:?}, model {:?}", model.map(|_| ())),
        }
    }
    fn step(&mut self, (op, x): Raw) {
        let dirs: Vec<usize> =
            (0..self.m.nodes.len()).filter(|i| self.m.nodes[*i].kind == FileKind::Directory).collect();
        let (d, e) = (dirs[x[0] as usize % dirs.len()], dirs[x[1] as usize % dirs.len()]);
        let n = x[2] as usize % self.m.nodes.len();
        let (a, b) = (NAMES[x[3] as usize % 6], NAMES[x[4] as usize % 6]);
        match op {
            0..=20 => self.create(d, a, x),
            21..=24 => self.tmpfile(d, x),
            25..=32 => {
                let (ino, parent) = (self.m.nodes[n].ino, self.m.nodes[d].ino);
                self.both(Write::Link(Link { ino, parent, name: name(a) }), |m| m.link(n, d, a));
            }
            33..=44 => {
                let u = Unlink { parent: self.m.nodes[d].ino, name: name(a), directory: x[5] % 2 == 0 };
                let reply = self.both(Write::Unlink(u), |m| m.unlink(d, a, x[5] % 2 == 0));
                if let Some((WriteReply::Unlinked { ino, nlink, .. }, t)) = reply {
                    assert_eq!((ino, nlink), (self.m.nodes[t].ino, self.m.nodes[t].nlink));
                }
            }
            45..=64 => {
                let mode = [RenameMode::Replace, RenameMode::Replace, RenameMode::NoReplace, RenameMode::Exchange]
                    [x[5] as usize % 4];
                let (parent, new_parent) = (self.m.nodes[d].ino, self.m.nodes[e].ino);
                let r = Rename { parent, name: name(a), new_parent, new_name: name(b), mode };
                self.both(Write::Rename(r), |m| m.rename(d, a, e, b, mode));
            }
            65..=72 => self.setattr(n, x),
            73..=80 => self.truncate(n, x),
            81..=92 => self.commit(n, x),
            93..=96 => self.append(n, x),
            _ => self.xattr(n, x),
        }
    }
    fn tmpfile(&mut self, d: usize, x: [u8; 6]) {
        let (parent, mode) = (self.m.nodes[d].ino, u16::from(x[1]) << 2);
        let reply = self.both(Write::Tmpfile(Tmpfile { parent, mode, uid: 10, gid: 20 }), |m| m.tmpfile(d, mode));
        if let Some((WriteReply::Created { attr, parent: dir, .. }, n)) = reply {
            assert_eq!((attr.ino, attr.nlink), (self.m.nodes[n].ino, 0));
            assert_eq!((dir.ino, dir.change), (parent, self.m.nodes[d].change), "the directory stays as it is");
        }
    }
    fn create(&mut self, d: usize, a: &str, x: [u8; 6]) {
        let node = match x[5] % 8 {
            0..=3 => NewNode::File,
            4 | 5 => NewNode::Directory,
            6 => NewNode::Symlink(Bytes::from(vec![b't'; 1 + x[1] as usize])),
            _ => NewNode::Special(FileKind::Fifo, 9),
        };
        let (mode, exclusive) = (u16::from(x[1]) << 2, x[2].is_multiple_of(2));
        let parent = self.m.nodes[d].ino;
        let c = Create { parent, name: name(a), node: node.clone(), mode, uid: 10, gid: 20, exclusive };
        if let Some((WriteReply::Created { attr, .. }, n)) =
            self.both(Write::Create(c), |m| m.create(d, a, &node, mode, exclusive))
        {
            assert_eq!(attr.ino, self.m.nodes[n].ino);
        }
    }
    fn setattr(&mut self, n: usize, x: [u8; 6]) {
        let bit = |i: u8| x[0] >> i & 1 == 1;
        let mode = bit(0).then_some(u16::from_le_bytes([x[1], x[3]]) & 0o7777);
        let (uid, gid) = (bit(1).then_some(u32::from(x[1])), bit(2).then_some(u32::from(x[4])));
        let (atime, mtime) = (bit(3).then_some(SetTime::At(Time(x[5].into()))), bit(4).then_some(SetTime::Now));
        let kill_priv = bit(5);
        let s = SetAttr { ino: self.m.nodes[n].ino, mode, uid, gid, atime, mtime, kill_priv, size: None, ctime: None };
        self.both(Write::SetAttr(s), |m| {
            m.touch(n);
            let now = m.stamp.into();
            let node = &mut m.nodes[n];
            node.mode = mode.unwrap_or(node.mode);
            node.ids = (uid.unwrap_or(node.ids.0), gid.unwrap_or(node.ids.1));
            if kill_priv && node.kind != FileKind::Directory {
                node.mode &= if node.mode & 0o10 != 0 { !0o6000 } else { !0o4000 };
            }
            if atime.is_some() {
                node.times[ATIME] = Time(x[5].into());
            }
            if mtime.is_some() {
                node.times[MTIME] = now;
            }
            Ok(())
        });
    }
    fn truncate(&mut self, n: usize, x: [u8; 6]) {
        let size = usize::from(x[5]) * 2;
        let s = SetAttr { ino: self.m.nodes[n].ino, size: Some(size as u64), ..SetAttr::default() };
        self.both(Write::SetAttr(s), |m| m.truncate(n, size));
    }
    /// A piece: on the real side, and as (offset, bytes, backed) for the model.
    fn piece(&mut self, offset: usize, x: [u8; 6], i: u8) -> (Piece, (usize, Vec<u8>, bool)) {
        let len = 1 + usize::from(x[5] ^ i) % 120;
        match (x[4] ^ i) % 5 {
            0 | 1 => {
                let bytes = vec![x[3].wrapping_add(i); len];
                (inline(offset as u64, &bytes), (offset, bytes, true))
            }
            2 | 3 => {
                self.m.objects += 1;
                let (counter, skip) = (self.m.objects, u64::from(x[3]));
                let bytes = (0..len as u64).map(|j| object_byte(&object(counter), skip + j)).collect();
                (piece(offset as u64, len as u64, counter, skip), (offset, bytes, true))
            }
            _ => (Piece::Hole { offset: offset as u64, len: len as u64 }, (offset, vec![0; len], false)),
        }
    }
    fn commit(&mut self, n: usize, x: [u8; 6]) {
        let pieces: Vec<_> = (0..x[0] % 3 + 1).map(|i| self.piece(usize::from(x[i as usize + 1]), x, i)).collect();
        let seen = self.m.nodes[n].truncations.len().saturating_sub(usize::from(x[2] % 3)) as u64;
        let mtime = x[1].is_multiple_of(2).then_some(if x[1].is_multiple_of(4) { Time(77) } else { Time(i64::MAX) });
        let grow_to = u64::from(x[2]) * u64::from(x[1] % 2);
        let (real, model): (Vec<_>, Vec<_>) = pieces.into_iter().unzip();
        let ino = self.m.nodes[n].ino;
        let file = CommitFile { ino, trunc_seq: seen, pieces: real, mtime, grow_to, kill_priv: false };
        self.both(Write::Commit(Commit { files: vec![file] }), |m| {
            match m.nodes[n].kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(FsError::IsDirectory),
                _ => return Err(FsError::Invalid),
            }
            let limit = m.nodes[n].truncations[seen as usize..].iter().min().map_or(usize::MAX, |s| *s as usize);
            for (offset, bytes, backed) in &model {
                m.lay(n, *offset, bytes, limit, *backed);
            }
            let size = m.nodes[n].data.len().max((grow_to as usize).min(limit));
            m.nodes[n].data.resize(size, 0);
            m.nodes[n].backed.resize(size, false);
            m.touch(n);
            if let Some(t) = mtime {
                m.nodes[n].times[MTIME] = t.min(m.stamp.into());
            }
            Ok(())
        });
    }
    fn append(&mut self, n: usize, x: [u8; 6]) {
        let (real, (_, bytes, backed)) = self.piece(0, x, 0);
        let len = bytes.len() as u64 + u64::from(x[0] % 4);
        let a = Append { ino: self.m.nodes[n].ino, pieces: vec![real], len };
        let reply = self.both(Write::Append(a), |m| {
            match m.nodes[n].kind {
                FileKind::Regular => {}
                FileKind::Directory => return Err(FsError::IsDirectory),
                _ => return Err(FsError::Invalid),
            }
            let base = m.nodes[n].data.len();
            m.lay(n, base, &bytes, usize::MAX, backed);
            m.nodes[n].data.resize(base + len as usize, 0);
            m.nodes[n].backed.resize(base + len as usize, false);
            m.touch_dir(n);
            Ok(base)
        });
        if let Some((WriteReply::Appended { offset, .. }, base)) = reply {
            assert_eq!(offset, base as u64);
        }
    }
    fn xattr(&mut self, n: usize, x: [u8; 6]) {
        let key = format!("user.{}", x[3] % 3).into_bytes();
        let (ino, value) = (self.m.nodes[n].ino, vec![x[4]; usize::from(x[5])]);
        if x[0].is_multiple_of(3) {
            let w = Write::RemoveXattr(RemoveXattr { ino, name: key.clone().into() });
            self.both(w, |m| {
                m.nodes[n].xattrs.remove(&key).ok_or(FsError::NoData)?;
                m.touch(n);
                Ok(())
            });
            return;
        }
        let mode = [XattrMode::Any, XattrMode::Create, XattrMode::Replace][usize::from(x[1] % 3)];
        let w = Write::SetXattr(SetXattr { ino, name: key.clone().into(), value: value.clone().into(), mode });
        self.both(w, |m| {
            match (m.nodes[n].xattrs.contains_key(&key), mode) {
                (true, XattrMode::Create) => return Err(FsError::Exists),
                (false, XattrMode::Replace) => return Err(FsError::NoData),
                _ => {}
            }
            m.nodes[n].xattrs.insert(key, value);
            m.touch(n);
            Ok(())
        });
    }
    /// Everything a client can see.
    fn compare(&self) {
        for node in &self.m.nodes {
            let a = self.rig.attr(node.ino);
            let size = match node.kind {
                FileKind::Symlink => node.target.len() as u64,
                _ => node.data.len() as u64,
            };
            assert_eq!((a.kind, a.mode, (a.uid, a.gid)), (node.kind, node.mode, node.ids), "{node:?}");
            assert_eq!((a.nlink, a.size, a.parent), (node.nlink, size, node.parent), "{node:?}");
            assert_eq!(([a.atime, a.mtime, a.ctime, a.btime], a.change), (node.times, node.change), "{node:?}");
            assert_eq!(
                (a.has_xattr, a.trunc_seq),
                (!node.xattrs.is_empty(), node.truncations.len() as u64 + node.entries_version),
                "{node:?}"
            );
            match node.kind {
                FileKind::Regular => {
                    assert_eq!(self.rig.content(node.ino), node.data, "{node:?}");
                    assert_eq!(a.allocated, node.backed.iter().filter(|b| **b).count() as u64, "{node:?}");
                }
                FileKind::Directory => self.compare_dir(node),
                FileKind::Symlink => {
                    let target = self.rig.read(Read::ReadLink { ino: node.ino });
                    assert_eq!(target, Ok(ReadReply::Target(node.target.clone())));
                }
                _ => {}
            }
            let names = node.xattrs.keys().map(|k| Bytes::from(k.clone())).collect();
            assert_eq!(self.rig.read(Read::ListXattr { ino: node.ino }), Ok(ReadReply::XattrNames(names)));
            for (k, v) in &node.xattrs {
                let got = self.rig.read(Read::GetXattr { ino: node.ino, name: k.clone().into() });
                assert_eq!(got, Ok(ReadReply::Xattr(v.clone().into())));
            }
        }
    }
    fn compare_dir(&self, node: &Node) {
        let mut got = BTreeMap::new();
        let mut after = 0;
        while let Ok(ReadReply::Entries { entries, end, .. }) =
            self.rig.read(Read::ReadDir { ino: node.ino, after, limit: 2, plus: true })
        {
            for e in entries {
                after = e.cookie;
                assert_eq!(e.attr.map(|a| (a.ino, a.kind)), Some((e.ino, e.kind)));
                assert!(got.insert(e.name.to_string(), e.ino).is_none());
            }
            if end {
                break;
            }
        }
        let want = node.names.iter().map(|(k, n)| (k.clone(), self.m.nodes[*n].ino)).collect::<BTreeMap<_, _>>();
        assert_eq!(got, want, "{node:?}");
        if node.nlink > 0 {
            for s in NAMES {
                assert_eq!(self.rig.lookup(node.ino, s), want.get(s).copied());
            }
        }
    }
}

fn env(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn sequences_behave_like_the_model() {
    let (seed, cases) = (env("FUSEFS_SEED", 1), env("FUSEFS_SEQUENCES", 2000) as u32);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let steps = prop::collection::vec((0u8..100, any::<[u8; 6]>()), 1..80);
    let result = runner.run(&steps, |steps| {
        let mut run = Run::new();
        for s in steps {
            run.step(s);
        }
        run.compare();
        run.rig.clean();
        round_trip(&run.rig.p);
        Ok(())
    });
    if let Err(e) = result {
        panic!("replay with FUSEFS_SEED={seed} FUSEFS_SEQUENCES={cases}: {e}");
    }
}
