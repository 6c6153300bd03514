//! Paths on a vfs, walked as a kernel does: a lookup for every component, also before a name is made.

use crate::cluster::{Client, NOT_FOUND};
use bytes::Bytes;
use fusefs_fuse_client::vfs::{Change, Entry, Lookup};
use fusefs_types::{Attr, FsError, FsResult, Ino, ops::RenameMode};

fn b(s: &str) -> Bytes {
    Bytes::copy_from_slice(s.as_bytes())
}

impl Client {
    pub async fn look(&self, dir: Ino, name: &str) -> FsResult<Option<Entry>> {
        match self.vfs.lookup(&self.rq(), dir, b(name)).await? {
            Lookup::Found(e) => Ok(Some(e)),
            Lookup::Absent(_) => Ok(None),
        }
    }
    /// Directory and last name of a path; the directory exists.
    async fn split<'a>(&self, path: &'a str) -> FsResult<(Ino, &'a str)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.walk(dir).await?.ino, name))
    }
    pub async fn walk(&self, path: &str) -> FsResult<Attr> {
        let mut at = self.vfs.getattr(&self.rq(), Ino::ROOT).await?.0;
        for name in path.split('/').filter(|s| !s.is_empty()) {
            at = self.look(at.ino, name).await?.ok_or(NOT_FOUND)?.attr;
        }
        Ok(at)
    }
    pub async fn exists(&self, path: &str) -> bool {
        match self.walk(path).await {
            Ok(_) => true,
            Err(NOT_FOUND | FsError::NotDirectory) => false,
            Err(e) => panic!("{path}: {e}"),
        }
    }
    /// open(O_CREAT | O_EXCL | O_RDWR)
    pub async fn create(&self, path: &str) -> FsResult<(Attr, u64)> {
        self.create_flags(path, libc::O_RDWR | libc::O_CREAT | libc::O_EXCL).await
    }
    pub async fn create_flags(&self, path: &str, flags: i32) -> FsResult<(Attr, u64)> {
        let (dir, name) = self.split(path).await?;
        if self.look(dir, name).await?.is_some() {
            return Err(FsError::Exists);
        }
        let (e, o) = self.vfs.create(&self.rq(), dir, b(name), 0o644, flags).await?;
        Ok((e.attr, o.fh))
    }
    pub async fn open(&self, path: &str, flags: i32) -> FsResult<(Ino, u64)> {
        let ino = self.walk(path).await?.ino;
        let o = self.vfs.open(&self.rq(), ino, flags).await?;
        Ok((ino, o.fh))
    }
    pub async fn close(&self, ino: Ino, fh: u64) -> FsResult<()> {
        let result = self.vfs.flush(&self.rq(), ino).await;
        self.vfs.release(&self.rq(), ino, fh).await;
        result
    }
    pub async fn pwrite(&self, ino: Ino, fh: u64, at: u64, data: &[u8], flags: i32) -> FsResult<u32> {
        self.vfs.write(&self.rq(), ino, fh, at, Bytes::copy_from_slice(data), flags).await
    }
    pub async fn pread(&self, ino: Ino, fh: u64, at: u64, len: u32) -> FsResult<Bytes> {
        self.vfs.read(&self.rq(), ino, fh, at, len).await
    }
    pub async fn put(&self, path: &str, data: &[u8]) -> FsResult<Ino> {
        let (ino, fh) = match self.create(path).await {
            Ok((attr, fh)) => (attr.ino, fh),
            Err(FsError::Exists) => {
                let (ino, fh) = self.open(path, libc::O_RDWR).await?;
                self.truncate(path, 0).await?;
                (ino, fh)
            }
            Err(e) => return Err(e),
        };
        self.pwrite(ino, fh, 0, data, 0).await?;
        self.close(ino, fh).await?;
        Ok(ino)
    }
    pub async fn get(&self, path: &str) -> FsResult<Vec<u8>> {
        let (ino, fh) = self.open(path, libc::O_RDONLY).await?;
        let mut all = Vec::new();
        loop {
            let part = self.pread(ino, fh, all.len() as u64, 1 << 20).await?;
            if part.is_empty() {
                break;
            }
            all.extend_from_slice(&part);
        }
        self.close(ino, fh).await?;
        Ok(all)
    }
    pub async fn mkdir(&self, path: &str) -> FsResult<Ino> {
        let (dir, name) = self.split(path).await?;
        if self.look(dir, name).await?.is_some() {
            return Err(FsError::Exists);
        }
        Ok(self.vfs.mkdir(&self.rq(), dir, b(name), 0o755).await?.attr.ino)
    }
    pub async fn symlink(&self, path: &str, target: &str) -> FsResult<()> {
        let (dir, name) = self.split(path).await?;
        if self.look(dir, name).await?.is_some() {
            return Err(FsError::Exists);
        }
        self.vfs.symlink(&self.rq(), dir, b(name), b(target)).await.map(|_| ())
    }
    pub async fn link(&self, from: &str, to: &str) -> FsResult<()> {
        let ino = self.walk(from).await?.ino;
        let (dir, name) = self.split(to).await?;
        if self.look(dir, name).await?.is_some() {
            return Err(FsError::Exists);
        }
        self.vfs.link(&self.rq(), ino, dir, b(name)).await.map(|_| ())
    }
    pub async fn unlink(&self, path: &str) -> FsResult<()> {
        let (dir, name) = self.split(path).await?;
        self.look(dir, name).await?.ok_or(NOT_FOUND)?;
        self.vfs.unlink(&self.rq(), dir, b(name)).await
    }
    pub async fn rmdir(&self, path: &str) -> FsResult<()> {
        let (dir, name) = self.split(path).await?;
        self.look(dir, name).await?.ok_or(NOT_FOUND)?;
        self.vfs.rmdir(&self.rq(), dir, b(name)).await
    }
    pub async fn rename(&self, from: &str, to: &str, mode: RenameMode) -> FsResult<()> {
        let (from_dir, from_name) = self.split(from).await?;
        let (to_dir, to_name) = self.split(to).await?;
        let source = self.look(from_dir, from_name).await?.ok_or(NOT_FOUND)?;
        let target = self.look(to_dir, to_name).await?;
        if target.is_some_and(|t| t.attr.ino == source.attr.ino) {
            return Ok(()); // the kernel does not ask
        }
        self.vfs.rename(&self.rq(), (from_dir, b(from_name)), (to_dir, b(to_name)), mode).await
    }
    pub async fn set(&self, path: &str, change: Change) -> FsResult<Attr> {
        let ino = self.walk(path).await?.ino;
        Ok(self.vfs.setattr(&self.rq(), ino, change).await?.0)
    }
    pub async fn truncate(&self, path: &str, size: u64) -> FsResult<Attr> {
        self.set(path, Change { size: Some(size), ..Change::default() }).await
    }
    /// Names of a directory in its order, without the dots.
    pub async fn list(&self, path: &str) -> FsResult<Vec<String>> {
        let ino = self.walk(path).await?.ino;
        let fh = self.vfs.opendir(&self.rq(), ino, 0).await?.fh;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let page = self.vfs.readdir(&self.rq(), ino, fh, offset, true).await?;
            if page.is_empty() {
                break;
            }
            // A kernel's buffer holds a few entries only.
            for i in 0..page.len().min(7) {
                let item = self.vfs.dir_item(&page, i, true).unwrap();
                offset = item.offset;
                names.push(String::from_utf8(item.name.to_vec()).unwrap());
            }
        }
        self.vfs.releasedir(ino, fh);
        assert_eq!(names[..2], [".", ".."]);
        Ok(names.split_off(2))
    }
    pub async fn readlink(&self, path: &str) -> FsResult<String> {
        let ino = self.walk(path).await?.ino;
        Ok(String::from_utf8(self.vfs.readlink(&self.rq(), ino).await?.to_vec()).unwrap())
    }
}
