//! HTTP/JSON for people and orchestrators: a façade over the same calls. Errors are `{"error": code, "message": text}`.
//!
//! `Authorization: Bearer <cluster token>` is required where a token is configured, except for `/healthz` and `/readyz`,
//! which say nothing but "ok" (orchestrators probe them).

mod json;

use crate::core::Core;
use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header::AUTHORIZATION},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use fusefs_types::{
    FsError, SessionId,
    cluster::{MasterCall, MasterRefusal, MasterReply},
    ops::Envelope,
};
use serde::Deserialize;
use serde_json::Value;
use std::sync::Arc;

/// Largest request body.
const BODY_MAX: usize = 1 << 20;

/// The routes.
pub fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/v1/cluster", get(cluster))
        .route("/v1/stores", get(stores).post(add_store))
        .route("/v1/stores/{name}/probe", post(probe_store))
        .route("/v1/volumes", get(volumes).post(create_volume))
        .route("/v1/volumes/{name}", get(volume).delete(delete_volume))
        .route("/v1/volumes/{name}/expand", post(expand_volume))
        .route("/v1/volumes/{name}/map", get(volume_map))
        .route("/v1/sessions", get(sessions))
        .route("/v1/sessions/{id}", delete(revoke_session))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_MAX))
        .with_state(core)
}

/// An answer that is not the asked one.
struct Failure(MasterRefusal);

impl From<MasterRefusal> for Failure {
    fn from(r: MasterRefusal) -> Failure {
        Failure(r)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let body = serde_json::json!({ "error": format!("{:?}", self.0.error), "message": self.0.message });
        (status(self.0.error), Json(body)).into_response()
    }
}

fn status(e: FsError) -> StatusCode {
    match e {
        FsError::NotFound => StatusCode::NOT_FOUND,
        FsError::Exists | FsError::InUse | FsError::Conflict => StatusCode::CONFLICT,
        FsError::Invalid | FsError::NameTooLong | FsError::WrongCluster => StatusCode::BAD_REQUEST,
        FsError::Unauthenticated => StatusCode::UNAUTHORIZED,
        FsError::Unavailable | FsError::NotLeader | FsError::Overloaded => StatusCode::SERVICE_UNAVAILABLE,
        FsError::TimedOut => StatusCode::GATEWAY_TIMEOUT,
        FsError::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        FsError::Stale | FsError::Fenced => StatusCode::GONE,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refused(error: FsError, message: impl Into<String>) -> Failure {
    Failure(crate::core::refuse(error, message))
}

type Answer = Result<Json<Value>, Failure>;

#[derive(Deserialize)]
struct Wait {
    /// Milliseconds the caller will wait.
    #[serde(default)]
    deadline_ms: u32,
    /// DELETE of a volume: also with open sessions.
    #[serde(default)]
    force: bool,
    /// Sessions: of this volume only.
    #[serde(default)]
    volume: String,
}

fn envelope(headers: &HeaderMap, wait: &Wait) -> Envelope {
    let bearer = headers.get(AUTHORIZATION).and_then(|v| v.to_str().ok()).and_then(|v| v.strip_prefix("Bearer "));
    Envelope {
        credential: bearer.map(|b| Bytes::copy_from_slice(b.trim().as_bytes())).unwrap_or_default(),
        deadline_ms: wait.deadline_ms,
        ..Envelope::default()
    }
}

async fn call(core: &Core, headers: &HeaderMap, wait: &Wait, call: MasterCall) -> Result<MasterReply, Failure> {
    Ok(core.call(envelope(headers, wait), call, 0).await?)
}

/// Parses a body after the caller has proved who it is: strangers learn nothing about the format either.
fn parse<T: serde::de::DeserializeOwned>(
    core: &Core,
    headers: &HeaderMap,
    wait: &Wait,
    body: &Bytes,
) -> Result<T, Failure> {
    core.authenticate(&envelope(headers, wait))?;
    serde_json::from_slice(body).map_err(|e| refused(FsError::Invalid, format!("the request body: {e}")))
}

fn odd() -> Failure {
    refused(FsError::Io, "the master answered something else than was asked")
}

async fn healthz() -> &'static str {
    "ok\n"
}

/// Ready = calls can be answered: this master leads or knows who does.
async fn readyz(State(core): State<Arc<Core>>) -> (StatusCode, &'static str) {
    let status = core.log.leadership().borrow().clone();
    if status.stopped.is_none() && (status.ready || status.leader.is_some_and(|l| l != core.settings.address())) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no leader\n")
    }
}

async fn metrics(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
) -> Result<String, Failure> {
    core.authenticate(&envelope(&headers, &wait))?;
    Ok(crate::metrics::text(&core))
}

