//! Bridge networks: which there are, and which job has which address. Files and a lock; the kernel's side of it is
//! [`mica_launcher::bridge`]'s.
//!
//! ```text
//! networks.lock                    held while any of this is changed
//! networks/<name>/network.json     what was asked for
//!                 <job>.member     a job's address and published ports, while it runs
//! jobs/<job>/hosts                 the job's /etc/hosts: who else is on its network; see the module `hosts`
//! ```
//!
//! A member counts while its job is owned (see [`StateDir`]); the address of one whose supervisor was killed is free
//! for whoever comes next. The bridge is there while the network has members.

mod addresses;
mod attached;
mod config;
mod error;
mod hosts;
mod network;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use mica_launcher::bridge::{self, Connected};
use mica_launcher::{PortForward, is_host_name};

use self::addresses::{check_subnet, free_subnet, is_host, own_subnet6};
use self::attached::hold_ports;
pub(crate) use self::attached::{Attached, is_hosts};
pub use self::config::{Attachment, Member, NetworkConfig, NetworkName, NewNetwork};
pub use self::error::NetworkError;
use self::hosts::Hosts;
use self::network::ID;
pub use self::network::Network;
use crate::files::{FileError, Lock, PATIENCE, at, create_private_dir, write_json};
use crate::state::{JobDir, StateDir, new_id, now_ms};
use crate::volumes::is_name;

/// So many names has a job on its network at most.
const MOST_NAMES: usize = 100;

/// So many name servers a job is told at most; programs look at three.
const MOST_SERVERS: usize = 8;

/// The networks of a state directory.
#[derive(Debug)]
pub struct Networks<'a>(pub(crate) &'a StateDir);

