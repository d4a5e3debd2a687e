//! What a job might try in order to get out, or at something that isn't its own. None of it may succeed.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use crate::support::*;
use mica_launcher::{
    Device, Ending, ExecSpec, GeneratedFile, HostView, Mount, Namespace, Network, Root, Seccomp,
    Spec, Stdio,
};

pub(crate) const TESTS: &[Test] = &[
    ("escapes::links_in_the_tree", By::Both, links_in_the_tree),
    ("escapes::own_executable", By::Both, own_executable),
    ("escapes::own_executable_by_interpreter", By::Both, own_executable_by_interpreter),
    ("escapes::init_is_out_of_reach", By::Both, init_is_out_of_reach),
    ("escapes::supervisor_is_out_of_reach", By::Both, supervisor_is_out_of_reach),
    ("escapes::supervisor_is_not_traced", By::Both, supervisor_is_not_traced),
    ("escapes::leaked_descriptors", By::Both, leaked_descriptors),
    ("escapes::hosts_cgroups", By::Both, hosts_cgroups),
    ("escapes::mounting", By::Both, mounting),
    ("escapes::mount_propagation", By::Root, mount_propagation),
    ("escapes::set_user_id", By::Root, set_user_id),
    ("escapes::device_nodes", By::Root, device_nodes),
    ("escapes::making_device_nodes", By::Root, making_device_nodes),
    ("escapes::terminal_input", By::Both, terminal_input),
    ("escapes::abstract_sockets", By::Both, abstract_sockets),
    ("escapes::read_only_volumes_all_the_way_down", By::Root, read_only_volumes_all_the_way_down),
    ("escapes::hidden_and_read_only_paths", By::Both, hidden_and_read_only_paths),
    ("escapes::host_is_read_only", By::Root, host_is_read_only),
    ("escapes::forbidden_calls", By::Both, forbidden_calls),
    ("escapes::profiles", By::Both, profiles),
    ("escapes::capabilities", By::Root, capabilities),
    ("escapes::privileged", By::Root, privileged),
    ("escapes::devices", By::Root, devices),
    ("escapes::nodes_of_the_host", By::Both, nodes_of_the_host),
    ("escapes::masks_are_locked", By::Both, masks_are_locked),
    ("escapes::shared_proc_is_read_only", By::Both, shared_proc_is_read_only),
];

/// A tree whose mount points are links to the host's, upwards or absolute.
fn links_in_the_tree() {
    // Not below /tmp, which the job gets afresh.
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let inside = |tree: &Path| tree.join(outside.path().strip_prefix("/").unwrap());
    let up = format!("../../../../../..{}", outside.path().display());
    let tree = tree();
    fs::remove_dir(tree.path().join("sys")).unwrap();
    symlink(format!("{up}/sys"), tree.path().join("sys")).unwrap();
    symlink(format!("{up}/volume"), tree.path().join("volume")).unwrap();
    symlink(outside.path().join("hosts"), tree.path().join("etc/hosts")).unwrap();
    let mut spec = shell(tree.path(), "cat /etc/hosts; touch /volume/b; ls /sys | wc -l");
    spec.mounts.push(Mount::Tmpfs {
        target: "/volume".into(),
        size: None,
        mode: 0o777,
        read_only: false,
        exec: false,
        options: Vec::new(),
    });
    spec.files.push(GeneratedFile {
        target: "/etc/hosts".into(),
        content: "from us\n".into(),
        mode: 0o644,
    });
    // Links that lead nowhere in the tree: no directory is made for them.
    assert!(chain(&refusal(&spec)).starts_with("cannot mount "));
    fs::create_dir_all(inside(tree.path()).join("sys")).unwrap();
    fs::create_dir_all(inside(tree.path()).join("volume")).unwrap();
    let (exit, text) = output(&spec);
    assert!(exit.code() == 0 && text.starts_with("from us\n"), "{text}");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(inside(tree.path()).join("hosts").exists());
}

fn my_executable() -> (std::path::PathBuf, u64, Vec<u8>) {
    let path = fs::read_link("/proc/self/exe").unwrap();
    let modified = fs::metadata(&path).unwrap().mtime_nsec() as u64;
    let mut head = vec![0; 64];
    std::io::Read::read_exact(&mut File::open(&path).unwrap(), &mut head).unwrap();
    (path, modified, head)
}

