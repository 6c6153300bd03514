//! The masters publish volumes only to nodes that they have heard of.

use crate::{Masters, valid::NodeName};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Again after this long: masters that had to forget a node hear of it again.
const PERIOD: Duration = Duration::from_secs(300);
/// Pauses while no master answers.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(15);

/// Announces `node` for ever; `known` turns true when a master has answered for the first time. Never ends: a cluster that
/// does not answer is no reason to restart a plugin.
pub async fn keep_announced(masters: Masters, node: NodeName, known: watch::Sender<bool>) {
    let mut retry = RETRY_FIRST;
    loop {
        match masters.announce(&node).await {
            Ok(()) => {
                known.send_replace(true);
                retry = RETRY_FIRST;
                sleep_until(Instant::now() + PERIOD).await;
            }
            Err(refusal) => {
                tracing::warn!(node = node.as_str(), "the node is not announced yet: {}", refusal.message);
                sleep_until(Instant::now() + retry).await;
                retry = (retry * 2).min(RETRY_MOST);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cluster;
    use async_trait::async_trait;
    use fusefs_types::{
        FsError,
        cluster::{MasterCall, MasterRefusal, MasterReply},
    };
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    };

    /// Refuses the first calls.
    struct Late(AtomicU32);

    #[async_trait]
    impl Cluster for Late {
        async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
            assert!(matches!(call, MasterCall::AddMounter(node) if node == "node-a"));
            match self.0.fetch_add(1, SeqCst) {
                n if n < 5 => Err(MasterRefusal { error: FsError::Unavailable, message: "x".into(), leader: None }),
                _ => Ok(MasterReply::Ok),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn announced_when_a_master_answers_and_again_later() {
        let late = Arc::new(Late(AtomicU32::new(0)));
        let (known, mut seen) = watch::channel(false);
        let node = NodeName::parse("node-a").unwrap();
        let task = tokio::spawn(keep_announced(Masters::new(late.clone()), node, known));
        seen.wait_for(|known| *known).await.unwrap();
        assert_eq!(late.0.load(SeqCst), 6);
        sleep_until(Instant::now() + PERIOD + Duration::from_secs(1)).await;
        assert_eq!(late.0.load(SeqCst), 7);
        task.abort();
    }
}
