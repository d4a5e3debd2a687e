//! What a launch would do, without doing it.
#![allow(missing_docs, clippy::unwrap_used)]

use mica_launcher::cgroup::Layout;
use mica_launcher::{
    Caller, EntryKind, HostFacts, HostView, IdMapping, IdRange, Mount, Namespace, Network,
    PlanError, Root, RootEntry, Shown, ShownKind, Spec, Step, parse_map, plan,
};

fn root_facts() -> HostFacts {
    let all = parse_map("0 0 4294967295");
    HostFacts {
        caller: Caller { uid: 0, gid: 0, maps_freely: true, uid_map: all.clone(), gid_map: all },
        message_queues: true,
        passwd: "web:x:33:34::/srv:/bin/sh\n".into(),
        cgroups: Layout { v1: Vec::new(), v2: Some("/sys/fs/cgroup/own".into()) },
        ..HostFacts::default()
    }
}

fn user_facts() -> HostFacts {
    let one = parse_map("1000 1000 1");
    HostFacts {
        caller: Caller {
            uid: 1000,
            gid: 1000,
            maps_freely: true,
            uid_map: one.clone(),
            gid_map: one,
        },
        ..root_facts()
    }
}

fn in_tree() -> Spec {
    Spec::new("one", Root::Tree("/mnt/tree".into()), ["/bin/true"])
}

fn words(spec: &Spec, facts: &HostFacts) -> Vec<String> {
    plan(spec, facts).unwrap().steps.iter().map(Step::to_string).collect()
}

#[test]
fn a_tree_as_the_root() {
    let mut spec = in_tree();
    spec.hostname = Some("job".into());
    spec.mounts.push(Mount::Bind {
        source: "/data".into(),
        target: "/in".into(),
        read_only: true,
        recursive: true,
        follow: false,
        ids: None,
    });
    let words = words(&spec, &root_facts());
    let expected = "\
make a cgroup namespace
set the host name job
make mounts private
take /mnt/tree as the root
mount proc at /proc (rw,nosuid,nodev,noexec)
mount the host's sysfs at /sys
mount cgroup2 at /sys/fs/cgroup (ro,nosuid,nodev,noexec)
mount tmpfs at /dev (rw,nosuid,nodev)
bind /dev/null to /dev/null (ro,nosuid,noexec)
bind /dev/zero to /dev/zero (ro,nosuid,noexec)
bind /dev/full to /dev/full (ro,nosuid,noexec)
bind /dev/random to /dev/random (ro,nosuid,noexec)
bind /dev/urandom to /dev/urandom (ro,nosuid,noexec)
bind /dev/tty to /dev/tty (ro,nosuid,noexec)
mount devpts at /dev/pts (rw,nosuid,noexec)
link /dev/ptmx to pts/ptmx
link /dev/fd to /proc/self/fd
link /dev/stdin to /proc/self/fd/0
link /dev/stdout to /proc/self/fd/1
link /dev/stderr to /proc/self/fd/2
link /dev/core to /proc/kcore
mount tmpfs at /dev/shm (rw,nosuid,nodev,noexec)
mount mqueue at /dev/mqueue (rw,nosuid,nodev,noexec)
mount tmpfs at /tmp (rw,nosuid,nodev)
bind /data to /in (ro,nosuid,nodev)
hide /proc/acpi
hide /proc/asound
hide /proc/kcore
hide /proc/keys
hide /proc/latency_stats
hide /proc/timer_list
hide /proc/sched_debug
hide /proc/scsi
hide /sys/firmware
hide /sys/devices/virtual/powercap
make /proc/bus read-only
make /proc/fs read-only
make /proc/irq read-only
make /proc/sys read-only
make /proc/sysrq-trigger read-only
change to the new root";
    assert_eq!(words.join("\n"), expected);
}

fn beside(view: HostView) -> Spec {
    let at = "/packages/A-953bc".into();
    Spec::new("one", Root::Host { tree: "/mnt/tree".into(), at, view }, ["true"])
}