/// Overwriting the launcher by way of `/proc/PID/exe` of what it leaves in the job.
fn own_executable() {
    let before = my_executable();
    let tree = tree();
    // That it is busy is luck: it won't be when the last job has ended.
    let line = "for p in /proc/[0-9]*; do readlink $p/exe; (echo x > $p/exe) 2>&1; (echo x >> $p/exe) 2>&1; done >/dev/null; \
                dd if=/proc/1/exe of=/dev/null count=1 2>&1; ls -l /proc/1/map_files >/dev/null 2>&1; (echo x > /proc/1/exe) 2>&1";
    for user in [None, Some("0:0")] {
        let mut spec = shell(tree.path(), line);
        spec.user = user.map(str::to_owned);
        spec.capabilities.add.push("SYS_PTRACE".into());
        spec.capabilities.add.push("DAC_READ_SEARCH".into());
        for privileged in [false, true] {
            spec.privileged = privileged;
            let (_, text) = output(&spec);
            assert!(text.contains("/proc/1/exe") && !text.contains("busy"), "{text}");
        }
    }
    assert_eq!(my_executable(), before);
}

pub(crate) const PRETEND: &str = "--pretend-to-overwrite";

/// What [`own_executable_by_interpreter`] makes of us.
pub(crate) fn pretend_overwrite() {
    let flags = rustix::fs::statvfs("/proc/self/exe").unwrap().f_flag;
    println!("read-only: {}", flags.contains(rustix::fs::StatVfsMountFlags::RDONLY));
    let written = fs::OpenOptions::new()
        .write(true)
        .open("/proc/self/exe")
        .and_then(|mut file| file.write_all(b"x"));
    println!("written: {}", written.is_ok());
}

/// A program that is `#!/proc/self/exe`: the kernel executes the init's binary for it, with an argument of the image's choice.
fn own_executable_by_interpreter() {
    let before = my_executable();
    let tree = tree();
    let script = tree.path().join("script");
    fs::write(&script, format!("#!/proc/self/exe {PRETEND}\n")).unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mut spec = spec(tree.path(), &["/script"]);
    spec.user = Some("0:0".into());
    spec.privileged = true;
    let (exit, text) = output(&spec);
    assert_eq!(text, "read-only: true\nwritten: false\n", "{exit:?}");
    assert_eq!(my_executable(), before);
}

fn init_is_out_of_reach() {
    let tree = tree();
    let line = "kill -KILL 1; kill -STOP 1; kill -TERM -1 2>/dev/null; cat /proc/1/environ /proc/1/maps 2>&1 | head -c 300; \
                ls -l /proc/1/fd /proc/1/root/ 2>&1; trap '' TERM; sleep 0.1; echo alive";
    let mut spec = shell(tree.path(), &format!("trap '' TERM; {line}"));
    let (exit, text) = output(&spec);
    assert!(exit.code() == 0 && text.ends_with("alive\n"), "{text}");
    assert!(!text.contains("r-xp") && !text.contains("socket:"), "{text}");
    spec.user = Some("0:0".into());
    let (_, text) = output(&spec);
    assert!(!text.contains("r-xp") && !text.contains("socket:"), "{text}");
}

fn supervisor_is_out_of_reach() {
    let tree = tree();
    let me = std::process::id();
    let (_, text) = output(&shell(tree.path(), &format!("ls /proc; kill -0 {me} && echo reached")));
    let sees = |pid: u32| text.lines().any(|line| line == pid.to_string());
    assert!(sees(1) && !sees(me) && !text.contains("reached"), "{text}");
}

/// One that sees the host's processes may not look into those that aren't its own.
fn supervisor_is_not_traced() {
    let tree = tree();
    let me = std::process::id();
    let script = format!(
        "print(syscall({}, 16, {me}, 0, 0) >= 0 ? 'traced' : $!{{EPERM}} ? 'EPERM' : $!, qq(\n)); \
         for my $file (qw(root/etc cwd/. fd/0 mem environ)) {{ print(qq(read $file\n)) if -r qq(/proc/{me}/$file) \
         && open(my $f, '<', qq(/proc/{me}/$file)) || opendir(my $d, qq(/proc/{me}/$file)) }}",
        libc::SYS_ptrace
    );
    let mut spec = perl(tree.path(), &script);
    spec.user = Some("0:0".into());
    spec.namespaces.pid = Namespace::Host;
    spec.capabilities.add = vec!["SYS_PTRACE".into()];
    assert_eq!(output(&spec).1, "EPERM\n");
}

