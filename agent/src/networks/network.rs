//! One network: its folder, its bridge, who may have which address.

use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::{Ipv4Net, Ipv6Net};
use mica_launcher::bridge::{self, Bridge, Link};

use super::addresses::{free_address, is_host};
use super::{Member, NetworkConfig, NetworkError, NetworkName};
use crate::files::at;

/// A network and its folder.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// What was asked for.
    pub config: NetworkConfig,
    pub(super) folder: PathBuf,
}

impl Network {
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

/// The host's end of a job's cable.
fn interface(job: &str) -> String {
    format!("m{job}")
}
