//! What the OCI runtime specification promises to a program, checked from inside a job. The checks are those of
//! opencontainers/runtime-tools (`validation/`), which drive a runtime by its command line and a bundle, of which there is
//! neither here.
//!
//! Here: default, linux_devices, linux_masked_paths, linux_readonly_paths, mounts, hostname, linux_rootfs_propagation,
//! root_readonly_true, process_rlimits, process_oom_score_adj, process_user, process, killsig, kill_no_effect.
//! Elsewhere: process_capabilities, linux_seccomp (`escapes`), linux_cgroups_* but those below, delete_resources (`limits`),
//! linux_ns_nopath, linux_uid_mappings, process_*_fail (`basics`), hooks of CDI files (`surroundings`), create, start, state,
//! kill and delete as `mica run`, `inspect`, `kill` and `rm` (`cli/tests/life.rs`).
//! Nowhere, as there is no such thing: pidfile, config_updates_without_affect and misc_props (of a bundle), poststart and
//! poststop hooks, joining namespaces by path (linux_ns_path, _itype, _path_type), linux_sysctl, AppArmor and mount labels,
//! rdma and network classes (linux_cgroups_network), hugetlb, device cgroups (nodes have no effect but the bound ones),
//! shared and unbindable propagation of the root.

use std::fs;

use crate::support::*;
use mica_launcher::{Mount, Rlimit, Stdio};

pub(crate) const TESTS: &[Test] = &[
    ("runtime_spec::devices", By::Both, devices),
    ("runtime_spec::links", By::Both, links),
    ("runtime_spec::filesystems", By::Both, filesystems),
    ("runtime_spec::masked_and_read_only", By::Both, masked_and_read_only),
    ("runtime_spec::mounts_in_order", By::Both, mounts_in_order),
    ("runtime_spec::read_only_root", By::Both, read_only_root),
    ("runtime_spec::rlimits", By::Both, rlimits),
    ("runtime_spec::process", By::Both, process),
    ("runtime_spec::signals", By::Both, signals),
];

/// Of the specification's "Default Devices": the numbers are the kernel's.
const DEVICES: [(&str, &str); 6] = [
    ("null", "1:3"),
    ("zero", "1:5"),
    ("full", "1:7"),
    ("random", "1:8"),
    ("urandom", "1:9"),
    ("tty", "5:0"),
];

fn devices() {
    let names = DEVICES.map(|(name, _)| format!("/dev/{name}")).join(" ");
    let text = sh(&format!(
        "stat -c '%n %F %t:%T' {names}; for d in {names}; do test -r $d -a -w $d || echo no access to $d; done; \
         test ! -e /dev/console && echo no console"
    ));
    let mut expected: Vec<String> = DEVICES
        .iter()
        .map(|(name, number)| format!("/dev/{name} character special file {number}"))
        .collect();
    expected.push("no console".into());
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
}

fn links() {
    let text = sh("cd /dev; readlink fd stdin stdout stderr ptmx; stat -c %t:%T pts/ptmx");
    let expected =
        "/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n5:2\n";
    assert_eq!(text, expected);
}

/// Of the specification's "Default Filesystems", with the options that runc gives them.
fn filesystems() {
    let text = sh("cat /proc/self/mountinfo");
    let expected = [
        ("/proc", "proc", "rw,nosuid,nodev,noexec"),
        ("/dev", "tmpfs", "rw,nosuid"),
        ("/dev/pts", "devpts", "rw,nosuid,noexec"),
        ("/dev/shm", "tmpfs", "rw,nosuid,nodev,noexec"),
        ("/dev/mqueue", "mqueue", "rw,nosuid,nodev,noexec"),
        ("/sys", "sysfs", "ro,nosuid,nodev,noexec"),
        ("/sys/fs/cgroup", "cgroup", "ro,nosuid,nodev,noexec"),
    ];
    for (target, kind, options) in expected {
        let fields = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let Some(mount) = fields.clone().rfind(|fields| fields[4] == target) else {
            // A host without a cgroup file system has none to show.
            assert_eq!(target, "/sys/fs/cgroup", "not mounted\n{text}");
            continue;
        };
        let after = mount.iter().position(|field| *field == "-").unwrap();
        assert!(mount[after + 1].starts_with(kind) || kind == "cgroup", "{mount:?}");
        let has: Vec<_> = mount[5].split(',').collect();
        for option in options.split(',') {
            assert!(has.contains(&option), "{target} is not {option}: {mount:?}");
        }
    }
    // Nothing of the job's mounts travels to the host.
    assert!(!text.contains(" shared:"), "{text}");
}

fn masked_and_read_only() {
    // Those of `runc spec`.
    let masked = "acpi asound kcore keys latency_stats timer_list timer_stats sched_debug scsi";
    let text = sh(&format!(
        "for p in {masked}; do cat /proc/$p /proc/$p/* 2>/dev/null; done; ls -A /sys/firmware 2>/dev/null; \
         for p in bus fs irq sys sysrq-trigger; do \
             test -d /proc/$p -o -f /proc/$p || continue; \
             grep -q \" /proc/$p ro\" /proc/self/mountinfo || echo /proc/$p can be written; \
         done"
    ));
    assert_eq!(text, "");
}

