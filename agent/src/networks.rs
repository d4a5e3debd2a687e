//! Bridge networks: which there are, and which job has which address. Files and a lock; the kernel's side of it is
//! [`mica_launcher::bridge`]'s.
//!
//! ```text
//! networks.lock                    held while any of this is changed
//! networks/<name>/network.json     what was asked for
//!                 <job>.member     a job's address and published ports, while it runs
//! jobs/<job>/hosts                 the job's /etc/hosts: who else is on its network, kept up to date in place
//! ```
//!
//! A member counts while its job is owned (see [`StateDir`]); the address of one whose supervisor was killed is free
//! for whoever comes next. The bridge is there while the network has members.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv4Net;
use mica_launcher::bridge::{self, Bridge, BridgeError, Link, Published};
use mica_launcher::{Mount, PortForward, Protocol, Spec};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};
use serde::{Deserialize, Serialize};

use crate::files::{FileError, Lock, at, create_private_dir, read_json, write_json};
use crate::hosts;
use crate::state::{JobDir, StateDir, new_id, now_ms};
use crate::volumes::is_name;

/// What a network may be called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

impl NetworkName {
    /// The network that is made when it is first used, and has no special rights otherwise.
    pub fn usual() -> Self {
        Self("bridge".to_owned())
    }

    /// As it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if !is_name(text) || ["host", "none", "private"].contains(&text) {
            return Err(format!(
                "`{text}` cannot name a network (letters, digits, `_`, `.`, `-`; not host, none or private)"
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

impl TryFrom<String> for NetworkName {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> Self {
        name.0
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a new network is to be; what is `None` is chosen.
#[derive(Clone, Debug, Default)]
pub struct NewNetwork {
    /// Its addresses.
    pub subnet: Option<Ipv4Net>,
    /// The host's own address on it.
    pub gateway: Option<Ipv4Addr>,
    /// Jobs reach each other and nothing else.
    pub internal: bool,
}

/// A network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkConfig {
    /// Names the bridge, as names of networks can be too long for one.
    pub id: String,
    /// Its addresses.
    pub subnet: Ipv4Net,
    /// The host's own address on it.
    pub gateway: Ipv4Addr,
    /// Jobs reach each other and nothing else.
    pub internal: bool,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
}

/// A job on a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Member {
    /// Its id.
    pub job: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortForward>,
}

/// What a job asks of its network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub network: NetworkName,
    /// A certain address.
    #[serde(default)]
    pub address: Option<Ipv4Addr>,
    /// Further names by which other jobs find it.
    #[serde(default)]
    pub aliases: Vec<String>,
}

/// Something about networks that can't be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No such network.
    #[error("there is no network {0}")]
    Unknown(NetworkName),
    /// Names are unique.
    #[error("there is a network {0} already")]
    Exists(NetworkName),
    /// A running job is on it.
    #[error("network {name} is in use by job {job}")]
    InUse {
        /// The network.
        name: NetworkName,
        /// Who is on it.
        job: String,
    },
    /// Two networks, or a network and a route of the host's, would claim the same addresses.
    #[error("the subnet {subnet} overlaps {other}")]
    Overlap {
        /// What was asked for.
        subnet: Ipv4Net,
        /// Whose addresses they are.
        other: String,
    },
    /// Too small, or with bits of a host.
    #[error("{0} is no subnet for jobs")]
    Subnet(Ipv4Net),
    /// All of the usual ones are taken.
    #[error("no subnet is free")]
    NoSubnet,
    /// Outside of the network, or one that no job can have.
    #[error("the address {address} is not one of network {name}")]
    Address {
        /// The address.
        address: Ipv4Addr,
        /// The network.
        name: NetworkName,
    },
    /// A job has it.
    #[error("the address {address} belongs to job {job}")]
    AddressTaken {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        job: String,
    },
    /// All addresses are taken.
    #[error("network {0} has no free address")]
    Full(NetworkName),
    /// An internal network can't have published ports.
    #[error("network {0} is internal: no port of the host can lead to it")]
    Internal(NetworkName),
    /// Bridge networks are IPv4.
    #[error("ports of {0} cannot be published: bridge networks carry IPv4 only")]
    Version6(IpAddr),
    /// Another job or a program of the host's has the port.
    #[error("cannot publish the port {port}")]
    Port {
        /// The host's.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// The kernel's side.
    #[error(transparent)]
    Bridge(#[from] BridgeError),
    /// Files.
    #[error(transparent)]
    File(#[from] FileError),
}

impl NetworkError {
    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unknown(_) => "`mica network ls` lists them, `mica network create` makes one",
            Self::InUse { .. } => "stop the job first",
            Self::NoSubnet | Self::Overlap { .. } => {
                "name another one: mica network create --subnet CIDR"
            }
            Self::Port { .. } => {
                "another job or a program of the host's has it; publish another one"
            }
            Self::Bridge(error) => return error.hint(),
            _ => return None,
        })
    }
}

/// The networks of a state directory.
#[derive(Debug)]
pub struct Networks<'a>(pub(crate) &'a StateDir);

