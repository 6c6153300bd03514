//! Calls of the command line to a cluster.

use crate::args::ClusterArgs;
use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use fusefs_local_cluster::{SystemClock, SystemRng};
use fusefs_meta_client::{Components, GrpcTransport, MasterClient, Settings, Transport};
use fusefs_types::{
    PartitionId,
    auth::ClusterToken,
    cluster::{MasterCall, MasterReply, NodeCall, NodeReply, VolumeMap},
    limits,
    ops::{Envelope, PartitionUsage, Read, ReadReply},
};
use std::{path::Path, sync::Arc, time::Duration};

/// A cluster by its master addresses.
pub struct Cluster {
    masters: MasterClient,
    transport: Arc<dyn Transport>,
    credential: Bytes,
}

/// Bytes of the token file, empty without one.
pub fn credential(file: Option<&Path>) -> Result<Bytes> {
    let Some(file) = file else { return Ok(Bytes::new()) };
    let bytes = std::fs::read(file).with_context(|| format!("reading the token {}", file.display()))?;
    let token = ClusterToken::new(&bytes)
        .map_err(|_| anyhow!("{} holds no usable token: 16 to 1024 printable characters", file.display()))?;
    Ok(token.credential())
}

/// The outside world of a client process.
pub fn components() -> Components {
    Components { transport: Arc::new(GrpcTransport::new()), clock: Arc::new(SystemClock), rng: Arc::new(SystemRng) }
}

impl Cluster {
    /// Nothing is sent yet.
    pub fn new(args: &ClusterArgs) -> Result<Cluster> {
        Ok(Cluster::at(args.master.clone(), credential(args.token_file.as_deref())?))
    }

    /// By addresses and credential.
    pub fn at(masters: Vec<String>, credential: Bytes) -> Cluster {
        let Components { transport, rng, .. } = components();
        let mut settings = Settings::new(masters, credential.clone());
        settings.master_timeout = Duration::from_millis(limits::CLI_TIMEOUT_MS - 1000);
        Cluster { masters: MasterClient::new(settings, transport.clone(), rng), transport, credential }
    }

    /// One call; the error is the master's sentence.
    pub async fn call(&self, call: MasterCall) -> Result<MasterReply> {
        self.masters.call(call).await.map_err(|r| anyhow!("{}", r.message))
    }

    /// As [`Cluster::call`] with a limit of its own.
    pub async fn call_within(&self, call: MasterCall, limit: Duration) -> Result<MasterReply> {
        self.masters.call_within(call, limit).await.map_err(|r| anyhow!("{}", r.message))
    }

    fn envelope(&self, map: &VolumeMap) -> Envelope {
        Envelope {
            volume: map.volume,
            credential: self.credential.clone(),
            map_generation: map.generation,
            deadline_ms: 3000,
            feature_level: fusefs_meta_client::FEATURE_LEVEL,
            ..Envelope::default()
        }
    }

    /// Counters of each partition in the order of the map; None when no replica answers.
    pub async fn partition_usage(&self, map: &VolumeMap) -> Vec<Option<PartitionUsage>> {
        let mut out = Vec::new();
        for p in &map.partitions {
            let mut usage = None;
            for m in &p.members {
                let ask = self.transport.read(&m.addr, self.envelope(map), p.id, &Read::StatFs);
                if let Ok(Ok(reply)) = tokio::time::timeout(Duration::from_secs(3), ask).await
                    && let Ok(ReadReply::StatFs(u)) = reply.result
                {
                    usage = Some(u);
                    break;
                }
            }
            out.push(usage);
        }
        out
    }

    /// A question to the leader of a partition.
    pub async fn ask_leader(&self, map: &VolumeMap, partition: PartitionId, call: NodeCall) -> Result<NodeReply> {
        let info = map.partitions.iter().find(|p| p.id == partition).context("no such partition")?;
        let mut reasons = Vec::new();
        for m in &info.members {
            let ask = self.transport.node(&m.addr, self.envelope(map), &call);
            match tokio::time::timeout(Duration::from_secs(30), ask).await {
                Ok(Ok(reply)) => match reply.result {
                    Ok(r) => return Ok(r),
                    Err(refusal) => reasons.push(format!("{}: {}", m.addr, refusal.error)),
                },
                Ok(Err(e)) => reasons.push(format!("{}: {e}", m.addr)),
                Err(_) => reasons.push(format!("{}: no answer", m.addr)),
            }
        }
        Err(anyhow!("partition {partition} does not answer: {}", reasons.join("; ")))
    }
}
