//! `mica serve`: a registry folder over HTTP.
//!
//! Reading is what any server of static files does (ranges, conditional requests), so that nginx in its place is as good.
//! Writing is what needs a program: blobs are hashed while they come in and get their name only if it is theirs, and
//! versions are published under the package's lock, so that publishers on this and other hosts lose nothing.
//!
//! Reading is open. Writing needs the token; without a token it must be allowed expressly. Requests that a browser makes for a
//! page of another origin are refused. Connections have deadlines, and there is always room for a new one ([`connections`]); what is
//! uploaded and never referred to expires ([`uploads`]).
//! It speaks TLS if it is given a certificate, or leaves that to a proxy in front.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::registry::{DirRegistry, RegistryError};

mod answer;
mod conditional;
mod connections;
mod read;
mod tls;
mod uploads;
mod write;

pub use tls::{TlsError, TlsIdentity};

/// Who may write.
#[derive(Clone, Default)]
pub enum Writers {
    /// Nobody.
    #[default]
    Nobody,
    /// Whoever sends `Authorization: Bearer` with this token, or it as a Basic password.
    Token(String),
    /// Whoever reaches the port.
    Everybody,
}

impl std::fmt::Debug for Writers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nobody => "Nobody",
            Self::Token(_) => "Token(…)",
            Self::Everybody => "Everybody",
        })
    }
}

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Who may write.
    pub writers: Writers,
    /// For TLS.
    pub tls: Option<TlsIdentity>,
    /// Longest wait for the next bytes of an upload.
    pub idle_timeout: Duration,
    /// How long requests in progress may take to end after a stop.
    pub grace: Duration,
    /// By what names of its own it may be asked for, besides those of this machine. On a loopback address any other is refused: a web page
    /// whose name leads there would speak for its visitor.
    pub hosts: Vec<String>,
    /// Bytes that the registry may take; what exceeds them is refused.
    pub quota: Option<u64>,
    /// How long an upload that nothing refers to is kept.
    pub keep_uploads: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            writers: Writers::Nobody,
            tls: None,
            idle_timeout: Duration::from_secs(60),
            grace: Duration::from_secs(10),
            hosts: Vec::new(),
            quota: None,
            keep_uploads: Duration::from_secs(24 * 3600),
        }
    }
}

impl ServeOptions {
    /// How the server's URL starts.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }
}

/// A server that did not start, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The registry's folder cannot be used.
    #[error("cannot serve this folder")]
    Registry(#[from] RegistryError),
    /// Its certificate or key.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Another program listens there.
    #[error("the address {0} is in use by another program")]
    InUse(String),
    /// Not an address of this machine, a port that needs privileges, …
    #[error("cannot listen on {address}")]
    Listen {
        /// What was given.
        address: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The runtime or the listener failed.
    #[error("the server failed")]
    Failed(#[source] io::Error),
}

impl ServeError {
    /// What a person could do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Registry(error) => error.hint(),
            Self::InUse(_) => Some("choose another port; port 0 means any free one".to_owned()),
            Self::Listen { .. } => {
                Some("an address is HOST:PORT, such as 127.0.0.1:5055".to_owned())
            }
            Self::Tls(TlsError::Pem { .. }) => {
                Some("both are files in PEM; the key without a password".to_owned())
            }
            Self::Tls(TlsError::Unusable { .. }) | Self::Failed(_) => None,
        }
    }
}

pub(crate) struct State {
    registry: DirRegistry,
    options: ServeOptions,
    /// Whether it is this machine alone that can reach the port.
    loopback: bool,
    /// Bytes that the registry takes, about.
    used: AtomicU64,
    /// Bytes of uploads that have not come to their end.
    coming: AtomicU64,
}

impl State {
    fn new(registry: DirRegistry, options: ServeOptions, loopback: bool) -> Self {
        let (used, coming) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { registry, options, loopback, used, coming }
    }
}

/// Binds an address; a port in use is told apart.
pub fn listen(address: &str) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Listen { address: address.to_owned(), source };
    let addresses: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
    TcpListener::bind(&addresses[..]).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ServeError::InUse(address.to_owned()),
        _ => failed(source),
    })
}

/// Serves the registry in `root`, made if need be, until `shutdown`; then lets requests in progress end.
pub async fn serve(
    listener: TcpListener,
    root: &Path,
    options: ServeOptions,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), ServeError> {
    let registry = DirRegistry::create(root)?;
    listener.set_nonblocking(true).map_err(ServeError::Failed)?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(ServeError::Failed)?;
    let loopback = listener.local_addr().map_err(ServeError::Failed)?.ip().is_loopback();
    let state = Arc::new(State::new(registry, options, loopback));
    let keeping = tokio::spawn(uploads::keep(Arc::clone(&state)));
    connections::run(listener, state, shutdown).await;
    keeping.abort();
    Ok(())
}

/// Serves until SIGINT or SIGTERM. `ready` is told the address as soon as connections are accepted.
pub fn serve_until_signal(
    listener: TcpListener,
    root: &Path,
    options: ServeOptions,
    ready: impl FnOnce(SocketAddr),
) -> Result<(), ServeError> {
    let address = listener.local_addr().map_err(ServeError::Failed)?;
    let runtime = runtime()?;
    runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Failed)?;
        let shutdown = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        ready(address);
        serve(listener, root, options, shutdown).await
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, ServeError> {
    crate::runtime::build("mica-serve").map_err(ServeError::Failed)
}

/// A server on a thread of its own; stopped when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    scheme: &'static str,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
}

impl Server {
    /// Starts to serve `root`. The registry is made and connections are accepted when this returns.
    pub fn spawn(
        listener: TcpListener,
        root: &Path,
        options: ServeOptions,
    ) -> Result<Self, ServeError> {
        let address = listener.local_addr().map_err(ServeError::Failed)?;
        DirRegistry::create(root)?;
        let scheme = options.scheme();
        let (stop, stopped) = oneshot::channel();
        let (started, start) = mpsc::channel();
        let root = root.to_owned();
        let run = move || {
            let runtime = runtime()?;
            // The listener is bound: connections made from now on wait for the loop below.
            let _ = started.send(());
            let shutdown = async { drop(stopped.await) };
            let result = runtime.block_on(serve(listener, &root, options, shutdown));
            runtime.shutdown_timeout(Duration::from_secs(1));
            result
        };
        let thread = std::thread::Builder::new().name("mica-serve".to_owned()).spawn(run);
        let thread = thread.map_err(ServeError::Failed)?;
        let mut server = Self { address, scheme, stop: Some(stop), thread: Some(thread) };
        if start.recv().is_err() {
            server.end()?;
        }
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of the registry, for [`open`](crate::registry::open).
    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Stops, and waits for requests in progress to end.
    pub fn stop(mut self) -> Result<(), ServeError> {
        self.end()
    }

    fn end(&mut self) -> Result<(), ServeError> {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(_)) => {
                Err(ServeError::Failed(io::Error::other("the server's thread panicked")))
            }
            None => Ok(()),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!(%error, "the server ended badly");
        }
    }
}