fn mounts_in_order() {
    let tree = tree();
    let volumes = [scratch(), scratch()];
    fs::create_dir(volumes[0].path().join("sub")).unwrap();
    for (volume, text) in volumes.iter().zip(["first", "second"]) {
        fs::write(volume.path().join("file"), text).unwrap();
    }
    let tmpfs = |target: &str, read_only| Mount::Tmpfs {
        target: target.into(),
        size: Some(1 << 20),
        mode: 0o711,
        read_only,
        exec: false,
        options: Vec::new(),
    };
    let mut spec = shell(
        tree.path(),
        "cat /m/file /m/sub/file /n/file; stat -c %a /t; touch /t/x 2>&1; \
         grep -E ' /(t|m) ' /proc/self/mountinfo | cut -d' ' -f5-6",
    );
    spec.mounts.push(bind(volumes[0].path(), "/m", false));
    spec.mounts.push(bind(volumes[1].path(), "/m/sub", true));
    // The later one covers the one before.
    spec.mounts.push(bind(volumes[0].path(), "/n", false));
    spec.mounts.push(bind(volumes[1].path(), "/n", false));
    spec.mounts.push(tmpfs("/t", true));
    let (_, text) = output(&spec);
    assert!(text.starts_with("firstsecondsecond711\n"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    assert!(text.contains("/t ro,nosuid,nodev,noexec"), "{text}");
}

fn read_only_root() {
    let tree = tree();
    let line =
        "for d in / /etc /root; do touch $d/x 2>&1; done; touch /tmp/x /dev/shm/x && echo scratch";
    let mut spec = shell(tree.path(), line);
    spec.read_only = true;
    let (_, text) = output(&spec);
    assert_eq!(text.matches("Read-only file system").count(), 3, "{text}");
    assert!(text.ends_with("scratch\n"), "{text}");
}

/// What `/proc/self/limits` calls them.
const RESOURCES: [(&str, &str); 13] = [
    ("core", "Max core file size"),
    ("cpu", "Max cpu time"),
    ("data", "Max data size"),
    ("fsize", "Max file size"),
    ("locks", "Max file locks"),
    ("memlock", "Max locked memory"),
    ("msgqueue", "Max msgqueue size"),
    ("nofile", "Max open files"),
    ("nproc", "Max processes"),
    ("rss", "Max resident set"),
    ("rttime", "Max realtime timeout"),
    ("sigpending", "Max pending signals"),
    ("stack", "Max stack size"),
];

fn rlimits() {
    let tree = tree();
    let own = fs::read_to_string("/proc/self/limits").unwrap();
    let fields = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap().to_owned();
        let mut words = line[name.len()..].split_whitespace().map(str::to_owned);
        (words.next().unwrap(), words.next().unwrap())
    };
    let mut spec = shell(tree.path(), "cat /proc/self/limits");
    // A little below what we have, or a lot of what is not bounded.
    let wanted = RESOURCES.map(|(resource, name)| {
        let hard = fields(&own, name).1.parse().map_or(1 << 40, |held: u64| held.min(1 << 40));
        (resource, name, hard.saturating_sub(hard / 16), hard)
    });
    for (resource, _, soft, hard) in wanted {
        spec.rlimits.push(Rlimit { resource: resource.into(), soft: Some(soft), hard: Some(hard) });
    }
    let (exit, text) = output(&spec);
    assert_eq!(exit.code(), 0, "{text}");
    for (_, name, soft, hard) in wanted {
        assert_eq!(fields(&text, name), (soft.to_string(), hard.to_string()), "{name}");
    }
}

fn process() {
    let tree = tree();
    let mut spec = shell(
        tree.path(),
        "pwd; umask; cat /proc/self/oom_score_adj; hostname; touch /tmp/x; stat -c %a /tmp/x; \
         grep -hE '^(NoNewPrivs|Seccomp|Groups):' /proc/self/status",
    );
    spec.cwd = "/etc".into();
    spec.umask = 0o027;
    spec.oom_score_adj = Some(789);
    spec.hostname = Some("mine".into());
    if is_root() && fs::read_to_string("/proc/self/setgroups").unwrap() == "allow\n" {
        spec.groups = vec!["1234".into(), "5678".into()];
    }
    let groups = spec.groups.join(" ");
    let (_, text) = output(&spec);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..5], ["/etc", "0027", "789", "mine", "640"], "{text}");
    assert!(lines.iter().any(|l| l.starts_with("Groups:") && l.contains(&groups)), "{text}");
    assert!(lines.contains(&"NoNewPrivs:\t1") && lines.contains(&"Seccomp:\t2"), "{text}");
}

fn signals() {
    let tree = tree();
    for (signal, caught) in [(15, true), (10, true), (9, false)] {
        let line = "trap 'echo caught; exit 7' TERM USR1; echo ready; while :; do sleep 0.01; done";
        let (stdio, mut reader) = piped();
        let mut job = start(&shell(tree.path(), line), stdio);
        wait_for(&mut reader, "ready\n");
        job.signal(signal).unwrap();
        if caught {
            wait_for(&mut reader, "caught\n");
        }
        let code = job.wait().unwrap().code();
        assert_eq!(code, if caught { 7 } else { 128 + signal });
        // What has ended is not brought back, and nobody else is hit.
        assert!(job.signal(signal).is_err() || job.wait().unwrap().code() == code);
    }
    let mut job = start(&shell(tree.path(), "true"), Stdio::null().unwrap());
    assert_eq!(job.wait().unwrap().code(), 0);
}