#[test]
fn a_tree_beside_the_hosts_programs() {
    let mut spec = beside(HostView::default());
    let mut facts = root_facts();
    let bind = |path: &str| Shown { target: path.into(), kind: ShownKind::Bind(path.into()) };
    let link = ShownKind::Symlink("usr/bin".into());
    facts.shown = vec![
        Shown { target: "/bin".into(), kind: link },
        bind("/etc/passwd"),
        bind("/opt"),
        Shown { target: "/etc/resolv.conf".into(), kind: ShownKind::Bind("/run/resolv".into()) },
        bind("/usr"),
    ];
    facts.hidden = vec!["/opt/mica".into(), "/var/lib/mica".into(), "/srv/mica".into()];
    for (source, target) in [("/", "/h"), ("/link", "/data"), ("/home", "/home"), ("/gone", "/g")] {
        spec.mounts.push(Mount::Bind {
            source: source.into(),
            target: target.into(),
            read_only: false,
            recursive: true,
            follow: false,
            ids: None,
        });
    }
    let real = [("/", "/"), ("/link", "/var"), ("/home", "/home")];
    facts.sources = real.map(|(source, real)| (source.into(), real.into())).into();
    facts.automounts = vec!["/home/net".into()];
    let words = words(&spec, &facts);
    assert_eq!(
        words[2..10],
        [
            "put a root together at /mnt/tree",
            "link /bin to usr/bin",
            "bind /etc/passwd to /etc/passwd (ro,nosuid,nodev)",
            "bind /opt to /opt (ro,nosuid,nodev)",
            "hide /opt/mica",
            "bind /run/resolv to /etc/resolv.conf (ro,nosuid,nodev)",
            "bind /usr to /usr (ro,nosuid,nodev)",
            "bind /mnt/tree to /packages/A-953bc (rw,nosuid,nodev)",
        ]
    );
    let at = words.iter().position(|line| line.starts_with("bind / to")).unwrap();
    assert_eq!(
        words[at..at + 8],
        [
            "bind / to /h (rw,nosuid,nodev)",
            "hide /h/opt/mica",
            "hide /h/var/lib/mica",
            "hide /h/srv/mica",
            "bind /var to /data (rw,nosuid,nodev)",
            "hide /data/lib/mica",
            "bind /home to /home (rw,nosuid,nodev)",
            "bind /gone to /g (rw,nosuid,nodev)",
        ]
    );
    let follows = |step: &&Step| matches!(step, Step::Bind { follow: true, .. });
    let steps = plan(&spec, &facts).unwrap().steps;
    let following: Vec<_> = steps.iter().filter(follows).map(Step::to_string).collect();
    assert_eq!(
        following,
        ["bind / to /h (rw,nosuid,nodev)", "bind /home to /home (rw,nosuid,nodev)"],
        "what is mounted on demand appears"
    );
    assert_eq!(words[words.len() - 2..], ["make the root read-only", "change to the new root"]);
}

#[test]
fn volumes_from_what_is_hidden() {
    let mut spec = beside(HostView::default());
    let mut facts = root_facts();
    facts.hidden = vec!["/var/lib/mica".into()];
    facts.not_hidden = vec!["/var/lib/mica/volumes".into()];
    let mut refused = |real: &str| {
        spec.mounts = vec![Mount::Bind {
            source: "/link".into(),
            target: "/x".into(),
            read_only: true,
            recursive: false,
            follow: false,
            ids: None,
        }];
        facts.sources = [("/link".into(), real.into())].into();
        plan(&spec, &facts).err().map(|error| error.to_string())
    };
    let message = Some("/link is mica's own, and hidden from jobs".to_owned());
    assert_eq!(refused("/var/lib/mica"), message);
    assert_eq!(refused("/var/lib/mica/jobs/x/control"), message);
    assert_eq!(refused("/var/lib/mica/volumes/data"), None);
    assert_eq!(refused("/var/lib/micado"), None);
    // What is shown of it is shown, also where it is a mount of its own.
    facts.hidden.push("/var/lib/mica/volumes/data".into());
    facts.sources = [("/link".into(), "/var/lib/mica/volumes/data".into())].into();
    let masks = words(&spec, &facts).into_iter().filter(|line| line.starts_with("hide /x"));
    assert_eq!(masks.count(), 0);
}

#[test]
fn a_tree_in_the_hosts_root() {
    let spec = beside(HostView::Whole);
    let mut facts = root_facts();
    let names = ["bin", "dev", "etc", "packages", "proc", "run", "usr", "var"];
    facts.root_entries = names
        .map(|name| RootEntry {
            name: name.into(),
            kind: if name == "bin" {
                EntryKind::Symlink("usr/bin".into())
            } else {
                EntryKind::Bind
            },
        })
        .to_vec();
    facts.resolv_conf = Some(("/run/resolve/conf".into(), String::new()));
    facts.hidden = vec!["/var/lib/mica".into()];
    let words = words(&spec, &facts);
    assert_eq!(
        words[2..11],
        [
            "put a root together at /mnt/tree",
            "link /bin to usr/bin",
            "bind /etc to /etc (ro,nosuid,nodev)",
            "bind /usr to /usr (ro,nosuid,nodev)",
            "bind /var to /var (ro,nosuid,nodev)",
            "hide /var/lib/mica",
            "mount tmpfs at /run (rw,nosuid,nodev,noexec)",
            "bind /mnt/tree to /packages/A-953bc (rw,nosuid,nodev)",
            "write /run/resolve/conf",
        ]
    );
    assert_eq!(words[words.len() - 2..], ["make the root read-only", "change to the new root"]);
}

