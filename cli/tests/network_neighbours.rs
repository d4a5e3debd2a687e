//! What a job on a network can do to its neighbours, to the host, and to whoever else uses the state directory: nothing.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::time::{Duration, Instant};

use common::net::{BEYOND, HOST, Host};
use common::wait_for;
use serde_json::Value;

/// Tries to hold up whoever writes the file that it is told about, for ever, and says what came of it.
const LEASE: &str = r#"
import fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
taken = []
for path in sys.argv[1:]:
    try:
        fd = os.open(path, os.O_RDONLY)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        # The others are written once, before the job is there.
        if path == "/etc/hosts": taken.append(path)
    except OSError: pass
    try: open(path, "a").write("10.0.0.1 bank" * 1000000); taken.append("wrote " + path)
    except OSError: pass
    try: os.chmod(path, 0o666); taken.append("changed " + path)
    except OSError: pass
print("taken", taken, flush=True)
time.sleep(1000)
"#;

#[test]
fn a_job_holds_up_nobody_by_its_files_and_changes_none() {
    let host = Host::new();
    host.ok(&["network", "create", "back"]);
    let names = ["/etc/hosts", "/etc/resolv.conf", "/etc/hostname"];
    for (name, flag) in [("one", "--cap-add=CHOWN"), ("two", "--privileged")] {
        let run =
            ["run", "-d", "--name", name, "--network", "back", "--add-host", "x:10.1.1.1", flag];

        let job = ["--image", "app.xar", "--", "python3", "-c", LEASE];
        host.ok(&[&run[..], &job, &names].concat());
        wait_for(|| host.ok(&["logs", name]).stdout.contains("taken"));
        assert_eq!(host.ok(&["logs", name]).stdout, "taken []\n", "{name}");
    }
    // A mount that the job's own capabilities can't change.
    let remount = "mount -o remount,bind,rw /etc/hosts || umount /etc/hosts; echo 10.0.0.1 bank >> /etc/hosts";
    host.fails(&["exec", "two", "sh", "-c", remount]);
    let begun = Instant::now();
    host.ok(&["run", "--rm", "--network", "back", "--image", "app.xar", "true"]);
    host.ok(&["rename", "one", "first"]);
    host.ok(&["ps", "-a"]);
    host.ok(&["network", "create", "other"]);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    let hosts = host.ok(&["exec", "two", "cat", "/etc/hosts"]).stdout;
    assert!(hosts.contains("\tfirst ") && hosts.contains("10.1.1.1\tx\n"), "{hosts}");
    assert!(!hosts.contains("bank") && hosts.len() < 1000, "{hosts}");
    host.ok(&["rm", "-f", "first", "two"]);
    assert_eq!(host.traces(), "");
}

#[test]
fn names_that_are_none_reach_nobodys_files() {
    let host = Host::new();
    host.ok(&["network", "create", "back"]);
    let bad = "a\n10.0.0.1 bank";
    let (alias, line) = (format!("back:alias={bad}"), format!("{bad}:10.0.0.1"));
    for flags in [
        ["--network=back", "--hostname", bad],
        ["--network=back", "--network-alias", bad],
        ["--network", &alias, "-q"],
        ["--network=back", "--add-host", &line],
        ["--network=back", "--hostname", "a b"],
        ["--network=back", "--hostname", "a-"],
    ] {
        let run = [&["run", "--rm"][..], &flags, &["--image", "app.xar", "true"]].concat();
        let said = host.fails(&run);
        assert!(said.contains("cannot name a machine"), "{flags:?}: {said}");
    }
    // Nor by way of the files in the state directory.
    host.serve("web", &["--network", "back"]);
    let config = host.world.path("state").join("jobs");
    let config =
        std::fs::read_dir(config).unwrap().next().unwrap().unwrap().path().join("config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    let named = text.replacen("\"aliases\": []", "\"aliases\": [\"b\\n10.0.0.1 bank\"]", 1);
    assert_ne!(named, text);
    std::fs::write(&config, named).unwrap();
    host.serve("other", &["--network", "back"]);
    let hosts = host.ok(&["exec", "other", "cat", "/etc/hosts"]).stdout;
    assert!(hosts.contains("\tweb ") && !hosts.contains("bank"), "{hosts}");
    host.ok(&["rm", "-f", "web", "other"]);
}