fn leaked_descriptors() {
    let tree = tree();
    let secret = File::open("/").unwrap();
    rustix::io::fcntl_setfd(&secret, rustix::io::FdFlags::empty()).unwrap();
    let (_, text) = output(&shell(
        tree.path(),
        "ls /proc/self/fd | tr '\\n' ' '; for f in 0 1 2 3 4 5 6 7 8; do readlink /proc/1/fd/$f; done",
    ));
    // The fourth is ls's own.
    assert_eq!(text, "0 1 2 3 ");
    let (stdio, _) = captured();
    let job = start(&shell(tree.path(), "sleep 1000"), stdio);
    let (stdio, file) = captured();
    let argv = ["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"].map(Into::into).to_vec();
    job.exec(&ExecSpec { argv, ..ExecSpec::default() }, stdio).unwrap().wait().unwrap();
    assert_eq!(printed(file), "0 1 2 3 ");
}

fn hosts_cgroups() {
    let tree = tree();
    let line = "cat /proc/self/cgroup; find /sys/fs/cgroup -name cgroup.procs | while read f; do (echo $$ > $f) 2>/dev/null && echo wrote $f; done; \
                mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x 2>/dev/null && echo made; find /sys/fs/cgroup -name cgroup.procs | wc -l; echo tried";
    let namespaces =
        if is_root() { &[Namespace::New, Namespace::Host][..] } else { &[Namespace::New] };
    for namespace in namespaces {
        let mut spec = shell(tree.path(), line);
        spec.user = Some("0:0".into());
        spec.namespaces.user = *namespace;
        let (_, text) = output(&spec);
        assert!(text.ends_with("tried\n") && !text.contains("\n0\n"), "there are some: {text}");
        assert!(!text.contains("wrote") && !text.contains("made"), "{text}");
        assert!(text.lines().filter(|l| l.starts_with("0::")).all(|l| l == "0::/"), "{text}");
    }
}

fn mounting() {
    let tree = tree();
    let mut spec = shell(
        tree.path(),
        "mount -t tmpfs x /tmp 2>&1; umount /proc 2>&1; mount -o remount,rw /sys 2>&1; unshare -U true 2>&1; unshare -m true 2>&1",
    );
    spec.user = Some("0:0".into());
    let (_, text) = output(&spec);
    let lines: Vec<_> = text.lines().filter(|line| !line.contains("dmesg")).collect();
    let refused =
        |line: &&str| ["denied", "permitted", "superuser"].iter().any(|word| line.contains(word));
    assert!(lines.len() == 5 && lines.iter().all(refused), "{text}");
    // Nor does it write what is read-only.
    let volume = scratch();
    spec.mounts.push(bind(volume.path(), "/volume", true));
    spec.argv[2] = "exec 2>/dev/null; for d in /usr /volume; do mount -o remount,bind,rw $d; umount $d; touch $d/mica-x && rm $d/mica-x && echo wrote; done; echo tried".into();
    assert_eq!(output(&spec).1, "tried\n");
}

