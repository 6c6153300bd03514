//! One mounted volume: session, data path, vfs and kernel mount put together, and taken apart in the right order.

use crate::{
    Meta, Settings as VfsSettings, Vfs,
    fuse::{MountError, MountSettings, Mounted, mount},
    meta::Holders,
    vfs::handle::OpenTable,
};
use async_trait::async_trait;
use bytes::Bytes;
use fusefs_data_path::{
    DataPath, ObjectStore,
    journal::{JournalError, JournalSettings},
};
use fusefs_meta_client::{Components, MetaClient, Settings as MetaSettings};
use fusefs_types::{
    Clock, FsError, FsResult, Ino, SessionId, Token,
    cluster::{MasterRefusal, SessionRequest, VolumeSpace},
    ids::{Incarnation, MountId, OpId},
    ops::{PartitionUsage, Read, ReadReply, Write, WriteReply},
};
use std::{sync::Arc, time::Duration};

/// What a mount is made from.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Masters, `host:port` each.
    pub masters: Vec<String>,
    /// Cluster token, empty without one.
    pub credential: Bytes,
    /// Volume name.
    pub volume: String,
    /// Attach generation that an orchestrator gave this node; 0 = none.
    pub attach: u64,
    /// Host and process, for people.
    pub name: String,
    /// Where and how to mount.
    pub mount: MountSettings,
    /// Validity of cached attributes and names.
    pub validity: Duration,
    /// Inodes and names cached at most.
    pub cache_inodes: usize,
    /// Data path.
    pub data: fusefs_data_path::Settings,
    /// How long the end of the mount waits for dirty data.
    pub flush_timeout: Duration,
}

/// Why a mount did not come to be.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The masters refused, or none answered.
    #[error("{}", .0.message)]
    Master(MasterRefusal),
    /// The volume's object store cannot be used by this build or machine.
    #[error("object store of the volume: {0}")]
    Store(#[from] fusefs_data_path::StoreError),
    /// The mount itself.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// What an earlier mount left could not all be written now; the rest is still in its journal. May be tried again.
    #[error("{0} bytes of an earlier mount could not be written to the object store; they stay in its journal")]
    Unwritten(u64),
    /// The journal cannot be read back.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// How a mount ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Bytes that could not be committed within the flush timeout: they are lost.
    pub unflushed: u64,
}

/// A mounted volume.
pub struct Client {
    meta: Arc<MetaClient>,
    vfs: Arc<Vfs>,
    mounted: Option<Mounted>,
    flush_timeout: Duration,
}

/// [`Meta`] over a [`MetaClient`].
struct Remote(Arc<MetaClient>);

struct Answers(Arc<dyn Holders>);

impl fusefs_meta_client::Holders for Answers {
    fn holds(&self, ino: Ino) -> bool {
        self.0.holds(ino)
    }
    fn broken(&self, _addr: &str) {
        self.0.stream_broken();
    }
    fn locks_freed(&self, inos: &[Ino]) {
        self.0.locks_freed(inos);
    }
}

#[async_trait]
impl Meta for Remote {
    async fn write(&self, op: OpId, write: Write) -> FsResult<WriteReply> {
        self.0.write(op, write).await
    }
    async fn write_internal(&self, write: Write) -> FsResult<WriteReply> {
        self.0.write_internal(write).await
    }
    async fn read(&self, read: Read) -> FsResult<ReadReply> {
        self.0.read(read).await
    }
    async fn usage(&self) -> FsResult<PartitionUsage> {
        self.0.statfs().await
    }
    fn space(&self) -> VolumeSpace {
        self.0.space()
    }
    fn recount(&self) -> bool {
        self.0.recount()
    }
    fn leased(&self) -> bool {
        self.0.lease_valid()
    }
    async fn lease(&self) -> FsResult<()> {
        self.0.wait_lease().await
    }
    fn replied(&self, op: OpId) {
        self.0.ack(op);
    }
    fn register(&self, op: OpId, resent: bool) {
        self.0.register(op, resent);
    }
    fn resumed(&self) {
        self.0.resumed();
    }
    fn begin_journal(&self) -> u64 {
        self.0.next_journal_op().number
    }
    fn resume_journal(&self, unfinished: &[u64]) {
        self.0.resume_journal(unfinished);
    }
    fn set_holders(&self, holders: Arc<dyn Holders>) {
        self.0.set_holders(Arc::new(Answers(holders)));
    }
}

/// Which session a client process opens or takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// Kernel connection.
    pub mount: MountId,
    /// Session of the previous process, 0 = a new one.
    pub session: SessionId,
    /// Attach generation and number of this process.
    pub token: Token,
}

/// Session and vfs without a kernel mount: a new session. Must be called inside a tokio runtime.
pub async fn connect(
    settings: &ClientSettings,
    components: Components,
) -> Result<(Arc<MetaClient>, Arc<Vfs>), ClientError> {
    let mount = MountId(components.rng.next_u128());
    let token = Token { attach: settings.attach, incarnation: Incarnation(1) };
    connect_as(settings, components, Attach { mount, session: SessionId(0), token }).await
}

/// As [`connect`], with a session of a previous process.
pub async fn connect_as(
    settings: &ClientSettings,
    components: Components,
    attach: Attach,
) -> Result<(Arc<MetaClient>, Arc<Vfs>), ClientError> {
    let clock = components.clock.clone();
    let meta = open_session(settings, components, attach).await?;
    let vfs = file_system(settings, &meta, clock, attach, Kept::default())?;
    Ok((meta, vfs))
}

