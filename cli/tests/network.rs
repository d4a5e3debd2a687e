//! Bridge networks, for real: each test has a host of its own (a network namespace) with an outside (another one) behind
//! it, so nothing of the machine's own network changes.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::collections::BTreeSet;
use std::io::Read;
use std::process::{Child, Stdio};

use common::net::{BEYOND, HOST, Host};
use common::{Ran, User, World, wait_for};
use serde_json::Value;

#[test]
fn jobs_find_each_other_by_name_and_nobody_else() {
    let host = Host::new();
    host.ok(&["network", "create", "back"]);
    host.ok(&["network", "create", "--subnet", "10.20.0.0/16", "--gateway", "10.20.9.9", "front"]);
    let said = host.fails(&["network", "create", "--subnet", "10.20.5.0/24", "more"]);
    assert!(said.contains("overlaps network front"), "{said}");
    let said = host.fails(&["network", "create", "--subnet", "192.0.2.0/25", "more"]);
    assert!(said.contains("overlaps the host's route to 192.0.2.0/24"), "{said}");

    host.serve("db", &["--network", "back", "--hostname", "store", "--network-alias", "sql"]);
    host.serve("web", &["--network", "back:ip=10.90.0.77,alias=www"]);
    host.serve("far", &["--network", "front"]);
    assert_eq!(host.address("web"), "10.90.0.77");
    for name in ["db", "store", "sql", &host.address("db")] {
        assert!(host.reaches("web", name), "{name}");
    }
    // The job that was there first knows of the one that came later.
    assert!(host.reaches("db", "web") && host.reaches("db", "www"));
    assert!(!host.reaches("far", "db") && !host.reaches("far", &host.address("db")));
    assert!(!host.reaches("db", &host.address("far")));
    host.inside.sh(&format!("curl -sSm5 http://{}/hello.txt", host.address("db"))).unwrap();

    // A job with names of its own goes by these; others still find it.
    host.world.write("names", "10.90.0.77 mine\n");
    host.serve("odd", &["--network", "back", "-v", "./names:/etc/hosts"]);
    assert!(host.reaches("odd", "mine") && !host.reaches("odd", "web"));
    assert!(host.reaches("web", "odd"));
    host.ok(&["rm", "-f", "odd"]);
    let names = std::fs::read_to_string(host.world.path("names")).unwrap();
    assert_eq!(names, "10.90.0.77 mine\n");

    host.ok(&["rename", "db", "base"]);
    assert!(host.reaches("web", "base") && !host.reaches("web", "db"));
    host.ok(&["stop", "-t", "0", "base"]);
    assert!(!host.reaches("web", "base") && host.reaches("web", "www"));
    host.ok(&["start", "base"]);
    wait_for(|| host.reaches("web", "base"));

    let said = host.fails(&["network", "rm", "back"]);
    assert!(said.contains("network back is in use by job"), "{said}");
    let taken = ["run", "--network", "back:ip=10.90.0.77", "--image", "app.xar", "--", "true"];
    assert!(host.fails(&taken).contains("10.90.0.77 belongs to job"));
    host.ok(&["rm", "-f", "base", "web", "far"]);
    host.ok(&["network", "rm", "back", "front"]);
    assert_eq!(host.ok(&["network", "ls", "-q"]).stdout, "");
    assert_eq!(host.traces(), "");
}