fn mount_propagation() {
    use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
    let (tree, shared) = (tree(), scratch());
    // As all mounts are where systemd runs.
    rustix::mount::mount("shared", shared.path(), "tmpfs", MountFlags::empty(), None).unwrap();
    rustix::mount::mount_change(shared.path(), MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(shared.path().join("inner")).unwrap();
    let mut spec = shell(
        tree.path(),
        "mount -t tmpfs x /volume/inner && grep -c /volume/inner /proc/self/mountinfo; read line",
    );
    spec.privileged = true;
    spec.mounts.push(Mount::Bind {
        source: shared.path().into(),
        target: "/volume".into(),
        read_only: false,
        recursive: true,
        follow: true,
        ids: None,
    });
    // What the host has of it while a job has its mount, and when that has ended.
    let on_host = || {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.lines().filter(|line| line.contains(shared.path().to_str().unwrap())).count()
    };
    let counts = [Namespace::New, Namespace::Host].map(|namespace| {
        spec.namespaces.user = namespace;
        let (Stdio::Streams { stdout, stderr, .. }, mut reader) = piped() else { unreachable!() };
        let (stdin, hold) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut job = start(&spec, Stdio::Streams { stdin, stdout, stderr });
        wait_for(&mut reader, "1\n");
        let meanwhile = on_host();
        drop(hold);
        job.wait().unwrap();
        (meanwhile, on_host())
    });
    rustix::mount::unmount(shared.path(), UnmountFlags::DETACH).unwrap();
    assert_eq!(counts, [(1, 1); 2]);
}

fn set_user_id() {
    let tree = tree();
    fs::copy("/usr/bin/id", tree.path().join("id")).unwrap();
    fs::set_permissions(tree.path().join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    let mut spec = shell(tree.path(), "/id -u; /id -ru");
    spec.user = Some("web".into());
    assert_eq!(output(&spec).1, "33\n33\n");
}

fn node(path: &Path, major: u32, minor: u32) {
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    let device = rustix::fs::makedev(major, minor);
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::CharacterDevice, mode, device)
        .unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
}

fn device_nodes() {
    let tree = tree();
    let volume = scratch();
    node(&tree.path().join("zero"), 1, 5);
    node(&volume.path().join("zero"), 1, 5);
    let mut spec = shell(tree.path(), "head -c1 /zero 2>&1; head -c1 /volume/zero 2>&1");
    spec.mounts.push(bind(volume.path(), "/volume", false));
    let (_, text) = output(&spec);
    assert_eq!(text.matches("Permission denied").count(), 2, "{text}");
}

fn making_device_nodes() {
    let tree = tree();
    for namespace in [Namespace::New, Namespace::Host] {
        let mut spec = shell(
            tree.path(),
            "for d in / /dev /tmp /dev/shm; do mknod $d/made c 1 5 2>/dev/null && head -c1 $d/made >/dev/null 2>&1 && echo read $d; rm -f $d/made; done; echo tried",
        );
        spec.namespaces.user = namespace;
        assert_eq!(output(&spec).1, "tried\n");
    }
}

pub(crate) const PUSH: &str = "--push-input";

/// Pushing input into the caller's terminal, as the job's standard input without a terminal of its own.
fn terminal_input() {
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    // Ours must be the session that the terminal controls: into any other's nobody can push.
    let mut command = std::process::Command::new("setsid");
    command.args(["--ctty", "--wait"]).arg(fs::read_link("/proc/self/exe").unwrap());
    let ran = command.args([Some(PUSH), ahead_flag()].iter().flatten()).stdin(slave).output();
    let ran = ran.expect("this test needs setsid of util-linux");
    let said = String::from_utf8_lossy(&ran.stdout);
    let refused = ["EPERM", "EIO"].map(|why| format!("of the terminal: yes, job: tty 0, {why}\n"));
    assert!(refused.contains(&said.clone().into_owned()), "{ran:?}");
}

/// What [`terminal_input`] makes of us: launches a job on our controlling terminal.
pub(crate) fn push_input() {
    let stdin = rustix::io::dup(rustix::stdio::stdin()).unwrap();
    let ours = rustix::termios::tcgetsid(&stdin).is_ok();
    let tree = tree();
    let (Stdio::Streams { stdout, stderr, .. }, file) = captured() else { unreachable!() };
    let script = "open(my $f, '<', '/proc/self/stat'); print('tty ', (split(' ', <$f>))[6], ', '); \
        my $c = 'x'; print(ioctl(STDIN, 0x5412, $c) ? 'pushed' : $!{EPERM} ? 'EPERM' : $!{EIO} ? 'EIO' : $!)";
    let mut spec = perl(tree.path(), script);
    spec.user = Some("0:0".into());
    start(&spec, Stdio::Streams { stdin, stdout, stderr }).wait().unwrap();
    let ours = if ours { "yes" } else { "no" };
    println!("of the terminal: {ours}, job: {}", printed(file));
}

fn abstract_sockets() {
    let name = format!("mica-test-{}", std::process::id());
    let listener = rustix::net::socket(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        None,
    )
    .unwrap();
    let address = rustix::net::SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let tree = tree();
    let script = format!(
        "use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); print(connect(S, pack_sockaddr_un(qq(\\0{name}))) ? 'reached' : $!)"
    );
    let mut spec = perl(tree.path(), &script);
    // Without a network of its own the job shares them; that is what sharing the network means.
    assert_eq!(output(&spec).1, "reached");
    spec.namespaces.network = Network::None;
    let (_, text) = output(&spec);
    assert_eq!(text, "Connection refused");
}

fn read_only_volumes_all_the_way_down() {
    let volume = scratch();
    let inner = volume.path().join("inner");
    fs::create_dir(&inner).unwrap();
    rustix::mount::mount("inner", &inner, "tmpfs", rustix::mount::MountFlags::empty(), None)
        .unwrap();
    let tree = tree();
    let mut spec = shell(
        tree.path(),
        "touch /volume/x 2>&1; touch /volume/inner/x 2>&1; ls /volume/inner | wc -l",
    );
    spec.mounts.push(bind(volume.path(), "/volume", true));
    let (_, text) = output(&spec);
    rustix::mount::unmount(&inner, rustix::mount::UnmountFlags::DETACH).unwrap();
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
}

fn hidden_and_read_only_paths() {
    let tree = tree();
    let mut spec = shell(
        tree.path(),
        "cat /proc/kcore /proc/keys /proc/timer_list 2>/dev/null | wc -c; ls /sys/firmware | wc -l; \
         for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq/default_smp_affinity; do (echo x > $f) 2>&1; done",
    );
    spec.user = Some("0:0".into());
    let (_, text) = output(&spec);
    assert!(text.starts_with("0\n0\n"), "{text}");
    assert_eq!(
        text.matches("Read-only file system").count()
            + text.matches("nonexistent").count()
            + text.matches("Permission denied").count(),
        3,
        "{text}"
    );
}

fn host_is_read_only() {
    let tree = scratch();
    let view = HostView::Whole;
    let root = Root::Host { tree: tree.path().into(), at: "/packages/a-1".into(), view };
    let line = "for d in / /* ; do touch $d/mica-was-here 2>/dev/null && echo $d; done; rm -f /tmp/mica-was-here /run/mica-was-here; \
                ls -d /var/run/docker.sock /run/systemd 2>/dev/null; exit 0";
    let mut spec = Spec::new(id(), root, ["/bin/sh", "-c", line]);
    spec.privileged = true;
    let (_, text) = output(&spec);
    let writable: Vec<_> = text.lines().collect();
    assert_eq!(writable, ["/dev", "/run", "/tmp"]);
    for entry in fs::read_dir("/").unwrap() {
        assert!(!entry.unwrap().path().join("mica-was-here").exists());
    }
}

fn perl(tree: &Path, script: &str) -> Spec {
    spec(tree, &["perl", "-e", script])
}

/// Calls system calls by number and prints how that went.
fn calls(calls: &[(i64, u64)]) -> String {
    let lines =
        calls.iter().map(|(number, argument)| format!("call({number}, {argument}, 1, 0, 0, 0);"));
    format!(
        "use Errno; sub call {{ my $r = syscall($_[0], $_[1], 1, 0, 0, 0); \
             print($r >= 0 ? 'ok' : (grep {{ $!{{$_}} }} keys(%!))[0], qq(\\n)) }} {}",
        lines.collect::<String>()
    )
}

fn forbidden_calls() {
    let tree = tree();
    let list = [
        (libc::SYS_keyctl, 0, "EPERM"),
        (libc::SYS_bpf, 0, "EPERM"),
        (libc::SYS_mount, 0, "EPERM"),
        (libc::SYS_unshare, 0x10000000, "EPERM"),
        (libc::SYS_clone, 0x10000000, "EPERM"),
        (libc::SYS_clone3, 0, "ENOSYS"),
        (libc::SYS_io_uring_setup, 1, "EPERM"),
        (libc::SYS_perf_event_open, 0, "EPERM"),
        (libc::SYS_kexec_load, 0, "EPERM"),
        (libc::SYS_personality, 0x0040000, "EPERM"),
        (libc::SYS_personality, 0xffffffff, "ok"),
        (libc::SYS_socket, 38, "EPERM"),
        (libc::SYS_socket, 40, "EPERM"),
        // Of these arguments the kernel reads 32 bits.
        (libc::SYS_socket, (1 << 32) + 38, "EPERM"),
        (libc::SYS_socket, (1 << 32) + 40, "EPERM"),
        (libc::SYS_socket, (0xffff_ffff << 32) + 40, "EPERM"),
        (libc::SYS_socket, (1 << 32) + 1, "ok"),
        (libc::SYS_clone, (1 << 32) + 0x10000000, "EPERM"),
        (libc::SYS_personality, (1 << 32) + 0x0040000, "EPERM"),
        (libc::SYS_personality, (1 << 32) + 0xffffffff, "ok"),
        // The x32 form of getpid and mount.
        (0x4000_0000 + libc::SYS_getpid, 0, "EPERM"),
        (0x4000_0000 + libc::SYS_mount, 0, "EPERM"),
        (libc::SYS_userfaultfd, 0, "EPERM"),
        (459, 0, "EPERM"),
        (467, 0, "ENOSYS"),
        (9999, 0, "ENOSYS"),
        (libc::SYS_getpid, 0, "ok"),
    ];
    let attempts: Vec<_> = list.iter().map(|(number, argument, _)| (*number, *argument)).collect();
    let (_, text) = output(&perl(tree.path(), &calls(&attempts)));
    let expected: Vec<_> = list.iter().map(|(_, _, expected)| *expected).collect();
    assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    if cfg!(target_arch = "x86_64") {
        calls_of_another_architecture(tree.path());
    }
}

/// `mkdir` as a 32-bit program calls it: under a number that is another call's here.
fn calls_of_another_architecture(tree: &Path) {
    let script = "import ctypes, mmap; path = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40, prot=7); \
         path.write(b'/tmp/made\\0'); at = ctypes.addressof(ctypes.c_char.from_buffer(path)); \
         code = b'\\x53\\xbb' + at.to_bytes(4, 'little') + b'\\xb9\\xed\\x01\\0\\0\\xb8\\x27\\0\\0\\0\\xcd\\x80\\x5b\\xc3'; \
         path.seek(64); path.write(code); print('calls', flush=True); ctypes.CFUNCTYPE(ctypes.c_long)(at + 64)(); print('called')";
    let deny = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]}"#;
    for seccomp in [Seccomp::Default, Seccomp::Profile(deny.into())] {
        let mut spec = spec(tree, &["python3", "-c", script]);
        spec.seccomp = seccomp;
        let (exit, text) = output(&spec);
        // By the filter, or by a kernel that has no such calls.
        let killed = [Ending::Killed(libc::SIGSYS), Ending::Killed(libc::SIGSEGV)];
        assert!(text == "calls\n" && killed.contains(&exit.ending), "{text} {exit:?}");
    }
}