impl Networks<'_> {
    fn folder(&self) -> PathBuf {
        self.0.root().join("networks")
    }

    fn lock(&self) -> Result<Lock, FileError> {
        Lock::exclusive(&self.lock_path(), PATIENCE)
    }

    fn lock_path(&self) -> PathBuf {
        self.0.root().join("networks.lock")
    }

    fn network(&self, name: &NetworkName) -> Result<Network, NetworkError> {
        let folder = self.folder().join(name.as_str());
        Network::read(name, folder)
    }

    /// Makes a network. `routed` is what the host has routes to.
    ///
    /// # Errors
    /// The name or the addresses are taken, or make no sense.
    pub fn create(
        &self,
        name: &NetworkName,
        wanted: &NewNetwork,
        routed: &[IpNet],
    ) -> Result<NetworkConfig, NetworkError> {
        create_private_dir(&self.folder())?;
        let _lock = self.lock()?;
        self.create_locked(name, wanted, routed)
    }

    fn create_locked(
        &self,
        name: &NetworkName,
        wanted: &NewNetwork,
        routed: &[IpNet],
    ) -> Result<NetworkConfig, NetworkError> {
        let networks = self.list()?;
        if networks.iter().any(|network| network.name == *name) {
            return Err(NetworkError::Exists(name.clone()));
        }
        let of = |network: &Network| {
            let NetworkConfig { subnet, subnet6, .. } = network.config;
            let name = format!("network {}", network.name);
            let nets = [Some(subnet.into()), subnet6.map(IpNet::V6)];
            nets.into_iter().flatten().map(move |net| (net, name.clone()))
        };
        let taken: Vec<(IpNet, String)> = networks
            .iter()
            .flat_map(of)
            .chain(routed.iter().map(|net| (*net, format!("the host's route to {net}"))))
            .collect();
        let subnet = match wanted.subnet {
            Some(subnet) => check_subnet(subnet, &taken)?,
            None => free_subnet(&taken).ok_or(NetworkError::NoSubnet)?,
        };
        let gateway = match wanted.gateway {
            None => subnet.hosts().next().ok_or(NetworkError::Subnet(subnet.into()))?,
            Some(gateway) if is_host(subnet, gateway) => gateway,
            Some(address) => return Err(NetworkError::Address { address, name: name.clone() }),
        };
        let mut id = new_id();
        let subnet6 = match wanted.subnet6 {
            Some(subnet6) => Some(check_subnet(subnet6, &taken)?),
            None if wanted.ipv6 => {
                let chance = u64::from_str_radix(&id, 16).unwrap_or_default();
                Some(check_subnet(own_subnet6(chance), &taken)?)
            }
            None => None,
        };
        id.truncate(ID);
        if networks.iter().any(|network| network.config.id == id) {
            // One in four thousand million, and then the next time.
            return Err(NetworkError::Chance);
        }
        let internal = wanted.internal;
        let config = NetworkConfig { id, subnet, gateway, subnet6, internal, created_ms: now_ms() };
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
        let _lock = self.lock()?;
        let network = self.network(name)?;
        self.bury(&network)?;
        if let Some(member) = self.members(&network)?.into_iter().next() {
            return Err(NetworkError::InUse { name: name.clone(), job: member.job });
        }
        network.bridge().take_down()?;
        Ok(mica_durable::remove_tree(&network.folder).map(drop)?)
    }

    /// Frees what jobs had whose supervisor was killed.
    pub(crate) fn reconcile(&self) -> Result<(), NetworkError> {
        for network in self.list()? {
            // Without the lock, as nearly always there is nothing to do.
            let (live, dead) = self.sort_out(&network)?;
            if !dead.is_empty() || live.is_empty() {
                // Whoever holds the lock changes a network: that's as good, or for the next command to do.
                let Some(_lock) = Lock::try_exclusive(&self.lock_path())? else { return Ok(()) };
                match self.network(&network.name) {
                    Err(NetworkError::Unknown(_)) => continue,
                    network => {
                        let network = network?;
                        self.bury(&network)?;
                        self.bring_up_to_date(&network)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the jobs of a network their names anew.
    pub(crate) fn refresh(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let _lock = self.lock()?;
        let network = self.network(name)?;
        self.write_hosts(&network, &self.members(&network)?);
        Ok(())
    }

    /// The members that run, and the jobs that don't any more.
    fn sort_out(&self, network: &Network) -> Result<(Vec<Member>, Vec<String>), NetworkError> {
        let (mut live, mut dead) = (Vec::new(), Vec::new());
        for job in network.jobs()? {
            let folder = self.0.job(&job);
            // Of a job whose folder is gone nobody can say that somebody owns it.
            let owned = folder.path().is_dir() && folder.is_owned();
            match network.read_member(&job) {
                Ok(Some(member)) if owned => live.push(member),
                Err(error) if owned => return Err(error),
                // It left just now.
                Ok(None) => {}
                // Whatever is written there, nobody has it.
                Ok(Some(_)) | Err(_) => dead.push(job),
            }
        }
        live.sort_by_key(|member: &Member| member.address);
        Ok((live, dead))
    }

    /// Forgets the dead. The caller holds the lock.
    fn bury(&self, network: &Network) -> Result<(), NetworkError> {
        for job in self.sort_out(network)?.1 {
            network.forget(&job)?;
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
        let jobs: Vec<Connected> = members.iter().map(|member| network.connected(member)).collect();
        let changed = network.bridge().set_up(&jobs)?;
        self.write_hosts(network, &members);
        Ok(changed)
    }

    /// A job that can't be told goes on with what it knows.
    fn write_hosts(&self, network: &Network, members: &[Member]) {
        let mut entries: Vec<(IpAddr, Vec<String>)> = Vec::new();
        let mut bases = Vec::new();
        for member in members {
            let (names, base) = told(&self.0.job(&member.job));
            bases.push(base);
            let six = network.config.address6(member.address);
            entries.extend(six.map(|address| (address.into(), names.clone())));
            entries.push((member.address.into(), names));
        }
        for (member, base) in members.iter().zip(bases) {
            let path = hosts::path(&self.0.job(&member.job));
            if let Err(error) = hosts::update(&path, &base, &entries) {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot tell a job who is on its network"
                );
            }
        }
    }

    /// Puts a job, which the caller owns, on its network.
    pub(crate) fn attach(
        &self,
        job: &JobDir,
        wanted: &Attachment,
        ports: &[PortForward],
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
        if wanted.host && network.config.internal {
            return Err(NetworkError::InternalHost(network.name));
        }
        let member = Member {
            job: job.id().to_owned(),
            address,
            ports: ports.to_vec(),
            host: wanted.host,
            servers: servers(job),
        };
        let hosts = Hosts::create(job)?;
        write_json(&network.member(job.id()), &member)?;
        // From here on, dropping it takes back what was done.
        let mut attached = Attached {
            state: self.0.clone(),
            link: network.link(job.id(), address),
            hosts,
            network,
            job: job.id().to_owned(),
            changed: bridge::Changed::default(),
            _held: held,
        };
        let result = self.bring_up_to_date(&attached.network);
        // What takes it back needs the lock.
        drop(lock);
        attached.changed = result?;
        attached.hosts.seal()?;
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
pub fn routed() -> Vec<IpNet> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let four = bridge::routed_networks(&read("/proc/net/route")).into_iter().map(IpNet::V4);
    let six = bridge::routed_networks6(&read("/proc/net/ipv6_route")).into_iter().map(IpNet::V6);
    four.chain(six).collect()
}

/// The name servers that a job is told.
fn servers(job: &JobDir) -> Vec<IpAddr> {
    let files = job.config().map(|config| config.spec.files).unwrap_or_default();
    let file = files.iter().find(|file| file.target == Path::new("/etc/resolv.conf"));
    let server = |line: &str| line.strip_prefix("nameserver")?.trim().parse().ok();
    let text = file.map_or("", |file| file.content.as_str());
    text.lines().filter_map(server).take(MOST_SERVERS).collect()
}

/// By what names others find a job (its own, that of its machine, its id, aliases), and what its `/etc/hosts` begins with.
fn told(job: &JobDir) -> (Vec<String>, String) {
    let mut names = Vec::new();
    let mut base = String::new();
    if let Ok(config) = job.config() {
        names.extend(config.name);
        names.extend(config.spec.hostname);
        names.extend(config.network.into_iter().flat_map(|network| network.aliases));
        let given = config.spec.files.into_iter().find(|file| is_hosts(&file.target));
        base = given.map(|file| file.content).unwrap_or_default();
    }
    names.push(job.id().to_owned());
    let mut seen = BTreeSet::new();
    // The names of jobs may have `_`, too. Whatever else stands in a file of a job's doesn't get into those of others.
    names.retain(|name| (is_host_name(name) || is_name(name)) && seen.insert(name.clone()));
    names.truncate(MOST_NAMES);
    (names, base)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> ipnet::Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn networks_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(&root.path().join("state")).unwrap();
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

    /// Whoever wrote them: names of interfaces, paths and rules come from checked values, and nothing is read without end.
    #[test]
    fn documents_that_make_no_sense_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let state = StateDir::open(&root.path().join("state")).unwrap();
        let networks = state.networks();
        let name: NetworkName = "back".parse().unwrap();
        let config = networks.create(&name, &NewNetwork::default(), &[]).unwrap();
        let folder = networks.folder().join("back");
        let (document, good) =
            (folder.join("network.json"), serde_json::to_value(&config).unwrap());
        let refused = || networks.find(&name).is_err() && networks.list().is_err();
        for (key, value) in [
            ("id", "../../../x"),
            ("id", "0123456\""),
            ("id", ""),
            ("gateway", "10.91.0.1"),
            ("gateway", "1.0.0.1"),
            ("subnet", "10.90.0.7/24"),
            ("subnet", "10.90.0.0/32"),
            ("subnet6", "fd00::/127"),
        ] {
            let mut bad = good.clone();
            bad[key] = value.into();
            fs::write(&document, bad.to_string()).unwrap();
            assert!(refused(), "{key} {value}");
        }
        fs::write(&document, "[".repeat(1 << 20)).unwrap();
        assert!(refused());
        fs::File::create(&document).unwrap().set_len(1 << 40).unwrap();
        assert!(refused());
        fs::remove_file(&document).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &document).unwrap();
        assert!(refused());
        fs::remove_file(&document).unwrap();
        fs::write(&document, good.to_string()).unwrap();

        let network = networks.find(&name).unwrap();
        for (job, text) in [
            ("0123456789ab", r#"{"job": "0123456789ac", "address": "10.90.0.2", "ports": []}"#),
            ("0123456789ab", r#"{"job": "0123456789ab", "address": "1.90.0.2", "ports": []}"#),
            ("0123456789ab", r#"{"job": "0123456789ab", "address": "10.90.0.1", "ports": []}"#),
            ("0123456789ab", "nothing"),
        ] {
            fs::write(network.member(job), text).unwrap();
            network.read_member(job).unwrap_err();
            // Of a job that nobody owns it is rubbish, and no two jobs trip over it.
            assert_eq!(networks.sort_out(&network).unwrap().1, [job]);
        }
        fs::write(folder.join("a\nb.member"), "").unwrap();
        fs::write(folder.join(format!("{}.member", "x".repeat(20))), "").unwrap();
        assert_eq!(network.jobs().unwrap(), ["0123456789ab"]);
    }
}