async fn cluster(State(core): State<Arc<Core>>, headers: HeaderMap, Query(wait): Query<Wait>) -> Answer {
    match call(&core, &headers, &wait, MasterCall::Info).await? {
        MasterReply::Info(info) => Ok(Json(json::cluster(&info))),
        _ => Err(odd()),
    }
}

async fn stores(State(core): State<Arc<Core>>, headers: HeaderMap, Query(wait): Query<Wait>) -> Answer {
    match call(&core, &headers, &wait, MasterCall::ListStores).await? {
        MasterReply::Stores(stores) => Ok(Json(stores.iter().map(json::store).collect())),
        _ => Err(odd()),
    }
}

async fn add_store(State(core): State<Arc<Core>>, headers: HeaderMap, Query(wait): Query<Wait>, body: Bytes) -> Answer {
    let store: json::NewStore = parse(&core, &headers, &wait, &body)?;
    match call(&core, &headers, &wait, MasterCall::AddStore(store.record()?)).await? {
        MasterReply::Store(store) => Ok(Json(json::store(&store))),
        _ => Err(odd()),
    }
}

async fn probe_store(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
    Path(name): Path<String>,
) -> Answer {
    match call(&core, &headers, &wait, MasterCall::ProbeStore(name)).await? {
        MasterReply::Store(store) => Ok(Json(json::store(&store))),
        _ => Err(odd()),
    }
}

async fn volumes(State(core): State<Arc<Core>>, headers: HeaderMap, Query(wait): Query<Wait>) -> Answer {
    match call(&core, &headers, &wait, MasterCall::ListVolumes).await? {
        MasterReply::Volumes(volumes) => Ok(Json(volumes.iter().map(json::volume).collect())),
        _ => Err(odd()),
    }
}

async fn one_volume(core: &Core, headers: &HeaderMap, wait: &Wait, ask: MasterCall) -> Answer {
    match call(core, headers, wait, ask).await? {
        MasterReply::Volume(volume) => Ok(Json(json::volume(&volume))),
        _ => Err(odd()),
    }
}

async fn create_volume(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
    body: Bytes,
) -> Answer {
    let new: json::NewVolume = parse(&core, &headers, &wait, &body)?;
    one_volume(&core, &headers, &wait, MasterCall::CreateVolume(new.spec())).await
}

async fn volume(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
    Path(name): Path<String>,
) -> Answer {
    one_volume(&core, &headers, &wait, MasterCall::GetVolume(name)).await
}

async fn expand_volume(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
    Path(name): Path<String>,
    body: Bytes,
) -> Answer {
    let size: json::Size = parse(&core, &headers, &wait, &body)?;
    one_volume(&core, &headers, &wait, MasterCall::ExpandVolume(name, size.capacity, size.inodes)).await
}

async fn delete_volume(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
    Path(name): Path<String>,
) -> Result<StatusCode, Failure> {
    call(&core, &headers, &wait, MasterCall::DeleteVolume(name, wait.force)).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn volume_map(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
    Path(name): Path<String>,
) -> Answer {
    let MasterReply::Volume(v) = call(&core, &headers, &wait, MasterCall::GetVolume(name)).await? else {
        return Err(odd());
    };
    match call(&core, &headers, &wait, MasterCall::GetMap(v.id)).await? {
        MasterReply::Map(map) => Ok(Json(json::map(&map))),
        _ => Err(odd()),
    }
}

/// Sessions of one volume, or of all.
async fn sessions(State(core): State<Arc<Core>>, headers: HeaderMap, Query(wait): Query<Wait>) -> Answer {
    let asked = match wait.volume.as_str() {
        "" => call(&core, &headers, &wait, MasterCall::ListVolumes).await?,
        name => call(&core, &headers, &wait, MasterCall::GetVolume(name.to_owned())).await?,
    };
    let volumes = match asked {
        MasterReply::Volumes(all) => all,
        MasterReply::Volume(one) => vec![one],
        _ => return Err(odd()),
    };
    let mut all = Vec::new();
    for v in volumes {
        match call(&core, &headers, &wait, MasterCall::ListSessions(v.id)).await? {
            MasterReply::Sessions(found) => all.extend(found.iter().map(|s| json::session(s, &v.name))),
            _ => return Err(odd()),
        }
    }
    Ok(Json(Value::Array(all)))
}

async fn revoke_session(
    State(core): State<Arc<Core>>,
    headers: HeaderMap,
    Query(wait): Query<Wait>,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    core.authenticate(&envelope(&headers, &wait))?;
    let session: SessionId =
        id.parse().map_err(|_| refused(FsError::Invalid, "a session id is 32 hexadecimal digits"))?;
    call(&core, &headers, &wait, MasterCall::RevokeSession(session)).await?;
    Ok(StatusCode::NO_CONTENT)
}
