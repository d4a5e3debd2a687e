//! What `mica pack` says of a package beside its layers: flags, over what the target says, over what git knows.

use anyhow::{Context as _, bail};
use mica_graph::{Manifest, Port, Process, Service};

use super::run::{HealthFlags, parse_cpus, parse_list, parse_pair, parse_size, recommended};
use crate::git::Commit;
use crate::signals;

/// Defaults of the package's jobs.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Defaults of the package's jobs")]
pub(crate) struct Defaults {
    /// Program and first arguments, as a shell would split them or as a JSON list; the target's own further arguments are
    /// dropped
    #[arg(long, value_parser = parse_words, value_name = "WORDS")]
    entrypoint: Option<Words>,
    /// Further arguments, for which those given to `mica run` stand in
    #[arg(long, value_parser = parse_words, value_name = "WORDS")]
    cmd: Option<Words>,
    /// Environment variable
    #[arg(short, long, value_parser = parse_pair, value_name = "NAME=VALUE")]
    env: Vec<(String, String)>,
    /// Working directory, relative to the stack unless it begins with /
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// User, and group, by number or by a name in the stack
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Limit of memory
    #[arg(short, long, value_parser = parse_size, value_name = "SIZE")]
    memory: Option<u64>,
    /// Limit of processors
    #[arg(long, value_parser = parse_cpus, value_name = "N")]
    cpus: Option<f64>,
    /// Limit of processes and threads
    #[arg(long, value_name = "N")]
    pids_limit: Option<u64>,
    /// Flags for `mica run --recommended`, as a shell would split them
    #[arg(long, value_name = "FLAGS", allow_hyphen_values = true)]
    run_flags: Option<String>,
    /// Note to keep with the package, as NAME=VALUE
    #[arg(short, long = "label", value_parser = parse_pair, value_name = "NAME=VALUE")]
    labels: Vec<(String, String)>,
    /// A port on which the program listens, as in 80 or 53/udp
    #[arg(long = "port", value_name = "PORT[/udp]")]
    ports: Vec<Port>,
    #[command(flatten)]
    health: HealthFlags,
    /// Signal with which `mica stop` asks the job to end
    #[arg(long, value_name = "SIGNAL")]
    stop_signal: Option<String>,
    /// Seconds until `mica stop` kills the job
    #[arg(long, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
}

/// A program and its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Words(Vec<String>);

fn parse_words(text: &str) -> Result<Words, String> {
    match text.starts_with('[') {
        true => parse_list(text).map(Words),
        false => {
            shlex::split(text).map(Words).ok_or_else(|| "a quotation mark is not closed".into())
        }
    }
}

/// The label under which the commit is kept.
pub(crate) const REVISION: &str = "org.opencontainers.image.revision";
/// That of the version.
pub(crate) const VERSION: &str = "org.opencontainers.image.version";

/// Notes what is known by itself. Labels that are there stay.
pub(crate) fn label(manifest: &mut Manifest, commit: Option<&Commit>) {
    let known = [
        ("org.opencontainers.image.title", Some(manifest.name.to_string())),
        (VERSION, Some(manifest.version.to_string())),
        (REVISION, commit.map(Commit::revision)),
    ];
    for (name, value) in known {
        if let Some(value) = value {
            manifest.labels.entry(name.to_owned()).or_insert(value);
        }
    }
}

impl Defaults {
    /// Fills in what the flags say.
    pub(crate) fn apply(&self, manifest: &mut Manifest) -> anyhow::Result<()> {
        manifest.labels.extend(self.labels.iter().cloned());
        if let Some(flags) = &self.run_flags {
            manifest.labels.insert(recommended::LABEL.into(), flags.clone());
        }
        if let Some(flags) = manifest.labels.get(recommended::LABEL) {
            recommended::check(flags).with_context(|| {
                format!("cannot keep the flags that {} recommends", manifest.name)
            })?;
        }
        self.apply_to_process(&mut manifest.process);
        let limits = &mut manifest.limits;
        limits.memory = self.memory.or(limits.memory);
        limits.cpus = self.cpus.or(limits.cpus);
        limits.pids = self.pids_limit.or(limits.pids);
        self.apply_to_service(&mut manifest.service)
            .with_context(|| format!("cannot keep how {} lives", manifest.name))
    }

    fn apply_to_process(&self, process: &mut Process) {
        if let Some(Words(words)) = &self.entrypoint {
            process.entrypoint.clone_from(words);
            process.cmd.clear();
        }
        if let Some(Words(words)) = &self.cmd {
            process.cmd.clone_from(words);
        }
        process.env.extend(self.env.iter().cloned());
        process.workdir = self.workdir.clone().or(process.workdir.take());
        process.user = self.user.clone().or(process.user.take());
    }

    fn apply_to_service(&self, service: &mut Service) -> anyhow::Result<()> {
        service.ports.extend(&self.ports);
        service.health = self.health.over(service.health.take());
        if service.health.is_none() && self.health.need_a_command() {
            bail!("it has no health check; --health-cmd gives it one");
        }
        if self.stop_signal.is_some() {
            service.stop_signal.clone_from(&self.stop_signal);
        }
        service.stop_timeout = self.stop_timeout.or(service.stop_timeout);
        if let Some(signal) = &service.stop_signal {
            let known = signals::parse(signal).map_err(anyhow::Error::msg);
            known.context("cannot keep its stop signal")?;
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