#[test]
fn shared_namespaces_mean_the_hosts_files() {
    let mut spec = in_tree();
    spec.namespaces.pid = Namespace::Host;
    spec.namespaces.ipc = Namespace::Host;
    spec.namespaces.cgroup = Namespace::Host;
    spec.namespaces.network = Network::None;
    let words = words(&spec, &root_facts());
    for expected in [
        "bring the loopback interface up",
        "bind /proc to /proc (rw,nosuid,nodev,noexec)",
        "bind /dev/mqueue to /dev/mqueue (rw,nosuid,nodev,noexec)",
        "mount a fresh sysfs at /sys",
    ] {
        assert!(words.iter().any(|w| w == expected), "{expected}");
    }
    assert!(!words.iter().any(|w| w.contains("cgroup")));
    let without = HostFacts { message_queues: false, ..root_facts() };
    let words = self::words(&spec, &without);
    assert!(!words.iter().any(|w| w.contains("mqueue")), "a host that has none");
}

#[test]
fn who_the_job_runs_as() {
    let mut spec = in_tree();
    let ids = |spec: &Spec, facts: &HostFacts| {
        let plan = plan(spec, facts).unwrap();
        (plan.process.uid, plan.process.gid, plan.ids.unwrap().uids[0])
    };
    let range = |inside, outside, count| IdRange { inside, outside, count };
    assert_eq!(ids(&spec, &root_facts()), (0, 0, range(0, 0, u32::MAX)));
    assert_eq!(ids(&spec, &user_facts()), (1000, 1000, range(1000, 1000, 1)));
    spec.user = Some("web".into());
    assert_eq!(ids(&spec, &root_facts()), (33, 34, range(0, 0, u32::MAX)));
    assert_eq!(ids(&spec, &user_facts()), (33, 34, range(33, 1000, 1)));
    let ranges = vec![range(0, 1000, 1)];
    spec.ids = IdMapping::Ranges { uids: ranges.clone(), gids: ranges };
    assert_eq!(plan(&spec, &user_facts()), Err(PlanError::Unmapped { uid: 33, gid: 34 }));
}

#[test]
fn jobs_that_make_no_sense() {
    let error = |change: fn(&mut Spec)| {
        let mut spec = in_tree();
        change(&mut spec);
        plan(&spec, &root_facts()).unwrap_err().to_string()
    };
    assert_eq!(error(|s| s.argv.clear()), "no program to run");
    assert_eq!(error(|s| s.id = "../x".into()), "\"../x\" cannot name a job");
    assert_eq!(error(|s| s.cwd = "a".into()), "a is not an absolute path without ..");
    assert_eq!(error(|s| s.argv.push("a\0b".into())), "the argument a\0b holds a NUL byte");
    assert_eq!(
        error(|s| s.env.push(("A=B".into(), "".into()))),
        "\"A=B\" cannot name a variable of the environment"
    );
    assert_eq!(
        error(|s| s.capabilities.add.push("FLY".into())),
        "cannot work out the job's capabilities"
    );
    assert_eq!(
        error(
            |s| s.root = Root::Host { tree: "/t".into(), at: "/usr".into(), view: HostView::Whole }
        ),
        "the tree cannot be mounted at /usr in the host's root"
    );
    let at_root = |s: &mut Spec| {
        s.mounts.push(Mount::Tmpfs {
            target: "//.".into(),
            size: None,
            mode: 0o700,
            read_only: false,
            exec: false,
            options: Vec::new(),
        });
    };
    assert_eq!(
        error(at_root),
        "nothing can be mounted at / itself; what the job has there is its stack"
    );
    let climbing = |s: &mut Spec| {
        s.mounts.push(Mount::Tmpfs {
            target: "/a/../b".into(),
            size: None,
            mode: 0o700,
            read_only: false,
            exec: false,
            options: Vec::new(),
        });
    };
    assert_eq!(error(climbing), "/a/../b is not an absolute path without ..");
}

#[test]
fn a_spec_survives_json() {
    let mut spec = in_tree();
    spec.env.push(("A".into(), std::os::unix::ffi::OsStringExt::from_vec(vec![b'x', 0xff])));
    spec.mounts.push(Mount::Tmpfs {
        target: "/m".into(),
        size: Some(1),
        mode: 0o700,
        read_only: true,
        exec: false,
        options: Vec::new(),
    });
    let text = serde_json::to_string(&spec).unwrap();
    assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec);
}
