//! The packet filter of a bridge network: two tables of nftables, replaced as a whole and removed as a whole.
//!
//! ```text
//! on the bridge    a job sends only with its own hardware address and addresses, and asks and answers for these only
//!                  (ARP, neighbour discovery); it is no router and no DHCP server; nothing but IPv4, ARP and, where the
//!                  network has it, IPv6
//! from the jobs    out: masqueraded, unless the network is internal; a share of the host's table of connections each
//!                  to the host: neighbour discovery, name servers that the job was given, and answers; all, if it is
//!                  said to be open
//!                  to addresses of links and of cloud metadata: nothing, unless it is open
//! to a job         from elsewhere only what was published, and answers
//! internal         nothing leaves the bridge, not even to the host; the host itself can reach the jobs
//! from the wire    nothing to or from the host's loopback addresses, before anything else
//! ```
//!
//! Rules of others (docker's, ufw's) still hold: what they drop stays dropped.

use std::fmt::Write as _;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use crate::bridge::{Bridge, Connected};
use crate::forwarding;
use crate::links::{hardware_address, link_local};
use crate::programs;
use crate::spec::{PortForward, Protocol};

/// Addresses that mean the link, or the machine that one is on: 169.254.0.0/16 and the metadata of clouds (Alibaba, Azure,
/// Oracle; AWS, Google and Scaleway by IPv6), also by way of a translation to IPv4.
pub(crate) const CLOSED: &str = "169.254.0.0/16, 100.100.100.200, 168.63.129.16, 192.0.0.192";
/// The same of IPv6.
pub(crate) const CLOSED6: &str = "fd00:ec2::/64, fd20:ce::254, fd00:42::42, \
    64:ff9b::a9fe:0/112, 64:ff9b::6464:64c8, 64:ff9b::a83f:8110, 2002:a9fe::/32";

/// `nft` takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// A job has at most this part of the host's table of connections; all jobs of a network have half of it.
const SHARE: u64 = 8;

/// And no more connections than these: the kernel goes through all of them to count them.
const MOST: u64 = 8192;

/// Hands commands to the kernel: all of them take effect, or none.
pub(crate) fn apply(commands: &str) -> io::Result<()> {
    let nft = programs::find("nft")?;
    programs::run(&nft, &["-f", "-"], commands.as_bytes(), PATIENCE).map(drop)
}

/// Commands that remove the tables, whether they are there or not.
pub(crate) fn remove(name: &str) -> String {
    // A table can only be deleted if it is there.
    ["bridge", "inet"]
        .map(|family| format!("add table {family} {name}\ndelete table {family} {name}\n"))
        .concat()
}

/// Commands that replace the tables. `connections` is what the host keeps track of at most.
pub(crate) fn replace(bridge: &Bridge, jobs: &[Connected], connections: u64) -> String {
    let mut text = remove(&bridge.name);
    on_the_bridge(&mut text, bridge, jobs);
    let _ = writeln!(text, "table inet {} {{", bridge.name);
    sets(&mut text, bridge, jobs);
    from_the_jobs(&mut text, bridge, connections);
    to_the_host(&mut text, bridge);
    forward(&mut text, bridge);
    translate(&mut text, bridge, jobs);
    text.push_str("}\n");
    if !bridge.internal {
        text.push_str(&forwarding::use_by(&bridge.name));
    }
    text
}

/// What goes into a set.
fn elements<T: std::fmt::Display>(elements: impl IntoIterator<Item = T>) -> String {
    let words: Vec<String> = elements.into_iter().map(|element| element.to_string()).collect();
    match words.is_empty() {
        true => String::new(),
        false => format!("elements = {{ {} }};", words.join(", ")),
    }
}

