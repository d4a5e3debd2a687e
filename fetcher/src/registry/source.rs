//! How to reach a registry, as it is handed to another process: no secrets, only where they are.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{OpenOptions, RateLimit, Registry, RegistryError, token};

/// An address and what belongs to it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// A folder, a URL, `s3://bucket/prefix` or `oci://host/path`.
    pub address: String,
    /// Addresses of mirrors.
    pub mirrors: Vec<String>,
    /// The file of credentials, if it is not where others look.
    pub authfile: Option<PathBuf>,
    /// Whether certificates are verified.
    pub tls_verify: bool,
    /// Whether the user named it, by a flag, the environment or settings of his own, rather than the workspace.
    #[serde(default)]
    pub named_by_user: bool,
    /// Bytes per second that may come and go.
    #[serde(default)]
    pub rate: Option<u64>,
}

impl Source {
    /// With the token that the environment has for this registry, else with what the credentials say.
    pub fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::usual(self.authfile.clone());
        if let Some(host) = super::open::host(&self.address) {
            let variable = |name: &str| std::env::var(name).ok();
            options.http.access = token::access(&host, self.named_by_user, &variable);
        }
        options.http.named_by_user = self.named_by_user;
        options.http.tls_verify = self.tls_verify;
        options.http.rate = self.rate.map(RateLimit::new);
        options.mirrors.clone_from(&self.mirrors);
        options
    }

    /// Opens it for reading.
    pub fn open(&self) -> Result<Box<dyn Registry>, RegistryError> {
        super::open(&self.address, &self.options())
    }
}
