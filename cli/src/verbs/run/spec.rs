//! From flags and a package's defaults to what the launcher and the supervisor are told.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use ipnet::Ipv4Net;
use mica_agent::{
    Attachment, ImageMount, JobConfig, JobDir, NetworkName, StackConfig, StateDir, SubIds,
};
use mica_graph::{Manifest, Process, Service};
use mica_launcher::bridge::Link;
use mica_launcher::cdi::{self, Registry};
use mica_launcher::{
    Capabilities, GeneratedFile, IdMapping, Limits, Namespace, Namespaces, Network, PortForward,
    Protocol, Root, Seccomp, Spec,
};

use super::flags::{Args, NetworkMode, Shared, Users};
use super::host;
use super::mounts::{ImageFlag, in_order, mounts};
use super::values::{DeviceFlag, Entrypoint, Limit};
use crate::context::Context;
use crate::error::Advise as _;
use crate::places::Places;
use crate::signals;

/// The search path of a job, as docker sets it.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a job is made from: a package of the cache, or image files.
#[derive(Default)]
pub(super) struct Source {
    /// What is mounted.
    pub(super) stack: StackConfig,
    /// Below `/packages`.
    pub(super) folder: String,
    /// Whether the stack is a whole system.
    pub(super) is_root: bool,
    /// How it wants to be started.
    pub(super) process: Process,
    /// Limits it wants.
    pub(super) limits: mica_graph::Limits,
    /// Ports, health check and end that it wants.
    pub(super) service: Service,
    /// Its notes.
    pub(super) labels: BTreeMap<String, String>,
    /// Those that `--mount type=image` asks for, in the order of `Storage::images`.
    pub(super) images: Vec<StackConfig>,
}

impl Source {
    pub(super) fn of_package(manifest: &Manifest, stack: StackConfig) -> Self {
        Self {
            stack,
            folder: format!("{}-{}", manifest.name, manifest.version),
            is_root: manifest.has_root(),
            process: manifest.process.clone(),
            limits: manifest.limits.clone(),
            service: manifest.service.clone(),
            labels: manifest.labels.clone(),
            images: Vec::new(),
        }
    }

    /// Where the job sees the stack.
    fn mount_point(&self, args: &Args) -> PathBuf {
        match self.is_root || args.rootfs {
            true => PathBuf::from("/"),
            false => Path::new("/packages").join(&self.folder),
        }
    }
}

/// The job's configuration, for the folder it has been given.
pub(super) fn job_config(
    args: &Args,
    source: &Source,
    command: &[OsString],
    job: &JobDir,
    state: &StateDir,
    places: &Places,
) -> anyhow::Result<JobConfig> {
    // A root of its own needs one even if the job may not write: mount points such as /proc are made there.
    let needs_upper = !args.storage.read_only || source.mount_point(args) == Path::new("/");
    let upper = needs_upper.then(|| job.private_upper());
    Ok(JobConfig {
        name: args.life.name.clone(),
        stack: StackConfig { upper, ..source.stack.clone() },
        images: images(args, source, job),
        spec: spec(args, source, command, Some((job, state)), places)?,
        remove: args.life.rm,
        stop_signal: match args.life.stop_signal {
            Some(signal) => signal,
            None => stop_signal(&source.service)?,
        },
        stop_timeout: args.life.stop_timeout.or(source.service.stop_timeout).unwrap_or(10),
        // The package's own, which the job's may replace.
        labels: source.labels.clone().into_iter().chain(args.life.labels.iter().cloned()).collect(),
        created_ms: mica_agent::now_ms(),
        terminal: args.life.tty,
        open_stdin: args.life.interactive,
        restart: args.life.restart,
        health: args.health.check(source.service.health.as_ref()),
        network: attachment(args)?,
        log: args.log.config(places.log),
    })
}

/// The further stacks, with folders for what the job writes to them.
fn images(args: &Args, source: &Source, job: &JobDir) -> Vec<ImageMount> {
    let mount = |(index, (image, stack)): (usize, (&ImageFlag, &StackConfig))| ImageMount {
        stack: StackConfig {
            upper: image.writable.then(|| job.image_upper(index)),
            ..stack.clone()
        },
        target: image.target.clone(),
        subpath: image.subpath.clone(),
    };
    args.storage.images().zip(&source.images).enumerate().map(mount).collect()
}

