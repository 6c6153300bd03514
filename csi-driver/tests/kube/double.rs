//! An API server: objects with versions and uids, lists with pages, watches with history, preconditions, and faults.

use bytes::Bytes;
use futures::stream;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Key = (String, String, String);

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// 500, not executed.
    Error,
    /// The connection ends before it is executed.
    Cut,
    /// Executed; the connection ends before the answer.
    Lost,
    /// Executed and answered after so many milliseconds, even when nobody waits any more.
    Slow(u64),
    /// Executed at once and answered after so many milliseconds.
    SlowAnswer(u64),
    /// 409, not executed.
    Conflict,
    /// 410, not executed.
    Gone,
}

/// Chooses a fault by method, path and whether it is a watch.
pub type Chooser = Box<dyn FnMut(&Method, &str, bool) -> Fault + Send>;

#[derive(Default)]
struct State {
    version: u64,
    uids: u64,
    objects: BTreeMap<Key, Value>,
    /// Everything that happened: version, kind of change, resource, object.
    history: Vec<(u64, &'static str, String, Value)>,
    /// Versions up to this one are forgotten.
    oldest: u64,
    calls: Vec<(String, String)>,
    watches: usize,
}

/// See the module.
pub struct Double {
    state: Mutex<State>,
    chooser: Mutex<Chooser>,
    changed: watch::Sender<u64>,
    cut: watch::Sender<u64>,
    at: SocketAddr,
}

/// Ends the server when dropped.
pub struct Served {
    /// The server.
    pub double: Arc<Double>,
    task: JoinHandle<()>,
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::ops::Deref for Served {
    type Target = Arc<Double>;
    fn deref(&self) -> &Arc<Double> {
        &self.double
    }
}

fn status(code: u16, reason: &str) -> Result<Value, Value> {
    let message = format!("{reason} says the double");
    Err(json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code }))
}

