//! What a job with a private network can't reach: the host, the networks of other jobs, addresses of links and of cloud
//! metadata.
//!
//! `pasta` connects from the host's network in the job's place, so for services of the host a job is the host itself. It
//! binds to the interface of the default route, which keeps it off the host's other addresses, those that come later
//! included; for the rest there is a packet filter in the job's own network, set before the job starts. A job that was
//! given NET_ADMIN can take it off, and one with NET_RAW can go around it; both are told so.

use std::fs;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use crate::bridge::{routed_networks, routed_networks6};
use crate::firewall::{CLOSED, CLOSED6};
use crate::network::PRIVATE_DNS;
use crate::programs;

/// What has to be known of the host to keep a job off it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnNetwork {
    /// `nft`, if the host has it.
    pub filter: Option<PathBuf>,
    /// The host's addresses, and the networks of its jobs.
    pub closed: Vec<String>,
    /// The same of IPv6.
    pub closed6: Vec<String>,
}

impl OwnNetwork {
    /// What it is now.
    pub(crate) fn read() -> Self {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let of_jobs = |text: String| -> String {
            // The first line is a heading in the one file, and no network in the other.
            let ours = |(n, line): &(usize, &str)| *n == 0 || line.contains("mica-");
            text.lines().enumerate().filter(ours).map(|(_, line)| format!("{line}\n")).collect()
        };
        let mut closed: Vec<String> =
            addresses(&text("/proc/net/fib_trie")).iter().map(ToString::to_string).collect();
        let networks = routed_networks(&of_jobs(text("/proc/net/route")));
        closed.extend(networks.iter().map(ToString::to_string));
        let mut closed6: Vec<String> =
            addresses6(&text("/proc/net/if_inet6")).iter().map(ToString::to_string).collect();
        let routes6: String = text("/proc/net/ipv6_route")
            .lines()
            .filter(|line| line.contains("mica-"))
            .map(|line| format!("{line}\n"))
            .collect();
        closed6.extend(routed_networks6(&routes6).iter().map(ToString::to_string));
        Self { filter: programs::find("nft").ok(), closed, closed6 }
    }

    /// The rules for the job's network.
    pub(crate) fn rules(&self) -> String {
        let list = |text: &str, more: &[String]| {
            let mut words: Vec<&str> = text.split(',').map(str::trim).collect();
            words.extend(more.iter().map(String::as_str));
            words.join(", ")
        };
        format!(
            "table inet mica {{
  set closed {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }} }}
  set closed6 {{ type ipv6_addr; flags interval; auto-merge; elements = {{ {} }} }}
  chain output {{
    type filter hook output priority 0;
    oifname \"lo\" accept
    ip daddr {PRIVATE_DNS} meta l4proto {{ tcp, udp }} th dport 53 accept
    ip daddr @closed drop
    ip6 daddr @closed6 drop
    ip6 daddr fe80::/10 meta l4proto {{ tcp, udp }} drop
  }}
}}
",
            list(CLOSED, &self.closed),
            list(CLOSED6, &self.closed6)
        )
    }
}

/// The host's own addresses, by the text of `/proc/net/fib_trie`; loopback addresses are the job's own in any case.
fn addresses(text: &str) -> Vec<Ipv4Addr> {
    let mut found = Vec::new();
    let mut last: Option<Ipv4Addr> = None;
    for line in text.lines().map(str::trim) {
        if let Some(address) = line.strip_prefix("|-- ") {
            last = address.parse().ok();
        } else if line.starts_with("/32 host LOCAL") {
            found.extend(last.filter(|address| !address.is_loopback()));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The same of IPv6, by the text of `/proc/net/if_inet6`.
fn addresses6(text: &str) -> Vec<Ipv6Addr> {
    let address = |line: &str| u128::from_str_radix(line.split_whitespace().next()?, 16).ok();
    text.lines().filter_map(address).map(Ipv6Addr::from).filter(|a| !a.is_loopback()).collect()
}

/// The interfaces that lead to everywhere else, for each family.
pub(crate) fn outwards() -> [(&'static str, Option<String>); 2] {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    [
        ("--outbound-if4", default_route(&text("/proc/net/route"))),
        ("--outbound-if6", default_route6(&text("/proc/net/ipv6_route"))),
    ]
}

fn default_route(text: &str) -> Option<String> {
    let routes = text.lines().skip(1).filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let everywhere = *words.get(1)? == "00000000" && *words.get(7)? == "00000000";
        everywhere.then_some((words[6].parse::<u32>().ok()?, (*words.first()?).to_owned()))
    });
    routes.min().map(|(_, name)| name)
}

fn default_route6(text: &str) -> Option<String> {
    let routes = text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let everywhere = words.first()?.bytes().all(|byte| byte == b'0') && words[1] == "00";
        let name = (*words.get(9)?).to_owned();
        let metric = u32::from_str_radix(words.get(5)?, 16).ok()?;
        (everywhere && name != "lo").then_some((metric, name))
    });
    routes.min().map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_host() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 192.0.2.0\n        /24 link UNICAST\n     |-- 192.0.2.1\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n     |-- 192.0.2.255\n        /32 link BROADCAST\nLocal:\n     |-- 192.0.2.1\n        /32 host LOCAL\n";
        assert_eq!(addresses(trie), ["192.0.2.1".parse::<Ipv4Addr>().unwrap()]);
        let six = "fd000000000000000000000000000002 02 40 00 80 eth0\n00000000000000000000000000000001 01 80 10 80 lo\nbroken\n";
        assert_eq!(addresses6(six), ["fd00::2".parse::<Ipv6Addr>().unwrap()]);
    }

    #[test]
    fn the_way_out() {
        let text = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
            wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
            eth0\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
            tun0\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\nbroken\n";
        assert_eq!(default_route(text).as_deref(), Some("eth0"));
        let zero = "0".repeat(32);
        let line = |metric: &str, name: &str| {
            format!("{zero} 00 {zero} 00 {zero} {metric} 00000001 00000000 00000003 {name}\n")
        };
        let text = line("ffffffff", "lo") + &line("00000400", "eth1") + "x\n\n";
        assert_eq!(default_route6(&text).as_deref(), Some("eth1"));
    }

    #[test]
    fn rules_name_what_is_closed() {
        let own = OwnNetwork {
            filter: None,
            closed: vec!["192.0.2.1".into()],
            closed6: vec!["fd00::2".into()],
        };
        let rules = own.rules();
        for word in ["169.254.0.0/16", "192.0.2.1", "fd00::2", "fd00:ec2::/64"] {
            assert!(rules.contains(word), "{word} in {rules}");
        }
    }
}
