//! The API server as the driver uses it. Every call ends within seconds; one whose answer was lost may have been executed.

use super::names;
use async_trait::async_trait;
use futures::{Stream, StreamExt, stream::BoxStream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent, WatchParams},
};
use serde_json::json;
use std::time::Duration;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_secs(1);
/// Objects in one page of a list.
const PAGE: u32 = 500;
/// Most pages of a list.
const PAGES_MAX: usize = 200;
/// How often the server ends a watch, so that one over a dead connection is noticed.
const WATCH_SECONDS: u32 = 30;
/// How much longer than that a silent watch is believed.
const WATCH_SLACK: Duration = Duration::from_secs(5);

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// No such object.
    #[error("not found: {0}")]
    NotFound(String),
    /// The name is taken.
    #[error("exists already: {0}")]
    Exists(String),
    /// The object is another one, or changed meanwhile.
    #[error("conflict: {0}")]
    Conflict(String),
    /// The server does not remember that far back: list again.
    #[error("too old: {0}")]
    Gone(String),
    /// The server refuses; asking again does not help until somebody changes something.
    #[error("refused: {0}")]
    Refused(String),
    /// No answer, or none that says what happened.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
}

impl From<kube::core::Status> for ApiError {
    fn from(s: kube::core::Status) -> ApiError {
        let said = if s.message.is_empty() { s.reason.clone() } else { s.message.clone() };
        match s.code {
            _ if s.is_already_exists() => ApiError::Exists(said),
            404 => ApiError::NotFound(said),
            409 => ApiError::Conflict(said),
            410 => ApiError::Gone(said),
            400..=499 if s.code != 408 && s.code != 429 => ApiError::Refused(said),
            _ => ApiError::Unavailable(said),
        }
    }
}

impl From<kube::Error> for ApiError {
    fn from(e: kube::Error) -> ApiError {
        match e {
            kube::Error::Api(status) => (*status).into(),
            kube::Error::InferConfig(e) => ApiError::Refused(e.to_string()),
            other => ApiError::Unavailable(other.to_string()),
        }
    }
}

/// Result of a call.
pub type ApiResult<T> = Result<T, ApiError>;

/// Pods as of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodList {
    /// Pods.
    pub pods: Vec<Pod>,
    /// The moment, for a watch.
    pub version: String,
}

/// What a watch says.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A pod is new or different.
    Set(Box<Pod>),
    /// A pod is gone. This is what it was last.
    Deleted(Box<Pod>),
    /// Nothing; time goes on.
    Bookmark(String),
}

/// Fuse pods.
#[async_trait]
pub trait Pods: Send + Sync + 'static {
    /// All, consistently.
    async fn list(&self) -> ApiResult<PodList>;
    /// Changes since a moment.
    async fn watch(&self, version: &str) -> ApiResult<BoxStream<'static, ApiResult<Change>>>;
    /// One; None = there is none.
    async fn get(&self, name: &str) -> ApiResult<Option<Pod>>;
    /// Creates.
    async fn create(&self, pod: &Pod) -> ApiResult<Pod>;
    /// Deletes the pod of that uid; one that is gone is deleted. It gets `grace` seconds, its own when None; 0 forgets it
    /// without asking its node.
    async fn delete(&self, name: &str, uid: &str, grace: Option<u32>) -> ApiResult<()>;
    /// Changes the image of the pod of that uid, in place, and notes how often its container had been started.
    async fn set_image(&self, name: &str, uid: &str, image: &str, restarts: i32) -> ApiResult<()>;
}

/// Connects as in a pod, or as KUBECONFIG says.
pub async fn connect() -> ApiResult<Client> {
    let config = Config::infer().await.map_err(|e| ApiError::Refused(e.to_string()))?;
    connect_with(config)
}

