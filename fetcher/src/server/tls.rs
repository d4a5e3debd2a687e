//! TLS of the server: certificates from files.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// What a server shows of itself. Files that are renewed are read again: connections that come later see the new certificate.
#[derive(Clone, Debug)]
pub struct TlsIdentity(Arc<Files>);

#[derive(Debug)]
struct Files {
    cert: PathBuf,
    key: PathBuf,
    loaded: Mutex<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    /// Of the files that were read last, whether they could be used or not.
    changed: Changed,
}

/// When the two files were written, as far as they are there.
type Changed = [Option<SystemTime>; 2];

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
        let changed = changed(cert, key);
        let loaded = Mutex::new(Loaded { config: read(cert, key)?, changed });
        Ok(Self(Arc::new(Files { cert: cert.to_owned(), key: key.to_owned(), loaded })))
    }

    /// What is in the files now, or the last that could be used.
    fn current(&self) -> Arc<ServerConfig> {
        let Files { cert, key, loaded } = &*self.0;
        let changed = changed(cert, key);
        let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.changed != changed {
            // Once: a certificate whose key is still to be written is tried again when that comes.
            loaded.changed = changed;
            match read(cert, key) {
                Ok(config) => {
                    tracing::info!(cert = %cert.display(), "a new certificate");
                    loaded.config = config;
                }
                Err(error) => {
                    let reason = error.source().map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(%error, reason, "going on with the old certificate");
                }
            }
        }
        Arc::clone(&loaded.config)
    }
}

fn changed(cert: &Path, key: &Path) -> Changed {
    [cert, key].map(|path| std::fs::metadata(path).and_then(|meta| meta.modified()).ok())
}

fn read(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let wrong = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::Pem { what, path, source }
    };
    let chain = CertificateDer::pem_file_iter(cert)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .and_then(|chain| if chain.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(chain) })
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
    Ok(Arc::new(config))
}

/// A handshake with the certificate as it is now.
pub(super) async fn accept(
    identity: &TlsIdentity,
    stream: TcpStream,
) -> io::Result<TlsStream<TcpStream>> {
    TlsAcceptor::from(identity.current()).accept(stream).await
}