/// Binds each job to what is its own.
fn on_the_bridge(text: &mut String, bridge: &Bridge, jobs: &[Connected]) {
    let mac =
        |job: &Connected| hardware_address(job.address).map(|byte| format!("{byte:02x}")).join(":");
    let own6 = |job: &Connected| {
        let local = link_local(hardware_address(job.address));
        job.address6.into_iter().flat_map(move |address| [address, local])
    };
    let ports = elements(jobs.iter().map(|job| format!("\"{}\"", job.interface)));
    let macs = elements(jobs.iter().map(|job| format!("\"{}\" . {}", job.interface, mac(job))));
    let sources = elements(
        jobs.iter().map(|job| format!("\"{}\" . {} . {}", job.interface, mac(job), job.address)),
    );
    let sources6 = elements(jobs.iter().flat_map(|job| {
        own6(job).map(|address| format!("\"{}\" . {address}", job.interface)).collect::<Vec<_>>()
    }));
    // nft of Debian 12 has no word for the target of a neighbour advertisement: bits 64 to 191 of it.
    let targets: String = jobs
        .iter()
        .flat_map(|job| {
            own6(job)
                .map(|address| {
                    let bits = u128::from(address);
                    format!("    iifname \"{}\" @th,64,128 {bits:#034x} accept\n", job.interface)
                })
                .collect::<Vec<_>>()
        })
        .collect();
    let six = bridge.address6.is_some();
    let kinds = if six { "ip, arp, ip6" } else { "ip, arp" };
    let version6 = if six {
        "    icmpv6 type { nd-router-advert, nd-redirect } drop
    udp sport 547 drop
    icmpv6 type nd-neighbor-advert goto targets
    ip6 saddr :: icmpv6 type nd-neighbor-solicit goto targets
    ip6 saddr :: icmpv6 type { mld-listener-report, mld2-listener-report } accept
    iifname . ip6 saddr @sources6 accept
"
    } else {
        ""
    };
    // The second hook: frames for the bridge itself (LLDP and the like) come by no other, and the bridge learns from them.
    let _ = writeln!(
        text,
        "table bridge {name} {{
  set ports {{ type ifname; {ports} }}
  set macs {{ type ifname . ether_addr; {macs} }}
  set sources {{ type ifname . ether_addr . ipv4_addr; {sources} }}
  set sources6 {{ type ifname . ipv6_addr; {sources6} }}
  chain targets {{
{targets}    drop
  }}
  chain jobs {{
    iifname . ether saddr != @macs drop
    ether type != {{ {kinds} }} drop
    ether type arp arp operation {{ request, reply }} iifname . arp saddr ether . arp saddr ip @sources accept
    ether type ip udp sport 67 drop
    ether type ip iifname . ether saddr . ip saddr @sources accept
    ether type != ip6 drop
{version6}    drop
  }}
  chain prerouting {{
    type filter hook prerouting priority -300;
    iifname @ports goto jobs
  }}
  chain input {{
    type filter hook input priority -300;
    iifname @ports iifname . ether saddr != @macs drop
  }}
}}",
        name = bridge.name,
    );
}

fn sets(text: &mut String, bridge: &Bridge, jobs: &[Connected]) {
    let open = || jobs.iter().filter(|job| job.host && !bridge.internal);
    let open4 = elements(open().map(|job| job.address));
    let open6 = elements(open().filter_map(|job| job.address6));
    let servers = |six: bool| {
        jobs.iter().filter(|_| !bridge.internal).flat_map(move |job| {
            let pair = move |server: &IpAddr| match (server, job.address6) {
                (IpAddr::V4(server), _) if !six => Some(format!("{} . {server}", job.address)),
                (IpAddr::V6(server), Some(own)) if six => Some(format!("{own} . {server}")),
                _ => None,
            };
            job.servers.iter().filter_map(pair).collect::<Vec<_>>()
        })
    };
    let (servers4, servers6) = (elements(servers(false)), elements(servers(true)));
    let _ = writeln!(
        text,
        "  set open {{ type ipv4_addr; {open4} }}
  set open6 {{ type ipv6_addr; {open6} }}
  set servers {{ type ipv4_addr . ipv4_addr; {servers4} }}
  set servers6 {{ type ipv6_addr . ipv6_addr; {servers6} }}
  set opened {{ type ipv4_addr; size 65535; flags dynamic; }}
  set opened6 {{ type ipv6_addr; size 65535; flags dynamic; }}"
    );
}