fn profiles() {
    let tree = tree();
    let attempts = [(libc::SYS_getppid, 0), (libc::SYS_getpgid, 0), (libc::SYS_getsid, 0)];
    let mut spec = perl(tree.path(), &calls(&attempts));
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["getppid", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71},
        {"names": ["getpgid"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
        {"names": ["getsid"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_TIME"]}}]}"#;
    spec.seccomp = Seccomp::Profile(profile.into());
    assert_eq!(output(&spec).1, "EPROTO\nEPERM\nok\n");
    spec.seccomp = Seccomp::Unconfined;
    assert_eq!(output(&spec).1, "ok\nok\nok\n");
    arguments_as_the_kernel_reads_them(tree.path());
    spec.seccomp = Seccomp::Profile("{}".into());
    assert!(chain(&refusal(&spec)).contains("cannot use the seccomp profile: not a profile"));
    spec.seccomp = Seccomp::Profile(r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.into());
    assert!(chain(&refusal(&spec)).ends_with("the action SCMP_ACT_NOTIFY is not supported"));
}

/// Bits of an argument that the kernel throws away, and other numbers of the same calls, lead around no rule.
fn arguments_as_the_kernel_reads_them(tree: &Path) {
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 21522, "op": "SCMP_CMP_EQ"}]},
        {"names": ["chmod"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 511, "op": "SCMP_CMP_EQ"}]},
        {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "value": 18446744073709551615, "op": "SCMP_CMP_EQ"}]},
        {"names": ["getppid"], "action": "SCMP_ACT_ERRNO"}]}"#;
    let high: u64 = 7 << 32;
    let mut tries = vec![
        (libc::SYS_ioctl, "0", high + 0x5412),
        (libc::SYS_chmod, "$dir", high + 0o777),
        (libc::SYS_chmod, "$dir", 0x70_0000 + 0o777),
        (libc::SYS_kill, "0xffffffff", 0),
        (libc::SYS_kill, "-1", 0),
    ];
    if cfg!(target_arch = "x86_64") {
        tries.push((0x4000_0000 + libc::SYS_getppid, "0", 0));
        tries.push((0x4000_0000 + libc::SYS_getpid, "0", 0));
    }
    let lines = tries.iter().map(|(number, first, second)| {
        format!("my $r = syscall({number}, {first}, {second}, 0); print($r >= 0 ? 'ok' : $!{{EPERM}} ? 'no' : $!{{ENOSYS}} ? 'none' : $!, qq( ));")
    });
    let mut spec =
        perl(tree, &format!("use Errno; my $dir = qq(/tmp); {}", lines.collect::<String>()));
    spec.seccomp = Seccomp::Profile(profile.into());
    let x32 = if cfg!(target_arch = "x86_64") { "none none " } else { "" };
    assert_eq!(output(&spec).1, format!("no no no no no {x32}"));
}

