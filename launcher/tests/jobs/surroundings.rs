//! What a job sees around it: its root, volumes, devices, network.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;

use crate::support::*;
use mica_launcher::cdi::Registry;
use mica_launcher::{
    GeneratedFile, HostView, IdMapping, IdRange, Mount, Namespace, Network, PortForward, Protocol,
    Root, Spec, Stdio,
};

pub(crate) const TESTS: &[Test] = &[
    ("surroundings::devices", By::Both, devices),
    ("surroundings::host_root", By::Both, host_root),
    ("surroundings::volumes", By::Both, volumes),
    ("surroundings::volumes_with_mapped_owners", By::Root, volumes_with_mapped_owners),
    ("surroundings::volumes_that_follow_the_host", By::Root, volumes_that_follow_the_host),
    ("surroundings::own_clocks", By::Both, own_clocks),
    ("surroundings::network_none", By::Both, network_none),
    ("surroundings::network_private", By::Both, network_private),
    ("surroundings::generated_files", By::Both, generated_files),
    ("surroundings::devices_by_name", By::Both, devices_by_name),
    ("surroundings::sparse_read_only_tree", By::Root, sparse_read_only_tree),
];

fn devices() {
    let text = sh(
        "ls /dev | tr '\\n' ' '; echo; head -c4 /dev/zero | wc -c; head -c8 /dev/urandom | wc -c; \
         echo x > /dev/null && echo null; (/usr/bin/echo x > /dev/full) 2>&1 | grep -c 'No space'; \
         touch /dev/shm/a && echo shm; touch /tmp/a && echo tmp; stat -fc %T /dev/mqueue; test -c /dev/ptmx && echo ptmx",
    );
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(
        lines[0],
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    );
    assert_eq!(lines[1..], ["4", "8", "null", "1", "shm", "tmp", "mqueue", "ptmx"]);
}

fn host_root() {
    let tree = scratch();
    fs::write(tree.path().join("hello"), "from the tree\n").unwrap();
    let root = Root::Host {
        tree: tree.path().to_owned(),
        at: "/packages/A-953bc".into(),
        view: HostView::default(),
    };
    let line = "cat /packages/A-953bc/hello; touch /x 2>&1; touch /usr/x 2>&1; touch /packages/A-953bc/new && echo written";
    let mut spec = Spec::new(id(), root, ["/bin/sh", "-c", line]);
    spec.cwd = "/packages/A-953bc".into();
    if !is_root() {
        // The tree belongs to whoever made it.
        spec.env.push(("PATH".into(), "/usr/bin".into()));
    }
    let (exit, text) = output(&spec);
    assert_eq!(exit.code(), 0, "{text}");
    assert!(text.starts_with("from the tree\n"), "{text}");
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.contains("written\n"), "{text}");
    assert!(tree.path().join("new").exists());
}

fn volumes() {
    let tree = tree();
    let volume = scratch();
    fs::create_dir(volume.path().join("sub")).unwrap();
    fs::write(volume.path().join("file"), "content").unwrap();
    let mut spec = shell(
        tree.path(),
        "cat /data/file; touch /data/new; touch /ro/new 2>&1; cat /one; df -k /mem | tail -1",
    );
    spec.mounts.push(bind(volume.path(), "/data", false));
    spec.mounts.push(bind(volume.path(), "/ro", true));
    spec.mounts.push(bind(volume.path().join("file"), "/one", true));
    spec.mounts.push(Mount::Tmpfs {
        target: "/mem".into(),
        size: Some(1 << 20),
        mode: 0o700,
        read_only: false,
        exec: false,
        options: Vec::new(),
    });
    let (exit, text) = output(&spec);
    assert_eq!(exit.code(), 0, "{text}");
    assert!(text.contains("Read-only file system") && text.contains(" 1024 "), "{text}");
    assert_eq!(text.matches("content").count(), 2);
    assert!(volume.path().join("new").exists());
}

