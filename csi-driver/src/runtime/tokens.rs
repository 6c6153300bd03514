//! What a mount's processes get in place of the cluster token: a token for their volume and attach generation only.

use crate::{Masters, Outcome, node::io_fault, valid::NodeName};
use bytes::Bytes;
use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};
use tokio::time::timeout;

/// Tokens are good for a week; a mount needs one whenever one of its processes starts.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Renewing is tried again soon, and holds the volume meanwhile.
const RENEW_PATIENCE: Duration = Duration::from_secs(2);

/// Asks the masters for mount tokens of this node.
#[derive(Clone)]
pub struct MountTokens {
    masters: Masters,
    node: NodeName,
}

impl MountTokens {
    /// For `node`.
    pub fn new(masters: Masters, node: NodeName) -> MountTokens {
        MountTokens { masters, node }
    }

    /// A token for a volume that is attached to this node. None: it was attached without the controller (generation 0), or
    /// the cluster has no token.
    pub async fn get(&self, volume: &str, generation: u64) -> Outcome<Option<Bytes>> {
        if generation == 0 {
            return Ok(None);
        }
        let token = self.masters.mount_token(volume, &self.node, generation).await?;
        Ok((!token.is_empty()).then_some(token))
    }

    /// Puts one into `file`; whether there is one.
    pub async fn put(&self, file: &Path, volume: &str, generation: u64) -> Outcome<bool> {
        let Some(token) = self.get(volume, generation).await? else { return Ok(false) };
        write(file, &token).map_err(|e| io_fault(format_args!("writing {}", file.display()), &e))?;
        Ok(true)
    }

    /// Replaces the token in `file` when it is a day old. A failure is told and tried again.
    pub async fn renew(&self, file: &Path, volume: &str, generation: u64) {
        let age = fs::metadata(file).and_then(|m| m.modified()).ok().and_then(|at| at.elapsed().ok());
        if age.is_none_or(|age| age < RENEW_AFTER) {
            return;
        }
        match timeout(RENEW_PATIENCE, self.put(file, volume, generation)).await {
            Ok(Ok(_)) => {}
            Ok(Err(fault)) => tracing::warn!(volume, "the mount token cannot be renewed: {}", fault.message),
            Err(_) => tracing::warn!(volume, "the mount token cannot be renewed: no master answers"),
        }
    }
}

/// Whole or not at all, for its owner only.
fn write(file: &Path, token: &[u8]) -> io::Result<()> {
    let fresh = file.with_extension("new");
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let mut out = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
    out.write_all(token)?;
    out.sync_all()?;
    fs::rename(fresh, file)
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
    use std::{
        os::unix::fs::PermissionsExt,
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering::SeqCst},
        },
        time::SystemTime,
    };

    /// Knows generation 3; generation 4 is of a cluster without a token.
    #[derive(Default)]
    struct Fake(AtomicU64);

    #[async_trait]
    impl Cluster for Fake {
        async fn call(&self, call: MasterCall) -> Result<MasterReply, MasterRefusal> {
            let n = self.0.fetch_add(1, SeqCst);
            match call {
                MasterCall::MountToken(v, node, 3) if v == "vol" && node == "node-a" => {
                    Ok(MasterReply::MountToken(format!("token-{n}").into()))
                }
                MasterCall::MountToken(_, _, 4) => Ok(MasterReply::MountToken(Bytes::new())),
                _ => Err(MasterRefusal { error: FsError::Fenced, message: "not attached".into(), leader: None }),
            }
        }
    }

    #[tokio::test]
    async fn tokens_are_kept_private_and_fresh() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("mount-token");
        let asked = Arc::<Fake>::default();
        let tokens = MountTokens::new(Masters::new(asked.clone()), NodeName::parse("node-a").unwrap());
        for generation in [0, 4] {
            assert_eq!(tokens.put(&file, "vol", generation).await, Ok(false));
        }
        let fault = tokens.put(&file, "vol", 9).await.unwrap_err();
        assert_eq!(fault.code, tonic::Code::FailedPrecondition);
        assert!(!file.exists());
        assert_eq!(tokens.put(&file, "vol", 3).await, Ok(true));
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let first = fs::read(&file).unwrap();
        tokens.renew(&file, "vol", 3).await;
        assert_eq!(fs::read(&file).unwrap(), first, "it is young");
        let yesterday = fs::metadata(&file).unwrap().modified().unwrap() - RENEW_AFTER - Duration::from_secs(1);
        let age = |at: SystemTime| OpenOptions::new().write(true).open(&file).unwrap().set_modified(at).unwrap();
        age(yesterday);
        tokens.renew(&file, "vol", 9).await;
        assert_eq!(fs::read(&file).unwrap(), first, "a refusal takes nothing away");
        tokens.renew(&file, "vol", 3).await;
        assert_ne!(fs::read(&file).unwrap(), first);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