fn capabilities() {
    let tree = tree();
    let mut spec = shell(tree.path(), "grep -h Cap /proc/self/status");
    spec.capabilities.drop = vec!["ALL".into()];
    spec.capabilities.add = vec!["CAP_NET_ADMIN".into()];
    let (_, text) = output(&spec);
    let none = "0000000000000000";
    let one = "0000000000001000";
    for (set, held) in [("Inh", none), ("Prm", one), ("Eff", one), ("Bnd", one), ("Amb", none)] {
        assert!(text.contains(&format!("Cap{set}:\t{held}\n")), "{text}");
    }
    // Further programs have the same, not the init's.
    let (stdio, file) = captured();
    spec.argv[2] = "sleep 1000".into();
    let job = start(&spec, Stdio::null().unwrap());
    let argv = ["grep", "CapPrm", "/proc/self/status"].map(Into::into).to_vec();
    job.exec(&ExecSpec { argv, ..ExecSpec::default() }, stdio).unwrap().wait().unwrap();
    assert_eq!(printed(file), "CapPrm:\t0000000000001000\n");
}

fn privileged() {
    let tree = tree();
    let mut spec = shell(
        tree.path(),
        "grep -h -e CapEff -e Seccomp: -e NoNew /proc/self/status; mount -t tmpfs x /tmp && echo mounted",
    );
    spec.privileged = true;
    let (_, text) = output(&spec);
    assert!(
        text.contains("Seccomp:\t0")
            && text.contains("NoNewPrivs:\t0")
            && text.ends_with("mounted\n"),
        "{text}"
    );
    let held = fs::read_to_string("/proc/self/status").unwrap();
    let held = held.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap().trim().to_owned();
    // In a user namespace of its own, all there are; they mean nothing outside of it.
    assert!(text.contains("CapEff:\t000001ffffffffff") || text.contains(&held), "{text}");
}

