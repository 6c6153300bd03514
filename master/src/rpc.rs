//! gRPC around [`Core`]: conversions only.

use crate::core::{Core, permit, refuse};
use fusefs_proto::{
    convert::master as convert,
    master::v1::{
        MasterRequest, MasterResponse, WatchMapRequest, WatchMapResponse,
        master_server::{Master, MasterServer},
    },
};
use fusefs_types::{
    FsError, VolumeId,
    cluster::{MasterCall, MasterRefusal, VolumeMap},
    limits,
    ops::Envelope,
};
use std::{pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

/// How long a watch sleeps without news before it looks whether it still leads.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// An unchanged map is sent again after this long, so that a client notices a dead connection.
const REPEAT: Duration = Duration::from_secs(10);

/// The service.
pub struct MasterRpc(pub Arc<Core>);

impl MasterRpc {
    /// As a tonic service.
    pub fn server(self) -> MasterServer<MasterRpc> {
        MasterServer::new(self)
            .max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
            .max_encoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX)
    }
}

fn malformed(e: FsError) -> MasterRefusal {
    refuse(e, "the request is malformed or of a newer version")
}

#[tonic::async_trait]
impl Master for MasterRpc {
    async fn call(&self, request: Request<MasterRequest>) -> Result<Response<MasterResponse>, Status> {
        let result = match convert::from_request(request.into_inner()) {
            Ok((envelope, call, forwarded)) => self.0.call(envelope, call, forwarded).await,
            Err(e) => Err(malformed(e)),
        };
        Ok(Response::new(convert::response(&result)))
    }

    type WatchMapStream = Pin<Box<dyn Stream<Item = Result<WatchMapResponse, Status>> + Send>>;

    async fn watch_map(&self, request: Request<WatchMapRequest>) -> Result<Response<Self::WatchMapStream>, Status> {
        let (tx, rx) = mpsc::channel(4);
        let core = self.0.clone();
        match convert::from_watch_request(request.into_inner()) {
            Ok((envelope, volume)) => {
                tokio::spawn(async move {
                    // An error means that the client has gone.
                    let _ = watch(&core, &envelope, volume, &tx).await;
                });
            }
            Err(e) => {
                let _ = tx.try_send(Ok(convert::watch_response(&Err(malformed(e)))));
            }
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(rx))))
    }
}

type Items = mpsc::Sender<Result<WatchMapResponse, Status>>;

/// Sends the map now and at every change, and ends with a refusal when this master leads no more or the volume is gone.
async fn watch(core: &Core, envelope: &Envelope, volume: VolumeId, tx: &Items) -> Result<(), ()> {
    let mut sent: Option<VolumeMap> = None;
    let mut sent_at = tokio::time::Instant::now();
    let mut changed = core.changed.subscribe();
    loop {
        changed.mark_unchanged();
        match current(core, envelope, volume) {
            Ok(map) if sent.as_ref() == Some(&map) && sent_at.elapsed() < REPEAT => {}
            Ok(map) => {
                tx.send(Ok(convert::watch_response(&Ok(map.clone())))).await.map_err(|_| ())?;
                sent = Some(map);
                sent_at = tokio::time::Instant::now();
            }
            Err(refusal) => {
                return tx.send(Ok(convert::watch_response(&Err(refusal)))).await.map_err(|_| ());
            }
        }
        if tx.is_closed() {
            return Err(());
        }
        let _ = timeout(LOOK_AGAIN, changed.changed()).await;
    }
}

fn current(core: &Core, envelope: &Envelope, volume: VolumeId) -> Result<VolumeMap, MasterRefusal> {
    let who = core.authenticate(envelope)?;
    core.check_cluster(envelope)?;
    permit(&who, &MasterCall::GetMap(volume))?;
    let status = core.log.leadership().borrow().clone();
    if !status.ready {
        let message = "this master does not lead; watch at the leader".to_owned();
        return Err(MasterRefusal { error: FsError::NotLeader, message, leader: status.leader });
    }
    core.map(volume).ok_or_else(|| refuse(FsError::NotFound, format!("no volume number {volume}")))
}