impl Double {
    /// A server on a port of its own.
    pub async fn start() -> Served {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let double = Arc::new(Double {
            state: Mutex::default(),
            chooser: Mutex::new(Box::new(|_, _, _| Fault::None)),
            changed: watch::channel(0).0,
            cut: watch::channel(0).0,
            at: listener.local_addr().expect("an address"),
        });
        let serving = double.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let double = serving.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| double.clone().serve(request));
                    // Connections end in many ways here.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Served { double, task }
    }

    /// A client.
    pub fn client(&self) -> kube::Client {
        let config = kube::Config::new(format!("http://{}", self.at).parse().expect("a uri"));
        fusefs_csi_driver::kube::connect_with(config).expect("a client")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("state")
    }

    /// From now on faults are chosen like this.
    pub fn faults(&self, chooser: impl FnMut(&Method, &str, bool) -> Fault + Send + 'static) {
        *self.chooser.lock().expect("chooser") = Box::new(chooser);
    }

    /// No faults from now on.
    pub fn heal(&self) {
        self.faults(|_, _, _| Fault::None);
    }

    /// Ends every watch.
    pub fn cut_watches(&self) {
        self.cut.send_modify(|n| *n += 1);
    }

    /// Forgets history: watches of the past are 410 Gone.
    pub fn compact(&self) {
        let mut s = self.state();
        s.oldest = s.version;
    }

    /// Says that something changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Calls so far: method and path.
    pub fn calls(&self, method: &str, part: &str) -> usize {
        self.state().calls.iter().filter(|(m, p)| m == method && p.contains(part)).count()
    }

    /// Watches that stand.
    pub fn watching(&self) -> usize {
        self.state().watches
    }

    /// All objects of a resource, by name.
    pub fn all(&self, resource: &str) -> BTreeMap<String, Value> {
        let s = self.state();
        s.objects.iter().filter(|(k, _)| k.0 == resource).map(|(k, v)| (k.2.clone(), v.clone())).collect()
    }

    /// Puts an object there by hand.
    pub fn put(&self, resource: &str, namespace: &str, object: Value) {
        self.create(resource, namespace, object).expect("created");
    }

    /// Changes an object by hand; false = there is none.
    pub fn change(&self, resource: &str, name: &str, change: impl FnOnce(&mut Value)) -> bool {
        let mut s = self.state();
        let Some(key) = s.objects.keys().find(|k| k.0 == resource && k.2 == name).cloned() else { return false };
        let mut object = s.objects[&key].clone();
        change(&mut object);
        store(&mut s, key, object, "MODIFIED");
        drop(s);
        self.changed.send_modify(|n| *n += 1);
        true
    }

    /// Deletes by hand.
    pub fn delete_now(&self, resource: &str, name: &str) {
        self.remove(resource, name, &json!({ "gracePeriodSeconds": 0 })).expect("deleted");
    }

    /// Deletes by hand, with grace.
    pub fn delete_gracefully(&self, resource: &str, name: &str) {
        self.remove(resource, name, &json!({})).expect("deleted");
    }

    /// Deletes the pod of that uid for good, if it is still there.
    pub fn delete_if(&self, resource: &str, name: &str, uid: &str) {
        // It may be gone, or another one.
        let _ = self.remove(resource, name, &json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": uid } }));
    }

    /// Deletes by hand, if it is there.
    pub fn delete_if_there(&self, resource: &str, name: &str, at_once: bool) {
        let options = if at_once { json!({ "gracePeriodSeconds": 0 }) } else { json!({}) };
        let _ = self.remove(resource, name, &options);
    }

    /// The pod of that uid was over, or in a back-off, at some time.
    pub fn was_broken(&self, uid: &str) -> bool {
        let s = self.state();
        s.history.iter().any(|(_, _, _, o)| {
            let over = ["Failed", "Succeeded"].contains(&o["status"]["phase"].as_str().unwrap_or_default());
            let waiting = &o["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            o["metadata"]["uid"] == *uid && (over || waiting == "CrashLoopBackOff")
        })
    }

    async fn serve(self: Arc<Double>, request: Request<Incoming>) -> Result<Response<Body>, io::Error> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let query = query(parts.uri.query().unwrap_or_default());
        let watching = query.get("watch").is_some_and(|w| w == "true");
        let path = parts.uri.path().to_owned();
        self.state().calls.push((parts.method.to_string(), path.clone()));
        let fault = (self.chooser.lock().expect("chooser"))(&parts.method, &path, watching);
        let cut = || io::Error::from(io::ErrorKind::ConnectionReset);
        let refused = match fault {
            Fault::Error => Some(status(500, "InternalError")),
            Fault::Conflict => Some(status(409, "Conflict")),
            Fault::Gone => Some(status(410, "Expired")),
            Fault::Cut => return Err(cut()),
            Fault::None | Fault::Lost | Fault::Slow(_) | Fault::SlowAnswer(_) => None,
        };
        if let Some(refused) = refused {
            return Ok(answer(refused));
        }
        if watching {
            return Ok(self.watched(&path, &query));
        }
        let late = if let Fault::Slow(ms) = fault { ms } else { 0 };
        // On its own: it happens even if the caller went away.
        let executed = tokio::spawn(async move {
            pause(late).await;
            self.execute(&parts.method, &path, &query, &bytes)
        });
        let result = executed.await.map_err(io::Error::other)?;
        if let Fault::SlowAnswer(ms) = fault {
            pause(ms).await;
        }
        if fault == Fault::Lost { Err(cut()) } else { Ok(answer(result)) }
    }

    fn execute(
        &self,
        method: &Method,
        path: &str,
        query: &HashMap<String, String>,
        body: &[u8],
    ) -> Result<Value, Value> {
        let (resource, namespace, name) = address(path);
        let body: Value = if body.is_empty() { json!({}) } else { serde_json::from_slice(body).expect("json") };
        match (method.as_str(), name.as_str()) {
            ("GET", "") => self.list(&resource, query),
            ("GET", _) => match self.all(&resource).remove(&name) {
                Some(object) => Ok(object),
                None => status(404, "NotFound"),
            },
            ("POST", _) => self.create(&resource, &namespace, body),
            ("DELETE", _) => self.remove(&resource, &name, &body),
            ("PATCH", _) => self.patch(&resource, &name, &body),
            other => panic!("not made for this: {other:?}"),
        }
    }

    fn list(&self, resource: &str, query: &HashMap<String, String>) -> Result<Value, Value> {
        let s = self.state();
        let limit = query.get("limit").map_or(usize::MAX, |l| l.parse().expect("a number"));
        let after = query.get("continue").cloned().unwrap_or_default();
        let matching = s.objects.iter().filter(|(k, v)| k.0 == resource && selected(v, query) && k.2 > after);
        let mut items: Vec<_> = matching.map(|(k, v)| (k.2.clone(), v.clone())).take(limit.saturating_add(1)).collect();
        let more = items.len() > limit;
        items.truncate(limit);
        let next = items.last().filter(|_| more).map(|(name, _)| name.clone()).unwrap_or_default();
        let items: Vec<_> = items.into_iter().map(|(_, v)| v).collect();
        Ok(json!({ "kind": "List", "apiVersion": "v1", "items": items,
            "metadata": { "resourceVersion": s.version.to_string(), "continue": next } }))
    }

    fn create(&self, resource: &str, namespace: &str, mut object: Value) -> Result<Value, Value> {
        let mut s = self.state();
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let key = (resource.to_owned(), namespace.to_owned(), name);
        if s.objects.contains_key(&key) {
            return status(409, "AlreadyExists");
        }
        s.uids += 1;
        object["metadata"]["uid"] = json!(format!("uid-{}", s.uids));
        object["metadata"]["namespace"] = json!(namespace);
        if resource == "pods" {
            // The scheduler has one choice.
            let terms = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
            let node = object.pointer(&format!("{terms}/0/matchFields/0/values/0")).cloned();
            object["spec"]["nodeName"] = node.unwrap_or_default();
            object["status"] = json!({ "phase": "Pending" });
        }
        let object = store(&mut s, key, object, "ADDED");
        drop(s);
        self.changed.send_modify(|n| *n += 1);
        Ok(object)
    }

    fn remove(&self, resource: &str, name: &str, options: &Value) -> Result<Value, Value> {
        let mut s = self.state();
        let Some(key) = s.objects.keys().find(|k| k.0 == resource && k.2 == name).cloned() else {
            return status(404, "NotFound");
        };
        let mut object = s.objects[&key].clone();
        let wanted = &options["preconditions"]["uid"];
        if !wanted.is_null() && *wanted != object["metadata"]["uid"] {
            return status(409, "Conflict");
        }
        let object = if options["gracePeriodSeconds"] == json!(0) || resource != "pods" {
            s.objects.remove(&key);
            s.version += 1;
            object["metadata"]["resourceVersion"] = json!(s.version.to_string());
            let entry = (s.version, "DELETED", key.0, object.clone());
            s.history.push(entry);
            object
        } else {
            object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            let own = &object["spec"]["terminationGracePeriodSeconds"];
            let grace = if options["gracePeriodSeconds"].is_null() { own } else { &options["gracePeriodSeconds"] };
            object["metadata"]["deletionGracePeriodSeconds"] = grace.clone();
            store(&mut s, key, object, "MODIFIED")
        };
        drop(s);
        self.changed.send_modify(|n| *n += 1);
        Ok(object)
    }

    /// What a strategic merge patch does to pods, as far as it is used.
    fn patch(&self, resource: &str, name: &str, patch: &Value) -> Result<Value, Value> {
        let mut s = self.state();
        let Some(key) = s.objects.keys().find(|k| k.0 == resource && k.2 == name).cloned() else {
            return status(404, "NotFound");
        };
        let mut object = s.objects[&key].clone();
        if !patch["metadata"]["uid"].is_null() && patch["metadata"]["uid"] != object["metadata"]["uid"] {
            return status(409, "Conflict");
        }
        for (k, v) in patch["metadata"]["annotations"].as_object().into_iter().flatten() {
            object["metadata"]["annotations"][k] = v.clone();
        }
        for wanted in patch["spec"]["containers"].as_array().into_iter().flatten() {
            let containers = object["spec"]["containers"].as_array_mut().expect("containers");
            let container = containers.iter_mut().find(|c| c["name"] == wanted["name"]).expect("the container");
            container["image"] = wanted["image"].clone();
        }
        let object = store(&mut s, key, object, "MODIFIED");
        drop(s);
        self.changed.send_modify(|n| *n += 1);
        Ok(object)
    }

    fn watched(self: Arc<Double>, path: &str, query: &HashMap<String, String>) -> Response<Body> {
        let (resource, _, _) = address(path);
        let at: u64 = query["resourceVersion"].parse().expect("a version");
        if at < self.state().oldest {
            // The way it is said when the watch stands already.
            let gone = json!({ "type": "ERROR", "object": status(410, "Expired").expect_err("an error") });
            return stream_of(stream::iter([line(&gone)]));
        }
        self.state().watches += 1;
        let w = Watched {
            resource,
            query: query.clone(),
            at,
            changed: self.changed.subscribe(),
            cut: self.cut.subscribe(),
            double: self,
        };
        stream_of(stream::unfold(w, |mut w| async move { w.next().await.map(|lines| (lines, w)) }))
    }
}

