//! How verbs reach registries.

use std::path::PathBuf;

use mica_fetcher::registry::{OpenOptions, Source};

/// The flags of every verb that talks to a registry.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RegistryFlags {
    /// The registry: a folder, a URL, s3://BUCKET/PREFIX, or oci://HOST/PATH for an OCI registry
    #[arg(long, value_name = "R")]
    pub(crate) registry: Option<String>,
    /// File of credentials, as podman and docker keep them [default: where those look]
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
    /// With =false, accept any certificate, and plain HTTP of OCI registries
    #[arg(
        long,
        value_name = "BOOL",
        default_value_t = true,
        default_missing_value = "true",
        num_args = 0..=1,
        require_equals = true,
        action = clap::ArgAction::Set
    )]
    tls_verify: bool,
}

impl Default for RegistryFlags {
    fn default() -> Self {
        Self { registry: None, authfile: None, tls_verify: true }
    }
}

impl RegistryFlags {
    /// How the registry at an address is reached, also by another process.
    pub(crate) fn source(&self, address: &str, mirrors: &[String]) -> anyhow::Result<Source> {
        Ok(Source {
            address: address.to_owned(),
            mirrors: mirrors.to_vec(),
            authfile: self.authfile.as_deref().map(std::path::absolute).transpose()?,
            tls_verify: self.tls_verify,
        })
    }

    /// How registries are reached.
    pub(crate) fn options(&self, mirrors: &[String]) -> OpenOptions {
        let (address, mirrors) = (String::new(), mirrors.to_vec());
        let authfile = self.authfile.clone();
        Source { address, mirrors, authfile, tls_verify: self.tls_verify }.options()
    }
}
