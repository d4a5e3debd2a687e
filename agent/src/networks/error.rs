//! What can't be done about networks.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use ipnet::IpNet;
use mica_launcher::bridge::BridgeError;

use super::NetworkName;
use crate::files::FileError;

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
        subnet: IpNet,
        /// Whose addresses they are.
        other: String,
    },
    /// Too small, or with bits of a host.
    #[error("{0} is no subnet for jobs")]
    Subnet(IpNet),
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
    /// Nor can its jobs reach the host.
    #[error("network {0} is internal: its jobs cannot reach the host")]
    InternalHost(NetworkName),
    /// Nothing of IPv6 can lead to its jobs.
    #[error("ports of {address} cannot be published: network {name} has no IPv6 addresses")]
    Version6 {
        /// The host's address.
        address: IpAddr,
        /// The network.
        name: NetworkName,
    },
    /// The kernel finds no way back for what comes from there.
    #[error("ports of ::1 cannot be published on a bridge network")]
    Loopback6,
    /// Another job or a program of the host's has the port.
    #[error("cannot publish the port {port}")]
    Port {
        /// The host's.
        port: u16,
        /// Why.
        source: std::io::Error,
    },
    /// What stands in the file of a network or of a job on it makes no sense.
    #[error("{} is not what was written there: {what}", path.display())]
    Document {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// Two networks drew the same number.
    #[error("another network has the same number by chance; try again")]
    Chance,
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
            Self::Version6 { .. } => "`mica network create --ipv6` makes one that has",
            Self::Loopback6 => "publish them on 127.0.0.1, or on another address of the host's",
            Self::Port { .. } => {
                "another job or a program of the host's has it; publish another one"
            }
            Self::Bridge(error) => return error.hint(),
            _ => return None,
        })
    }
}