/// Opens a session or takes one over.
pub async fn open_session(
    settings: &ClientSettings,
    components: Components,
    attach: Attach,
) -> Result<Arc<MetaClient>, ClientError> {
    let mut meta_settings = MetaSettings::new(settings.masters.clone(), settings.credential.clone());
    meta_settings.io_timeout = settings.mount.io_timeout;
    let request = SessionRequest {
        volume: settings.volume.clone(),
        mount: attach.mount,
        session: attach.session,
        token: attach.token,
        client: settings.name.clone(),
        read_only: settings.mount.read_only,
    };
    MetaClient::connect(meta_settings, components, request).await.map_err(ClientError::Master)
}

/// What a mount keeps outside of its process.
#[derive(Default)]
pub struct Kept {
    /// Table of open handles.
    pub handles: OpenTable,
    /// Journal; its lock is held and its incarnation begun. None = writes are acknowledged from memory.
    pub journal: Option<JournalSettings>,
}

/// What a session's grant says about the file system.
fn granted(
    settings: &ClientSettings,
    meta: &MetaClient,
    attach: Attach,
) -> Result<(VfsSettings, Arc<dyn ObjectStore>, fusefs_data_path::Settings), ClientError> {
    let grant = meta.grant();
    let store = fusefs_data_path::object::open(&grant.store, &grant.credentials)?;
    let mut vfs_settings = VfsSettings::new(attach.mount, grant.root);
    (vfs_settings.attr_validity, vfs_settings.entry_validity, vfs_settings.negative_validity) =
        (settings.validity, settings.validity, settings.validity);
    (vfs_settings.inodes, vfs_settings.dentries) = (settings.cache_inodes, settings.cache_inodes);
    vfs_settings.read_only = settings.mount.read_only;
    vfs_settings.soft = settings.mount.io_timeout;
    vfs_settings.resumed = attach.token.incarnation.0 > 1;
    let mut data = settings.data.clone();
    data.conditional_put = grant.store.probe.iter().any(|c| c.name.starts_with("conditional") && c.ok);
    Ok((vfs_settings, store, data))
}

/// The file system of a session. Must be called inside a tokio runtime.
pub fn file_system(
    settings: &ClientSettings,
    meta: &Arc<MetaClient>,
    clock: Arc<dyn Clock>,
    attach: Attach,
    kept: Kept,
) -> Result<Arc<Vfs>, ClientError> {
    let (vfs_settings, store, data) = granted(settings, meta, attach)?;
    let owner = (meta.grant().session, meta.grant().token.incarnation);
    let remote = Arc::new(Remote(meta.clone()));
    Ok(Arc::new(match kept.journal {
        None => Vfs::with_handles(vfs_settings, remote, store, data, clock, owner, kept.handles),
        Some(journal) => Vfs::with_journal(vfs_settings, remote, store, data, clock, owner, kept.handles, journal)?,
    }))
}

/// The data path over a journal of an earlier boot, nothing else; see [`DataPath::after_reboot`]. Answers the inodes that
/// others have changed since, too.
pub async fn after_reboot(
    settings: &ClientSettings,
    meta: &Arc<MetaClient>,
    clock: Arc<dyn Clock>,
    attach: Attach,
    journal: JournalSettings,
) -> Result<(Arc<DataPath>, Vec<Ino>), ClientError> {
    let (vfs_settings, store, data) = granted(settings, meta, attach)?;
    let owner = (meta.grant().session, meta.grant().token.incarnation);
    let remote = Arc::new(Remote(meta.clone()));
    Ok(Vfs::after_reboot(&vfs_settings, remote, store, data, clock, owner, journal).await?)
}

impl Client {
    /// Opens a session and mounts. Must be called inside a multi-threaded tokio runtime.
    pub async fn mount(settings: &ClientSettings, components: Components) -> Result<Client, ClientError> {
        let (meta, vfs) = connect(settings, components).await?;
        let runtime = tokio::runtime::Handle::current();
        let (mount_settings, fs) = (settings.mount.clone(), vfs.clone());
        let mounting = tokio::task::spawn_blocking(move || mount(&mount_settings, fs, runtime)).await;
        let result = mounting
            .unwrap_or_else(|e| Err(MountError::Other(settings.mount.mountpoint.clone(), std::io::Error::other(e))));
        match result {
            Ok(mounted) => Ok(Client { meta, vfs, mounted: Some(mounted), flush_timeout: settings.flush_timeout }),
            Err(e) => {
                // Nothing was written yet: the session must not linger until its time is up.
                let _ = meta.close(0).await;
                Err(e.into())
            }
        }
    }

    /// The session.
    pub fn meta(&self) -> &Arc<MetaClient> {
        &self.meta
    }
    /// The file system.
    pub fn vfs(&self) -> &Arc<Vfs> {
        &self.vfs
    }
    /// A handle that unmounts from elsewhere.
    pub fn unmounter(&self) -> Option<crate::fuse::Unmounter> {
        self.mounted.as_ref().map(Mounted::unmounter)
    }
    /// Waits until somebody unmounts, then flushes what is dirty and closes the session.
    pub async fn run(mut self) -> Ended {
        if let Some(mounted) = self.mounted.take() {
            let waited = tokio::task::spawn_blocking(move || mounted.wait()).await;
            if let Ok(Err(error)) = waited {
                tracing::warn!(%error, "the FUSE session ended with an error");
            }
        }
        let end = self.vfs.data().shutdown(self.flush_timeout).await;
        if let Err(refusal) = self.meta.close(end.leftovers).await
            && refusal.error != FsError::Stale
        {
            tracing::warn!(reason = %refusal.message, "closing the session failed; the cluster ends it when its time is up");
        }
        Ended { unflushed: end.unflushed }
    }
}
