//! Connections of the double, and the faults that live on the wire.

use super::{State, api};
use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{body::Frame, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use s3s::{Body, HttpResponse, service::S3Service, service::S3ServiceBuilder};
use std::{io, sync::Arc};
use tokio::{net::TcpListener, task::JoinSet};

/// Accepts until the task is aborted; its connections end with it.
pub(super) async fn serve(listener: TcpListener, state: Arc<State>) {
    let mut builder = S3ServiceBuilder::new(api::Api(state.clone()));
    builder.set_auth(api::Auth);
    let service = builder.build();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                let _ = socket.set_nodelay(true); // only latency is lost without it
                let (service, state) = (service.clone(), state.clone());
                connections.spawn(async move {
                    let handle = service_fn(move |req| handle(service.clone(), state.clone(), req));
                    // An error here is an injected loss or a client that went away.
                    let _ = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(socket), handle).await;
                });
            }
        }
    }
}

/// One request with its fate. An error closes the connection without an answer.
async fn handle(
    service: S3Service,
    state: Arc<State>,
    req: http::Request<hyper::body::Incoming>,
) -> Result<HttpResponse, io::Error> {
    let c = &state.counters;
    c.add(&c.requests, 1);
    let fate = state.fate();
    if !fate.wait.is_zero() {
        tokio::time::sleep_until(tokio::time::Instant::now() + fate.wait).await;
    }
    if fate.down {
        c.add(&c.refused, 1);
        return Err(io::Error::other("injected: down"));
    }
    if fate.denied {
        c.add(&c.refused, 1);
        return answer(req, 403, "AccessDenied").await;
    }
    if fate.slow_down {
        c.add(&c.slow_downs, 1);
        return answer(req, 503, "SlowDown").await;
    }
    let is_get = req.method() == http::Method::GET;
    let reply = service.call(req.map(Body::from)).await.map_err(|e| io::Error::other(format!("{e:?}")))?;
    if fate.lost {
        c.add(&c.lost_replies, 1);
        return Err(io::Error::other("injected: lost reply"));
    }
    match fate.cut {
        Some(at) if is_get && reply.status().is_success() => cut(&state, reply, at).await,
        _ => Ok(reply),
    }
}

/// An error document; the request's body is read first, as servers do that keep the connection.
async fn answer(req: http::Request<hyper::body::Incoming>, status: u16, code: &str) -> Result<HttpResponse, io::Error> {
    let _ = req.into_body().collect().await;
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>{code}</Code><Message>injected</Message></Error>"
    );
    let reply = http::Response::builder().status(status).header("content-type", "application/xml");
    reply.body(Body::from(xml)).map_err(io::Error::other)
}

/// Sends the head with the full length and only a part of the body.
async fn cut(state: &State, reply: HttpResponse, at: u64) -> Result<HttpResponse, io::Error> {
    let (head, body) = reply.into_parts();
    let body = body.collect().await.map_err(|e| io::Error::other(e.to_string()))?.to_bytes();
    if body.is_empty() {
        return Ok(http::Response::from_parts(head, Body::empty()));
    }
    state.counters.add(&state.counters.truncated, 1);
    let part: Result<Frame<Bytes>, io::Error> = Ok(Frame::data(body.slice(..(at % body.len() as u64) as usize)));
    let end = Err(io::Error::other("injected: cut body"));
    let body = Body::http_body(StreamBody::new(stream::iter([part, end])));
    Ok(http::Response::from_parts(head, body))
}