impl Networks<'_> {
    fn folder(&self) -> PathBuf {
        self.0.root().join("networks")
    }

    fn lock(&self) -> Result<Lock, FileError> {
        Lock::wait(&self.0.root().join("networks.lock"))
    }

    fn network(&self, name: &NetworkName) -> Result<Network, NetworkError> {
        let folder = self.folder().join(name.as_str());
        match read_json(&folder.join("network.json")) {
            Ok(config) => Ok(Network { name: name.clone(), folder, config }),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(NetworkError::Unknown(name.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a network. `routed` is what the host has routes to.
    ///
    /// # Errors
    /// The name or the addresses are taken, or make no sense.
    pub fn create(
        &self,
        name: &NetworkName,
        wanted: &NewNetwork,
        routed: &[Ipv4Net],
    ) -> Result<NetworkConfig, NetworkError> {
        create_private_dir(&self.folder())?;
        let _lock = self.lock()?;
        self.create_locked(name, wanted, routed)
    }

    fn create_locked(
        &self,
        name: &NetworkName,
        wanted: &NewNetwork,
        routed: &[Ipv4Net],
    ) -> Result<NetworkConfig, NetworkError> {
        let networks = self.list()?;
        if networks.iter().any(|network| network.name == *name) {
            return Err(NetworkError::Exists(name.clone()));
        }
        let taken: Vec<(Ipv4Net, String)> = networks
            .iter()
            .map(|network| (network.config.subnet, format!("network {}", network.name)))
            .chain(routed.iter().map(|net| (*net, format!("the host's route to {net}"))))
            .collect();
        let subnet = match wanted.subnet {
            Some(subnet) => check_subnet(subnet, &taken)?,
            None => free_subnet(&taken).ok_or(NetworkError::NoSubnet)?,
        };
        let gateway = match wanted.gateway {
            None => subnet.hosts().next().ok_or(NetworkError::Subnet(subnet))?,
            Some(gateway) if is_host(subnet, gateway) => gateway,
            Some(address) => return Err(NetworkError::Address { address, name: name.clone() }),
        };
        let mut id = new_id();
        id.truncate(8);
        let internal = wanted.internal;
        let config = NetworkConfig { id, subnet, gateway, internal, created_ms: now_ms() };
        let folder = self.folder().join(name.as_str());
        create_private_dir(&folder)?;
        write_json(&folder.join("network.json"), &config)?;
        Ok(config)
    }

    /// All of them, by name.
    ///
    /// # Errors
    /// The state directory can't be read.
    pub fn list(&self) -> Result<Vec<Network>, NetworkError> {
        let folder = self.folder();
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("list", &folder)(error).into()),
        };
        let mut found = Vec::new();
        for entry in entries {
            let entry = entry.map_err(at("list", &folder))?;
            let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
                continue;
            };
            match self.network(&name) {
                Ok(network) => found.push(network),
                // Being made, or being removed.
                Err(NetworkError::Unknown(_)) => {}
                Err(error) => return Err(error),
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// One of them.
    ///
    /// # Errors
    /// There is none of this name.
    pub fn find(&self, name: &NetworkName) -> Result<Network, NetworkError> {
        self.network(name)
    }

    /// The jobs on a network.
    ///
    /// # Errors
    /// The state directory can't be read.
    pub fn members(&self, network: &Network) -> Result<Vec<Member>, NetworkError> {
        let (live, _) = self.sort_out(network)?;
        Ok(live)
    }

    /// Removes a network that no job is on.
    ///
    /// # Errors
    /// A job is, or there is no such network.
    pub fn remove(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let network = self.network(name)?;
        let _lock = self.lock()?;
        self.bury(&network)?;
        if let Some(member) = self.members(&network)?.into_iter().next() {
            return Err(NetworkError::InUse { name: name.clone(), job: member.job });
        }
        network.bridge().take_down()?;
        Ok(fs::remove_dir_all(&network.folder).map_err(at("remove", &network.folder))?)
    }

    /// Frees what jobs had whose supervisor was killed.
    pub(crate) fn reconcile(&self) -> Result<(), NetworkError> {
        for network in self.list()? {
            // Without the lock, as nearly always there is nothing to do.
            let (live, dead) = self.sort_out(&network)?;
            if !dead.is_empty() || live.is_empty() {
                let _lock = self.lock()?;
                self.bury(&network)?;
                self.bring_up_to_date(&network)?;
            }
        }
        Ok(())
    }

    /// Tells the jobs of a network their names anew.
    pub(crate) fn refresh(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let _lock = self.lock()?;
        let network = self.network(name)?;
        self.write_hosts(&self.members(&network)?);
        Ok(())
    }

    /// The members that run, and those that don't any more.
    fn sort_out(&self, network: &Network) -> Result<(Vec<Member>, Vec<Member>), NetworkError> {
        let folder = &network.folder;
        let (mut live, mut dead) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(folder).map_err(at("list", folder))? {
            let path = entry.map_err(at("list", folder))?.path();
            if path.extension().is_none_or(|extension| extension != "member") {
                continue;
            }
            let member: Member = match read_json(&path) {
                Ok(member) => member,
                // It left just now.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error.into()),
            };
            let owned = self.0.job(&member.job).is_owned();
            if owned { live.push(member) } else { dead.push(member) }
        }
        live.sort_by_key(|member| member.address);
        Ok((live, dead))
    }

    /// Forgets the dead. The caller holds the lock.
    fn bury(&self, network: &Network) -> Result<(), NetworkError> {
        for member in self.sort_out(network)?.1 {
            network.forget(&member.job)?;
        }
        Ok(())
    }

    /// Makes the host's side fit the members. The caller holds the lock.
    fn bring_up_to_date(&self, network: &Network) -> Result<bridge::Changed, NetworkError> {
        let members = self.members(network)?;
        if members.is_empty() {
            network.bridge().take_down()?;
            return Ok(bridge::Changed::default());
        }
        let published = |member: &Member| {
            let job = member.address;
            member.ports.clone().into_iter().map(move |forward| Published { forward, job })
        };
        let ports: Vec<Published> = members.iter().flat_map(published).collect();
        let changed = network.bridge().set_up(&ports)?;
        self.write_hosts(&members);
        Ok(changed)
    }

    /// A job that can't be told goes on with what it knows.
    fn write_hosts(&self, members: &[Member]) {
        let entries: Vec<(Ipv4Addr, Vec<String>)> =
            members.iter().map(|m| (m.address, names(&self.0.job(&m.job)))).collect();
        for member in members {
            let path = hosts_file(&self.0.job(&member.job));
            if let Err(error) = hosts::update(&path, &entries) {
                tracing::warn!(%error, "cannot tell a job who is on its network");
            }
        }
    }

    /// Puts a job, which the caller owns, on its network.
    pub(crate) fn attach(
        &self,
        job: &JobDir,
        wanted: &Attachment,
        ports: &[PortForward],
        hosts: &str,
    ) -> Result<Attached, NetworkError> {
        create_private_dir(&self.folder())?;
        let lock = self.lock()?;
        let name = &wanted.network;
        let network = match self.network(name) {
            Err(NetworkError::Unknown(_)) if *name == NetworkName::usual() => {
                self.create_locked(name, &NewNetwork::default(), &routed())?;
                self.network(name)?
            }
            found => found?,
        };
        self.bury(&network)?;
        let held = hold_ports(&network, ports)?;
        let address = network.choose(wanted.address, &self.members(&network)?)?;
        let member = Member { job: job.id().to_owned(), address, ports: ports.to_vec() };
        fs::write(hosts_file(job), hosts).map_err(at("write", &hosts_file(job)))?;
        write_json(&network.member(job.id()), &member)?;
        // From here on, dropping it takes back what was done.
        let mut attached = Attached {
            state: self.0.clone(),
            link: network.link(job.id(), address),
            hosts: hosts_file(job),
            network,
            job: job.id().to_owned(),
            changed: bridge::Changed::default(),
            _held: held,
        };
        match self.bring_up_to_date(&attached.network) {
            Ok(changed) => attached.changed = changed,
            Err(error) => {
                drop(lock);
                return Err(error);
            }
        }
        Ok(attached)
    }

    fn detach(&self, network: &Network, job: &str) -> Result<(), NetworkError> {
        let _lock = self.lock()?;
        network.forget(job)?;
        self.bring_up_to_date(network).map(|_| ())
    }
}

/// What the host has routes to now.
///
/// A host that doesn't say has none.
pub fn routed() -> Vec<Ipv4Net> {
    bridge::routed_networks(&fs::read_to_string("/proc/net/route").unwrap_or_default())
}

/// A network and its folder.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// What was asked for.
    pub config: NetworkConfig,
    folder: PathBuf,
}

impl Network {
    fn member(&self, job: &str) -> PathBuf {
        self.folder.join(format!("{job}.member"))
    }

    fn bridge(&self) -> Bridge {
        let NetworkConfig { id, subnet, gateway, internal, .. } = &self.config;
        let address = Ipv4Net::new_assert(*gateway, subnet.prefix_len());
        Bridge { name: format!("mica-{id}"), address, internal: *internal }
    }

    fn link(&self, job: &str, address: Ipv4Addr) -> Link {
        Link {
            bridge: self.bridge().name,
            name: interface(job),
            address: Ipv4Net::new_assert(address, self.config.subnet.prefix_len()),
            gateway: (!self.config.internal).then_some(self.config.gateway),
        }
    }

    fn choose(
        &self,
        wanted: Option<Ipv4Addr>,
        members: &[Member],
    ) -> Result<Ipv4Addr, NetworkError> {
        let NetworkConfig { subnet, gateway, .. } = self.config;
        let Some(address) = wanted else {
            let taken = members.iter().map(|member| member.address).chain([gateway]).collect();
            return free_address(subnet, &taken)
                .ok_or_else(|| NetworkError::Full(self.name.clone()));
        };
        if !is_host(subnet, address) || address == gateway {
            return Err(NetworkError::Address { address, name: self.name.clone() });
        }
        match members.iter().find(|member| member.address == address) {
            None => Ok(address),
            Some(member) => Err(NetworkError::AddressTaken { address, job: member.job.clone() }),
        }
    }

    /// Takes a job off. Its interface goes at once: the kernel takes its time with a dead job's network, in which two jobs
    /// would have one address.
    fn forget(&self, job: &str) -> Result<(), NetworkError> {
        bridge::remove_interface(&interface(job))?;
        let member = self.member(job);
        match fs::remove_file(&member) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(at("remove", &member)(error).into())
            }
            _ => Ok(()),
        }
    }
}

