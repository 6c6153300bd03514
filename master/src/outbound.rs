//! [`Outside`] over gRPC: one cached channel per address.

use crate::outside::{Outside, Unreachable};
use async_trait::async_trait;
use fusefs_proto::{convert, master::v1::master_client::MasterClient, metanode::v1::metanode_client::MetanodeClient};
use fusefs_types::{
    cluster::{MasterCall, MasterRefusal, MasterReply, NodeCall, NodeReply},
    limits,
    ops::{Envelope, Refusal},
};
use parking_lot::Mutex;
use std::{collections::HashMap, time::Duration};
use tonic::{
    Request,
    transport::{Channel, Endpoint},
};

/// TCP connect.
const CONNECT: Duration = Duration::from_secs(1);
/// What a call may take longer than the deadline it carries.
const MARGIN: Duration = Duration::from_millis(500);
/// Cached channels; beyond it the cache starts over (addresses come from the cluster's own records).
const CHANNELS_MAX: usize = 4096;

/// Channels to masters and metanodes.
#[derive(Default)]
pub struct GrpcOutside {
    channels: Mutex<HashMap<String, Channel>>,
}

impl GrpcOutside {
    fn channel(&self, addr: &str) -> Result<Channel, Unreachable> {
        let mut channels = self.channels.lock();
        if let Some(channel) = channels.get(addr) {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{addr}"))
            .map_err(|_| Unreachable(format!("{addr:?} is not an address")))?
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5));
        let channel = endpoint.connect_lazy();
        if channels.len() >= CHANNELS_MAX {
            channels.clear();
        }
        channels.insert(addr.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn wait(envelope: &Envelope) -> Duration {
    Duration::from_millis(u64::from(envelope.deadline_ms.max(1))) + MARGIN
}

fn lost(addr: &str, status: &tonic::Status) -> Unreachable {
    Unreachable(format!("{addr}: {} {}", status.code(), status.message()))
}

#[async_trait]
impl Outside for GrpcOutside {
    async fn node(
        &self,
        addr: &str,
        envelope: Envelope,
        call: NodeCall,
    ) -> Result<Result<NodeReply, Refusal>, Unreachable> {
        let mut client =
            MetanodeClient::new(self.channel(addr)?).max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
        let mut request = Request::new(convert::node::node_request(&envelope, &call));
        request.set_timeout(wait(&envelope));
        let answer = client.node(request).await.map_err(|s| lost(addr, &s))?.into_inner();
        match convert::node::from_node_response(answer) {
            Ok(reply) => Ok(reply.result),
            Err(e) => Err(Unreachable(format!("{addr} answered nonsense: {e}"))),
        }
    }

    async fn master(
        &self,
        addr: &str,
        envelope: Envelope,
        call: MasterCall,
    ) -> Result<Result<MasterReply, MasterRefusal>, Unreachable> {
        let mut client =
            MasterClient::new(self.channel(addr)?).max_decoding_message_size(limits::GRPC_MESSAGE_BYTES_MAX);
        let mut request = Request::new(convert::master::request(&envelope, &call, 1));
        request.set_timeout(wait(&envelope));
        let answer = client.call(request).await.map_err(|s| lost(addr, &s))?.into_inner();
        convert::master::from_response(answer).map_err(|e| Unreachable(format!("{addr} answered nonsense: {e}")))
    }
}
