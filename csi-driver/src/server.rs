//! gRPC over a unix socket: nobody else may ever open it, a stale one is replaced, and the end is orderly.

use crate::{controller::Controller, identity::Identity, limits::REQUEST_BYTES_MAX};
use fusefs_proto::csi::{
    controller_server::ControllerServer,
    identity_server::IdentityServer,
    node_server::{Node, NodeServer},
};
use std::{
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::service::Routes;

/// How long calls may go on after the end was asked for.
const DRAIN: Duration = Duration::from_secs(20);
/// Calls at once on one connection.
const STREAMS_MAX: u32 = 1024;
/// Longest path of a unix socket on Linux, with the suffix of the temporary name.
const SOCKET_PATH_MAX: usize = 100;

/// Why the service does not start or ends. The text names the next step.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The endpoint is no usable socket.
    #[error("endpoint: {0}")]
    Endpoint(String),
    /// The socket cannot be made.
    #[error("socket {0}: {1}")]
    Socket(PathBuf, io::Error),
    /// Somebody serves there.
    #[error("socket {0}: another driver serves it")]
    Taken(PathBuf),
    /// Serving failed.
    #[error("serving failed: {0}")]
    Serve(String),
}

/// A unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    path: PathBuf,
    mode: u32,
}

impl Endpoint {
    /// Parses `unix:///path`, `unix:/path` or an absolute path. Only the owner may open the socket.
    pub fn parse(text: &str) -> Result<Endpoint, ServeError> {
        let path = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")).unwrap_or(text);
        let clean = path.split('/').skip(1).all(|p| !matches!(p, "" | "." | ".."));
        if !path.starts_with('/') || !clean || path.contains('\0') {
            return Err(ServeError::Endpoint("must be unix:///absolute/path.sock".into()));
        }
        if path.len() > SOCKET_PATH_MAX {
            return Err(ServeError::Endpoint(format!("the socket's path is longer than {SOCKET_PATH_MAX} bytes")));
        }
        Ok(Endpoint { path: PathBuf::from(path), mode: 0o600 })
    }

    /// The group may open the socket, too (sidecars that do not run as root).
    pub fn for_group(self) -> Endpoint {
        Endpoint { mode: 0o660, ..self }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// A socket that is bound and in its place; removed when dropped, if it is still ours.
struct Bound {
    path: PathBuf,
    identity: (u64, u64),
    listener: Option<UnixListener>,
}

impl Bound {
    /// Binds under another name and moves the socket into place when its mode is right: at no moment can others open it,
    /// and a stale one is replaced in one step.
    fn new(endpoint: &Endpoint) -> Result<Bound, ServeError> {
        let path = endpoint.path.clone();
        let failed = |e| ServeError::Socket(path.clone(), e);
        make_room(&path)?;
        let fresh = path.with_extension("new");
        match std::fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(endpoint.mode)).map_err(failed)?;
        std::fs::rename(&fresh, &path).map_err(failed)?;
        let identity = identity(&path).map_err(failed)?;
        Ok(Bound { path, identity, listener: Some(listener) })
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|i| i == self.identity) {
            // Whoever starts next replaces a socket that could not be removed.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Nothing, or a socket that nobody answers on, may be in the way.
fn make_room(path: &Path) -> Result<(), ServeError> {
    let kind = match std::fs::symlink_metadata(path) {
        Ok(m) => m.file_type(),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(ServeError::Socket(path.to_owned(), e)),
    };
    if !kind.is_socket() {
        let why = format!("{} exists and is no socket; remove it or choose another endpoint", path.display());
        return Err(ServeError::Endpoint(why));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ServeError::Taken(path.to_owned())),
        Err(_) => Ok(()),
    }
}

/// The services behind one socket.
#[derive(Default)]
pub struct Plugin {
    routes: Routes,
}

impl Plugin {
    /// Every plugin has an identity.
    pub fn new(identity: Identity) -> Plugin {
        Plugin { routes: Routes::new(IdentityServer::new(identity).max_decoding_message_size(REQUEST_BYTES_MAX)) }
    }

    /// With the controller service.
    pub fn controller(self, controller: Controller) -> Plugin {
        let service = ControllerServer::new(controller).max_decoding_message_size(REQUEST_BYTES_MAX);
        Plugin { routes: self.routes.add_service(service) }
    }

    /// With the node service.
    pub fn node<N: Node>(self, node: N) -> Plugin {
        let service = NodeServer::new(node).max_decoding_message_size(REQUEST_BYTES_MAX);
        Plugin { routes: self.routes.add_service(service) }
    }

    /// Serves until `shutdown` resolves, lets running calls end, and removes the socket.
    pub async fn serve(self, endpoint: &Endpoint, shutdown: impl Future<Output = ()> + Send) -> Result<(), ServeError> {
        let mut bound = Bound::new(endpoint)?;
        let Some(listener) = bound.listener.take() else { return Err(ServeError::Taken(endpoint.path.clone())) };
        tracing::info!(socket = %endpoint.path.display(), "the CSI driver serves");
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let ended = async {
            // A dropped sender ends the service, too.
            let _ = stopped.await;
        };
        let server = tonic::transport::Server::builder()
            .max_concurrent_streams(STREAMS_MAX)
            .add_routes(self.routes)
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), ended);
        let mut server = std::pin::pin!(server);
        let failed = |e: tonic::transport::Error| ServeError::Serve(e.to_string());
        tokio::select! {
            result = &mut server => return result.map_err(failed),
            () = shutdown => {}
        }
        let _ = stop.send(());
        match tokio::time::timeout(DRAIN, server).await {
            Ok(result) => result.map_err(failed),
            Err(_) => {
                tracing::warn!("calls were still running {} s after the end was asked for", DRAIN.as_secs());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        for good in ["unix:///csi/csi.sock", "unix:/csi/csi.sock", "/csi/csi.sock"] {
            assert_eq!(Endpoint::parse(good).expect(good).path(), Path::new("/csi/csi.sock"));
        }
        let long = format!("/{}", "a".repeat(120));
        for bad in
            ["", "/", "unix://", "unix://csi.sock", "csi.sock", "tcp://0.0.0.0:1", "/a/../b", "/a//b", "/a/", &long]
        {
            assert!(Endpoint::parse(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn stale_sockets_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().expect("dir");
        let at = |name: &str| Endpoint::parse(dir.path().join(name).to_str().expect("utf8")).expect("endpoint");
        let file = at("file");
        std::fs::write(file.path(), "precious").expect("write");
        assert!(matches!(Bound::new(&file), Err(ServeError::Endpoint(_))));
        assert_eq!(std::fs::read(file.path()).expect("still there"), b"precious");

        let socket = at("csi.sock");
        drop(std::os::unix::net::UnixListener::bind(socket.path()).expect("a stale socket"));
        let first = Bound::new(&socket).expect("replaced");
        assert_eq!(std::fs::metadata(socket.path()).expect("socket").mode() & 0o777, 0o600);
        assert!(matches!(Bound::new(&socket), Err(ServeError::Taken(_))), "a living one is not");
        drop(first);
        assert!(!socket.path().exists(), "removed at the end");
        let group = Bound::new(&socket.clone().for_group()).expect("again");
        assert_eq!(std::fs::metadata(socket.path()).expect("socket").mode() & 0o777, 0o660);
        std::fs::remove_file(socket.path()).expect("taken away");
        std::fs::write(socket.path(), "somebody else's").expect("write");
        drop(group);
        assert!(socket.path().exists(), "not ours to remove");
    }
}
