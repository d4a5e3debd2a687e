//! Networks of jobs on one host: a bridge that is the jobs' gateway, and a packet filter of nftables.
//!
//! ```text
//! job: eth0 10.90.0.2 ══ m<id> ─┐
//! job: eth0 10.90.0.3 ══ m<id> ─┴─ bridge 10.90.0.1 ── the host's routing ── masquerade ── outside
//! ```
//!
//! Who is on which network, and with which address, is the caller's to know. Everything here may be done again at any
//! time: what is there stays, what is missing is made. A network has IPv4, and IPv6 beside it where that was asked for.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use crate::firewall;
use crate::forwarding;
use crate::links::Links;
use crate::spec::PortForward;

/// The interface of a job on a bridge.
pub(crate) const INNER: &str = "eth0";

/// A network, as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bridge {
    /// Of the interface, and of the table of its packet filter; at most 15 characters.
    pub name: String,
    /// The host's own address on it, with the length of the network's prefix.
    pub address: Ipv4Net,
    /// The same of IPv6.
    pub address6: Option<Ipv6Net>,
    /// Nothing goes out.
    pub internal: bool,
}

/// A job on a network, as the host's packet filter knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// The host's end of its cable.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// The same of IPv6.
    pub address6: Option<Ipv6Addr>,
    /// It may reach the host, and addresses of links and of cloud metadata.
    pub host: bool,
    /// Name servers that it was told, which it may ask wherever they are.
    pub servers: Vec<IpAddr>,
    /// Ports of the host that lead to it.
    pub ports: Vec<PortForward>,
}

impl Connected {
    /// Its addresses.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        [IpAddr::V4(self.address)].into_iter().chain(self.address6.map(IpAddr::V6))
    }
}

/// How a job is connected; for [`crate::Network::Bridge`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// The bridge, which [`Bridge::set_up`] has made.
    pub bridge: String,
    /// The host's end of the job's cable; at most 15 characters.
    pub name: String,
    /// The job's address, with the length of the network's prefix.
    pub address: Ipv4Net,
    /// Where everything else is found; `None`: nowhere.
    pub gateway: Option<Ipv4Addr>,
    /// The job's address of IPv6.
    #[serde(default)]
    pub address6: Option<Ipv6Net>,
    /// As `gateway`.
    #[serde(default)]
    pub gateway6: Option<Ipv6Addr>,
}

impl Link {
    /// Its addresses, each with its gateway.
    pub(crate) fn addresses(&self) -> Vec<(IpNet, Option<IpAddr>)> {
        let six = self.address6.map(|address| (address.into(), self.gateway6.map(IpAddr::V6)));
        [(self.address.into(), self.gateway.map(IpAddr::V4))].into_iter().chain(six).collect()
    }
}

/// A network that can't be made.
#[derive(Debug, thiserror::Error)]
pub enum BridgeError {
    /// The kernel refused an interface.
    #[error("cannot {what} the interface {name}")]
    Interface {
        /// What was tried.
        what: &'static str,
        /// The interface.
        name: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// `nft` is missing, or refused the rules.
    #[error("cannot set the packet filter of {name}")]
    Filter {
        /// The table.
        name: String,
        /// The reason.
        source: io::Error,
    },
    /// A setting of the host's that may not be changed.
    #[error("cannot write {}", .path.display())]
    Setting {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl BridgeError {
    /// What the caller could do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Filter { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("install the package nftables, which has the program nft")
            }
            Self::Interface { source, .. } => match source.raw_os_error() {
                Some(libc::EPERM) => Some(
                    "bridge networks need root (CAP_NET_ADMIN); --network private does without",
                ),
                Some(libc::EOPNOTSUPP) => {
                    Some("the kernel lacks bridges or veth; as root: modprobe bridge veth")
                }
                Some(libc::EACCES) => Some(
                    "the network has IPv6 addresses, and IPv6 is switched off here (net.ipv6.conf.all.disable_ipv6)",
                ),
                _ => None,
            },
            Self::Setting { .. } => Some(
                "jobs reach the outside only if the host forwards; as root: sysctl net.ipv4.ip_forward=1, and net.ipv6.conf.all.forwarding=1 for IPv6",
            ),
            Self::Filter { .. } => None,
        }
    }
}

/// What of the host had to be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// The host did not forward packets between its interfaces, and does now.
    pub forwarding: bool,
    /// The same of IPv6.
    pub forwarding6: bool,
}