/// A watch that stands.
struct Watched {
    double: Arc<Double>,
    resource: String,
    query: HashMap<String, String>,
    at: u64,
    changed: watch::Receiver<u64>,
    cut: watch::Receiver<u64>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.double.state().watches -= 1;
    }
}

impl Watched {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            self.changed.borrow_and_update();
            let news = self.news();
            if !news.is_empty() {
                return Some(news);
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                _ = self.cut.changed() => return None,
            }
        }
    }

    fn news(&mut self) -> Bytes {
        let s = self.double.state();
        let (mut lines, at) = (vec![], self.at);
        for (version, kind, _, object) in s.history.iter().filter(|h| h.0 > at && h.2 == self.resource) {
            if selected(object, &self.query) {
                lines.extend_from_slice(&line(&json!({ "type": kind, "object": object })));
            }
            self.at = *version;
        }
        lines.into()
    }
}

fn line(value: &Value) -> Bytes {
    let mut text = value.to_string();
    text.push('\n');
    text.into()
}

fn stream_of(lines: impl futures::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    use futures::StreamExt;
    let frames = lines.map(|bytes| Ok::<_, io::Error>(Frame::data(bytes)));
    Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)))
}

fn answer(result: Result<Value, Value>) -> Response<Body> {
    let (code, value) = match result {
        Ok(value) => (200, value),
        Err(value) => (value["code"].as_u64().expect("a code"), value),
    };
    let body = Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    let mut response = Response::new(BodyExt::boxed_unsync(body));
    *response.status_mut() = StatusCode::from_u16(u16::try_from(code).expect("small")).expect("a status");
    response
}

