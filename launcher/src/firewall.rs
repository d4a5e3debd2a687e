//! The packet filter of a bridge network: one table of nftables, replaced as a whole and removed as a whole.
//!
//! ```text
//! from the jobs out       masqueraded, unless the network is internal
//! from elsewhere to a job only what was published, and answers
//! from the jobs to the host's loopback addresses, or with addresses that aren't theirs: dropped; so is what says that a
//! job is a router, and all IPv6 of a network that has none
//! internal                nothing leaves the bridge, not even to the host; the host itself can reach the jobs
//! ```
//!
//! Rules of others (docker's, ufw's) still hold: what they drop stays dropped.

use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::bridge::{Bridge, Published};
use crate::spec::{PortForward, Protocol};

/// Commands that replace the table, in the JSON that `nft -j` reads: all of them take effect, or none.
pub(crate) fn replace(bridge: &Bridge, ports: &[Published]) -> Value {
    let mut table = Table { name: &bridge.name, commands: Vec::new() };
    // A table can only be deleted if it is there.
    table.add("table", json!({}));
    table
        .commands
        .push(json!({ "delete": { "table": { "family": "inet", "name": bridge.name } } }));
    table.add("table", json!({}));
    guard(&mut table, bridge);
    forward(&mut table, bridge);
    translate(&mut table, bridge, ports);
    table.finish()
}

/// Commands that remove the table, whether it is there or not.
pub(crate) fn remove(name: &str) -> Value {
    let mut table = Table { name, commands: Vec::new() };
    table.add("table", json!({}));
    table.commands.push(json!({ "delete": { "table": { "family": "inet", "name": name } } }));
    table.finish()
}

/// Hands commands to the kernel.
pub(crate) fn apply(commands: &Value) -> io::Result<()> {
    let mut child = Command::new("nft")
        .args(["-j", "-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut input) = child.stdin.take() {
        match input.write_all(commands.to_string().as_bytes()) {
            // It says itself why it stopped reading.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            result => result?,
        }
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("nft: {}", said.lines().next().unwrap_or("it failed"))))
}

struct Table<'a> {
    name: &'a str,
    commands: Vec<Value>,
}

impl Table<'_> {
    fn add(&mut self, kind: &str, mut object: Value) {
        object["family"] = "inet".into();
        object[if kind == "table" { "name" } else { "table" }] = self.name.into();
        self.commands.push(json!({ "add": { kind: object } }));
    }

    fn chain(&mut self, hook: &str, kind: &str, priority: i32) {
        let name = chain_name(hook, kind);
        self.add(
            "chain",
            json!({ "name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept" }),
        );
    }

    fn rule(&mut self, hook: &str, kind: &str, expressions: &[Value]) {
        self.add("rule", json!({ "chain": chain_name(hook, kind), "expr": expressions }));
    }

    fn finish(self) -> Value {
        json!({ "nftables": self.commands })
    }
}

fn chain_name(hook: &str, kind: &str) -> String {
    format!("{hook}-{kind}")
}

fn meta(key: &str) -> Value {
    json!({ "meta": { "key": key } })
}

fn field(protocol: &str, field: &str) -> Value {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

fn is(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "==", "left": left, "right": right.into() } })
}

fn is_not(left: Value, right: impl Into<Value>) -> Value {
    json!({ "match": { "op": "!=", "left": left, "right": right.into() } })
}

/// Of a connection: one of these flags is set.
fn connection(key: &str, flags: impl Into<Value>) -> Value {
    json!({ "match": { "op": "in", "left": { "ct": { "key": key } }, "right": flags.into() } })
}

fn verdict(word: &str) -> Value {
    json!({ word: null })
}

fn prefix(address: impl Into<IpAddr>, length: u8) -> Value {
    json!({ "prefix": { "addr": address.into(), "len": length } })
}

