//! TLS of the server: certificates from files, and handshakes that keep nobody waiting but their own client.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a server shows of itself.
#[derive(Clone, Debug)]
pub struct TlsIdentity(Arc<ServerConfig>);

/// A certificate or key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No PEM, or none of the right kind.
    #[error("cannot read {what} from {}", path.display())]
    Pem {
        /// A certificate, or a key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: pem::Error,
    },
    /// They don't belong together, or are of a kind that is not known.
    #[error("cannot use the certificate {} with the key {}", cert.display(), key.display())]
    Unusable {
        /// The certificates' file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// The reason.
        #[source]
        source: rustls::Error,
    },
}

impl TlsIdentity {
    /// Reads a certificate, followed by those that signed it, and its key; both in PEM.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        let wrong = |what, path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Pem { what, path, source }
        };
        let chain = CertificateDer::pem_file_iter(cert)
            .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
            .and_then(
                |chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) },
            )
            .map_err(wrong("a certificate", cert))?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(wrong("a key", key))?;
        let provider = Arc::new(ring::default_provider());
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
            .map_err(|source| {
                let (cert, key) = (cert.to_owned(), key.to_owned());
                TlsError::Unusable { cert, key, source }
            })?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config)))
    }
}

/// Handshakes at a time.
const HANDSHAKES: usize = 64;
/// The longest of them.
const PATIENCE: Duration = Duration::from_secs(10);

type Accepted = (TlsStream<TcpStream>, SocketAddr);

/// Connections whose handshake is done.
pub(super) struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<Accepted>,
    accepting: AbortHandle,
}

impl Drop for TlsListener {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl TlsListener {
    pub(super) fn new(mut listener: TcpListener, identity: &TlsIdentity) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let acceptor = TlsAcceptor::from(Arc::clone(&identity.0));
        let (done, ready) = mpsc::channel(HANDSHAKES);
        let room = Arc::new(Semaphore::new(HANDSHAKES));
        let accepting = tokio::spawn(async move {
            while let Ok(permit) = Arc::clone(&room).acquire_owned().await {
                let (stream, peer) = Listener::accept(&mut listener).await;
                super::at_once(&stream);
                let (handshake, done) = (acceptor.accept(stream), done.clone());
                tokio::spawn(async move {
                    match tokio::time::timeout(PATIENCE, handshake).await {
                        // Nobody takes it when the server is stopping.
                        Ok(Ok(stream)) => drop(done.send((stream, peer)).await),
                        Ok(Err(error)) => tracing::debug!(%peer, %error, "no TLS"),
                        Err(_) => tracing::debug!(%peer, "the handshake took too long"),
                    }
                    drop(permit);
                });
            }
        });
        Ok(Self { address, ready, accepting: accepting.abort_handle() })
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> Accepted {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // Its task ends only with this listener.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