fn volumes_with_mapped_owners() {
    let tree = tree();
    let volume = scratch();
    let file = volume.path().join("file");
    fs::write(&file, "content").unwrap();
    for path in [volume.path(), &file] {
        std::os::unix::fs::chown(path, Some(1000), Some(1000)).unwrap();
    }
    let owner = |name: &str| fs::metadata(volume.path().join(name)).unwrap().uid();
    let range = |inside, outside, count| vec![IdRange { inside, outside, count }];
    let mapped = |ids| Mount::Bind {
        source: volume.path().into(),
        target: "/data".into(),
        read_only: false,
        recursive: true,
        follow: false,
        ids: Some(ids),
    };
    // Files of user 1000 are root's in the job, and the other way round.
    let line = "stat -c %u /data/file; touch /data/made";
    let mut spec = shell(tree.path(), line);
    spec.mounts
        .push(mapped(IdMapping::Ranges { uids: range(0, 1000, 1), gids: range(0, 1000, 1) }));
    assert_eq!(output(&spec).1, "0\n");
    assert_eq!(owner("made"), 1000);

    // A job whose root is another user outside: on this volume it is root.
    let ids =
        IdMapping::Ranges { uids: range(0, 500_000, 65_536), gids: range(0, 500_000, 65_536) };
    std::os::unix::fs::chown(volume.path(), Some(0), Some(0)).unwrap();
    for path in ["", "root"] {
        std::os::unix::fs::chown(tree.path().join(path), Some(500_000), Some(500_000)).unwrap();
    }
    let mut spec =
        shell(tree.path(), "stat -c %u /data/file; touch /data/roots; cat /proc/self/uid_map");
    spec.ids = ids;
    spec.mounts.push(mapped(IdMapping::Auto));
    let (_, text) = output(&spec);
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["1000", "0", "500000", "65536"]);
    assert_eq!(owner("roots"), 0);

    let Some(Mount::Bind { source, .. }) = spec.mounts.last_mut() else { panic!("a volume") };
    *source = "/proc".into();
    let error = refusal(&spec);
    assert!(error.to_string().ends_with("owners of files in the volume /proc"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("file system")), "{error:?}");
    spec.namespaces.user = Namespace::Host;
    assert!(chain(&refusal(&spec)).contains("shares the host's users"));
}

fn volumes_that_follow_the_host() {
    let tree = tree();
    let volume = scratch();
    let tmpfs = |path: &std::path::Path| {
        rustix::mount::mount("x", path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    };
    tmpfs(volume.path());
    rustix::mount::mount_change(volume.path(), rustix::mount::MountPropagationFlags::SHARED)
        .unwrap();
    let later = volume.path().join("later");
    fs::create_dir(&later).unwrap();
    for (follow, seen) in [(true, "file\n"), (false, "")] {
        let mut spec = shell(tree.path(), "echo ready; read go; ls /data/later");
        spec.mounts.push(Mount::Bind {
            source: volume.path().into(),
            target: "/data".into(),
            read_only: true,
            recursive: true,
            follow,
            ids: None,
        });
        let (stdin, go) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (mut reader, stdout) = {
            let (reader, writer) =
                rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
            (fs::File::from(reader), writer)
        };
        let stderr = stdout.try_clone().unwrap();
        let mut job = start(&spec, Stdio::Streams { stdin, stdout, stderr });
        wait_for(&mut reader, "ready\n");
        tmpfs(&later);
        fs::write(later.join("file"), "").unwrap();
        rustix::io::write(&go, b"go\n").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), job.wait().unwrap().code()), (seen, 0), "follow: {follow}");
        rustix::mount::unmount(&later, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    rustix::mount::unmount(volume.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
}

fn own_clocks() {
    let tree = tree();
    let outer = fs::read_link("/proc/self/ns/time").unwrap();
    let mut spec = shell(tree.path(), "readlink /proc/self/ns/time");
    assert_eq!(output(&spec).1.trim(), outer.to_str().unwrap());
    spec.namespaces.time = Namespace::New;
    let (_, inner) = output(&spec);
    assert!(inner.starts_with("time:") && inner.trim() != outer.to_str().unwrap(), "{inner}");
}

fn network_none() {
    let tree = tree();
    let mut spec = shell(
        tree.path(),
        "cat /proc/net/dev | tail -n +3 | cut -d: -f1; cat /sys/class/net/lo/operstate; ls /sys/class/net",
    );
    spec.namespaces.network = Network::None;
    let (exit, text) = output(&spec);
    assert_eq!(exit.code(), 0, "{text}");
    assert_eq!(text.split_whitespace().collect::<Vec<_>>(), ["lo", "unknown", "lo"]);
}

fn network_private() {
    let tree = tree();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let script = "use IO::Socket::INET; $| = 1; \
        my $s = IO::Socket::INET->new(Listen => 1, LocalPort => 80, Proto => 'tcp') or die $!; print(qq(ready\n)); \
        my $c = $s->accept; print($c qq(from the job\n)); close($c); \
        opendir(D, '/sys/class/net'); print(join(' ', sort(grep {!/^\\./} readdir(D))));";
    let mut spec = spec(tree.path(), &["perl", "-e", script]);
    spec.user = Some("0:0".into());
    spec.namespaces.network = Network::Private;
    spec.ports.push(PortForward {
        protocol: Protocol::Tcp,
        address: Some("127.0.0.1".parse().unwrap()),
        host: port,
        job: 80,
    });
    let (stdio, mut reader) = piped();
    let mut job = start(&spec, stdio);
    wait_for(&mut reader, "ready\n");
    let mut answer = String::new();
    TcpStream::connect(("127.0.0.1", port)).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "from the job\n");
    assert_eq!(job.wait().unwrap().code(), 0);
    // The helper is gone with the job.
    TcpListener::bind(("127.0.0.1", port)).unwrap();
    spec.namespaces.network = Network::None;
    assert!(
        chain(&refusal(&spec))
            .ends_with("ports can be published only from a private or a bridge network")
    );
}

