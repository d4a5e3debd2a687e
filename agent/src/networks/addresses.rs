//! Which addresses are free: no files, no system.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::NetworkError;

/// Can a machine of this network have this address?
pub(super) fn is_host(subnet: Ipv4Net, address: Ipv4Addr) -> bool {
    subnet.contains(&address) && address != subnet.network() && address != subnet.broadcast()
}

/// The lowest address that nobody has.
pub(super) fn free_address(subnet: Ipv4Net, taken: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    subnet.hosts().find(|address| !taken.contains(address))
}

fn overlaps(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

pub(super) fn check_subnet(
    subnet: Ipv4Net,
    taken: &[(Ipv4Net, String)],
) -> Result<Ipv4Net, NetworkError> {
    // The gateway and a job, at least.
    if subnet.addr() != subnet.network() || !(8..=30).contains(&subnet.prefix_len()) {
        return Err(NetworkError::Subnet(subnet));
    }
    match taken.iter().find(|(other, _)| overlaps(subnet, *other)) {
        None => Ok(subnet),
        Some((_, other)) => Err(NetworkError::Overlap { subnet, other: other.clone() }),
    }
}

/// The first of 10.90.0.0/24, 10.90.1.0/24 … that nobody has.
pub(super) fn free_subnet(taken: &[(Ipv4Net, String)]) -> Option<Ipv4Net> {
    let candidates = (0..=255).map(|n| Ipv4Net::new_assert(Ipv4Addr::new(10, 90, n, 0), 24));
    candidates.into_iter().find(|net| taken.iter().all(|(other, _)| !overlaps(*net, *other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn subnets_do_not_overlap() {
        let taken =
            [(net("10.90.0.0/23"), "network a".to_owned()), (net("10.90.3.0/25"), "b".into())];
        assert_eq!(free_subnet(&taken), Some(net("10.90.2.0/24")));
        assert_eq!(free_subnet(&[(net("10.0.0.0/8"), String::new())]), None);
        for bad in ["10.90.1.0/24", "10.90.3.7/24", "10.0.0.0/8", "10.1.0.0/31"] {
            assert!(check_subnet(net(bad), &taken).is_err(), "{bad}");
        }
        assert!(check_subnet(net("10.90.3.128/25"), &taken).is_ok());
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
