//! Private networks, by pasta, for root and for ordinary users; and what becomes of networks when programs hang, when many
//! commands change them at once, and when supervisors are killed.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::net::{BEYOND, Host, Namespace};
use common::{Ran, USERS, User, World, wait_for};
use serde_json::Value;

/// The same command in a network namespace, for which it needs root.
fn within(namespace: &Namespace, inner: &Command) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(namespace.flag()).arg(inner.get_program()).args(inner.get_args()).env_clear();
    for (name, value) in inner.get_envs() {
        command.env(name, value.unwrap());
    }
    command.current_dir(inner.get_current_dir().unwrap()).stdin(Stdio::null());
    command
}

fn world(user: User) -> World {
    let world = World::new(user);
    world.write("tree/hello.txt", "hello\n");
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world
}

/// A program of the host's that answers at port 7000.
fn service(host: &Host) -> Child {
    let tree = host.world.path("tree");
    let serve = format!("cd {} && exec python3 -m http.server --bind :: 7000", tree.display());
    let child = Command::new("nsenter")
        .args([&host.inside.flag(), "sh", "-c", &serve])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for(|| host.inside.sh("curl -sSm3 http://127.0.0.1:7000/hello.txt").is_ok());
    child
}

#[test]
fn a_private_network_is_not_the_host_unless_it_is_asked_for() {
    let host = Host::new();
    for line in [
        "ip addr add 2001:db8::1/64 dev out nodad && ip route add default via 192.0.2.2",
        "ip -6 route add default via 2001:db8::2",
        "ip link add other type bridge && ip link set other up && ip addr add 10.77.0.1/24 dev other",
        "ip addr add fd55::1/64 dev other nodad",
    ] {
        host.inside.sh(line).unwrap();
    }
    for line in [
        "ip addr add 169.254.169.254/32 dev in && ip addr add 2001:db8::2/64 dev in nodad",
        "ip addr add fd00:ec2::254/128 dev in nodad",
    ] {
        host.outside.sh(line).unwrap();
    }
    let (mut service, mut beyond) = (service(&host), host.listen_outside());
    host.serve("neighbour", &["--network", "bridge"]);
    let neighbour = host.address("neighbour");
    let outside = [BEYOND, "[2001:db8::2]"];
    let hosts = ["10.77.0.1:7000", "[fd55::1]:7000", &neighbour, "10.90.0.1:7000"];
    let clouds = ["169.254.169.254", "[fd00:ec2::254]"];
    let places = [&outside[..], &hosts, &clouds].concat();
    let script =
        "for p in \"$@\"; do curl -sm2 http://$p/hello.txt > /dev/null && echo $p; done; true";
    for user in USERS {
        let world = world(user);
        let reached = |network: &str| {
            let run = ["run", "--rm", "--network", network, "--image", "app.xar", "--"];
            let job = [&run[..], &["sh", "-c", script, "sh"], &places].concat();
            let ran: Ran = within(&host.inside, &world.mica(&job)).output().unwrap().into();
            assert_eq!(ran.code, Some(0), "{ran:?}");
            ran.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(reached("private"), outside, "as {user:?}");
        let all = reached("private:host");
        for place in outside.iter().chain(&hosts[..3]).chain(&clouds[..1]) {
            assert!(all.iter().any(|reached| reached == place), "{place} of {all:?} as {user:?}");
        }
        let admin = ["run", "--rm", "--network", "private", "--cap-add", "NET_ADMIN"];
        let admin = [&admin[..], &["--image", "app.xar", "--", "true"]].concat();
        let ran: Ran = within(&host.inside, &world.mica(&admin)).output().unwrap().into();
        assert!(ran.stderr.contains("with NET_ADMIN the job can get around"), "{ran:?}");
        // Without, nobody in the job can, whatever namespaces they make.
        let flush = ["run", "--rm", "--network", "private", "--image", "app.xar", "--", "sh", "-c"];
        let flush = [&flush[..], &["nft flush ruleset || unshare -Ur nft flush ruleset"]].concat();
        let ran: Ran = within(&host.inside, &world.mica(&flush)).output().unwrap().into();
        assert_ne!(ran.code, Some(0), "{ran:?}");
    }
    host.ok(&["rm", "-f", "neighbour"]);
    for child in [&mut service, &mut beyond] {
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn programs_that_hang_hold_nobody_up() {
    let host = Host::new();
    host.inside.sh(&format!("ip route add default via {BEYOND}")).unwrap();
    for user in USERS {
        let world = world(user);
        for (program, network) in [("nft", "bridge"), ("nft", "private"), ("pasta", "private")] {
            if user == User::Ordinary && network == "bridge" {
                continue;
            }
            let folder = format!("{program}-{network}");
            world.write(&format!("{folder}/{program}"), "#!/bin/sh\nsleep 1234567 & wait\n");
            let path = world.path(&format!("{folder}/{program}"));
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
            world.hand_over();
            let mut run = within(
                &host.inside,
                &world.mica(&["run", "--rm", "--network", network, "--image", "app.xar", "true"]),
            );
            let usual = std::env::var("PATH").unwrap();
            run.env("PATH", format!("{}:{usual}", world.path(&folder).display()));
            let begun = Instant::now();
            let ran: Ran = run.output().unwrap().into();
            assert!(begun.elapsed() < Duration::from_secs(60), "{program} {user:?}");
            assert_eq!(ran.code, Some(125), "{program} {ran:?}");
            let ps = world.run(&["ps", "-a", "-q"]);
            assert_eq!(ps.stdout, "", "{program} {user:?}");
        }
    }
    assert_eq!(host.traces(), "");
}

/// Many commands at once: each fails with a reason or does what it was told, and nothing is left.
#[test]
fn networks_come_and_go_under_many_hands() {
    let host = Host::new();
    let spawn = |args: &[&str]| {
        host.command(args).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut children = Vec::new();
    for n in 0..50 {
        let name = format!("net{}", n % 3);
        children.push(match n % 5 {
            0 => spawn(&["network", "create", &name]),
            1 => spawn(&["network", "rm", &name]),
            2 => spawn(&["network", "ls"]),
            _ => spawn(&["run", "--rm", "--network", &name, "--image", "app.xar", "--", "true"]),
        });
    }
    for child in children {
        let ran: Ran = child.wait_with_output().unwrap().into();
        let reasons = ["there is no network", "there is a network", "is in use by job"];
        let known = reasons.iter().any(|reason| ran.stderr.contains(reason));
        assert!(ran.code == Some(0) || known, "{ran:?}");
    }
    for name in host.ok(&["network", "ls", "-q"]).stdout.lines() {
        host.ok(&["network", "rm", name]);
    }
    assert_eq!(host.traces(), "");
    assert_eq!(host.ok(&["ps", "-a", "-q"]).stdout, "");
}

/// Whenever a supervisor is killed, what it made is gone with the next command, and its address is free.
#[test]
fn a_killed_supervisor_leaves_no_interface_table_or_address() {
    let host = Host::new();
    host.ok(&["network", "create", "--subnet", "10.30.0.0/29", "small"]);
    let jobs = host.world.path("state").join("jobs");
    let mut killed = 0;
    for delay in (0..60).map(|n| Duration::from_millis(n * 4)) {
        let run = ["run", "-d", "--rm", "--network", "small", "-p", "8080:80"];
        let run = [&run[..], &["--image", "app.xar", "--", "sleep", "1000"]].concat();
        let mut child =
            host.command(&run).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(delay);
        for job in std::fs::read_dir(&jobs).into_iter().flatten().flatten() {
            let status = std::fs::read(job.path().join("status.json")).unwrap_or_default();
            let status: Value = serde_json::from_slice(&status).unwrap_or_default();
            if let Some(pid) = status["supervisor"].as_i64() {
                killed += 1;
                host.inside.sh(&format!("kill -9 {pid} || true")).unwrap();
            }
        }
        child.wait().unwrap();
        let ids = host.ok(&["ps", "-a", "-q"]).stdout;
        let ids: Vec<&str> = ids.lines().collect();
        if !ids.is_empty() {
            // Some may be gone by themselves by now.
            host.run(&[&["rm", "-f"][..], &ids].concat());
        }
        wait_for(|| {
            host.ok(&["ps"]);
            host.traces().is_empty() && host.members("small").is_empty()
        });
    }
    assert!(killed > 10, "only {killed} supervisors were there to be killed");
    assert_eq!(host.inside.sh("cat /proc/sys/net/ipv4/ip_forward").unwrap(), "0\n");
}