/// Connects. Nothing is sent yet.
pub fn connect_with(mut config: Config) -> ApiResult<Client> {
    config.connect_timeout = Some(CONNECT);
    // A lost answer is dealt with by whoever asked.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Ends a call that takes too long. Its connection is closed.
pub async fn within<T, E: Into<ApiError>>(limit: Duration, call: impl Future<Output = Result<T, E>>) -> ApiResult<T> {
    match tokio::time::timeout(limit, call).await {
        Ok(result) => result.map_err(Into::into),
        Err(_) => Err(ApiError::Unavailable(format!("no answer within {} ms", limit.as_millis()))),
    }
}

/// [`Pods`] of a real API server.
#[derive(Clone)]
pub struct KubePods {
    api: Api<Pod>,
    node: Option<String>,
    limit: Duration,
}

impl KubePods {
    /// Fuse pods of a namespace.
    pub fn new(client: Client, namespace: &str) -> KubePods {
        KubePods { api: Api::namespaced(client, namespace), node: None, limit: Duration::from_secs(5) }
    }

    /// Lists and watches those on one node only.
    pub fn of_node(self, node: &str) -> KubePods {
        KubePods { node: Some(node.to_owned()), ..self }
    }

    /// How long a call may take; a list may take three times as long.
    pub fn patience(self, limit: Duration) -> KubePods {
        KubePods { limit, ..self }
    }

    fn fields(&self) -> Option<String> {
        self.node.as_ref().map(|n| format!("spec.nodeName={n}"))
    }
}

#[async_trait]
impl Pods for KubePods {
    async fn list(&self) -> ApiResult<PodList> {
        let all = list_all(&self.api, Some(names::selector()), self.fields());
        let (pods, version) = within(self.limit * 3, all).await?;
        Ok(PodList { pods, version })
    }

    async fn watch(&self, version: &str) -> ApiResult<BoxStream<'static, ApiResult<Change>>> {
        let params = WatchParams {
            label_selector: Some(names::selector()),
            field_selector: self.fields(),
            timeout: Some(WATCH_SECONDS),
            bookmarks: true,
            ..WatchParams::default()
        };
        let events = within(self.limit, self.api.watch(&params, version)).await?;
        Ok(believed(events.map(change)).boxed())
    }

    async fn get(&self, name: &str) -> ApiResult<Option<Pod>> {
        within(self.limit, self.api.get_opt(name)).await
    }

    async fn create(&self, pod: &Pod) -> ApiResult<Pod> {
        within(self.limit, self.api.create(&PostParams::default(), pod)).await
    }

    async fn delete(&self, name: &str, uid: &str, grace: Option<u32>) -> ApiResult<()> {
        let params = DeleteParams {
            grace_period_seconds: grace,
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), resource_version: None }),
            ..DeleteParams::default()
        };
        match within(self.limit, self.api.delete(name, &params)).await {
            Ok(_) | Err(ApiError::NotFound(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn set_image(&self, name: &str, uid: &str, image: &str, restarts: i32) -> ApiResult<()> {
        let patch = json!({
            "metadata": { "uid": uid, "annotations": { names::RESTARTS: restarts.to_string() } },
            "spec": { "containers": [{ "name": super::pod::CONTAINER, "image": image }] },
        });
        let (params, patch) = (PatchParams::default(), Patch::Strategic(patch));
        within(self.limit, self.api.patch(name, &params, &patch)).await.map(|_| ())
    }
}

/// All objects, page by page, and the moment that they are of.
pub async fn list_all<K>(
    api: &Api<K>,
    labels: Option<String>,
    fields: Option<String>,
) -> Result<(Vec<K>, String), kube::Error>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams { label_selector: labels, field_selector: fields, ..ListParams::default() }.limit(PAGE);
    let mut all = vec![];
    for _ in 0..PAGES_MAX {
        let page = api.list(&params).await?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok((all, page.metadata.resource_version.unwrap_or_default())),
        }
    }
    let status = kube::core::Status::failure("the list has too many pages", "TooManyPages").with_code(500);
    Err(kube::Error::Api(status.boxed()))
}

fn change(event: Result<WatchEvent<Pod>, kube::Error>) -> ApiResult<Change> {
    Ok(match event? {
        WatchEvent::Added(pod) | WatchEvent::Modified(pod) => Change::Set(Box::new(pod)),
        WatchEvent::Deleted(pod) => Change::Deleted(Box::new(pod)),
        WatchEvent::Bookmark(at) => Change::Bookmark(at.metadata.resource_version),
        WatchEvent::Error(status) => return Err((*status).into()),
    })
}

/// Ends a watch that is silent for longer than the server lets it be.
fn believed<T>(events: impl Stream<Item = T> + Send + 'static) -> impl Stream<Item = T> + Send {
    let limit = Duration::from_secs(u64::from(WATCH_SECONDS)) + WATCH_SLACK;
    let events = Box::pin(events);
    futures::stream::unfold(events, move |mut events| async move {
        let next = tokio::time::timeout(limit, events.next()).await;
        next.ok().flatten().map(|item| (item, events))
    })
}
