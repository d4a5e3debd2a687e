//! How verbs reach registries.

use std::path::PathBuf;

use mica_fetcher::registry::{OpenOptions, Source};

use crate::places::Places;
use crate::verbs::run::parse_size;

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
    /// Fetch and send no more than so many bytes per second, as in 10m
    #[arg(long, value_name = "RATE", value_parser = parse_size)]
    limit_rate: Option<u64>,
}

impl Default for RegistryFlags {
    fn default() -> Self {
        Self { registry: None, authfile: None, tls_verify: true, limit_rate: None }
    }
}

impl RegistryFlags {
    /// How the registry at an address is reached, also by another process.
    pub(crate) fn source(&self, address: &str, places: &Places) -> anyhow::Result<Source> {
        let authfile = self.authfile.as_deref().map(std::path::absolute).transpose()?;
        Ok(Source { address: address.to_owned(), authfile, ..self.here(places) })
    }

    /// How registries are reached.
    pub(crate) fn options(&self, places: &Places) -> OpenOptions {
        self.here(places).options()
    }

    fn here(&self, places: &Places) -> Source {
        Source {
            address: places.registry.clone(),
            named_by_user: places.named_by_user,
            mirrors: places.mirrors.clone(),
            authfile: self.authfile.clone(),
            tls_verify: self.tls_verify,
            rate: self.limit_rate.or(places.limit_rate),
        }
    }
}