/// How the job would be connected with its bridge network; the address is chosen when it starts.
pub(super) fn dry_link(args: &Args, context: &Context) -> anyhow::Result<Option<Link>> {
    let Some(attachment) = attachment(args)? else { return Ok(None) };
    let name = attachment.network.as_str().to_owned();
    let (address, address6) = match context.state()?.networks().find(&attachment.network) {
        Ok(network) => (network.config.subnet, network.config.subnet6),
        Err(_) if attachment.network == NetworkName::usual() => (Ipv4Net::default(), None),
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Link { bridge: name.clone(), name, address, gateway: None, address6, gateway6: None }))
}

/// The bridge network, and what is asked of it.
fn attachment(args: &Args) -> anyhow::Result<Option<Attachment>> {
    let flags = &args.confinement;
    let Some(NetworkMode::Bridge(attachment)) = &flags.network else {
        if flags.ip.is_some() || !flags.network_alias.is_empty() {
            bail!(
                "only a bridge network gives addresses and names; `mica network create` makes one"
            );
        }
        return Ok(None);
    };
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow::anyhow!("bridge networks need root"))
            .hint("--network private needs none");
    }
    let mut attachment = attachment.clone();
    attachment.address = flags.ip.or(attachment.address);
    attachment.aliases.extend(flags.network_alias.iter().cloned());
    Ok(Some(attachment))
}

/// The confined process of a job, or of a dry run. That has no tree, so what is read from it (names of users) is not known.
pub(super) fn spec(
    args: &Args,
    source: &Source,
    command: &[OsString],
    job: Option<(&JobDir, &StateDir)>,
    places: &Places,
) -> anyhow::Result<Spec> {
    let at = source.mount_point(args);
    let id = job.map_or("dry-run", |(job, _)| job.id());
    let tree = job.map_or("/".into(), |(job, _)| job.tree());
    let root = match at == Path::new("/") {
        true => Root::Tree(tree),
        false => Root::Host { tree, at: at.clone(), view: host::view(args, places) },
    };
    let mut spec = Spec::new(id, root, argv(args, source, command, &at)?);
    let hostname = args.process.hostname.clone().unwrap_or_else(|| id.to_owned());
    spec.env = environment(args, source, &at, &hostname)?;
    let workdir =
        args.process.workdir.clone().or(source.process.workdir.clone().map(PathBuf::from));
    spec.cwd = at.join(workdir.unwrap_or_default());
    spec.user = args.process.user.clone().or(source.process.user.clone());
    confine(&mut spec, args, source)?;
    spec.ids = id_mapping(args, places.userns_remap.as_deref())?;
    if args.confinement.publish_all {
        publish_all(&mut spec, args, &source.service);
    }
    spec.files = name_service_files(&hostname, &at, args, spec.namespaces.network);
    spec.hostname = (args.confinement.uts != Some(Shared::Host)).then_some(hostname);
    spec.read_only = args.storage.read_only;
    spec.mounts = args.storage.tmpfs.clone();
    spec.mounts.extend(mounts(args.storage.all(), job, &spec.ids)?);
    in_order(&mut spec.mounts)?;
    spec.hidden = host::hidden(&spec, args, job, places)?;
    spec.shm_size = args.storage.shm_size.unwrap_or(spec.shm_size);
    devices(&mut spec, args)?;
    Ok(spec)
}

/// Root's jobs have all ids as they are, unless the flag or the setting says that their root is to be nobody outside.
fn id_mapping(args: &Args, remap: Option<&str>) -> anyhow::Result<IdMapping> {
    let root = rustix::process::geteuid().is_root();
    match (&args.confinement.userns, remap) {
        (Some(Users::Shared(_)), _) | (None, None) => Ok(IdMapping::Auto),
        (Some(Users::Remap(_)), _) if !root => {
            Err(anyhow::anyhow!("only root can have jobs with the ids of an account"))
                .hint("an ordinary user's jobs have those that /etc/subuid grants by themselves")
        }
        (None, Some(_)) if !root => Ok(IdMapping::Auto),
        (Some(Users::Remap(account)), _) => Ok(SubIds::of(account)?),
        (None, Some(account)) => Ok(SubIds::of(account)?),
    }
}

fn stop_signal(service: &Service) -> anyhow::Result<i32> {
    let signal = service.stop_signal.as_deref().unwrap_or("TERM");
    signals::parse(signal)
        .map_err(anyhow::Error::msg)
        .context("cannot use the package's stop signal")
}

/// Ports that are published already stay as they are.
fn publish_all(spec: &mut Spec, args: &Args, service: &Service) {
    for port in &service.ports {
        let protocol = if port.udp { Protocol::Udp } else { Protocol::Tcp };
        let published = spec.ports.iter().any(|p| p.job == port.number && p.protocol == protocol);
        if !published {
            let (host, job) = (port.number, port.number);
            spec.ports.push(PortForward { protocol, address: None, host, job });
        }
    }
    if args.confinement.network.is_none() && !spec.ports.is_empty() {
        spec.namespaces.network = Network::Private;
    }
}

