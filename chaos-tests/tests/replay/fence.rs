//! A client that was replaced while its upload was under way must not commit it any more: the new client has written
//! since.

use super::seed;
use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use fusefs_chaos_tests::{
    replay::{
        Rng,
        nemesis::pause,
        now_ns,
        proxy::{Gate, Mode},
    },
    stack::Stack,
};
use fusefs_fuse_client::{
    ClientSettings, Vfs,
    client::{Attach, connect_as},
    fuse::MountSettings,
    vfs::Request,
};
use fusefs_local_cluster::{Shape, SystemClock, SystemRng};
use fusefs_meta_client::{Components, GrpcTransport, MetaClient};
use fusefs_types::{
    Ino, SessionId, Token,
    auth::ClusterToken,
    ids::{Incarnation, MountId},
};
use std::{sync::Arc, time::Duration};

/// Beyond what rides inline: its commit waits for an upload, and the upload for the gate.
const OLD: usize = 300_000;
/// Rides inline: needs no upload.
const NEW: usize = 8_000;
/// How long an upload may take to come to the gate.
const UPLOAD: Duration = Duration::from_secs(20);

struct Rig {
    stack: Stack,
    gate: Gate,
    settings: ClientSettings,
}

fn components() -> Components {
    let (clock, rng) = (Arc::new(SystemClock), Arc::new(SystemRng));
    Components { clock, rng, transport: Arc::new(GrpcTransport::default()) }
}

impl Rig {
    fn start(servers: &[(&str, &str)]) -> Result<Rig> {
        let mut gate = None;
        let stack = Stack::start_behind(Shape { masters: 1, metanodes: 1 }, servers, |endpoint| {
            let started = Gate::start(endpoint.strip_prefix("http://").context("an http endpoint")?)?;
            let front = format!("http://{}", started.addr);
            gate = Some(started);
            Ok(front)
        })?;
        stack.fusefs(&["volume", "create", "work"])?;
        let credential = ClusterToken::new(&std::fs::read(stack.dir.token_file())?).context("token")?.credential();
        let settings = ClientSettings {
            masters: stack.dir.master_addrs(),
            credential,
            volume: "work".into(),
            attach: 0,
            name: "fence".into(),
            mount: MountSettings::new(stack.tmp().join("unused"), "fence"),
            validity: Duration::from_secs(1),
            cache_inodes: 1000,
            data: fusefs_data_path::Settings::default(),
            flush_timeout: Duration::from_secs(10),
        };
        Ok(Rig { stack, gate: gate.context("a gate")?, settings })
    }
    /// The `n`th client process of the mount.
    async fn client(&self, session: SessionId, n: u32) -> Result<(Arc<MetaClient>, Arc<Vfs>)> {
        let token = Token { attach: 0, incarnation: Incarnation(n) };
        Ok(connect_as(&self.settings, components(), Attach { mount: MountId(7), session, token }).await?)
    }
}

async fn write(vfs: &Vfs, ino: Ino, unique: u64, data: &[u8]) -> Result<()> {
    let rq = |n| Request::new(unique + n, 0, 0);
    let opened = vfs.open(&rq(0), ino, libc::O_WRONLY).await?;
    vfs.write(&rq(2), ino, opened.fh, 0, Bytes::copy_from_slice(data), libc::O_WRONLY).await?;
    Ok(())
}

/// Whether the old client's bytes are in the file at the end.
async fn old_commit_lands(rig: &Rig, seed: u64) -> Result<bool> {
    let (old, new) = (Rng::new(seed, 1).bytes(OLD), Rng::new(seed, 2).bytes(NEW));
    let (meta, first) = rig.client(SessionId(0), 1).await?;
    let (session, root) = (meta.grant().session, meta.grant().root);
    let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
    let (entry, _) = first.create(&Request::new(2, 0, 0), root, Bytes::from_static(b"file"), 0o644, flags).await?;
    let ino = entry.attr.ino;
    write(&first, ino, 100, &old).await?;
    rig.gate.set(Mode::Hold);
    let before = rig.gate.held();
    let held = tokio::spawn({
        let first = first.clone();
        async move { first.fsync(&Request::new(200, 0, 0), ino).await }
    });
    let start = now_ns();
    while rig.gate.held() == before {
        ensure!(now_ns() - start < UPLOAD.as_nanos() as u64, "the upload did not come to the gate");
        tokio::task::spawn_blocking(|| pause(Duration::from_millis(10))).await?;
    }
    // The next process of the mount takes over while the old one's upload is held.
    let (_, second) = rig.client(session, 2).await?;
    write(&second, ino, 300, &new).await?;
    second.fsync(&Request::new(400, 0, 0), ino).await.context("the new client's commit")?;
    rig.gate.set(Mode::Open);
    let result = tokio::time::timeout(UPLOAD, held).await;
    println!("the old client's fsync: {result:?}");
    let (_, third) = rig.client(session, 3).await?;
    let opened = third.open(&Request::new(500, 0, 0), ino, libc::O_RDONLY).await?;
    let have = third.read(&Request::new(502, 0, 0), ino, opened.fh, 0, NEW as u32).await?;
    ensure!(have == new || have == old[..NEW], "the file has neither the old nor the new bytes");
    Ok(have != new)
}

/// One RPC of the old client is held, the next client takes over and writes, then it is released.
pub fn without_a_fence_an_old_commit_lands() -> Result<()> {
    let seed = seed(304);
    println!("seed {seed}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    for (servers, fenced) in [(&[][..], true), (&[("FUSEFS_PLANT", "no-fence")][..], false)] {
        let rig = Rig::start(servers)?;
        let lands = runtime.block_on(old_commit_lands(&rig, seed))?;
        println!(
            "fence {}: the old commit {}",
            if fenced { "on" } else { "off" },
            if lands { "lands" } else { "is refused" }
        );
        ensure!(!(fenced && lands), "the old client's commit landed although it was fenced");
        ensure!(fenced || lands, "the fence is off, but the old commit did not land: this control proves nothing");
        drop(rig.stack);
    }
    runtime.shutdown_background();
    Ok(())
}