fn devices() {
    let tree = tree();
    let mut spec =
        shell(tree.path(), "head -c1 /dev/inside | wc -c; test -e /dev/kmsg || echo no kmsg");
    spec.devices.push(Device {
        source: "/dev/zero".into(),
        target: "/dev/inside".into(),
        writable: false,
    });
    assert_eq!(output(&spec).1, "1\nno kmsg\n");
}

/// What changes a node instead of its device changes it for the host, and for everybody.
fn nodes_of_the_host() {
    let tree = tree();
    let nodes = ["null", "zero", "full", "random", "urandom", "tty", "inside"];
    // Modes and times that harm nobody, if they can be set.
    let line = format!(
        "n=0; for d in {}; do for c in 'chmod 667' 'chown 0:5' 'touch -d 2001-01-01' 'setfattr -n user.x -v 1' \
         'setfattr -n trusted.x -v 1'; do $c /dev/$d >/tmp/said 2>&1 && echo $c /dev/$d; n=$((n+1)); done; done; echo tried $n; \
         (/usr/bin/echo x > /dev/inside) 2>&1 | grep -c 'No space'",
        nodes.join(" ")
    );
    let before = || {
        let stat = |name: &&str| {
            let stat = fs::metadata(Path::new("/dev").join(name)).unwrap();
            (stat.mode(), stat.uid(), stat.gid(), stat.mtime(), stat.ctime())
        };
        nodes[..6].iter().map(stat).collect::<Vec<_>>()
    };
    let was = before();
    for (user, privileged) in [(None, false), (Some("0:0"), false), (Some("0:0"), true)] {
        let mut spec = shell(tree.path(), &line);
        spec.user = user.map(str::to_owned);
        spec.privileged = privileged;
        spec.devices.push(Device {
            source: "/dev/full".into(),
            target: "/dev/inside".into(),
            writable: true,
        });
        let (_, text) = output(&spec);
        assert!(text.starts_with("tried 35\n1\n"), "{text}");
        assert_eq!(before(), was);
    }
    // Nor those that its init was started with, where the job sees it and may trace it.
    let line = "for p in /proc/[0-9]*; do grep -qs ^mica-job-init $p/cmdline && test -e $p/fd/0 || continue; \
         for n in 0 1 2; do chmod 667 $p/fd/$n 2>/dev/null && echo $p/fd/$n; done; echo seen; done; true";
    let mut spec = shell(tree.path(), line);
    spec.user = Some("0:0".into());
    spec.privileged = true;
    spec.namespaces.pid = Namespace::Host;
    assert_eq!(output(&spec).1, "seen\n");
    assert_eq!(before(), was);
}

