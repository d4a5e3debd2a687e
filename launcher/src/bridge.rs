//! Networks of jobs on one host: a bridge that is the jobs' gateway, and a packet filter of nftables.
//!
//! ```text
//! job: eth0 10.90.0.2 ══ m<id> ─┐
//! job: eth0 10.90.0.3 ══ m<id> ─┴─ bridge 10.90.0.1 ── the host's routing ── masquerade ── outside
//! ```
//!
//! Who is on which network, and with which address, is the caller's to know. Everything here may be done again at any
//! time: what is there stays, what is missing is made. IPv4 only.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::firewall;
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
    /// Nothing goes out.
    pub internal: bool,
}

/// A port of the host that leads to a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The ports.
    pub forward: PortForward,
    /// The job's address.
    pub job: Ipv4Addr,
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
                _ => None,
            },
            Self::Setting { .. } => Some(
                "jobs reach the outside only if the host forwards; as root: sysctl net.ipv4.ip_forward=1",
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
}

impl Bridge {
    /// Makes the bridge with its packet filter, or brings what is there up to date.
    ///
    /// # Errors
    /// No right to, or the kernel or `nft` refuses.
    pub fn set_up(&self, ports: &[Published]) -> Result<Changed, BridgeError> {
        let error =
            |source| BridgeError::Interface { what: "make", name: self.name.clone(), source };
        let mut links = Links::new().map_err(error)?;
        links.add_bridge(&self.name, self.address).map_err(error)?;
        firewall::apply(&firewall::replace(self, ports))
            .map_err(|source| BridgeError::Filter { name: self.name.clone(), source })?;
        if !ports.is_empty() {
            // For connections from the host's own loopback addresses; the filter keeps everybody else from using it.
            switch_on(format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.name))?;
        }
        let forwarding = !self.internal && switch_on("/proc/sys/net/ipv4/ip_forward".into())?;
        Ok(Changed { forwarding })
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

/// True if it was off.
fn switch_on(path: String) -> Result<bool, BridgeError> {
    let path = PathBuf::from(path);
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
}