fn store(s: &mut State, key: Key, mut object: Value, kind: &'static str) -> Value {
    s.version += 1;
    object["metadata"]["resourceVersion"] = json!(s.version.to_string());
    s.history.push((s.version, kind, key.0.clone(), object.clone()));
    s.objects.insert(key, object.clone());
    object
}

/// Resource, namespace, name.
fn address(path: &str) -> Key {
    let parts: Vec<_> = path.split('/').filter(|p| !p.is_empty()).collect();
    let rest = if parts[0] == "api" { &parts[2..] } else { &parts[3..] };
    let (namespace, rest) = if rest[0] == "namespaces" { (rest[1], &rest[2..]) } else { ("", rest) };
    let name = rest.get(1).copied().unwrap_or_default();
    (rest[0].to_owned(), namespace.to_owned(), name.to_owned())
}

fn selected(object: &Value, query: &HashMap<String, String>) -> bool {
    let labels = query.get("labelSelector").map_or("", String::as_str);
    let labelled =
        labels.split(',').filter_map(|l| l.split_once('=')).all(|(k, v)| object["metadata"]["labels"][k] == *v);
    let fields = query.get("fieldSelector").map_or("", String::as_str);
    let placed = fields.split_once('=').is_none_or(|(k, v)| {
        assert_eq!(k, "spec.nodeName");
        object["spec"]["nodeName"] == *v
    });
    labelled && placed
}

fn query(text: &str) -> HashMap<String, String> {
    let pairs = text.split('&').filter_map(|p| p.split_once('='));
    pairs.map(|(k, v)| (k.to_owned(), decoded(v))).collect()
}

fn decoded(text: &str) -> String {
    let mut out = vec![];
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let digits = [bytes.next().expect("hex"), bytes.next().expect("hex")];
                let digits = std::str::from_utf8(&digits).expect("ascii");
                out.push(u8::from_str_radix(digits, 16).expect("hex"));
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
    }
    String::from_utf8(out).expect("utf8")
}

/// Nothing happens for so many milliseconds.
pub async fn pause(ms: u64) {
    if ms > 0 {
        let _ = tokio::time::timeout(Duration::from_millis(ms), std::future::pending::<()>()).await;
    }
}
