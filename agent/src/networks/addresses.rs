//! Which addresses are free: no files, no system.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::NetworkError;

/// Can a machine of this network have this address?
pub(super) fn is_host(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

/// The lowest address that nobody has.
pub(super) fn free_address(subnet: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    subnet.hosts().find(|address| !taken.contains(address))
}

/// The address of IPv6 that belongs to one of IPv4: the number that it is on its network is the same on the other.
pub(super) fn address6(subnet: Ipv4Net, address: Ipv4Addr, subnet6: Ipv6Net) -> Ipv6Addr {
    let number = u32::from(address) - u32::from(subnet.network());
    Ipv6Addr::from(u128::from(subnet6.network()) | u128::from(number))
}

/// Addresses for this machine's own use (RFC 4193), by 40 bits that nobody else is likely to have.
pub(super) fn own_subnet6(chance: u64) -> Ipv6Net {
    let bits = (0xfd << 120) | (u128::from(chance & 0xff_ffff_ffff) << 80);
    Ipv6Net::new_assert(bits.into(), 64)
}

fn overlaps(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

pub(super) fn check_subnet<N: Into<IpNet> + Copy>(
    subnet: N,
    taken: &[(IpNet, String)],
) -> Result<N, NetworkError> {
    let net = subnet.into();
    // The gateway and a job, at least; of IPv6, as many as the largest of IPv4.
    let lengths = if net.addr().is_ipv6() { 8..=104 } else { 8..=30 };
    if net.addr() != net.network() || !lengths.contains(&net.prefix_len()) {
        return Err(NetworkError::Subnet(net));
    }
    match taken.iter().find(|(other, _)| overlaps(net, *other)) {
        None => Ok(subnet),
        Some((_, other)) => Err(NetworkError::Overlap { subnet: net, other: other.clone() }),
    }
}

/// The first of 10.90.0.0/24, 10.90.1.0/24 … that nobody has.
pub(super) fn free_subnet(taken: &[(IpNet, String)]) -> Option<Ipv4Net> {
    let candidates = (0..=255).map(|n| Ipv4Net::new_assert(Ipv4Addr::new(10, 90, n, 0), 24));
    candidates
        .into_iter()
        .find(|net| taken.iter().all(|(other, _)| !overlaps((*net).into(), *other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_do_not_overlap() {
        let any = |text: &str| text.parse::<IpNet>().unwrap();
        let taken = [
            (any("10.90.0.0/23"), "network a".to_owned()),
            (any("10.90.3.0/25"), "b".into()),
            (any("fd00:1::/48"), "c".into()),
        ];
        assert_eq!(free_subnet(&taken), Some(net("10.90.2.0/24")));
        assert_eq!(free_subnet(&[(any("10.0.0.0/8"), String::new())]), None);
        for bad in ["fd00:1:0:7::/64", "fd00::/16", "fd00:2::1/64", "fd00:2::/112"] {
            assert!(check_subnet(any(bad), &taken).is_err(), "{bad}");
        }
        assert!(check_subnet(any("fd00:2::/64"), &taken).is_ok());
        for bad in ["10.90.1.0/24", "10.90.3.7/24", "10.0.0.0/8", "10.1.0.0/31"] {
            assert!(check_subnet(net(bad), &taken).is_err(), "{bad}");
        }
        assert!(check_subnet(net("10.90.3.128/25"), &taken).is_ok());
    }

    #[test]
    fn addresses_of_both_families_belong_together() {
        let at = |net6: &str| {
            address6(net("10.20.0.0/16"), Ipv4Addr::new(10, 20, 1, 7), net6.parse().unwrap())
        };
        assert_eq!(at("fd00:2::/64"), "fd00:2::107".parse::<Ipv6Addr>().unwrap());
        assert_eq!(at("fd00:2::/104"), "fd00:2::107".parse::<Ipv6Addr>().unwrap());
        let own = own_subnet6(u64::MAX);
        assert_eq!(own, "fdff:ffff:ffff::/64".parse().unwrap());
        assert!(check_subnet(own, &[]).is_ok());
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
}