/// Nodes as they are; CDI devices and graphics processors by what their vendors' files say.
fn devices(spec: &mut Spec, args: &Args) -> anyhow::Result<()> {
    let mut names = Vec::new();
    for device in &args.storage.devices {
        match device {
            DeviceFlag::Node(device) => spec.devices.push(device.clone()),
            DeviceFlag::Cdi(name) => names.push(name.clone()),
        }
    }
    if names.is_empty() && args.storage.gpus.is_none() {
        return Ok(());
    }
    let registry = Registry::read(&cdi::DIRECTORIES.map(Path::new))?;
    if let Some(wanted) = &args.storage.gpus {
        names.extend(registry.gpus(wanted)?);
    }
    Ok(registry.inject(&names, spec)?)
}

fn confine(spec: &mut Spec, args: &Args, source: &Source) -> anyhow::Result<()> {
    let flags = &args.confinement;
    let network = match &flags.network {
        Some(NetworkMode::Host) => Network::Host,
        Some(NetworkMode::None) => Network::None,
        Some(NetworkMode::Private(_)) => Network::Private,
        Some(NetworkMode::Bridge(_)) => Network::Bridge,
        None if flags.publish.is_empty() => Network::Host,
        None => Network::Private,
    };
    let own = |shared: Option<Shared>| match shared {
        Some(Shared::Host) => Namespace::Host,
        Some(Shared::Private) | None => Namespace::New,
    };
    spec.host = matches!(flags.network, Some(NetworkMode::Private(true)));
    spec.namespaces = Namespaces {
        user: match flags.userns {
            Some(Users::Shared(shared)) => own(Some(shared)),
            Some(Users::Remap(_)) | None => Namespace::New,
        },
        pid: own(flags.pid),
        ipc: own(flags.ipc),
        uts: own(flags.uts),
        cgroup: own(flags.cgroupns),
        time: own(flags.timens.or(Some(Shared::Host))),
        network,
    };
    spec.ports = flags.publish.clone();
    spec.limits = Limits {
        memory: flags.memory.or(source.limits.memory),
        memory_swap: flags.memory_swap.and_then(|Limit(bytes)| bytes),
        memory_reservation: flags.memory_reservation,
        pids: flags.pids_limit.map_or(source.limits.pids, |Limit(count)| count),
        cpus: flags.cpus.or(source.limits.cpus),
        cpu_weight: flags.cpu_weight,
        cpuset_cpus: flags.cpuset_cpus.clone(),
        ..Limits::default()
    };
    spec.best_effort_limits = flags.best_effort_limits;
    spec.rlimits = flags.ulimits.clone();
    spec.capabilities = Capabilities { add: flags.cap_add.clone(), drop: flags.cap_drop.clone() };
    spec.seccomp = match &flags.seccomp {
        None => Seccomp::Default,
        Some(word) if word == Path::new("unconfined") => Seccomp::Unconfined,
        Some(file) => Seccomp::Profile(
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?,
        ),
    };
    spec.privileged = flags.privileged;
    spec.umask = flags.umask;
    spec.oom_score_adj = flags.oom_score_adj;
    spec.groups = flags.group_add.clone();
    Ok(())
}

/// The program and its arguments: `--entrypoint` or the package's, then those given or the package's own.
fn argv(
    args: &Args,
    source: &Source,
    command: &[OsString],
    at: &Path,
) -> anyhow::Result<Vec<OsString>> {
    let entrypoint: Vec<OsString> = match &args.process.entrypoint {
        Some(Entrypoint(words)) => words.iter().map(Into::into).collect(),
        None => source.process.entrypoint.iter().map(Into::into).collect(),
    };
    let arguments: Vec<OsString> = match command.is_empty() && args.process.entrypoint.is_none() {
        true => source.process.cmd.iter().map(Into::into).collect(),
        false => command.to_vec(),
    };
    let mut argv: Vec<OsString> = entrypoint.into_iter().chain(arguments).collect();
    let Some(program) = argv.first_mut() else {
        bail!("{} does not say what to run; give a command after --", source.stack.source);
    };
    // `app/A` is a path in the stack wherever the working directory is; `A` is looked up in PATH.
    if program.as_bytes().contains(&b'/') {
        *program = at.join(&program).into_os_string();
    }
    Ok(argv)
}

