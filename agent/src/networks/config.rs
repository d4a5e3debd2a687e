//! What is written down about networks.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use mica_launcher::PortForward;
use serde::{Deserialize, Serialize};

use super::addresses::address6;
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
    /// It has addresses of IPv6, too.
    pub ipv6: bool,
    /// Those.
    pub subnet6: Option<Ipv6Net>,
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
    /// Its addresses of IPv6: a job and the host have the same number on it as of IPv4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet6: Option<Ipv6Net>,
    /// Jobs reach each other and nothing else.
    pub internal: bool,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: i64,
}

impl NetworkConfig {
    /// The address of IPv6 of whoever has this one.
    pub fn address6(&self, address: Ipv4Addr) -> Option<Ipv6Addr> {
        self.subnet6.map(|subnet6| address6(self.subnet, address, subnet6))
    }
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
    /// It may reach the host itself.
    #[serde(default)]
    pub host: bool,
    /// The name servers it was told.
    #[serde(default)]
    pub servers: Vec<IpAddr>,
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
    /// It wants to reach the host itself, and addresses of links and of cloud metadata.
    #[serde(default)]
    pub host: bool,
}
