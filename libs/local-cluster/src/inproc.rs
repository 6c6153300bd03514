//! Every server as tasks of this process: the quickest way to a whole cluster.

use crate::{ClusterDir, SystemClock, SystemRng};
use anyhow::{Context, Result};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// Settings that tests and `fusefs dev` change.
#[derive(Clone, Debug, Default)]
pub struct Tuning {
    /// Grace before dead objects are deleted.
    pub object_grace: Option<Duration>,
}

/// How long a clean stop may take before the tasks are dropped.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);

/// Running servers.
pub struct InprocCluster {
    stop: watch::Sender<bool>,
    masters: Vec<JoinHandle<Result<()>>>,
    metanodes: Vec<JoinHandle<Result<()>>>,
    nodes: Vec<Arc<std::sync::OnceLock<Arc<fusefs_metanode::Metanode>>>>,
}

impl InprocCluster {
    /// Starts all servers of `dir`. They listen on return; the cluster is usable when the masters have a leader, which
    /// clients wait for by themselves.
    pub async fn start(dir: &ClusterDir, tuning: &Tuning) -> Result<InprocCluster> {
        let (stop, stopped) = watch::channel(false);
        let mut cluster = InprocCluster { stop, masters: Vec::new(), metanodes: Vec::new(), nodes: Vec::new() };
        for (i, addr) in dir.master_addrs().into_iter().enumerate() {
            let mut settings = fusefs_master::Settings::new(dir.master_dir(i));
            settings.listen = addr;
            settings.peers = dir.master_addrs();
            settings.cluster_token_file = Some(dir.token_file());
            let components = fusefs_master::ServerComponents { clock: Arc::new(SystemClock), rng: Arc::new(SystemRng) };
            let server =
                fusefs_master::Server::bind(settings, components).await.with_context(|| format!("master {i}"))?;
            let mut stopped = stopped.clone();
            cluster.masters.push(tokio::spawn(async move {
                let end = async move { drop(stopped.wait_for(|s| *s).await) };
                server.run(end).await.with_context(|| format!("master {i}"))
            }));
        }
        for (i, addr) in dir.metanode_addrs().into_iter().enumerate() {
            let mut settings = fusefs_metanode::Settings::new(dir.metanode_dir(i));
            settings.listen = addr;
            settings.host = format!("metanode-{i}");
            settings.masters = dir.master_addrs();
            settings.cluster_token_file = Some(dir.token_file());
            if let Some(grace) = tuning.object_grace {
                settings.object_grace_ms = grace.as_millis() as u64;
            }
            let components =
                fusefs_metanode::ServerComponents { clock: Arc::new(SystemClock), rng: Arc::new(SystemRng) };
            let server =
                fusefs_metanode::Server::bind(settings, components).await.with_context(|| format!("metanode {i}"))?;
            cluster.nodes.push(server.node());
            let mut stopped = stopped.clone();
            cluster.metanodes.push(tokio::spawn(async move {
                let end = async move { drop(stopped.wait_for(|s| *s).await) };
                server.run(end).await.with_context(|| format!("metanode {i}"))
            }));
        }
        Ok(cluster)
    }

    /// The metanodes that have opened, for their counters.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<fusefs_metanode::Metanode>> {
        self.nodes.iter().filter_map(|n| n.get())
    }

    /// The first server that ended although nobody stopped it.
    pub async fn failed(&mut self) -> anyhow::Error {
        let all = self.masters.iter_mut().chain(self.metanodes.iter_mut());
        let (result, ..) = futures::future::select_all(all).await;
        match result {
            Ok(Err(e)) => e,
            Ok(Ok(())) => anyhow::anyhow!("a server ended by itself"),
            Err(e) => anyhow::anyhow!("a server panicked: {e}"),
        }
    }

    /// Clean stop.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        for task in self.metanodes.into_iter().chain(self.masters) {
            if tokio::time::timeout(STOP_TIMEOUT, task).await.is_err() {
                tracing::warn!("a server did not stop within {STOP_TIMEOUT:?}");
            }
        }
    }
}