#[test]
fn published_ports_lead_in_and_all_else_only_out() {
    let host = Host::new();
    let mut beyond = host.listen_outside();

    let ports = ["--network", "bridge", "-p", "8080:80", "-p", "127.0.0.1:8081:80"];
    host.serve("web", &ports);
    let inside = |place: &str| host.inside.sh(&format!("curl -sSm3 http://{place}/hello.txt"));
    let outside = |place: &str| host.outside.sh(&format!("curl -sSm3 http://{place}/hello.txt"));
    assert_eq!(outside(&format!("{HOST}:8080")).unwrap(), "hello\n");
    assert_eq!(inside("127.0.0.1:8080").unwrap(), "hello\n");
    assert_eq!(inside(&format!("{HOST}:8080")).unwrap(), "hello\n");
    assert_eq!(inside("127.0.0.1:8081").unwrap(), "hello\n");
    outside(&format!("{HOST}:8081")).unwrap_err();
    // The job itself, too, by the host's address.
    assert!(host.reaches("web", &format!("{HOST}:8080")));
    // Somebody outside who knows where the job is.
    host.outside.sh(&format!("ip route add 10.90.0.0/24 via {HOST}")).unwrap();
    outside(&host.address("web")).unwrap_err();
    // The host's loopback isn't the jobs'.
    host.ok(&["exec", "web", "sh", "-c", "! curl -sSm1 http://10.90.0.1:8081/"]);

    assert!(host.reaches("web", BEYOND));
    host.ok(&["network", "create", "--internal", "closed"]);
    host.serve("shy", &["--network", "closed"]);
    assert!(!host.reaches("shy", BEYOND) && !host.reaches("shy", &format!("{HOST}:8080")));
    let shy = host.address("shy");
    inside(&shy).unwrap();
    let run = ["run", "--rm", "--network", "closed", "-p", "9090:80", "--image", "app.xar", "true"];
    assert!(host.fails(&run).contains("network closed is internal"));
    let run = ["run", "--rm", "--network", "bridge", "-p", "8080:81", "--image", "app.xar", "true"];
    assert!(host.fails(&run).contains("cannot publish the port 8080"));

    host.ok(&["rm", "-f", "web", "shy"]);
    inside("127.0.0.1:8080").unwrap_err();
    assert_eq!(host.traces(), "");
    beyond.kill().unwrap();
    // What came from the job bore the host's address.
    let mut log = String::new();
    beyond.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    beyond.wait().unwrap();
    assert!(log.contains(&format!("{HOST} - -")) && !log.contains("10.90."), "{log}");
}

/// Says to everybody that it is a router.
const ROUTER: &str = r#"
import socket, struct
s = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
prefix = struct.pack("!BBBBIII", 3, 4, 64, 0xc0, 9000, 9000, 0) + socket.inet_pton(socket.AF_INET6, "2001:db8:bad::")
advert = struct.pack("!BBHBBHII", 134, 0, 0, 64, 0, 1800, 0, 0) + prefix
assert s.sendto(advert, ("ff02::1", 0, 0, socket.if_nametoindex("eth0"))) == len(advert)
"#;

#[test]
fn networks_with_version_6() {
    assert!(
        std::path::Path::new("/proc/net/if_inet6").exists(),
        "this test needs a kernel with IPv6"
    );
    let host = Host::new();
    let (here, beyond) = ("2001:db8::1", "2001:db8::2");
    host.inside.sh(&format!("ip addr add {here}/64 dev out nodad")).unwrap();
    host.outside.sh(&format!("ip addr add {beyond}/64 dev in nodad")).unwrap();
    host.ok(&["network", "create", "--ipv6", "--subnet", "fd00:77::/64", "back"]);
    host.ok(&["network", "create", "--ipv6", "own"]);
    host.ok(&["network", "create", "four"]);
    assert!(host.ok(&["network", "inspect", "own"]).stdout.contains("\"subnet6\": \"fd"));
    let said = host.fails(&["network", "create", "--subnet", "2001:db8::/48", "more"]);
    assert!(said.contains("overlaps the host's route to 2001:db8::/64"), "{said}");

    host.serve("db", &["--network", "back"]);
    host.serve(
        "web",
        &[
            "--network",
            "back:ip=10.90.0.77",
            "-p",
            "8080:80",
            "-p",
            "127.0.0.1:8081:80",
            "--cap-add",
            "NET_RAW",
        ],
    );
    host.serve("old", &["--network", "four"]);
    assert!(host.reaches("db", "[fd00:77::4d]") && host.reaches("web", "[fd00:77::2]"));
    let hosts = host.ok(&["exec", "db", "cat", "/etc/hosts"]).stdout;
    assert!(hosts.contains("fd00:77::4d\tweb"), "{hosts}");
    let fetch = |place: &str| format!("curl -sSm3 'http://{place}/hello.txt'");
    for place in ["localhost:8080", "127.0.0.1:8080", &format!("[{here}]:8080"), "127.0.0.1:8081"] {
        assert_eq!(host.inside.sh(&fetch(place)).unwrap(), "hello\n", "{place}");
    }
    for place in [format!("[{here}]:8080"), format!("{HOST}:8080")] {
        assert_eq!(host.outside.sh(&fetch(&place)).unwrap(), "hello\n", "{place}");
        assert!(host.reaches("web", &place), "the job itself at {place}");
    }
    host.outside.sh(&fetch(&format!("[{here}]:8081"))).unwrap_err();
    host.outside.sh(&format!("ip -6 route add fd00:77::/64 via {here}")).unwrap();
    host.outside.sh(&fetch("[fd00:77::4d]")).unwrap_err();
    // Outwards, by the host's address: there is no other way back.
    host.outside.sh("ip -6 route del fd00:77::/64").unwrap();
    let mut answering = host.listen_outside();
    assert!(host.reaches("web", &format!("[{beyond}]")));
    answering.kill().unwrap();
    answering.wait().unwrap();
    let taken = ["run", "--network", "back", "-p", "8080:81", "--image", "app.xar", "true"];
    assert!(host.fails(&taken).contains("cannot publish the port 8080"));
    let loopback = ["run", "--network", "back", "-p", "[::1]:9:9", "--image", "app.xar", "true"];
    assert!(host.fails(&loopback).contains("ports of ::1 cannot be published"));
    let none = ["run", "--network", "four", "-p", "[fd00::1]:9:9", "--image", "app.xar", "true"];
    assert!(host.fails(&none).contains("network four has no IPv6 addresses"));

    // Nobody takes a job for a router; one without IPv6 can't even try.
    host.ok(&["exec", "web", "python3", "-c", ROUTER]);
    assert_eq!(host.inside.sh(&fetch("[fd00:77::4d]")).unwrap(), "hello\n");
    let addresses = host.inside.sh("ip -6 addr").unwrap();
    assert!(!addresses.contains("2001:db8:bad"), "{addresses}");
    let neighbour = host.ok(&["exec", "db", "ip", "-6", "addr"]).stdout;
    assert!(!neighbour.contains("2001:db8:bad"), "{neighbour}");
    let old = host.ok(&["exec", "old", "ip", "-6", "addr", "show", "dev", "eth0"]).stdout;
    assert_eq!(old, "");

    host.ok(&["rm", "-f", "web", "db", "old"]);
    assert_eq!(host.traces(), "");
}