/// Prints the marks of frames that reach this job: `evil` and `fine` with a number.
const WATCH: &str = r#"
import re, socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 0))
print("watching", flush=True)
while True:
    frame, (_, _, kind, *_) = s.recvfrom(65535)
    if kind != socket.PACKET_OUTGOING:
        for mark in re.findall(rb"(?:evil|fine)[0-9]+;", frame): print(mark.decode(), flush=True)
"#;

/// Sends what a job may not send, each with a mark of its own, and what it may.
/// Arguments: own, victim's and gateway's address, of IPv4 and of IPv6.
const SPEAK: &str = r#"
import socket, struct, sys, ipaddress
own, victim, gateway = (ipaddress.ip_address(a).packed for a in sys.argv[1:4])
own6, victim6, gateway6 = (ipaddress.ip_address(a).packed for a in sys.argv[4:7])
mac = lambda a: b"\x02\x6d" + a
local = lambda a: b"\xfe\x80" + bytes(6) + bytes([0, 0x6d, a[0], 0xff, 0xfe]) + a[1:]
all, all6 = b"\xff" * 6, bytes.fromhex("ff020000000000000000000000000001")
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
def sum(data):
    data += b"\0" * (len(data) % 2)
    total = 0
    for (word,) in struct.iter_unpack("!H", data): total += word
    while total >> 16: total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
count = 0
def send(good, frame):
    global count
    count += 1
    s.send(frame + b"%s%d;" % (b"fine" if good else b"evil", count) + bytes(46))
def ether(source, kind, to=all): return to + source + struct.pack("!H", kind)
def arp(op, mac_, ip, to=victim): return struct.pack("!HHBBH", 1, 0x800, 6, 4, op) + mac_ + ip + mac(to) + to
def ip(source, to, port=9, mark=b""):
    udp = struct.pack("!HHHH", port, 9, 8 + 40, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + 8 + 40, 1, 0, 9, 17, 0) + source + to
    return head[:10] + struct.pack("!H", sum(head)) + head[12:] + udp
def ip6(source, to, proto, body, hops=255): return struct.pack("!IHBB", 6 << 28, len(body), proto, hops) + source + to + body
def icmp6(source, to, kind, body):
    # The mark and its padding are part of the message.
    global count
    count += 1
    mark = b"%s%d;"
    return lambda good: (lambda data: ip6(source, to, 58, data[:2] + struct.pack("!H", sum(source + to + struct.pack("!II", len(data), 58) + data)) + data[4:]))(
        struct.pack("!BBH", kind, 0, 0) + body + (mark % (b"fine" if good else b"evil", count)).ljust(40, b"\0"))
def send6(good, source_mac, source, to, kind, body): s.send(ether(source_mac, 0x86dd, b"\x33\x33\0\0\0\1") + icmp6(source, to, kind, body)(good))
me = mac(own)
# 1-8: ARP: for the gateway, for the victim, with other hardware addresses inside and outside; an ARP of nothing.
for op in (1, 2):
    send(False, ether(me, 0x806) + arp(op, me, gateway))
    send(False, ether(me, 0x806) + arp(op, me, victim, gateway))
    send(False, ether(me, 0x806) + arp(op, mac(gateway), own))
    send(False, ether(mac(gateway), 0x806) + arp(op, mac(gateway), gateway))
# 9-13: another's address, hardware address, none; a DHCP server.
send(False, ether(me, 0x800) + ip(victim, b"\xff" * 4))
send(False, ether(me, 0x800) + ip(gateway, victim))
send(False, ether(mac(victim), 0x800) + ip(own, victim))
send(False, ether(me, 0x800) + ip(bytes(4), b"\xff" * 4))
send(False, ether(me, 0x800) + ip(own, b"\xff" * 4, 67))
# 14-20: VLAN tags, twice; other protocols; frames for the bridge itself; RARP.
send(False, ether(me, 0x8100) + struct.pack("!HH", 5, 0x800) + ip(own, victim))
send(False, ether(me, 0x8100) + struct.pack("!HH", 0, 0x806) + arp(2, me, gateway))
send(False, ether(me, 0x88a8) + struct.pack("!HHHH", 5, 0x8100, 6, 0x800) + ip(own, victim))
send(False, ether(me, 0x88b5))
send(False, ether(mac(victim), 0x88cc, b"\x01\x80\xc2\0\0\x0e"))
send(False, ether(mac(victim), 0x27, b"\x01\x80\xc2\0\0\0"))
send(False, ether(me, 0x8035) + arp(3, me, own))
# Many hardware addresses.
for n in range(3000):
    s.send(ether(b"\x02\x99" + struct.pack("!I", n), 0x806) + arp(2, me, own) + bytes(18))
    s.send(ether(b"\x02\x98" + struct.pack("!I", n), 0x88cc, b"\x01\x80\xc2\0\0\x0e") + bytes(46))