/// Of each family that a network has: the protocol, and the network.
fn subnets(bridge: &Bridge) -> impl Iterator<Item = (&'static str, Value)> {
    let subnet = |net: IpNet| {
        let protocol = if net.addr().is_ipv6() { "ip6" } else { "ip" };
        (protocol, prefix(net.network(), net.prefix_len()))
    };
    [bridge.address.into()].into_iter().chain(bridge.address6.map(Into::into)).map(subnet)
}

fn loopback(protocol: &str) -> Value {
    match protocol {
        "ip6" => prefix(Ipv6Addr::LOCALHOST, 128),
        _ => prefix(Ipv4Addr::new(127, 0, 0, 0), 8),
    }
}

/// Published ports make the bridge accept loopback addresses, which must not be to the jobs' advantage.
fn guard(table: &mut Table<'_>, bridge: &Bridge) {
    let from_jobs = is(meta("iifname"), bridge.name.as_str());
    table.chain("prerouting", "filter", -300);
    let mut forbid = |forbidden: &[Value]| {
        let rule = [std::slice::from_ref(&from_jobs), forbidden, &[verdict("drop")]].concat();
        table.rule("prerouting", "filter", &rule);
    };
    for (protocol, subnet) in subnets(bridge) {
        forbid(&[is(field(protocol, "daddr"), loopback(protocol))]);
        let mut others = vec![is_not(field(protocol, "saddr"), subnet)];
        if protocol == "ip6" {
            // How neighbours find each other.
            let local = prefix(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10);
            others.push(is_not(field(protocol, "saddr"), local));
            others.push(is_not(field(protocol, "saddr"), Ipv6Addr::UNSPECIFIED.to_string()));
        }
        forbid(&others);
    }
    if bridge.address6.is_some() {
        forbid(&[is(field("icmpv6", "type"), "nd-router-advert")]);
    } else {
        forbid(&[is(meta("nfproto"), "ipv6")]);
    }
    if bridge.internal {
        table.chain("input", "filter", 0);
        let answers = connection("state", json!(["established", "related"]));
        table.rule("input", "filter", &[from_jobs.clone(), answers, verdict("accept")]);
        table.rule("input", "filter", &[from_jobs, verdict("drop")]);
    }
}

fn forward(table: &mut Table<'_>, bridge: &Bridge) {
    let name = bridge.name.as_str();
    table.chain("forward", "filter", 0);
    let inwards = [is(meta("oifname"), name), is_not(meta("iifname"), name)];
    let outwards = [is(meta("iifname"), name), is_not(meta("oifname"), name)];
    let mut rule = |way: &[Value], rest: &[Value]| {
        table.rule("forward", "filter", &[way, rest].concat());
    };
    if bridge.internal {
        rule(&outwards, &[verdict("drop")]);
    } else {
        let answers = connection("state", json!(["established", "related"]));
        rule(&inwards, &[answers, verdict("accept")]);
        rule(&inwards, &[connection("status", "dnat"), verdict("accept")]);
    }
    rule(&inwards, &[verdict("drop")]);
}

/// Addresses: of published ports on the way in, of everything on the way out.
fn translate(table: &mut Table<'_>, bridge: &Bridge, ports: &[Published]) {
    let name = bridge.name.as_str();
    if bridge.internal {
        return;
    }
    table.chain("postrouting", "nat", 100);
    let masquerade = verdict("masquerade");
    for (protocol, subnet) in subnets(bridge) {
        let from_jobs = is(field(protocol, "saddr"), subnet);
        let leaving = is_not(meta("oifname"), name);
        table.rule("postrouting", "nat", &[from_jobs, leaving, masquerade.clone()]);
    }
    if ports.is_empty() {
        return;
    }
    // From this network, or from the host's loopback, to a published port: the answer has to come back by way of us.
    let by_us = [is(meta("oifname"), name), connection("status", "dnat")];
    let sources = subnets(bridge).chain([("ip", loopback("ip"))]);
    for (protocol, source) in sources {
        let source = is(field(protocol, "saddr"), source);
        table.rule("postrouting", "nat", &[&by_us[..], &[source, masquerade.clone()]].concat());
    }
    for hook in ["prerouting", "output"] {
        table.chain(hook, "nat", -100);
        for port in ports {
            let jobs = [IpAddr::V4(port.job)].into_iter().chain(port.job6.map(IpAddr::V6));
            for job in jobs.filter(|job| port.forward.is_for(*job)) {
                table.rule(hook, "nat", &publish(&port.forward, job));
            }
        }
    }
}

