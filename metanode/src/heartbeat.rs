//! Registering with the masters and the report of every second.

use crate::{IdentityError, StartError, node::Metanode};
use fusefs_types::{
    FsError,
    cluster::{Heartbeat, MasterCall, MasterReply, NodeRecord, ReplicaReport},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

impl Metanode {
    /// Registers, then reports to the masters until shutdown; registers again when they do not know this node.
    ///
    /// # Errors
    /// The masters are another cluster's, or refuse the token: serving on would only confuse.
    pub async fn report(self: Arc<Self>, addr: String) -> Result<(), StartError> {
        let mut stopping = self.stopping();
        let period = Duration::from_millis(self.settings.heartbeat_ms.max(10));
        let mut next = Instant::now();
        let (mut known, mut silent) = (false, false);
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|s| *s) => return Ok(()),
                () = tokio::time::sleep_until(next) => {}
            }
            next = Instant::now() + period;
            let call = if known {
                MasterCall::Heartbeat(self.beat().await)
            } else {
                MasterCall::Register(node_record(&self.settings, self.identity.node, &addr))
            };
            let result = self.master(call).await;
            match &result {
                Ok(MasterReply::Registered(cluster)) if *cluster != self.identity.cluster => {
                    return Err(StartError::Identity(IdentityError::OtherCluster {
                        dir: self.settings.data_dir.clone(),
                        theirs: self.identity.cluster,
                        ours: *cluster,
                    }));
                }
                Ok(MasterReply::Registered(_)) => {
                    known = true;
                    next = Instant::now();
                }
                Ok(_) if silent => tracing::info!("the masters answer again"),
                Err(e) if e.error == FsError::NotFound => known = false,
                Err(e) if matches!(e.error, FsError::Unauthenticated | FsError::WrongCluster) && !known => {
                    return Err(StartError::Refused(e.message.clone()));
                }
                Err(e) if !silent => tracing::warn!(error = %e.error, message = %e.message, "heartbeat refused"),
                _ => {}
            }
            silent = result.is_err();
        }
    }

    async fn beat(&self) -> Heartbeat {
        let mut replicas: Vec<ReplicaReport> = Vec::new();
        for hosted in self.all() {
            let status = hosted.group.status();
            let (usage, inos_left) =
                hosted.group.read(|m| m.partition().map(|p| (p.usage(), p.inos_left())).unwrap_or_default());
            replicas.push(ReplicaReport {
                partition: hosted.id,
                replica: hosted.group.spec().replica,
                leader: status.is_leader,
                term: status.term,
                applied: status.applied,
                usage,
                inos_left,
                failed: status.stopped.unwrap_or_default(),
            });
        }
        for (spec, failed) in self.host.failed_groups() {
            replicas.push(ReplicaReport {
                partition: spec.group,
                replica: spec.replica,
                leader: false,
                term: 0,
                applied: 0,
                usage: Default::default(),
                inos_left: 0,
                failed,
            });
        }
        let dir = self.settings.data_dir.clone();
        let simulated = self.settings.data_dir.as_os_str().is_empty();
        let disk_used = if simulated { 0 } else { disk_used(dir).await };
        Heartbeat { node: self.identity.node, memory_used: memory_used(simulated), disk_used, replicas }
    }
}

/// Record of a node.
pub(crate) fn node_record(settings: &crate::Settings, id: fusefs_types::NodeId, addr: &str) -> NodeRecord {
    let host = if settings.host.is_empty() {
        addr.rsplit_once(':').map_or(addr, |(host, _)| host).to_string()
    } else {
        settings.host.clone()
    };
    NodeRecord {
        id,
        addr: addr.into(),
        host,
        capacity: settings.capacity,
        memory: settings.memory,
        feature_level: fusefs_meta_state::LEVEL,
    }
}

fn memory_used(simulated: bool) -> u64 {
    if simulated {
        return 0;
    }
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * 4096
}

/// Bytes below a directory.
async fn disk_used(dir: std::path::PathBuf) -> u64 {
    tokio::task::spawn_blocking(move || {
        let (mut sum, mut todo) = (0, vec![dir]);
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                match entry.metadata() {
                    Ok(m) if m.is_dir() => todo.push(entry.path()),
                    Ok(m) => sum += m.len(),
                    Err(_) => {}
                }
            }
        }
        sum
    })
    .await
    .unwrap_or(0)
}
