//! One network: its folder, its bridge, who may have which address.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use mica_launcher::bridge::{self, Bridge, Connected, Link};

use super::addresses::{check_subnet, free_address, is_host};
use super::{MOST_SERVERS, Member, NetworkConfig, NetworkError, NetworkName};
use crate::files::{at, read_json};

/// A network and its folder.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// What was asked for.
    pub config: NetworkConfig,
    pub(super) folder: PathBuf,
}

/// How long the id of a network is, in hexadecimal digits.
pub(super) const ID: usize = 8;

/// The longest id of a job that fits in the name of an interface.
const LONGEST_JOB: usize = 14;

/// So many ports of a job are published at most.
const MOST_PORTS: usize = 1000;

impl Network {
    /// Reads what is written down about a network.
    pub(super) fn read(name: &NetworkName, folder: PathBuf) -> Result<Self, NetworkError> {
        let path = folder.join("network.json");
        match read_json::<NetworkConfig>(&path) {
            Ok(config) => match wrong_config(&config) {
                None => Ok(Self { name: name.clone(), folder, config }),
                Some(what) => Err(NetworkError::Document { path, what }),
            },
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Err(NetworkError::Unknown(name.clone()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The jobs that have a file here, whatever stands in it.
    pub(super) fn jobs(&self) -> Result<Vec<String>, NetworkError> {
        let entries = match fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            // The network was removed just now.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(at("list", &self.folder)(error).into()),
        };
        let mut jobs = Vec::new();
        for entry in entries {
            let name = entry.map_err(at("list", &self.folder))?.file_name();
            jobs.extend(name.to_str().and_then(|name| name.strip_suffix(".member")).and_then(
                |job| {
                    let good = job.bytes().all(|byte| byte.is_ascii_alphanumeric());
                    (good && (1..=LONGEST_JOB).contains(&job.len())).then(|| job.to_owned())
                },
            ));
        }
        Ok(jobs)
    }

    /// What is written down about a job on the network; `None` if it has left.
    pub(super) fn read_member(&self, job: &str) -> Result<Option<Member>, NetworkError> {
        let path = self.member(job);
        let member: Member = match read_json(&path) {
            Ok(member) => member,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let NetworkConfig { subnet, gateway, .. } = self.config;
        let what = if member.job != job {
            "it is another job's"
        } else if !is_host(subnet, member.address) || member.address == gateway {
            "its address is not one of the network's for jobs"
        } else if member.ports.len() > MOST_PORTS || member.servers.len() > MOST_SERVERS {
            "there are too many ports or name servers"
        } else {
            return Ok(Some(member));
        };
        Err(NetworkError::Document { path, what })
    }

    pub(super) fn member(&self, job: &str) -> PathBuf {
        self.folder.join(format!("{job}.member"))
    }

    pub(super) fn bridge(&self) -> Bridge {
        let NetworkConfig { id, subnet, gateway, internal, .. } = &self.config;
        let address = Ipv4Net::new_assert(*gateway, subnet.prefix_len());
        let address6 = self.on_network6(*gateway);
        Bridge { name: format!("mica-{id}"), address, address6, internal: *internal }
    }

    /// The address of IPv6 of whoever has this one, with the length of the prefix.
    fn on_network6(&self, address: Ipv4Addr) -> Option<Ipv6Net> {
        let length = self.config.subnet6?.prefix_len();
        Some(Ipv6Net::new_assert(self.config.address6(address)?, length))
    }

    pub(super) fn link(&self, job: &str, address: Ipv4Addr) -> Link {
        let gateway = (!self.config.internal).then_some(self.config.gateway);
        Link {
            bridge: self.bridge().name,
            name: interface(job),
            address: Ipv4Net::new_assert(address, self.config.subnet.prefix_len()),
            gateway,
            address6: self.on_network6(address),
            gateway6: gateway.and_then(|gateway| self.config.address6(gateway)),
        }
    }

    /// A job on the network, as the launcher knows it.
    pub(super) fn connected(&self, member: &Member) -> Connected {
        Connected {
            interface: interface(&member.job),
            address: member.address,
            address6: self.config.address6(member.address),
            host: member.host,
            servers: member.servers.clone(),
            ports: member.ports.clone(),
        }
    }

    pub(super) fn choose(
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
    pub(super) fn forget(&self, job: &str) -> Result<(), NetworkError> {
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

/// What is wrong with what is written down about a network, if anything is. Names of interfaces and rules are made of it.
fn wrong_config(config: &NetworkConfig) -> Option<&'static str> {
    let NetworkConfig { id, subnet, gateway, subnet6, .. } = config;
    if id.len() != ID || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Some("its id is not one");
    }
    if check_subnet(*subnet, &[]).is_err() || !is_host(*subnet, *gateway) {
        return Some("its addresses are none for a network");
    }
    if subnet6.is_some_and(|subnet6| check_subnet(subnet6, &[]).is_err()) {
        return Some("its IPv6 addresses are none for a network");
    }
    None
}

/// The host's end of a job's cable.
fn interface(job: &str) -> String {
    format!("m{job}")
}