impl Bridge {
    /// Makes the bridge with its packet filter, or brings what is there up to date.
    ///
    /// # Errors
    /// No right to, or the kernel or `nft` refuses.
    pub fn set_up(&self, jobs: &[Connected]) -> Result<Changed, BridgeError> {
        let error =
            |source| BridgeError::Interface { what: "make", name: self.name.clone(), source };
        let mut links = Links::new().map_err(error)?;
        links.add_bridge(&self.name, self.address).map_err(error)?;
        self.set_up_version6(&mut links)?;
        firewall::apply(&firewall::replace(self, jobs, connections()))
            .map_err(|source| BridgeError::Filter { name: self.name.clone(), source })?;
        if jobs.iter().any(|job| !job.ports.is_empty()) {
            // For connections from the host's own loopback addresses; the filter keeps everybody else from using it.
            switch_on(format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.name).into())?;
        }
        if self.internal {
            return Ok(Changed::default());
        }
        forwarding::switch_on(self.address6.is_some())
    }

    /// The host believes no job that says it is a router; where jobs have no IPv6 the filter lets none of it through.
    fn set_up_version6(&self, links: &mut Links) -> Result<(), BridgeError> {
        let Some(address) = self.address6 else { return Ok(()) };
        let path = version6(&self.name, "accept_ra");
        set_where_it_is(&path, "0")
            .map_err(|source| BridgeError::Setting { path: path.clone(), source })?;
        links.add_address_to(&self.name, address.into()).map_err(|source| BridgeError::Interface {
            what: "give an IPv6 address to",
            name: self.name.clone(),
            source,
        })
    }

    /// Removes the bridge and its packet filter.
    ///
    /// # Errors
    /// As for [`Bridge::set_up`]; what is not there is no error.
    pub fn take_down(&self) -> Result<(), BridgeError> {
        let error =
            |source| BridgeError::Interface { what: "find", name: self.name.clone(), source };
        if Links::new().and_then(|links| links.exists(&self.name)).map_err(error)? {
            // In this order: as long as there is a bridge, a later try comes back to both.
            match firewall::apply(&firewall::remove(&self.name)) {
                // Whoever lacks the program has made no rules.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => result
                    .map_err(|source| BridgeError::Filter { name: self.name.clone(), source })?,
            }
            if !self.internal {
                forwarding::take_back(&self.name)?;
            }
            remove_interface(&self.name)?;
        }
        Ok(())
    }
}

/// Removes the host's end of a job's cable, and with it the other end; true if it was there.
///
/// # Errors
/// The kernel refuses.
pub fn remove_interface(name: &str) -> Result<bool, BridgeError> {
    let error = |source| BridgeError::Interface { what: "remove", name: name.to_owned(), source };
    Links::new().and_then(|mut links| links.remove(name)).map_err(error)
}

/// The networks that the host has routes to, by the text of `/proc/net/route`.
pub fn routed_networks(text: &str) -> Vec<Ipv4Net> {
    let number = |word: &str| u32::from_str_radix(word, 16).ok().map(u32::from_be);
    let network = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let (destination, mask) = (number(words.get(1)?)?, number(words.get(7)?)?);
        let network = Ipv4Net::with_netmask(destination.into(), mask.into()).ok()?;
        // Everything else: that's no network.
        (network.prefix_len() > 0).then_some(network)
    };
    text.lines().skip(1).filter_map(network).collect()
}

/// The same of IPv6, by the text of `/proc/net/ipv6_route`.
pub fn routed_networks6(text: &str) -> Vec<Ipv6Net> {
    let network = |line: &str| {
        let words: Vec<_> = line.split_whitespace().collect();
        let address = u128::from_str_radix(words.first()?, 16).ok()?;
        let length = u8::from_str_radix(words.get(1)?, 16).ok()?;
        let network = Ipv6Net::new(address.into(), length).ok()?;
        // Nor what every interface has.
        let first = network.addr().segments()[0];
        let everywhere = network.addr().is_multicast() || first & 0xffc0 == 0xfe80;
        (network.prefix_len() > 0 && !everywhere).then_some(network)
    };
    text.lines().filter_map(network).collect()
}

/// Where a setting of IPv6 is kept, for an interface.
pub(crate) fn version6(interface: &str, setting: &str) -> PathBuf {
    PathBuf::from(format!("/proc/sys/net/ipv6/conf/{interface}/{setting}"))
}

/// Changes a setting, if the kernel has it.
pub(crate) fn set_where_it_is(path: &Path, value: &str) -> io::Result<()> {
    match fs::write(path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// How many connections the host keeps track of at most; a host that doesn't say tracks few.
fn connections() -> u64 {
    let text = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max").unwrap_or_default();
    text.trim().parse().unwrap_or(65_536)
}

/// True if it was off.
pub(crate) fn switch_on(path: PathBuf) -> Result<bool, BridgeError> {
    let read = |source| BridgeError::Setting { path: path.clone(), source };
    if fs::read_to_string(&path).map_err(read)?.trim() != "0" {
        return Ok(false);
    }
    fs::write(&path, "1").map_err(|source| BridgeError::Setting { path: path.clone(), source })?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nbroken line\n";
        assert_eq!(routed_networks(text), ["192.168.2.0/24".parse::<Ipv4Net>().unwrap()]);
    }

    #[test]
    fn routes_of_version_6() {
        let route = |net: &str, length: &str| {
            format!(
                "{net} {length} {0} 00 {0} 00000100 00000001 00000000 00000001     eth0\n",
                "0".repeat(32)
            )
        };
        let text = route("fd000000000000000000000000000000", "40")
            + &route("fe800000000000000000000000000000", "40")
            + &route("ff000000000000000000000000000000", "08")
            + &route("00000000000000000000000000000000", "00")
            + "broken\n";
        assert_eq!(routed_networks6(&text), ["fd00::/64".parse::<Ipv6Net>().unwrap()]);
    }
}