# Neighbour discovery: for others, a router, a redirect, a probe of another's address; another's source.
for target in (gateway6, victim6, local(gateway), local(victim)):
    send6(False, me, own6, all6, 136, b"\x20\0\0\0" + target + b"\2\1" + me)
    send6(False, me, local(own), all6, 136, b"\x20\0\0\0" + target + b"\2\1" + me)
    send6(False, me, bytes(16), all6, 135, bytes(4) + target)
    send6(False, me, target, all6, 135, bytes(4) + own6 + b"\1\1" + me)
send6(False, me, local(own), all6, 134, b"\x40\0\x07\x08" + bytes(8))
send6(False, me, local(own), all6, 137, bytes(4) + own6 + victim6)
# What is allowed.
send(True, ether(me, 0x806) + arp(1, me, own))
send(True, ether(me, 0x800) + ip(own, victim))
send6(True, me, own6, all6, 136, b"\x20\0\0\0" + own6 + b"\2\1" + me)
send6(True, me, local(own), all6, 136, b"\x20\0\0\0" + local(own) + b"\2\1" + me)
s.send(ether(me, 0x806) + arp(1, me, own) + b"fine999;" + bytes(10))
"#;

#[test]
fn a_job_speaks_only_for_itself() {
    let host = Host::new();
    host.ok(&["network", "create", "--ipv6", "--subnet", "fd00:77::/64", "back"]);
    let raw = ["--network", "back", "--cap-add", "NET_RAW"];
    let watch = ["--image", "app.xar", "--", "python3", "-c", WATCH];
    host.ok(&[&["run", "-d", "--name", "victim"][..], &raw, &watch].concat());
    wait_for(|| host.ok(&["logs", "victim"]).stdout.contains("watching"));
    host.serve("evil", &[&raw[..], &["--cap-add", "NET_ADMIN"]].concat());
    let (own, victim) = (host.address("evil"), host.address("victim"));
    assert!(host.reaches("victim", &own));
    let own6 = format!("fd00:77::{}", own.rsplit('.').next().unwrap());
    let victim6 = format!("fd00:77::{}", victim.rsplit('.').next().unwrap());
    let addresses = [&own, &victim, "10.90.0.1", &own6, &victim6, "fd00:77::1"];
    host.ok(&[&["exec", "evil", "python3", "-c", SPEAK][..], &addresses].concat());
    wait_for(|| host.ok(&["logs", "victim"]).stdout.contains("fine999"));
    let heard = host.ok(&["logs", "victim"]).stdout;
    assert_eq!(heard.matches("fine").count(), 5, "{heard}");
    assert!(!heard.contains("evil"), "{heard}");
    // The bridge has learnt nothing but where the jobs are.
    let known = host.inside.sh("bridge fdb show dynamic").unwrap();
    assert!(
        known.lines().count() < 8 && !known.contains("02:99") && !known.contains("02:98"),
        "{known}"
    );
    let place = |job: &str| {
        let id = host.ok(&["ps", "-q", "--no-trunc", "--filter", &format!("name={job}")]).stdout;
        format!("m{}", id.trim())
    };
    let mac = |address: &str| {
        let bytes: Vec<String> =
            address.split('.').map(|byte| format!("{:02x}", byte.parse::<u8>().unwrap())).collect();
        format!("02:6d:{}", bytes.join(":"))
    };
    for line in known.lines().filter(|line| line.starts_with(&mac(&victim))) {
        assert!(line.contains(&place("victim")), "{line}");
    }
    // And whoever takes another's address, or another hardware address, is alone.
    let take =
        "ip link set eth0 down; ip link set eth0 address 02:6d:0a:5a:00:01; ip link set eth0 up";
    host.ok(&["exec", "evil", "sh", "-c", take]);
    assert!(!host.reaches("victim", &own));
    host.ok(&["rm", "-f", "evil", "victim"]);
    assert_eq!(host.traces(), "");
}

