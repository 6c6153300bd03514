//! A directory as a store (development): durable and atomic by fsync and rename.

use super::{ObjectStore, PutMode, StoreError, check_key, clip};
use async_trait::async_trait;
use bytes::Bytes;
use std::{
    fs::{self, File, OpenOptions},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Bodies are written here first; the name cannot be a key's first component of ours.
const TMP: &str = ".fusefs-tmp";

static NEXT_TMP: AtomicU64 = AtomicU64::new(0);

/// A store in a directory. Keys are paths below it.
#[derive(Clone, Debug)]
pub struct DirStore {
    root: Arc<PathBuf>,
}

impl DirStore {
    /// Opens (and makes, if needed) the directory; removes half-written bodies of processes that are gone.
    pub fn open(root: &Path) -> Result<DirStore, StoreError> {
        if !root.is_absolute() {
            return Err(StoreError::Config(format!("the store directory {} is not an absolute path", root.display())));
        }
        let tmp = root.join(TMP);
        fs::create_dir_all(&tmp).map_err(|e| fault(&tmp, &e))?;
        for entry in fs::read_dir(&tmp).map_err(|e| fault(&tmp, &e))?.flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|n| n.split('.').next()).unwrap_or("").to_string();
            if cfg!(target_os = "linux") && !owner.is_empty() && !Path::new("/proc").join(&owner).exists() {
                let _ = fs::remove_file(entry.path()); // another process may clean up at the same time
            }
        }
        Ok(DirStore { root: Arc::new(root.to_path_buf()) })
    }

    fn put_sync(&self, key: &str, body: &[u8], mode: PutMode) -> Result<(), StoreError> {
        let target = self.root.join(key);
        let n = NEXT_TMP.fetch_add(1, Ordering::Relaxed);
        let tmp = self.root.join(TMP).join(format!("{}.{n}", std::process::id()));
        let done = (|| {
            let mut f = OpenOptions::new().write(true).create_new(true).open(&tmp)?;
            f.write_all(body)?;
            f.sync_all()?;
            self.make_parents(&target)?;
            match mode {
                PutMode::Any => fs::rename(&tmp, &target)?,
                PutMode::IfAbsent => fs::hard_link(&tmp, &target)?, // atomic: one of several creators wins
            }
            sync_dir(target.parent().unwrap_or(&self.root))
        })();
        if mode == PutMode::IfAbsent || done.is_err() {
            let _ = fs::remove_file(&tmp); // a leftover is removed at the next open
        }
        done.map_err(|e: std::io::Error| match e.kind() {
            ErrorKind::AlreadyExists => StoreError::Exists,
            _ => fault(&target, &e),
        })
    }

    /// Makes the directories of a key and their names durable.
    fn make_parents(&self, target: &Path) -> std::io::Result<()> {
        let Some(dir) = target.parent() else { return Ok(()) };
        if dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(dir)?;
        let mut at = dir;
        while let Some(up) = at.parent().filter(|u| u.starts_with(self.root.as_path())) {
            sync_dir(up)?;
            at = up;
        }
        Ok(())
    }

    fn get_sync(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        let path = self.root.join(key);
        let read = || -> std::io::Result<Vec<u8>> {
            let mut f = File::open(&path)?;
            let r = clip(&range, f.metadata()?.len());
            let mut body = Vec::with_capacity((r.end - r.start) as usize);
            f.seek(SeekFrom::Start(r.start))?;
            f.take(r.end - r.start).read_to_end(&mut body)?;
            Ok(body)
        };
        read().map(Bytes::from).map_err(|e| fault(&path, &e))
    }

    fn delete_sync(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            let path = self.root.join(key);
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {}
                Err(e) => return Err(fault(&path, &e)),
            }
        }
        Ok(())
    }

    fn list_sync(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let base = prefix.rsplit_once('/').map_or("", |(dir, _)| dir);
        let mut found = Vec::new();
        let mut todo = vec![base.to_string()];
        while let Some(dir) = todo.pop() {
            let path = self.root.join(&dir);
            let entries = match fs::read_dir(&path) {
                Ok(e) => e,
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
                Err(e) => return Err(fault(&path, &e)),
            };
            for entry in entries.flatten() {
                let Some(name) = entry.file_name().to_str().map(str::to_string) else { continue };
                let key = super::join_prefix(&dir, &name);
                let Ok(meta) = entry.metadata() else { continue }; // deleted meanwhile
                if meta.is_dir() {
                    if name != TMP && (key.starts_with(prefix) || prefix.starts_with(&format!("{key}/"))) {
                        todo.push(key);
                    }
                } else if key.starts_with(prefix) && after.is_none_or(|a| key.as_str() > a) {
                    found.push((key, meta.len()));
                }
            }
        }
        found.sort();
        found.truncate(limit);
        Ok(found)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&DirStore) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || f(&this)).await {
            Ok(r) => r,
            Err(e) => Err(StoreError::Broken(format!("file task ended: {e}"))),
        }
    }
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

fn fault(path: &Path, e: &std::io::Error) -> StoreError {
    let text = format!("{}: {e}", path.display());
    match e.kind() {
        ErrorKind::NotFound | ErrorKind::NotADirectory => StoreError::NotFound,
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => StoreError::Denied(text),
        ErrorKind::Interrupted | ErrorKind::StorageFull | ErrorKind::QuotaExceeded => StoreError::Busy(text),
        _ => StoreError::Refused(text),
    }
}

#[async_trait]
impl ObjectStore for DirStore {
    async fn put(&self, key: &str, body: Bytes, mode: PutMode) -> Result<(), StoreError> {
        check_key(key)?;
        let key = key.to_string();
        self.blocking(move |s| s.put_sync(&key, &body, mode)).await
    }
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Bytes, StoreError> {
        check_key(key)?;
        let key = key.to_string();
        self.blocking(move |s| s.get_sync(&key, range)).await
    }
    async fn delete(&self, keys: &[String]) -> Result<(), StoreError> {
        for key in keys {
            check_key(key)?;
        }
        let keys = keys.to_vec();
        self.blocking(move |s| s.delete_sync(&keys)).await
    }
    async fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Vec<(String, u64)>, StoreError> {
        let (prefix, after) = (prefix.to_string(), after.map(str::to_string));
        self.blocking(move |s| s.list_sync(&prefix, after.as_deref(), limit)).await
    }
}