fn generated_files() {
    let tree = tree();
    std::os::unix::fs::symlink("/run/resolve/conf", tree.path().join("etc/resolv.conf")).unwrap();
    let mut spec = shell(
        tree.path(),
        "cat /etc/hosts /etc/resolv.conf; (echo more >> /etc/hosts) 2>/dev/null || echo as it was; chmod 777 /etc/hosts 2>/dev/null; stat -c %a /etc/hosts",
    );
    for (target, content) in
        [("/etc/hosts", "127.0.0.1 localhost\n"), ("/etc/resolv.conf", "nameserver 10.0.0.1\n")]
    {
        spec.files.push(GeneratedFile {
            target: target.into(),
            content: content.into(),
            mode: 0o644,
        });
    }
    let (_, text) = output(&spec);
    assert_eq!(text, "127.0.0.1 localhost\nnameserver 10.0.0.1\nas it was\n644\n");
    assert_eq!(fs::read_to_string(tree.path().join("etc/hosts")).unwrap(), "");
    // Whoever wrote the job down: nothing but names, and files of some size.
    for name in ["a\n10.0.0.1 bank", "-a", "a b", &"x".repeat(65)] {
        spec.hostname = Some(name.to_owned());
        assert!(chain(&refusal(&spec)).contains("cannot name a machine"), "{name}");
    }
    spec.hostname = None;
    spec.files[0].content = "#".repeat(5 << 20);
    assert!(chain(&refusal(&spec)).contains("more than they may"));
}

/// A vendor's device: a node, a library, a variable, and a hook that changes the root before the job sees it.
fn devices_by_name() {
    let tree = tree();
    let vendor = scratch();
    fs::write(vendor.path().join("library"), "code").unwrap();
    let hook = vendor.path().join("hook");
    let script = r#"#!/bin/sh
bundle=$(sed 's/.*"bundle":"\([^"]*\)".*/\1/')
root=$(sed 's/.*"path":"\([^"]*\)".*/\1/' "$bundle/config.json")
echo "$1 $FROM" > "$root/tmp/hooked"
"#;
    fs::write(&hook, script).unwrap();
    fs::set_permissions(&hook, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = format!(
        "cdiVersion: 0.5.0\nkind: acme.com/card\ndevices:\n- name: one\n  containerEdits:\n    env: [CARD=one]\n    \
         deviceNodes: [{{path: /dev/card, hostPath: /dev/zero}}]\n    \
         mounts: [{{hostPath: {0}/library, containerPath: /usr/lib/acme/library, options: [ro, nosuid, nodev, bind]}}]\n    \
         hooks: [{{hookName: createContainer, path: {0}/hook, args: [hook, refresh], env: [FROM=vendor, PATH=/bin]}}]\n",
        vendor.path().display()
    );
    fs::write(vendor.path().join("acme.yaml"), text).unwrap();
    let registry = Registry::read(&[vendor.path()]).unwrap();
    let mut spec = shell(
        tree.path(),
        "head -c1 /dev/card | wc -c; cat /opt/library; echo $CARD; cat /tmp/hooked; ls -a /dev | grep -c bundle",
    );
    registry.inject(&["acme.com/card=one".into()], &mut spec).unwrap();
    // /usr is the host's here, and read-only.
    for mount in &mut spec.mounts {
        if let Mount::Bind { target, .. } = mount
            && target.ends_with("library")
        {
            *target = "/opt/library".into();
        }
    }
    let (_, text) = output(&spec);
    assert_eq!(text, "1\ncodeone\nrefresh vendor\n0\n");
    fs::write(&hook, "#!/bin/sh\necho it broke >&2; exit 3\n").unwrap();
    let message = chain(&refusal(&spec));
    assert!(message.contains("/hook (exit status: 3: it broke)"), "{message}");
}

fn sparse_read_only_tree() {
    let tree = scratch();
    let fs_at = |path: &std::path::Path| {
        rustix::mount::mount("x", path, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    };
    fs_at(tree.path());
    for link in ["bin", "lib", "lib64"] {
        std::os::unix::fs::symlink(format!("usr/{link}"), tree.path().join(link)).unwrap();
    }
    fs::create_dir(tree.path().join("usr")).unwrap();
    fs::write(tree.path().join("file"), "of the tree\n").unwrap();
    rustix::mount::mount_remount(tree.path(), rustix::mount::MountFlags::RDONLY, "").unwrap();
    let mut spec = shell(
        tree.path(),
        "cat /file /volume/file; ls -d /proc/1; touch /x 2>&1; touch /usr/x 2>&1; echo > /tmp/x",
    );
    let volume = scratch();
    fs::write(volume.path().join("file"), "of the volume\n").unwrap();
    spec.mounts.push(bind(volume.path(), "/volume", true));
    let (exit, text) = output(&spec);
    rustix::mount::unmount(tree.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(
        exit.code() == 0 && text.starts_with("of the tree\nof the volume\n/proc/1\n"),
        "{text}"
    );
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
}