/// The host's end of a job's cable.
fn interface(job: &str) -> String {
    format!("m{job}")
}

fn hosts_file(job: &JobDir) -> PathBuf {
    job.path().join("hosts")
}

/// By what names others find a job: its own, that of its machine, its id, aliases.
fn names(job: &JobDir) -> Vec<String> {
    let mut names = Vec::new();
    if let Ok(config) = job.config() {
        names.extend(config.name);
        names.extend(config.spec.hostname);
        names.extend(config.network.into_iter().flat_map(|network| network.aliases));
    }
    names.push(job.id().to_owned());
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// A job that is on its network, until this is dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    state: StateDir,
    network: Network,
    job: String,
    /// How it is to be connected.
    pub(crate) link: Link,
    /// Its `/etc/hosts`.
    hosts: PathBuf,
    changed: bridge::Changed,
    /// Sockets on its published ports, so that nobody else takes them, and so that it is known if somebody has.
    _held: Vec<OwnedFd>,
}

impl Attached {
    /// Changes what the launcher is told.
    pub(crate) fn connect(&self, spec: &mut Spec) {
        spec.link = Some(self.link.clone());
        spec.files.retain(|file| !is_hosts(&file.target));
        spec.mounts.push(Mount::Bind {
            source: self.hosts.clone(),
            target: HOSTS.into(),
            read_only: false,
            recursive: true,
            follow: false,
        });
    }

