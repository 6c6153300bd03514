//! A master as a process: token, data directory, one port, and an orderly end.

use crate::{
    Core, GrpcOutside, Settings, SettingsError, http,
    log::Log,
    raft::{MASTERS, RaftLog, master_node},
    rpc::MasterRpc,
};
use fusefs_raft_host::{CREDENTIAL_METADATA, GrpcNet, GrpcServer, GrpcSettings, HostError, RealDisk, Timers};
use fusefs_types::{Clock, FsError, Rng, auth::ClusterToken, limits};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{net::TcpListener, sync::watch};
use tonic::{Request, Status, service::interceptor::InterceptedService};

/// How long connections may finish their requests at shutdown.
const DRAIN: Duration = Duration::from_secs(1);

/// Clock and entropy of the process.
#[derive(Clone)]
pub struct ServerComponents {
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Entropy.
    pub rng: Arc<dyn Rng>,
}

/// Why a master does not start or ends. The text names the next step.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Contradictory settings or an unusable token file.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The port.
    #[error("cannot bind {0}: {1}; choose another --listen address or stop what uses it")]
    Bind(String, std::io::Error),
    /// Data directory, log or checkpoints.
    #[error("data dir {0}: {1}")]
    Host(PathBuf, HostError),
    /// The port failed while serving.
    #[error("serving failed: {0}")]
    Serve(String),
}

/// A master with its port bound and its log open, not serving yet.
pub struct Server {
    settings: Settings,
    listener: TcpListener,
    token: Option<ClusterToken>,
    log: Arc<RaftLog>,
    core: Arc<Core>,
}

impl Server {
    /// Checks the settings, binds the port and opens the data directory. Call it inside a tokio runtime.
    pub async fn bind(settings: Settings, components: ServerComponents) -> Result<Server, StartError> {
        settings.token()?;
        let bind = |e| StartError::Bind(settings.listen.clone(), e);
        let listener = TcpListener::bind(&settings.listen).await.map_err(bind)?;
        Server::bind_on(listener, settings, components).await
    }

    /// The same on a listener that is bound already. With an empty `advertise`, the bound address is the one that
    /// others dial.
    pub async fn bind_on(
        listener: TcpListener,
        mut settings: Settings,
        components: ServerComponents,
    ) -> Result<Server, StartError> {
        let token = settings.token()?;
        let bound = listener.local_addr().map_err(|e| StartError::Bind(settings.listen.clone(), e))?;
        if token.is_none() && !bound.ip().is_loopback() {
            let text = format!("{bound} is not a loopback address: a cluster token is required there");
            return Err(SettingsError::Invalid(text).into());
        }
        if settings.advertise.is_empty() && settings.listen.ends_with(":0") {
            settings.advertise = bound.to_string();
        }
        let (peers, index) = settings.masters()?;
        let dir = settings.data_dir.clone();
        let host = |e| StartError::Host(dir.clone(), e);
        let disk = RealDisk::open(dir.join("raft")).map_err(|e| host(HostError::Io(e)))?;
        let net = GrpcNet::new(GrpcSettings {
            cluster: MASTERS,
            node: master_node(index),
            credential: token.as_ref().map(ClusterToken::credential),
        });
        let raft =
            fusefs_raft_host::Components { disk, net, clock: components.clock.clone(), rng: components.rng.clone() };
        let log = RaftLog::open(peers, index, Timers::default(), raft).await.map_err(host)?;
        let core = Core::new(
            settings.clone(),
            token.clone(),
            log.clone(),
            Arc::new(GrpcOutside::default()),
            components.clock,
            components.rng,
        );
        Ok(Server { settings, listener, token, log, core })
    }

    /// The bound address.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The core, to call it without a network.
    pub fn core(&self) -> Arc<Core> {
        self.core.clone()
    }

    /// Serves until `shutdown` resolves, then ends in order.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), StartError> {
        let host = self.log.host().clone();
        let peers = InterceptedService::new(GrpcServer::service(MASTERS, host), peer_auth(self.token.clone()));
        let router = tonic::service::Routes::new(MasterRpc(self.core.clone()).server())
            .add_service(peers)
            .into_axum_router()
            .merge(http::router(self.core.clone()));
        let addr = self.settings.address().to_owned();
        tracing::info!(%addr, masters = self.log.masters().len(), "master serves");
        let incoming = tonic::transport::server::TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let (stop, mut stopped) = watch::channel(false);
        let serving = tonic::transport::Server::builder()
            .accept_http1(true)
            .http2_keepalive_interval(Some(Duration::from_secs(10)))
            .initial_stream_window_size(limits::GRPC_MESSAGE_BYTES_MAX as u32)
            .initial_connection_window_size(2 * limits::GRPC_MESSAGE_BYTES_MAX as u32)
            .add_routes(router.into())
            .serve_with_incoming_shutdown(incoming, async move {
                let _ = stopped.wait_for(|s| *s).await;
            });
        let mut serving = tokio::spawn(serving);
        let background = tokio::spawn(self.core.clone().reconcile());
        let result = tokio::select! {
            biased;
            () = shutdown => Ok(()),
            end = &mut serving => Err(StartError::Serve(format!("{end:?}"))),
        };
        background.abort();
        // Watches end and waiting calls are refused, so that connections can finish.
        self.log.shutdown().await;
        self.core.announce();
        stop.send_replace(true);
        if result.is_ok() && tokio::time::timeout(DRAIN, &mut serving).await.is_err() {
            serving.abort();
        }
        result
    }
}

/// Lets only holders of the cluster token talk raft.
fn peer_auth(token: Option<ClusterToken>) -> impl FnMut(Request<()>) -> Result<Request<()>, Status> + Clone {
    move |request: Request<()>| {
        let Some(token) = &token else { return Ok(request) };
        let sent = request.metadata().get_bin(CREDENTIAL_METADATA).and_then(|v| v.to_bytes().ok());
        if sent.is_some_and(|c| token.matches(&c)) {
            return Ok(request);
        }
        Err(Status::unauthenticated(FsError::Unauthenticated.text()))
    }
}