/// Sends an echo request as `ping` does, and waits for the answer.
const PING: &str = r#"
import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
s.settimeout(5)
s.sendto(b"\x08\0\0\0\0\0\0\1hello", (sys.argv[1], 0))
print(s.recv(100)[-5:].decode())
"#;

#[test]
fn raw_sockets_are_not_for_everybody_and_ping_is() {
    let host = Host::new();
    host.ok(&["network", "create", "back"]);
    host.serve("one", &["--network", "back"]);
    let address = host.address("one");
    for user in ["0", "1234:1234"] {
        let run = ["run", "--rm", "--network", "back", "-u", user, "--image", "app.xar", "--"];
        let ping = ["python3", "-c", PING, &address];
        assert_eq!(host.ok(&[&run[..], &ping].concat()).stdout, "hello\n", "{user}");
        for kind in ["AF_PACKET, socket.SOCK_RAW", "AF_INET, socket.SOCK_RAW, 1"] {
            let script = format!("import socket; socket.socket(socket.{kind})");
            let said = host.fails(&[&run[..], &["python3", "-c", &script]].concat());
            assert!(said.contains("PermissionError"), "{said}");
        }
    }
    host.ok(&["rm", "-f", "one"]);
}

#[test]
fn ports_of_the_hosts_loopback_are_the_hosts_alone() {
    let host = Host::new();
    host.ok(&["network", "create", "--ipv6", "back"]);
    let ports = ["--network", "back", "-p", "127.0.0.1:8081:80", "-p", "8080:80"];
    host.serve("web", &ports);
    // A neighbour on the wire for whom 127.0.0.0/8 and ::1 lie behind the host.
    for line in [
        "sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.in.route_localnet=1",
        "ip addr flush dev lo",
        "ip route flush table local type local 127.0.0.0/8; ip route flush table local 127.0.0.0/8",
        &format!("ip route add 127.0.0.0/8 via {HOST} src {BEYOND}"),
    ] {
        host.outside.sh(line).unwrap();
    }
    let fetch = |place: &str| format!("curl -sSm3 http://{place}/hello.txt");
    assert_eq!(host.outside.sh(&fetch(&format!("{HOST}:8080"))).unwrap(), "hello\n");
    for place in ["127.0.0.1:8081", "127.0.0.1:8080", "127.1.2.3:8080"] {
        host.outside.sh(&fetch(place)).unwrap_err();
    }
    for place in ["127.0.0.1:8081", "127.0.0.1:8080", "localhost:8080"] {
        assert_eq!(host.inside.sh(&fetch(place)).unwrap(), "hello\n", "{place}");
    }
    host.ok(&["rm", "-f", "web"]);
    assert_eq!(host.traces(), "");
}

