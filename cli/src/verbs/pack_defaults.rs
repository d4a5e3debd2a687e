//! What `mica pack` says of a package beside its layers: flags, over what the target says, over what git knows.

use anyhow::Context as _;
use mica_graph::{HealthCheck, Manifest, Port};

use super::run::parse_pair;
use crate::git::Commit;
use crate::signals;

/// Defaults of the package's jobs.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Defaults of the package's jobs")]
pub(crate) struct Defaults {
    /// Note to keep with the package, as NAME=VALUE
    #[arg(long = "label", value_parser = parse_pair, value_name = "NAME=VALUE")]
    labels: Vec<(String, String)>,
    /// A port on which the program listens, as in 80 or 53/udp
    #[arg(long = "port", value_name = "PORT[/udp]")]
    ports: Vec<Port>,
    /// Shell command that exits with 0 while the job is healthy
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Signal with which `mica stop` asks the job to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds until `mica stop` kills the job
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
}

/// The label under which the commit is kept.
pub(crate) const REVISION: &str = "org.opencontainers.image.revision";

impl Defaults {
    /// Fills in what the flags and git say. Labels that the target has itself stay, unless a flag replaces them.
    pub(crate) fn apply(
        &self,
        manifest: &mut Manifest,
        commit: Option<&Commit>,
    ) -> anyhow::Result<()> {
        let known = [
            ("org.opencontainers.image.title", Some(manifest.name.to_string())),
            ("org.opencontainers.image.version", Some(manifest.version.to_string())),
            (REVISION, commit.map(Commit::revision)),
        ];
        for (name, value) in known {
            if let Some(value) = value {
                manifest.labels.entry(name.to_owned()).or_insert(value);
            }
        }
        manifest.labels.extend(self.labels.iter().cloned());
        let service = &mut manifest.service;
        service.ports.extend(&self.ports);
        if let Some(command) = &self.health_cmd {
            service.health = Some(HealthCheck::shell(command));
        }
        if self.stop_signal.is_some() {
            service.stop_signal.clone_from(&self.stop_signal);
        }
        service.stop_timeout = self.stop_timeout.or(service.stop_timeout);
        if let Some(signal) = &service.stop_signal {
            let known = signals::parse(signal).map_err(anyhow::Error::msg);
            known.with_context(|| format!("cannot keep the stop signal of {}", manifest.name))?;
        }
        Ok(())
    }
}

/// Whether two manifests differ in nothing but the commit they were packed at.
pub(crate) fn same_but_for_revision(a: &Manifest, b: &Manifest) -> bool {
    let without = |manifest: &Manifest| {
        let mut manifest = manifest.clone();
        manifest.labels.remove(REVISION);
        manifest
    };
    without(a) == without(b)
}
