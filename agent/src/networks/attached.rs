//! A job's place on its network while it runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;

use mica_launcher::bridge::{Changed, Link};
use mica_launcher::{Mount, PortForward, Protocol, Spec};
use rustix::net::sockopt::set_ipv6_v6only;
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use super::hosts::Hosts;
use super::{Network, NetworkError};
use crate::state::StateDir;

const HOSTS: &str = "/etc/hosts";

/// The file that a job's `/etc/hosts` is made from, as the launcher is told of it.
pub(crate) fn is_hosts(target: &Path) -> bool {
    target == Path::new(HOSTS)
}

/// A job that is on its network, until this is dropped.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(super) state: StateDir,
    pub(super) network: Network,
    pub(super) job: String,
    /// How it is to be connected.
    pub(crate) link: Link,
    /// Its `/etc/hosts`.
    pub(super) hosts: Hosts,
    pub(super) changed: Changed,
    /// Sockets on its published ports, so that nobody else takes them, and so that it is known if somebody has.
    pub(super) _held: Vec<OwnedFd>,
}

impl Attached {
    /// Changes what the launcher is told.
    pub(crate) fn connect(&self, spec: &mut Spec) {
        spec.link = Some(self.link.clone());
        spec.files.retain(|file| !is_hosts(&file.target));
        // A job that was given a file of its own goes by that.
        if spec.mounts.iter().any(|mount| is_hosts(mount.target())) {
            return;
        }
        // It lies in the job's folder, which is hidden from jobs otherwise.
        spec.hidden.but.push(self.hosts.path().to_owned());
        spec.mounts.push(Mount::Bind {
            source: self.hosts.path().to_owned(),
            target: HOSTS.into(),
            read_only: true,
            recursive: true,
            follow: false,
            ids: None,
        });
    }

    /// What of the host was changed for it.
    pub(crate) fn warnings(&self) -> impl Iterator<Item = String> {
        let Changed { forwarding, forwarding6 } = self.changed;
        let settings = [
            forwarding.then_some("net.ipv4.ip_forward"),
            forwarding6.then_some("net.ipv6.conf.all.forwarding"),
        ];
        settings.into_iter().flatten().map(|setting| {
            format!(
                "the host forwards packets between its networks while there are jobs on bridge networks ({setting} was 0)"
            )
        })
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

pub(super) fn hold_ports(
    network: &Network,
    ports: &[PortForward],
) -> Result<Vec<OwnedFd>, NetworkError> {
    if network.config.internal && !ports.is_empty() {
        return Err(NetworkError::Internal(network.name.clone()));
    }
    let six = network.config.subnet6.is_some();
    let mut held = Vec::new();
    for forward in ports {
        let addresses = match forward.address {
            Some(address) if address.is_ipv6() && !six => {
                return Err(NetworkError::Version6 { address, name: network.name.clone() });
            }
            Some(IpAddr::V6(Ipv6Addr::LOCALHOST)) => return Err(NetworkError::Loopback6),
            Some(address) => vec![address],
            None if six => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
            None => vec![Ipv4Addr::UNSPECIFIED.into()],
        };
        for address in addresses {
            held.push(hold_port(forward, address)?);
        }
    }
    Ok(held)
}

fn hold_port(forward: &PortForward, address: IpAddr) -> Result<OwnedFd, NetworkError> {
    let family = if address.is_ipv6() { AddressFamily::INET6 } else { AddressFamily::INET };
    let kind = match forward.protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let hold = || {
        let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
        if address.is_ipv6() {
            set_ipv6_v6only(&socket, true)?;
        }
        bind(&socket, &SocketAddr::new(address, forward.host))?;
        Ok(socket)
    };
    hold().map_err(|error: rustix::io::Errno| NetworkError::Port {
        port: forward.host,
        source: error.into(),
    })
}