#[test]
fn a_network_is_not_the_host_unless_it_is_asked_for() {
    let host = Host::new();
    let tree = host.world.path("tree");
    for line in [
        "ip addr add 2001:db8::1/64 dev out nodad",
        "ip route add 169.254.169.254 via 192.0.2.2",
        "ip -6 route add fd00:ec2::254 via 2001:db8::2",
    ] {
        host.inside.sh(line).unwrap();
    }
    for line in [
        "ip addr add 169.254.169.254/32 dev in && ip addr add 2001:db8::2/64 dev in nodad",
        "ip addr add fd00:ec2::254/128 dev in nodad",
    ] {
        host.outside.sh(line).unwrap();
    }
    let serve = format!("cd {} && exec python3 -m http.server --bind :: 7000", tree.display());
    let mut service = std::process::Command::new("nsenter")
        .args([&host.inside.flag(), "sh", "-c", &serve])
        .spawn()
        .unwrap();
    let mut beyond = host.listen_outside();
    wait_for(|| host.inside.sh("curl -sSm3 http://127.0.0.1:7000/hello.txt").is_ok());
    let forwarding = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv6/conf/all/forwarding /proc/sys/net/ipv6/conf/out/accept_ra";
    let before = host.inside.sh(forwarding).unwrap();
    assert!(before.starts_with("0\n0\n"), "{before}");

    host.ok(&["network", "create", "--ipv6", "--subnet", "fd00:77::/64", "back"]);
    host.ok(&["network", "create", "--internal", "closed"]);
    host.serve("job", &["--network", "back"]);
    host.serve("friend", &["--network", "back:host"]);
    host.serve("shut", &["--network", "closed"]);
    assert_eq!(host.inside.sh(forwarding).unwrap(), "1\n1\n2\n");
    let hosts = ["10.90.0.1:7000", "192.0.2.1:7000", "[fd00:77::1]:7000", "[2001:db8::1]:7000"];
    let clouds = ["169.254.169.254", "[fd00:ec2::254]"];
    for place in hosts.iter().chain(&clouds) {
        assert!(!host.reaches("job", place), "{place}");
        assert!(host.reaches("friend", place), "{place}");
    }
    assert!(!host.reaches("shut", "10.90.1.1:7000") && !host.reaches("shut", BEYOND));
    assert!(host.reaches("job", BEYOND) && host.reaches("job", "[2001:db8::2]"));
    assert!(host.reaches("job", "friend") && !host.reaches("shut", "job"));
    let internal = ["run", "--rm", "--network", "closed:host", "--image", "app.xar", "true"];
    assert!(host.fails(&internal).contains("its jobs cannot reach the host"));

    // All is put back with the last of them, however it ends.
    host.ok(&["rm", "-f", "job", "friend"]);
    assert_eq!(host.inside.sh(forwarding).unwrap(), before);
    host.serve("job", &["--network", "back"]);
    let record: Value = serde_json::from_str(&host.ok(&["inspect", "job"]).stdout).unwrap();
    let supervisor = record["status"]["supervisor"].as_i64().unwrap();
    assert_eq!(host.inside.sh(forwarding).unwrap(), "1\n1\n2\n");
    host.inside.sh(&format!("kill -9 {supervisor}")).unwrap();
    wait_for(|| {
        host.ok(&["ps"]);
        host.inside.sh(forwarding).unwrap() == before
    });
    host.ok(&["rm", "-f", "shut"]);
    assert_eq!(host.traces(), "");
    service.kill().unwrap();
    service.wait().unwrap();
    beyond.kill().unwrap();
    beyond.wait().unwrap();
}

/// Answers whatever comes to port 53 of UDP.
const NAMES: &str = "import socket; s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); s.bind(('::', 53)); \
    print('ready', flush=True); [s.sendto(b'answer', s.recvfrom(99)[1]) for _ in iter(int, 1)]";

#[test]
fn a_name_server_that_the_job_was_given_can_be_asked() {
    let host = Host::new();
    host.ok(&["network", "create", "back"]);
    let mut server = std::process::Command::new("nsenter")
        .args([&host.inside.flag(), "python3", "-c", NAMES])
        .spawn()
        .unwrap();
    let ask = |place: &str| {
        format!(
            "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(1); \
             s.sendto(b'x', ('{place}', 53)); print(s.recv(9).decode())"
        )
    };
    wait_for(|| host.inside.sh(&format!("python3 -c \"{}\"", ask("127.0.0.1"))).is_ok());
    let run = [
        "run",
        "--rm",
        "--network",
        "back",
        "--dns",
        HOST,
        "--image",
        "app.xar",
        "--",
        "python3",
        "-c",
    ];
    assert_eq!(host.ok(&[&run[..], &[&ask(HOST)]].concat()).stdout, "answer\n");
    host.fails(&[&run[..], &[&ask("10.90.0.1")]].concat());
    server.kill().unwrap();
    server.wait().unwrap();
}

/// Sends one packet each to very many ports.
const MANY: &str = r#"
import socket, sys
s = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
for port in range(1, 30000):
    for one in s: one.sendto(b"x", (sys.argv[1], port))
"#;

#[test]
fn the_hosts_table_of_connections_is_not_one_jobs() {
    let host = Host::new();
    let read = |name: &str| {
        let text = host.inside.sh(&format!("cat /proc/sys/net/netfilter/nf_conntrack_{name}"));
        text.unwrap().trim().parse::<u64>().unwrap()
    };
    host.ok(&["network", "create", "back"]);
    let mut beyond = host.listen_outside();
    host.serve("evil", &["--network", "back"]);
    host.serve("other", &["--network", "back"]);
    host.ok(&["exec", "evil", "python3", "-c", MANY, BEYOND]);
    let (count, most) = (read("count"), read("max"));
    assert!(count > 1000, "nothing was sent: {count}");
    assert!(count <= (most / 8).min(8192) + 1000, "{count} of {most}");
    assert!(host.reaches("other", BEYOND));
    host.ok(&["rm", "-f", "evil", "other"]);
    beyond.kill().unwrap();
    beyond.wait().unwrap();
}