    /// What of the host was changed for it.
    pub(crate) fn warning(&self) -> Option<&'static str> {
        self.changed.forwarding.then_some(
            "the host forwards packets between its networks from now on (net.ipv4.ip_forward was 0)",
        )
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // What fails here is done by the next command: the job is nobody's then.
        if let Err(error) = self.state.networks().detach(&self.network, &self.job) {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot take the job off its network"
            );
        }
    }
}

fn hold_ports(network: &Network, ports: &[PortForward]) -> Result<Vec<OwnedFd>, NetworkError> {
    if network.config.internal && !ports.is_empty() {
        return Err(NetworkError::Internal(network.name.clone()));
    }
    ports.iter().map(hold_port).collect()
}

fn hold_port(forward: &PortForward) -> Result<OwnedFd, NetworkError> {
    let address = match forward.address {
        None => Ipv4Addr::UNSPECIFIED,
        Some(IpAddr::V4(address)) => address,
        Some(address) => return Err(NetworkError::Version6(address)),
    };
    let kind = match forward.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let hold = || {
        let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrV4::new(address, forward.host))?;
        Ok(socket)
    };
    hold().map_err(|error: rustix::io::Errno| NetworkError::Port {
        port: forward.host,
        source: error.into(),
    })
}

/// Can a machine of this network have this address?
fn is_host(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

/// The lowest address that nobody has.
fn free_address(subnet: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    subnet.hosts().find(|address| !taken.contains(address))
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

fn check_subnet(subnet: Ipv4Net, taken: &[(Ipv4Net, String)]) -> Result<Ipv4Net, NetworkError> {
    // The gateway and a job, at least.
    if subnet.addr() != subnet.network() || !(8..=30).contains(&subnet.prefix_len()) {
        return Err(NetworkError::Subnet(subnet));
    }
    match taken.iter().find(|(other, _)| overlaps(subnet, *other)) {
        None => Ok(subnet),
        Some((_, other)) => Err(NetworkError::Overlap { subnet, other: other.clone() }),
    }
}

/// The first of 10.90.0.0/24, 10.90.1.0/24 … that nobody has.
fn free_subnet(taken: &[(Ipv4Net, String)]) -> Option<Ipv4Net> {
    let candidates = (0..=255).map(|n| Ipv4Net::new_assert(Ipv4Addr::new(10, 90, n, 0), 24));
    candidates.into_iter().find(|net| taken.iter().all(|(other, _)| !overlaps(*net, *other)))
}

const HOSTS: &str = "/etc/hosts";

/// The file that a job's `/etc/hosts` is made from, as the launcher is told of it.
pub(crate) fn is_hosts(target: &Path) -> bool {
    target == Path::new(HOSTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_do_not_overlap() {
        let taken =
            [(net("10.90.0.0/23"), "network a".to_owned()), (net("10.90.3.0/25"), "b".into())];
        assert_eq!(free_subnet(&taken), Some(net("10.90.2.0/24")));
        assert_eq!(free_subnet(&[(net("10.0.0.0/8"), String::new())]), None);
        for bad in ["10.90.1.0/24", "10.90.3.7/24", "10.0.0.0/8", "10.1.0.0/31"] {
            assert!(check_subnet(net(bad), &taken).is_err(), "{bad}");
        }
        assert!(check_subnet(net("10.90.3.128/25"), &taken).is_ok());
    }

    /// Whoever comes and goes: no two have the same address, and none is refused while one is free.
    #[test]
    fn addresses_are_given_once_and_come_back() {
        let subnet = net("10.1.0.0/29");
        let mut taken = BTreeSet::from([Ipv4Addr::new(10, 1, 0, 1)]);
        for last in 2..=6 {
            let address = free_address(subnet, &taken).unwrap();
            assert_eq!(address, Ipv4Addr::new(10, 1, 0, last));
            assert!(is_host(subnet, address) && taken.insert(address));
        }
        assert_eq!(free_address(subnet, &taken), None);
        taken.remove(&Ipv4Addr::new(10, 1, 0, 4));
        assert_eq!(free_address(subnet, &taken), Some(Ipv4Addr::new(10, 1, 0, 4)));
    }

    #[test]
    fn networks_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(root.path()).unwrap();
        let networks = state.networks();
        let name: NetworkName = "back".parse().unwrap();
        assert!(matches!(networks.find(&name), Err(NetworkError::Unknown(_))));
        let config = networks.create(&name, &NewNetwork::default(), &[]).unwrap();
        assert_eq!(
            (config.subnet, config.gateway),
            (net("10.90.0.0/24"), "10.90.0.1".parse().unwrap())
        );
        let again = networks.create(&name, &NewNetwork::default(), &[]);
        assert!(matches!(again, Err(NetworkError::Exists(_))));
        let other = NewNetwork { subnet: Some(net("10.90.0.128/25")), ..NewNetwork::default() };
        let other = networks.create(&"other".parse().unwrap(), &other, &[]);
        assert_eq!(
            other.unwrap_err().to_string(),
            "the subnet 10.90.0.128/25 overlaps network back"
        );
        assert_eq!(networks.find(&name).unwrap().config, config);
        for bad in ["", "host", "a/b", "none", "a b"] {
            assert!(bad.parse::<NetworkName>().is_err(), "{bad}");
        }
    }
}