/// Not for connections to `::1`: the kernel finds no way back for these, so they are better refused at once.
fn publish(forward: &PortForward, job: IpAddr) -> Vec<Value> {
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    let (family, word) = if job.is_ipv6() { ("ip6", "ipv6") } else { ("ip", "ipv4") };
    let address = match forward.address {
        Some(address) if !address.is_unspecified() => {
            is(field(family, "daddr"), address.to_string())
        }
        _ => is(json!({ "fib": { "result": "type", "flags": ["daddr"] } }), "local"),
    };
    let mut rule = vec![is(meta("nfproto"), word), address];
    if job.is_ipv6() {
        rule.push(is_not(field(family, "daddr"), Ipv6Addr::LOCALHOST.to_string()));
    }
    rule.push(is(field(protocol, "dport"), forward.host));
    rule.push(json!({ "dnat": { "family": family, "addr": job, "port": forward.job } }));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(commands: &Value) -> Vec<String> {
        let rules = commands["nftables"].as_array().unwrap().iter();
        rules.filter_map(|c| c["add"].get("rule")).map(ToString::to_string).collect()
    }

    #[test]
    fn an_internal_network_translates_nothing() {
        let bridge = Bridge {
            name: "mica-0".into(),
            address: "10.1.0.1/24".parse().unwrap(),
            address6: None,
            internal: true,
        };
        let text = replace(&bridge, &[]).to_string();
        assert!(!text.contains("nat\"") && text.contains("\"input\""), "{text}");
    }

    #[test]
    fn a_port_is_published_for_the_outside_and_for_the_host() {
        let bridge = Bridge {
            name: "mica-0".into(),
            address: "10.1.0.1/24".parse().unwrap(),
            address6: None,
            internal: false,
        };
        let forward = PortForward { protocol: Protocol::Udp, address: None, host: 5353, job: 53 };
        let port = Published { forward, job: Ipv4Addr::new(10, 1, 0, 7), job6: None };
        let rules = rules(&replace(&bridge, &[port]));
        let published: Vec<_> = rules
            .iter()
            .filter(|rule| rule.contains("10.1.0.7") && rule.contains("5353"))
            .collect();
        assert_eq!(published.len(), 2, "{rules:#?}");
        assert!(rules.iter().any(|rule| rule.contains("masquerade")));
    }

    #[test]
    fn each_family_leads_to_the_jobs_address_of_it() {
        let bridge = Bridge {
            name: "mica-0".into(),
            address: "10.1.0.1/24".parse().unwrap(),
            address6: Some("fd00:1::1/64".parse().unwrap()),
            internal: false,
        };
        let to = |address: Option<&str>| {
            let address = address.map(|address| address.parse().unwrap());
            let forward = PortForward { protocol: Protocol::Tcp, address, host: 8080, job: 80 };
            let job6 = Some("fd00:1::7".parse().unwrap());
            let port = Published { forward, job: Ipv4Addr::new(10, 1, 0, 7), job6 };
            let rules = rules(&replace(&bridge, &[port]));
            ["10.1.0.7", "fd00:1::7"].map(|job| {
                rules.iter().filter(|r| r.contains("dnat\":{") && r.contains(job)).count()
            })
        };
        assert_eq!(to(None), [2, 2]);
        assert_eq!(to(Some("127.0.0.1")), [2, 0]);
        assert_eq!(to(Some("fd00:9::1")), [0, 2]);
    }
}