/// Later ones win: mica's own, the host's if asked for, the package's, files, flags.
fn environment(
    args: &Args,
    source: &Source,
    at: &Path,
    hostname: &str,
) -> anyhow::Result<Vec<(OsString, OsString)>> {
    let mut env: BTreeMap<OsString, OsString> = BTreeMap::new();
    env.insert("PATH".into(), search_path(at));
    env.insert("HOSTNAME".into(), hostname.into());
    if args.life.tty {
        env.insert("TERM".into(), "xterm".into());
    }
    if args.process.env_host {
        env.extend(std::env::vars_os());
    }
    env.extend(source.process.env.iter().map(|(name, value)| (name.into(), value.into())));
    for file in &args.process.env_file {
        let text = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        for line in text.split(|&byte| byte == b'\n') {
            let line = line.trim_ascii_start();
            if !(line.is_empty() || line.starts_with(b"#")) {
                set_variable(&mut env, OsStr::from_bytes(line));
            }
        }
    }
    for variable in &args.process.env {
        set_variable(&mut env, variable);
    }
    Ok(env.into_iter().collect())
}

/// `NAME=VALUE`, or `NAME` for the host's value (and nothing if the host has none), as docker has it.
pub(crate) fn set_variable(env: &mut BTreeMap<OsString, OsString>, text: &OsStr) {
    let bytes = text.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) => {
            let part = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            env.insert(part(&bytes[..at]), part(&bytes[at + 1..]));
        }
        None => {
            if let Some(value) = std::env::var_os(text) {
                env.insert(text.to_owned(), value);
            }
        }
    }
}

/// A stack without a root of its own is looked up before the host's programs.
fn search_path(at: &Path) -> OsString {
    if at == Path::new("/") {
        return PATH.into();
    }
    let mut path = OsString::new();
    for folder in [at.join("usr/local/bin"), at.join("usr/bin"), at.join("bin"), at.to_owned()] {
        path.push(folder);
        path.push(":");
    }
    path.push(PATH);
    path
}

/// `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`: of a job with a root of its own all, else those that must say
/// something else than the host's.
fn name_service_files(
    hostname: &str,
    at: &Path,
    args: &Args,
    network: Network,
) -> Vec<GeneratedFile> {
    let file = |target: &str, content: String| GeneratedFile {
        target: target.into(),
        content,
        mode: 0o644,
    };
    let flags = &args.confinement;
    let own_root = at == Path::new("/");
    let mut files = Vec::new();
    if own_root {
        files.push(file("/etc/hostname", format!("{hostname}\n")));
    }
    let bridge = network == Network::Bridge;
    if own_root || bridge || !flags.add_host.is_empty() {
        let mut hosts =
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
        if !bridge {
            // On a bridge the name goes with the address, which its supervisor adds.
            hosts.push_str(&format!("127.0.1.1\t{hostname}\n"));
        }
        flags.add_host.iter().for_each(|(name, ip)| hosts.push_str(&format!("{ip}\t{name}\n")));
        files.push(file("/etc/hosts", hosts));
    }
    let private = (network == Network::Private).then(|| mica_launcher::PRIVATE_DNS.to_owned());
    let servers: Vec<String> = match flags.dns.is_empty() {
        true => private.into_iter().collect(),
        false => flags.dns.iter().map(ToString::to_string).collect(),
    };
    let lines = servers.iter().map(|server| format!("nameserver {server}\n"));
    match (servers.is_empty(), own_root) {
        (false, _) => files.push(file("/etc/resolv.conf", lines.collect())),
        (true, _) if bridge => {
            files.extend(bridge_resolv_conf().map(|t| file("/etc/resolv.conf", t)))
        }
        // A host that resolves no names has none to hand on.
        (true, true) => files.extend(
            fs::read_to_string("/etc/resolv.conf").ok().map(|text| file("/etc/resolv.conf", text)),
        ),
        (true, false) => {}
    }
    files
}

/// The host's name servers, but for those at loopback addresses, which a job with a network of its own can't reach: where
/// systemd listens there, it says elsewhere whom it asks itself.
fn bridge_resolv_conf() -> Option<String> {
    let texts = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"].map(fs::read_to_string);
    texts
        .into_iter()
        .flatten()
        .map(|text| reachable_servers(&text))
        .find(|text| text.contains("nameserver"))
}

fn reachable_servers(text: &str) -> String {
    let reachable = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() != Some("nameserver")
            || words.next().is_some_and(|ip| !(ip.starts_with("127.") || ip == "::1"))
    };
    text.lines().filter(reachable).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_at_loopback_addresses_are_left_out() {
        let text = "search lan\nnameserver 127.0.0.53\nnameserver ::1\nnameserver 192.168.1.1\n";
        assert_eq!(reachable_servers(text), "search lan\nnameserver 192.168.1.1\n");
    }
}
