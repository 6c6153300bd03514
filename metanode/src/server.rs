//! A metanode as a process: token, data directory, port, registration, and an orderly end.

use crate::{
    Components, Identity, IdentityError, Metanode, NodeIdentity, Settings,
    heartbeat::node_record,
    rpc::{self, PeerAuth, Slot},
};
use fusefs_meta_client::{GrpcTransport, MasterClient, Transport};
use fusefs_raft_host::{GrpcNet, GrpcServer, GrpcSettings, HostError, RealDisk};
use fusefs_types::{
    Clock, ClusterId, FsError, Rng,
    auth::ClusterToken,
    cluster::{MasterCall, MasterReply, NodeRecord},
    limits,
};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::service::interceptor::InterceptedService;

/// How long connections may finish their requests at shutdown.
const DRAIN: Duration = Duration::from_secs(3);
/// A silent connection is probed this often.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// Clock and entropy of the process.
#[derive(Clone)]
pub struct ServerComponents {
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Entropy.
    pub rng: Arc<dyn Rng>,
}

/// Why a metanode does not start or ends. The text names the next step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Contradictory settings.
    #[error("{0}")]
    Settings(String),
    /// The token file.
    #[error("cannot read the cluster token {0}: {1}")]
    Token(PathBuf, std::io::Error),
    /// The port.
    #[error("cannot bind {0}: {1}; choose another --listen address or stop what uses it")]
    Bind(String, std::io::Error),
    /// The data directory.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Log or checkpoints.
    #[error("data dir {0}: {1}")]
    Host(PathBuf, HostError),
    /// The masters refuse this node.
    #[error("the masters refuse this metanode: {0}")]
    Refused(String),
    /// The port failed while serving.
    #[error("serving failed: {0}")]
    Serve(String),
}

/// A metanode with its port bound, not serving yet.
pub struct Server {
    settings: Settings,
    components: ServerComponents,
    identity: Arc<Identity>,
    listener: Arc<TcpListener>,
    addr: String,
    slot: Slot,
    masters: fusefs_meta_client::Settings,
    transport: Arc<dyn Transport>,
}

impl Server {
    /// Checks the settings, locks the data directory and binds the port.
    pub async fn bind(settings: Settings, components: ServerComponents) -> Result<Server, StartError> {
        let token = settings.token()?;
        if settings.masters.is_empty() {
            return Err(StartError::Settings("no master address is given: set --master HOST:PORT,...".into()));
        }
        let identity = Arc::new(Identity::open(&settings.data_dir, &*components.rng)?);
        let bind = |e| StartError::Bind(settings.listen.clone(), e);
        let listener = TcpListener::bind(&settings.listen).await.map_err(bind)?;
        let bound = listener.local_addr().map_err(bind)?;
        if token.is_none() && !bound.ip().is_loopback() {
            return Err(crate::settings::token_needed(&settings.listen));
        }
        let addr = if settings.advertise.is_empty() { bound.to_string() } else { settings.advertise.clone() };
        let credential = token.as_ref().map(ClusterToken::credential).unwrap_or_default();
        let mut masters = fusefs_meta_client::Settings::new(settings.masters.clone(), credential);
        masters.master_timeout = Duration::from_secs(5);
        let slot = Slot { node: Arc::default(), peers: Arc::default(), token };
        let transport: Arc<dyn Transport> = Arc::new(GrpcTransport::new());
        let listener = Arc::new(listener);
        Ok(Server { settings, components, identity, listener, addr, slot, masters, transport })
    }

    /// The bound address.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The address that others dial.
    pub fn address(&self) -> &str {
        &self.addr
    }

    /// The node behind the port, once [`Server::run`] has opened it.
    pub fn node(&self) -> Arc<OnceLock<Arc<Metanode>>> {
        self.slot.node.clone()
    }

    fn master_client(&self) -> MasterClient {
        MasterClient::new(self.masters.clone(), self.transport.clone(), self.components.rng.clone())
    }

    fn record(&self) -> NodeRecord {
        node_record(&self.settings, self.identity.node, &self.addr)
    }

