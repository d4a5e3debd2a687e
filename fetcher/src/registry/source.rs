//! How to reach a registry, as it is handed to another process: no secrets, only where they are.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Access, OpenOptions, RateLimit, Registry, RegistryError};

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
    /// Bytes per second that may come and go.
    #[serde(default)]
    pub rate: Option<u64>,
}

impl Source {
    /// With the token in `MICA_TOKEN`, where there is one, else with what the credentials say.
    pub fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::usual(self.authfile.clone());
        if let Ok(token) = std::env::var("MICA_TOKEN")
            && !token.is_empty()
        {
            options.http.access = Access::Bearer(token);
        }
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
