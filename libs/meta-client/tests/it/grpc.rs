//! The real transport over loopback.

use crate::fake::{attr, chmod, lookup};
use fusefs_meta_client::{GrpcTransport, Transport};
use fusefs_proto::{
    convert::{ops, stream as convert},
    metanode::v1::{self as pb, metanode_server},
};
use fusefs_types::{
    FsError, Ino, PartitionId,
    ops::{Envelope, ReadReply, Reply, ReplyHead, WriteReply},
    stream::{ClientBody, ClientEvent, ServerBody, ServerEvent},
};
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status, Streaming};

struct Server;

#[tonic::async_trait]
impl metanode_server::Metanode for Server {
    type StreamStream = BoxStream<'static, Result<pb::ServerEvent, Status>>;

    async fn write(&self, r: Request<pb::WriteRequest>) -> Result<Response<pb::WriteResponse>, Status> {
        let (envelope, write) = ops::from_write_request(r.into_inner()).unwrap();
        let head = ReplyHead { hlc: envelope.hlc, map_generation: envelope.map_generation };
        let reply = Reply { head, result: Ok(WriteReply::Attr(attr(write.route().ino))) };
        Ok(Response::new(ops::write_response(&reply)))
    }
    async fn read(&self, _: Request<pb::ReadRequest>) -> Result<Response<pb::ReadResponse>, Status> {
        let reply = Reply { head: ReplyHead::default(), result: Ok(ReadReply::Xattr(vec![7; 65536].into())) };
        Ok(Response::new(ops::read_response(&reply)))
    }
    async fn node(&self, _: Request<pb::NodeRequest>) -> Result<Response<pb::NodeResponse>, Status> {
        Err(Status::unauthenticated("no token"))
    }
    async fn peer(&self, _: Request<pb::PeerRequest>) -> Result<Response<pb::PeerResponse>, Status> {
        Err(Status::internal("broken"))
    }
    async fn stream(&self, r: Request<Streaming<pb::ClientEvent>>) -> Result<Response<Self::StreamStream>, Status> {
        // Answers every event with a question whose number is the ack plus one.
        let events = r.into_inner().map(|e| {
            let e = convert::from_client_event(e?).map_err(|_| Status::invalid_argument("event"))?;
            let hello = e.envelope.is_some();
            let body = if hello { ServerBody::Hello } else { ServerBody::MapChanged { generation: 5 } };
            Ok(convert::server_event(&ServerEvent { id: e.ack + 1, body }))
        });
        Ok(Response::new(events.boxed()))
    }
}

async fn serve() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let service = metanode_server::MetanodeServer::new(Server);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    addr
}

#[tokio::test]
async fn calls_and_streams_over_loopback() {
    let (addr, transport) = (serve().await, GrpcTransport::new());
    let envelope = Envelope { map_generation: 4, ..Envelope::default() };
    let reply = transport.write(&addr, envelope.clone(), &chmod(42)).await.unwrap();
    assert_eq!(reply.head.map_generation, 4);
    assert_eq!(reply.result, Ok(WriteReply::Attr(attr(Ino(42)))));
    let reply = transport.read(&addr, envelope.clone(), PartitionId(0), &lookup(1)).await.unwrap();
    assert!(matches!(reply.result, Ok(ReadReply::Xattr(v)) if v.len() == 65536));

    let mut stream = transport.events(&addr, envelope.clone()).await.unwrap();
    let hello = stream.receive.next().await.unwrap().unwrap();
    assert_eq!(hello, ServerEvent { id: 1, body: ServerBody::Hello });
    stream.send.send(ClientEvent { envelope: None, ack: 1, body: ClientBody::Nothing }).await.unwrap();
    let next = stream.receive.next().await.unwrap().unwrap();
    assert_eq!(next, ServerEvent { id: 2, body: ServerBody::MapChanged { generation: 5 } });

    let call = fusefs_types::cluster::NodeCall::Fsck(PartitionId(1));
    assert_eq!(transport.node(&addr, envelope, &call).await.unwrap_err().error, FsError::Unauthenticated);
}

#[tokio::test]
async fn failures_are_told_in_words() {
    let transport = GrpcTransport::new();
    // Bound and never listened on: nobody else gets the port while we try.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap().to_string();
    let e = transport.write(&addr, Envelope::default(), &chmod(1)).await.unwrap_err();
    assert!(e.unsent && e.error == FsError::Unavailable && e.reason.contains("refused"), "{e:?}");
    let e = transport.write("not an address", Envelope::default(), &chmod(1)).await.unwrap_err();
    assert_eq!(e.error, FsError::Invalid);
    let e = transport.write("no-such-host.invalid:1", Envelope::default(), &chmod(1)).await.unwrap_err();
    assert!(e.error == FsError::Unavailable && !e.reason.is_empty(), "{e:?}");
}