/// What may come from the jobs at all, and how much. Published ports make the bridge accept loopback addresses, which must
/// be to the advantage of neither the jobs nor anybody on another wire.
fn from_the_jobs(text: &mut String, bridge: &Bridge, connections: u64) {
    let name = &bridge.name;
    let subnet = bridge.address.trunc();
    let version6 = match bridge.address6 {
        Some(address) => format!(
            "    ip6 saddr != {{ {}, fe80::/10, :: }} drop
    icmpv6 type nd-router-advert drop
    ip6 saddr @open6 return
    ip6 saddr . ip6 daddr @servers6 meta l4proto {{ tcp, udp }} th dport 53 return
    ip6 daddr {{ {CLOSED6} }} drop",
            address.trunc()
        ),
        None => "    meta nfproto ipv6 drop".to_owned(),
    };
    let (one, all) = ((connections / SHARE).clamp(64, MOST), (connections / 2).max(128));
    let _ = writeln!(
        text,
        "  chain wire {{
    type filter hook prerouting priority -310;
    iifname \"lo\" return
    ip daddr 127.0.0.0/8 drop
    ip saddr 127.0.0.0/8 drop
    ip6 daddr ::1 drop
    ip6 saddr ::1 drop
  }}
  chain jobs {{
{version6}
    meta nfproto ipv6 return
    ip saddr != {subnet} drop
    ip saddr @open return
    ip saddr . ip daddr @servers meta l4proto {{ tcp, udp }} th dport 53 return
    ip daddr {{ {CLOSED} }} drop
  }}
  chain guard {{
    type filter hook prerouting priority -300;
    iifname \"{name}\" jump jobs
  }}
  chain opening {{
    add @opened {{ ip saddr ct count over {one} }} drop
    add @opened6 {{ ip6 saddr ct count over {one} }} drop
    ct count over {all} drop
  }}
  chain bounds {{
    type filter hook prerouting priority -150;
    iifname \"{name}\" ct state new jump opening
  }}"
    );
}

fn to_the_host(text: &mut String, bridge: &Bridge) {
    let _ = writeln!(
        text,
        "  chain host {{
    ct state established,related accept
    icmpv6 type {{ nd-neighbor-solicit, nd-neighbor-advert }} accept
    ip saddr @open accept
    ip6 saddr @open6 accept
    ip saddr . ip daddr @servers meta l4proto {{ tcp, udp }} th dport 53 accept
    ip6 saddr . ip6 daddr @servers6 meta l4proto {{ tcp, udp }} th dport 53 accept
    drop
  }}
  chain input {{
    type filter hook input priority 0;
    iifname \"{}\" goto host
  }}",
        bridge.name
    );
}

fn forward(text: &mut String, bridge: &Bridge) {
    let name = &bridge.name;
    let inwards = format!("    oifname \"{name}\" iifname != \"{name}\"");
    let others = if bridge.internal {
        format!("    iifname \"{name}\" oifname != \"{name}\" drop\n")
    } else {
        format!("{inwards} ct state established,related accept\n{inwards} ct status dnat accept\n")
    };
    let _ = writeln!(
        text,
        "  chain forward {{\n    type filter hook forward priority 0;\n{others}{inwards} drop\n  }}"
    );
}

/// Addresses: of published ports on the way in, of everything on the way out.
fn translate(text: &mut String, bridge: &Bridge, jobs: &[Connected]) {
    if bridge.internal {
        return;
    }
    let name = &bridge.name;
    let subnets = [Some(format!("ip saddr {}", bridge.address.trunc()))]
        .into_iter()
        .chain([bridge.address6.map(|address| format!("ip6 saddr {}", address.trunc()))])
        .flatten();
    let mut after = String::new();
    let mut sources = Vec::new();
    for subnet in subnets {
        let _ = writeln!(after, "    {subnet} oifname != \"{name}\" masquerade");
        sources.push(subnet);
    }
    let published = jobs.iter().any(|job| !job.ports.is_empty());
    if published {
        // From this network, or from the host's loopback, to a published port: the answer has to come back by way of us.
        sources.push("ip saddr 127.0.0.0/8".to_owned());
        for source in sources {
            let _ = writeln!(after, "    oifname \"{name}\" ct status dnat {source} masquerade");
        }
    }
    let _ = writeln!(
        text,
        "  chain after {{\n    type nat hook postrouting priority 100;\n{after}  }}"
    );
    for (hook, wire) in [("prerouting", true), ("output", false)] {
        if !published {
            continue;
        }
        let _ = writeln!(text, "  chain {hook} {{\n    type nat hook {hook} priority -100;");
        for job in jobs {
            for forward in &job.ports {
                let loopback = forward.address.is_some_and(|address| address.is_loopback());
                for address in job.addresses().filter(|address| forward.is_for(*address)) {
                    // Nothing comes from the wire to a loopback address.
                    if !(wire && loopback) {
                        let _ = writeln!(text, "    {}", publish(forward, address));
                    }
                }
            }
        }
        text.push_str("  }\n");
    }
}