    /// Serves until `shutdown` resolves, then ends in order. A directory that knows its cluster serves at once; a new
    /// one waits for the masters first.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), StartError> {
        let (stop, stopped) = watch::channel(false);
        let signal = tokio::spawn(async move {
            shutdown.await;
            stop.send_replace(true);
        });
        let result = self.serve(stopped).await;
        signal.abort();
        result
    }

    async fn serve(self, mut stopped: watch::Receiver<bool>) -> Result<(), StartError> {
        let (serving, end) = self.listen();
        let mut serving = serving;
        let started = tokio::select! {
            biased;
            _ = stopped.wait_for(|s| *s) => None,
            started = self.start() => Some(started?),
        };
        let result = match &started {
            None => Ok(()),
            Some(node) => tokio::select! {
                biased;
                _ = stopped.wait_for(|s| *s) => Ok(()),
                end = &mut serving => Err(StartError::Serve(format!("{end:?}"))),
                refused = node.clone().report(self.addr.clone()) => refused,
            },
        };
        if let Some(node) = started {
            node.shutdown().await;
        }
        end.send_replace(true);
        if tokio::time::timeout(DRAIN, &mut serving).await.is_err() {
            serving.abort();
        }
        result
    }

    /// Serves the port; until the node is open it answers only that it starts.
    fn listen(&self) -> (JoinHandle<Result<(), tonic::transport::Error>>, watch::Sender<bool>) {
        let (end, mut ended) = watch::channel(false);
        let router = tonic::service::Routes::new(rpc::service(self.slot.clone()))
            .into_axum_router()
            .merge(rpc::http(self.slot.clone()));
        let incoming = futures::stream::unfold(self.listener.clone(), |listener| async move {
            let accepted = listener.accept().await.map(|(stream, _)| {
                // Small requests must not wait for more bytes; without it they are only slower.
                let _ = stream.set_nodelay(true);
                stream
            });
            Some((accepted, listener))
        });
        let serving = tonic::transport::Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(KEEPALIVE))
            .initial_stream_window_size(limits::GRPC_MESSAGE_BYTES_MAX as u32)
            .initial_connection_window_size(2 * limits::GRPC_MESSAGE_BYTES_MAX as u32)
            .add_routes(router.into())
            .serve_with_incoming_shutdown(incoming, async move {
                let _ = ended.wait_for(|s| *s).await;
            });
        (tokio::spawn(serving), end)
    }

    async fn start(&self) -> Result<Arc<Metanode>, StartError> {
        let cluster = self.join().await?;
        let node = self.open(cluster).await?;
        let peers = GrpcServer::service(cluster, node.host().clone());
        let _ = self.slot.peers.set(InterceptedService::new(peers, PeerAuth(self.slot.token.clone())));
        let _ = self.slot.node.set(node.clone());
        tracing::info!(addr = %self.addr, node = %self.identity.node, %cluster, "metanode serves");
        Ok(node)
    }

    /// The cluster this directory belongs to; a new directory asks the masters until they answer.
    async fn join(&self) -> Result<ClusterId, StartError> {
        let known = self.identity.cluster();
        if known.0 != 0 {
            return Ok(known);
        }
        let masters = self.master_client();
        loop {
            match masters.call(MasterCall::Register(self.record())).await {
                Ok(MasterReply::Registered(cluster)) => {
                    self.identity.claim(cluster)?;
                    return Ok(cluster);
                }
                Ok(_) => return Err(StartError::Refused("unexpected answer to Register".into())),
                Err(e) if e.error == FsError::Unauthenticated => return Err(StartError::Refused(e.message)),
                Err(e) => tracing::warn!(error = %e.error, message = %e.message, "waiting for the masters"),
            }
        }
    }

    fn raft_settings(&self, cluster: ClusterId) -> GrpcSettings {
        GrpcSettings {
            cluster,
            node: self.identity.node,
            credential: self.slot.token.as_ref().map(ClusterToken::credential),
        }
    }

    async fn open(&self, cluster: ClusterId) -> Result<Arc<Metanode>, StartError> {
        let dir = &self.settings.data_dir;
        let host = |e| StartError::Host(dir.clone(), e);
        let disk = RealDisk::open(dir.join("raft")).map_err(|e| host(HostError::Io(e)))?;
        let masters = self.master_client();
        masters.identify(cluster, fusefs_types::VolumeId(0));
        let components = Components {
            raft: fusefs_raft_host::Components {
                disk,
                net: GrpcNet::new(self.raft_settings(cluster)),
                clock: self.components.clock.clone(),
                rng: self.components.rng.clone(),
            },
            timers: fusefs_raft_host::Timers::default(),
            transport: self.transport.clone(),
            masters,
            blob_dir: Some(dir.join("blobs")),
            token: self.slot.token.clone(),
        };
        let identity = NodeIdentity { cluster, node: self.identity.node };
        Metanode::open(self.settings.clone(), identity, components).await.map_err(host)
    }
}
