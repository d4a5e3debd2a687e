//! Network interfaces, by netlink: requests and the kernel's answers, nothing about jobs.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoBridgePort, InfoData, InfoKind, InfoPortData, InfoPortKind, InfoVeth, LinkAttribute,
    LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily as Family, RecvFlags, SendFlags, SocketFlags, SocketType, netdevice, recv,
    sendto, socket_with,
};
use rustix::process::Pid;

/// A conversation with the kernel about the network of this process.
pub(crate) struct Links {
    socket: OwnedFd,
    sequence: u32,
}

/// The first answer to a request is short: an error with the request's header.
const ANSWER: usize = 8 << 10;

/// A host of a bridge has a hardware address that follows from its own, so what neighbours remember stays true when an
/// address is given to another job.
pub(crate) fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    // Locally administered, not a group's.
    [0x02, 0x6d, a, b, c, d]
}

/// The address of IPv6 that an interface has by itself, by its hardware address (RFC 4291, appendix A).
pub(crate) fn link_local(hardware: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = hardware;
    let [one, two] = [0xff, 0xfe];
    let tail = u64::from_be_bytes([a ^ 2, b, c, one, two, d, e, f]);
    Ipv6Addr::from((0xfe80 << 112) | u128::from(tail))
}

impl Links {
    pub(crate) fn new() -> io::Result<Self> {
        let socket = socket_with(
            Family::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None, // protocol 0 is routing's
        )?;
        Ok(Self { socket, sequence: 0 })
    }

    /// The number of an interface.
    fn index(&self, name: &str) -> io::Result<u32> {
        Ok(netdevice::name_to_index(&self.socket, name)?)
    }

    pub(crate) fn exists(&self, name: &str) -> io::Result<bool> {
        match netdevice::name_to_index(&self.socket, name) {
            Ok(_) => Ok(true),
            Err(Errno::NODEV) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes a bridge, if it isn't there, gives it an address and brings it up.
    pub(crate) fn add_bridge(&mut self, name: &str, network: Ipv4Net) -> io::Result<()> {
        let mut bridge = up(named(name));
        bridge.attributes.extend([
            LinkAttribute::Address(hardware_address(network.addr()).to_vec()),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]),
        ]);
        existing(self.create(RouteNetlinkMessage::NewLink(bridge)))?;
        self.add_address_to(name, network.into())
    }

    /// Gives an interface an address, if it doesn't have it.
    pub(crate) fn add_address_to(&mut self, name: &str, network: IpNet) -> io::Result<()> {
        let index = self.index(name)?;
        self.add_address(index, network)
    }

    /// Makes a pair of interfaces: `name`, a port of the bridge, and `inner` in the network of the process `pid`.
    pub(crate) fn add_pair(
        &mut self,
        name: &str,
        bridge: &str,
        inner: &str,
        address: Ipv4Addr,
        pid: Pid,
    ) -> io::Result<()> {
        let mut peer = named(inner);
        peer.attributes.extend([
            LinkAttribute::Address(hardware_address(address).to_vec()),
            LinkAttribute::NetNsPid(pid.as_raw_nonzero().get().unsigned_abs()),
        ]);
        let mut outer = up(named(name));
        outer.attributes.extend([
            LinkAttribute::Controller(self.index(bridge)?),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
            ]),
        ]);
        self.create(RouteNetlinkMessage::NewLink(outer))?;
        // A job that connects to its own published port gets its packets back through the same port of the bridge. Where
        // the job is, the bridge is told: it would believe anybody.
        let mut port = named(name);
        port.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![
                InfoBridgePort::HairpinMode(true),
                InfoBridgePort::Learning(false),
            ])),
        ]));
        self.request(RouteNetlinkMessage::NewLink(port), 0)?;
        self.add_neighbour(name, hardware_address(address))
    }

    /// Tells the bridge that has this port who is there.
    fn add_neighbour(&mut self, port: &str, hardware: [u8; 6]) -> io::Result<()> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = self.index(port)?;
        message.header.state = NeighbourState::Noarp;
        message.header.flags = NeighbourFlags::Controller;
        message.attributes = vec![NeighbourAttribute::LinkLayerAddress(hardware.to_vec())];
        self.request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE | NLM_F_REPLACE)
    }

    /// Gives an interface its addresses, brings it up, and leads everything else to their gateways.
    pub(crate) fn set_up(
        &mut self,
        name: &str,
        addresses: &[(IpNet, Option<IpAddr>)],
    ) -> io::Result<()> {
        let index = self.index(name)?;
        for (address, _) in addresses {
            self.add_address(index, *address)?;
        }
        let mut link = up(LinkMessage::default());
        link.header.index = index;
        self.request(RouteNetlinkMessage::SetLink(link), 0)?;
        addresses
            .iter()
            .filter_map(|(_, gateway)| *gateway)
            .try_for_each(|gateway| self.add_route(index, gateway))
    }

    fn add_route(&mut self, index: u32, gateway: IpAddr) -> io::Result<()> {
        let (family, address) = match gateway {
            IpAddr::V4(gateway) => (AddressFamily::Inet, RouteAddress::Inet(gateway)),
            IpAddr::V6(gateway) => (AddressFamily::Inet6, RouteAddress::Inet6(gateway)),
        };
        let mut route = RouteMessage::default();
        route.header.address_family = family;
        route.header.table = libc::RT_TABLE_MAIN;
        route.header.protocol = RouteProtocol::Static;
        route.header.scope = RouteScope::Universe;
        route.header.kind = RouteType::Unicast;
        route.attributes = vec![RouteAttribute::Gateway(address), RouteAttribute::Oif(index)];
        self.create(RouteNetlinkMessage::NewRoute(route))
    }

    /// Removes an interface; true if it was there.
    pub(crate) fn remove(&mut self, name: &str) -> io::Result<bool> {
        match self.request(RouteNetlinkMessage::DelLink(named(name)), 0) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn add_address(&mut self, index: u32, network: IpNet) -> io::Result<()> {
        let mut message = AddressMessage::default();
        message.header.prefix_len = network.prefix_len();
        message.header.index = index;
        message.attributes = vec![
            AddressAttribute::Local(network.addr()),
            AddressAttribute::Address(network.addr()),
        ];
        match network {
            IpNet::V4(network) => {
                message.header.family = AddressFamily::Inet;
                message.attributes.push(AddressAttribute::Broadcast(network.broadcast()));
            }
            IpNet::V6(_) => {
                message.header.family = AddressFamily::Inet6;
                // Nobody else has it: it is of use at once, not when the others had time to object.
                message.header.flags |= AddressHeaderFlags::Nodad;
            }
        }
        existing(self.create(RouteNetlinkMessage::NewAddress(message)))
    }

    fn create(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.request(message, NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Sends a request and waits for the kernel's answer.
    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        sendto(&self.socket, &bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        loop {
            let mut buffer = vec![0; ANSWER];
            let (length, _) = rustix::io::retry_on_intr(|| {
                recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty())
            })?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&buffer[..length])
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            if let NetlinkPayload::Error(error) = answer.payload {
                return if error.code.is_none() { Ok(()) } else { Err(error.to_io()) };
            }
        }
    }
}

fn named(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn up(mut message: LinkMessage) -> LinkMessage {
    message.header.flags |= LinkFlags::Up;
    message.header.change_mask |= LinkFlags::Up;
    message
}

/// What is there already is as good as made.
fn existing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => Ok(()),
        result => result,
    }
}