#[test]
fn addresses_are_unique_and_come_back() {
    let host = Host::new();
    host.ok(&["network", "create", "--subnet", "10.30.0.0/27", "small"]);
    let run = ["run", "-d", "--network", "small", "--image", "app.xar", "--", "sleep", "1000"];
    let started: Vec<Child> =
        (0..20).map(|_| host.command(&run).stdout(Stdio::piped()).spawn().unwrap()).collect();
    for child in started {
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!(ran.code, Some(0), "{ran:?}");
    }
    let members = host.members("small");
    let addresses: BTreeSet<&String> = members.iter().map(|(_, address)| address).collect();
    assert_eq!((members.len(), addresses.len()), (20, 20), "{members:?}");

    let (job, address) = members[7].clone();
    let record: Value = serde_json::from_str(&host.ok(&["inspect", &job]).stdout).unwrap();
    let supervisor = record["status"]["supervisor"].as_i64().unwrap();
    host.inside.sh(&format!("kill -9 {supervisor}")).unwrap();
    wait_for(|| !host.members("small").iter().any(|(_, known)| *known == address));
    host.ok(&[
        "run",
        "-d",
        "--name",
        "heir",
        "--network",
        "small",
        "--image",
        "app.xar",
        "--",
        "sleep",
        "1000",
    ]);
    assert_eq!(host.address("heir"), address, "the lowest that is free");

    let jobs: Vec<String> = host.members("small").into_iter().map(|(job, _)| job).collect();
    let jobs: Vec<&str> = jobs.iter().map(String::as_str).collect();
    host.ok(&[&["rm", "-f"][..], &jobs].concat());
    assert_eq!(host.members("small"), []);
    assert_eq!(host.traces(), "");
}

#[test]
fn what_is_missing_is_named() {
    let host = Host::new();
    let run = ["run", "--rm", "--network", "nowhere", "--image", "app.xar", "true"];
    let said = host.fails(&run);
    assert!(
        said.contains("there is no network nowhere") && said.contains("mica network ls"),
        "{said}"
    );
    let run = ["run", "--rm", "--network", "bridge", "--image", "app.xar", "true"];
    let mut command = host.world.command("nsenter");
    let hide = "mount --bind /dev/null $(readlink -f $(command -v nft)) && exec \"$@\"";
    command.args([&host.inside.flag(), "unshare", "--mount", "sh", "-c", hide, "sh"]);
    command.arg(host.world.binary()).args(run);
    let ran: Ran = command.output().unwrap().into();
    assert!(ran.stderr.contains("install the package nftables"), "{ran:?}");
    assert_eq!(host.traces(), "");

    let world = World::new(User::Ordinary);
    world.write("tree/hello.txt", "hello\n");
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    for args in [
        &["network", "create", "x"][..],
        &["run", "--network", "bridge", "--image", "app.xar", "true"],
    ] {
        let ran = world.run(args);
        assert!(ran.code != Some(0) && ran.stderr.contains("need"), "{ran:?}");
    }
}