/// Not for connections to `::1`: the kernel finds no way back for these, so they are better refused at once.
fn publish(forward: &PortForward, job: IpAddr) -> String {
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let (family, word) = if job.is_ipv6() { ("ip6", "ipv6") } else { ("ip", "ipv4") };
    let address = match forward.address {
        Some(address) if !address.is_unspecified() => format!("{family} daddr {address}"),
        _ => "fib daddr type local".to_owned(),
    };
    let loopback = match job {
        IpAddr::V6(_) => format!(" ip6 daddr != {}", Ipv6Addr::LOCALHOST),
        IpAddr::V4(_) => String::new(),
    };
    let target = match job {
        IpAddr::V6(address) => format!("[{address}]:{}", forward.job),
        IpAddr::V4(address) => format!("{address}:{}", forward.job),
    };
    format!(
        "meta nfproto {word} {address}{loopback} {protocol} dport {} dnat {family} to {target}",
        forward.host
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(six: bool, internal: bool) -> Bridge {
        Bridge {
            name: "mica-0".into(),
            address: "10.1.0.1/24".parse().unwrap(),
            address6: six.then(|| "fd00:1::1/64".parse().unwrap()),
            internal,
        }
    }

    fn job(six: bool, ports: Vec<PortForward>) -> Connected {
        Connected {
            interface: "m0123".into(),
            address: "10.1.0.7".parse().unwrap(),
            address6: six.then(|| "fd00:1::7".parse().unwrap()),
            host: false,
            servers: vec!["192.0.2.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            ports,
        }
    }

    fn port(address: Option<&str>) -> PortForward {
        let address = address.map(|address| address.parse().unwrap());
        PortForward { protocol: Protocol::Tcp, address, host: 8080, job: 80 }
    }

    #[test]
    fn an_internal_network_translates_nothing_and_knows_no_server() {
        let text = replace(&bridge(true, true), &[job(true, Vec::new())], 65_536);
        assert!(!text.contains("nat") && !text.contains("192.0.2.9"), "{text}");
    }

    #[test]
    fn a_job_is_bound_to_its_addresses() {
        let text = replace(&bridge(true, false), &[job(true, Vec::new())], 65_536);
        for line in [
            "\"m0123\" . 02:6d:0a:01:00:07 . 10.1.0.7",
            "\"m0123\" . fd00:1::7, \"m0123\" . fe80::6d:aff:fe01:7",
            "iifname \"m0123\" @th,64,128 0xfd000001000000000000000000000007 accept",
            "10.1.0.7 . 192.0.2.9",
            "fd00:1::7 . fd00::9",
            "ct count over 8192 }",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!replace(&bridge(false, false), &[], 0).contains("ip6, "));
    }

    #[test]
    fn each_family_leads_to_the_jobs_address_of_it() {
        let to = |address: Option<&str>| {
            let text = replace(&bridge(true, false), &[job(true, vec![port(address)])], 65_536);
            ["dnat ip to 10.1.0.7:80", "dnat ip6 to [fd00:1::7]:80"]
                .map(|rule| text.matches(rule).count())
        };
        assert_eq!(to(None), [2, 2]);
        assert_eq!(to(Some("192.0.2.1")), [2, 0]);
        // Only for what the host itself sends.
        assert_eq!(to(Some("127.0.0.1")), [1, 0]);
        assert_eq!(to(Some("fd00:9::1")), [0, 2]);
    }
}