/// Writes to a setting of the host's what it says already, at every place where a fresh or uncovered `/proc` may be.
const WRITE_SETTING: &str = "for p in /proc /mnt /srv /tmp/p; do f=$p/sys/kernel/core_pattern; [ -e $f ] || continue; \
     { cat $f > $f; } 2>/dev/null && echo written by $p; done;";

fn masks_are_locked() {
    let tree = tree();
    for point in ["mnt", "srv"] {
        fs::create_dir(tree.path().join(point)).unwrap();
    }
    let attempts = [
        "umount /proc/sys",
        "umount -l /proc/sys",
        "umount -R /proc",
        "mount -o remount,bind,rw /proc/sys",
        "mount -o remount,rw /proc",
        "mkdir /tmp/p; mount --move /proc/sys /tmp/p",
        "mount --bind /proc /mnt",
        "mount --rbind /proc /srv; umount /srv/sys; umount -l /srv/sys; mount -o remount,bind,rw /srv/sys",
        "mount -t proc proc /mnt",
        "mount -t proc -o ro proc /mnt && mount -o remount,rw /mnt",
        "mount -t sysfs sysfs /mnt && touch /mnt/firmware/x",
        "umount /sys/firmware; umount -l /sys/firmware; ls /sys/firmware",
        "umount /dev/full; umount -l /dev/full; mount -o remount,bind,rw /dev/full && chmod 667 /dev/full",
        "umount /proc/kcore; head -c 1 /proc/kcore",
        "nsenter -t 1 -m -- umount /proc/sys",
        "unshare -m -- umount /proc/sys",
        "unshare -m -p -f -- sh -c 'mount -t proc proc /mnt && cat /mnt/sys/kernel/core_pattern > /mnt/sys/kernel/core_pattern && echo written'",
        "unshare -U -r -m -p -f -- sh -c 'umount /proc/sys || mount -t proc proc /mnt && echo written'",
    ];
    let lines = attempts.map(|attempt| {
        format!("{{ {attempt}; }} >/tmp/said 2>&1; grep written /tmp/said; {WRITE_SETTING}\n")
    });
    let line = format!(
        "{}\nhead -c 1 /proc/kcore 2>/dev/null | wc -c; ls /sys/firmware | wc -l; mount -t tmpfs x /srv 2>/dev/null && umount /srv && echo own",
        lines.concat()
    );
    let full = || fs::metadata("/dev/full").unwrap().mode();
    let before = full();
    for user in [None, Some("0:0")] {
        let mut spec = shell(tree.path(), &line);
        spec.user = user.map(str::to_owned);
        spec.capabilities.add = vec!["SYS_ADMIN".into()];
        let (_, text) = output(&spec);
        // Only the namespace's root has the capability.
        let root = user.is_some() || rustix::process::geteuid().is_root();
        assert_eq!(text, if root { "0\n0\nown\n" } else { "0\n0\n" });
        assert_eq!(full(), before);
        spec.capabilities.add.push("ALL".into());
        assert_eq!(output(&spec).1, text);
    }
    // Its capabilities count in its other namespaces as without the locks.
    let mut spec = shell(
        tree.path(),
        "hostname other && hostname; ip link set lo mtu 1400 && echo net; echo $$",
    );
    spec.user = Some("0:0".into());
    spec.namespaces.network = Network::None;
    spec.capabilities.add = vec!["SYS_ADMIN".into(), "NET_ADMIN".into()];
    let (_, text) = output(&spec);
    assert!(text.starts_with("other\nnet\n"), "{text}");
}

/// Who shares the host's processes shares its `/proc`, and may not write to it either.
fn shared_proc_is_read_only() {
    let tree = tree();
    let line = format!(
        "{WRITE_SETTING} for f in /proc/sysrq-trigger /proc/irq/default_smp_affinity; do [ -w $f ] && echo $f; done; echo end"
    );
    for (add, privileged) in [(vec![], false), (vec!["SYS_ADMIN".into()], false)] {
        let mut spec = shell(tree.path(), &format!("umount -l /proc/sys 2>/dev/null; {line}"));
        spec.user = Some("0:0".into());
        spec.namespaces.pid = Namespace::Host;
        spec.capabilities.add = add;
        spec.privileged = privileged;
        assert_eq!(output(&spec).1, "end\n");
    }
}
