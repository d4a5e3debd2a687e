//! Starting jobs, their surroundings, their ends.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::time::{Duration, Instant};

use crate::support::*;
use mica_launcher::{Ending, ExecSpec, Namespace, Rlimit, Stdio, launch};

pub(crate) const TESTS: &[Test] = &[
    ("basics::exit_codes", By::Both, exit_codes),
    ("basics::exec_failures", By::Both, exec_failures),
    ("basics::namespaces", By::Both, namespaces),
    ("basics::environment", By::Both, environment),
    ("basics::users_as_root", By::Root, users_as_root),
    ("basics::users_as_user", By::User, users_as_user),
    ("basics::signals", By::Both, signals),
    ("basics::orphans", By::Both, orphans),
    ("basics::further_programs", By::Both, further_programs),
    ("basics::terminal", By::Both, terminal),
    ("basics::rlimits", By::Both, rlimits),
    ("basics::dropping", By::Both, dropping),
    ("basics::host_pids", By::Both, host_pids),
    ("basics::many_at_once", By::Both, many_at_once),
    ("basics::killed_supervisor", By::Both, killed_supervisor),
];

fn exit_codes() {
    let tree = tree();
    for code in [0, 1, 42, 255] {
        let (exit, _) = output(&shell(tree.path(), &format!("exit {code}")));
        assert_eq!(exit.ending, Ending::Exited(code));
    }
    let (exit, _) = output(&shell(tree.path(), "kill -TERM $$"));
    assert_eq!((exit.ending, exit.code()), (Ending::Killed(libc::SIGTERM), 143));
}

fn exec_failures() {
    let tree = tree();
    fs::write(tree.path().join("plain"), "no program").unwrap();
    fs::write(tree.path().join("script"), "#!/no/such/interpreter\n").unwrap();
    for file in ["plain", "script"] {
        let mode = if file == "script" { 0o755 } else { 0o644 };
        fs::set_permissions(
            tree.path().join(file),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
        .unwrap();
    }
    for (program, code, message) in [
        ("missing", 127, "cannot find missing: No such file or directory (os error 2)"),
        ("/missing", 127, "cannot find /missing: No such file or directory (os error 2)"),
        ("/plain", 126, "cannot execute /plain: Permission denied (os error 13)"),
        (
            "/script",
            126,
            "cannot execute /script: its interpreter is missing: Exec format error (os error 8)",
        ),
    ] {
        let error = refusal(&spec(tree.path(), &[program]));
        assert_eq!((error.exit_code(), chain(&error).as_str()), (code, message));
    }
    let mut elsewhere = shell(tree.path(), "true");
    elsewhere.cwd = "/nowhere".into();
    let error = refusal(&elsewhere);
    assert_eq!(error.exit_code(), 125);
    assert_eq!(error.to_string(), "cannot change to the directory /nowhere");
}

fn namespaces() {
    let tree = tree();
    let mut spec = shell(
        tree.path(),
        "hostname; echo $$; for n in user mnt pid ipc uts cgroup net; do readlink /proc/self/ns/$n; done",
    );
    spec.hostname = Some("inner".into());
    let (_, text) = output(&spec);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("inner"));
    assert_eq!(lines.next(), Some("2"), "the init is 1, the program 2");
    for (name, inner) in ["user", "mnt", "pid", "ipc", "uts", "cgroup", "net"].iter().zip(lines) {
        let outer = fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        assert_eq!(outer.to_str() == Some(inner), *name == "net", "{name}");
    }
    let mounts = sh("cat /proc/self/mountinfo");
    assert!(!mounts.contains("/work") && !mounts.contains("shared:"), "{mounts}");
    assert!(mounts.lines().any(|l| l.contains(" /sys ro,nosuid,nodev,noexec")), "{mounts}");
}

fn environment() {
    let tree = tree();
    let mut spec = spec(tree.path(), &["env"]);
    spec.env.push(("A".into(), "b c".into()));
    spec.cwd = "/tmp".into();
    let (_, text) = output(&spec);
    let home = text.strip_prefix("PATH=/usr/bin:/bin:/usr/sbin:/sbin\nA=b c\nHOME=").unwrap();
    assert!(home == "/\n" || home == "/root\n", "nothing but the home is added: {text}");
    spec.env.push(("HOME".into(), "/mine".into()));
    assert!(output(&spec).1.ends_with("A=b c\nHOME=/mine\n"));
    let mut spec =
        shell(tree.path(), "pwd; umask; ls /proc/self/fd | wc -l; cat /proc/self/status");
    spec.cwd = "/tmp".into();
    spec.umask = 0o027;
    let leak = File::open("/").unwrap();
    rustix::io::fcntl_setfd(&leak, rustix::io::FdFlags::empty()).unwrap();
    let (_, text) = output(&spec);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[..3], ["/tmp", "0027", "4"]);
    for line in [
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "CapInh:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "CapBnd:\t00000000a80405fb",
    ] {
        assert!(lines.contains(&line), "{line} not in {text}");
    }
}

fn users_as_root() {
    let tree = tree();
    let id_line = "id -u; id -g; id -G; grep -h Cap /proc/self/status; cat /proc/self/uid_map";
    let (_, text) = output(&shell(tree.path(), id_line));
    assert!(text.starts_with("0\n0\n0\n"), "{text}");
    assert!(text.contains("CapEff:\t00000000a80405fb"), "{text}");
    assert!(text.contains("4294967295"), "{text}");
    let mut spec = shell(tree.path(), id_line);
    spec.user = Some("web".into());
    spec.groups = vec!["1234".into()];
    let (_, text) = output(&spec);
    assert!(text.starts_with("33\n33\n33 1234\n"), "{text}");
    assert!(text.contains("CapEff:\t0000000000000000"), "{text}");
    spec.user = Some("who".into());
    assert_eq!(
        chain(&refusal(&spec)),
        "the job cannot be planned: cannot find the job's user: the tree's etc/passwd has no user who"
    );
}

fn users_as_user() {
    let tree = tree();
    let mut spec =
        shell(tree.path(), "id -u; id -g; touch /made; grep -h CapEff /proc/self/status");
    let (_, text) = output(&spec);
    // The launcher's own id, which is root's in some namespaces.
    let id = rustix::process::geteuid().as_raw();
    assert!(text.starts_with(&format!("{id}\n{id}\n")), "{text}");
    assert!(tree.path().join("made").exists());
    spec.user = Some("65534:65534".into());
    assert_eq!(output(&spec).1, "65534\n65534\nCapEff:\t0000000000000000\n");
    spec.user = Some("root".into());
    let (_, text) = output(&spec);
    assert_eq!(text, "0\n0\nCapEff:\t00000000a80405fb\n");
    spec.user = Some("web".into());
    assert_eq!(output(&spec).1, "33\n33\nCapEff:\t0000000000000000\n");
}

fn signals() {
    let tree = tree();
    let (stdio, mut reader) = piped();
    let mut job = start(
        &shell(
            tree.path(),
            "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.01; done",
        ),
        stdio,
    );
    wait_for(&mut reader, "ready\n");
    job.signal(libc::SIGTERM).unwrap();
    assert_eq!(job.wait().unwrap().ending, Ending::Exited(7));
    let (stdio, mut reader) = piped();
    let mut job = start(&shell(tree.path(), "trap '' TERM; echo ready; sleep 1000"), stdio);
    wait_for(&mut reader, "ready\n");
    job.signal(libc::SIGTERM).unwrap();
    assert_eq!(job.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    // From outside, as a person would do it.
    rustix::process::kill_process(job.pid(), rustix::process::Signal::KILL).unwrap();
    assert_eq!(job.wait().unwrap().ending, Ending::Killed(libc::SIGKILL));
}

fn orphans() {
    let tree = tree();
    // A process that left its parents and its session behind still dies with the job, and is reaped before that.
    let (stdio, mut reader) = piped();
    let mut job = start(
        &shell(
            tree.path(),
            "(setsid sleep 1000 & ) ; (true &) ; sleep 0.1; ps -eo stat,comm; exit 3",
        ),
        stdio,
    );
    assert_eq!(job.wait().unwrap().code(), 3);
    let mut text = String::new();
    // The pipe ends only when no process holds it any more.
    reader.read_to_string(&mut text).unwrap();
    assert!(text.contains("sleep") && !text.contains('Z'), "{text}");
}

fn further_programs() {
    let tree = tree();
    let mut spec = shell(tree.path(), "touch /tmp/mark; echo ready; sleep 1000");
    spec.env.push(("FROM".into(), "job".into()));
    let (stdio, mut reader) = piped();
    let mut job = start(&spec, stdio);
    wait_for(&mut reader, "ready\n");
    let (stdio, file) = captured();
    let line = "test -e /tmp/mark && echo same tree; echo $FROM $MORE; pwd; \
        until ps -eo comm | grep sleep; do :; done; exit 5";
    let exec = ExecSpec {
        argv: ["sh", "-c", line].map(Into::into).to_vec(),
        env: vec![("MORE".into(), "x".into())],
        cwd: Some("/usr".into()),
        user: None,
    };
    let mut program = job.exec(&exec, stdio).unwrap();
    assert!(program.pid().is_some());
    assert_eq!(program.wait().unwrap(), Ending::Exited(5));
    assert_eq!(printed(file), "same tree\njob x\n/usr\nsleep\n");
    let missing = ExecSpec { argv: vec!["missing".into()], ..ExecSpec::default() };
    assert_eq!(job.exec(&missing, Stdio::null().unwrap()).unwrap_err().exit_code(), 127);
    // One that is still running when the job ends.
    let sleep = ExecSpec { argv: vec!["sleep".into(), "1000".into()], ..ExecSpec::default() };
    let mut program = job.exec(&sleep, Stdio::null().unwrap()).unwrap();
    assert_eq!(program.try_wait().unwrap(), None);
    let mut stopped = job.exec(&sleep, Stdio::null().unwrap()).unwrap();
    stopped.signal(libc::SIGINT).unwrap();
    assert_eq!(stopped.wait().unwrap(), Ending::Killed(libc::SIGINT));
    job.kill().unwrap();
    job.wait().unwrap();
    assert_eq!(program.wait().unwrap(), Ending::Killed(libc::SIGKILL));
    assert!(job.exec(&sleep, Stdio::null().unwrap()).is_err());
}

fn terminal() {
    let tree = tree();
    let stdio = Stdio::Terminal { rows: 33, columns: 77 };
    let mut job = start(
        &shell(
            tree.path(),
            "tty; stty size; echo to console > /dev/console; read line; echo got $line; ps -o tty= -p $$",
        ),
        stdio,
    );
    let mut master = File::from(job.program().take_terminal().unwrap());
    master.write_all(b"hello\n").unwrap();
    assert_eq!(job.wait().unwrap().code(), 0);
    let mut text = Vec::new();
    // A terminal whose other end is closed answers with an error instead of an end.
    master.read_to_end(&mut text).ok();
    let text = String::from_utf8(text).unwrap();
    for part in ["/dev/pts/0\r\n", "33 77\r\n", "to console\r\n", "got hello\r\n", "pts/0"] {
        assert!(text.contains(part), "{part:?} not in {text:?}");
    }
}

fn rlimits() {
    let tree = tree();
    let mut spec = shell(tree.path(), "ulimit -n; ulimit -c");
    spec.rlimits = vec![
        Rlimit { resource: "nofile".into(), soft: Some(100), hard: Some(200) },
        Rlimit { resource: "core".into(), soft: Some(0), hard: Some(0) },
    ];
    assert_eq!(output(&spec).1, "100\n0\n");
    spec.rlimits = vec![Rlimit { resource: "nofile".into(), soft: None, hard: None }];
    assert_eq!(
        chain(&refusal(&spec)),
        "cannot set the ulimit nofile: Operation not permitted (os error 1)"
    );
    spec.best_effort_limits = true;
    let mut job = start(&spec, Stdio::null().unwrap());
    assert_eq!(
        job.warnings(),
        ["the ulimit nofile is as high as the host allows, not as high as asked for"]
    );
    job.wait().unwrap();
}

fn dropping() {
    let tree = tree();
    let (stdio, mut reader) = piped();
    let job = launch(&shell(tree.path(), "sleep 1000"), stdio).unwrap();
    let before = Instant::now();
    drop(job);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert!(before.elapsed() < Duration::from_secs(5));
}

fn host_pids() {
    let tree = tree();
    let me = std::process::id();
    let mut spec =
        shell(tree.path(), &format!("test -d /proc/{me} && echo seen; setsid sleep 1000 & exit 4"));
    spec.namespaces.pid = Namespace::Host;
    let (stdio, mut reader) = piped();
    let mut job = start(&spec, stdio);
    assert_eq!(job.wait().unwrap().code(), 4);
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "seen\n");
}

fn killed_supervisor() {
    let tree = tree();
    for mode in ["--supervise", "--supervise-in-thread", "--supervise-host-pids"] {
        let mut command = std::process::Command::new("/proc/self/exe");
        command
            .arg(mode)
            .arg(tree.path())
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::piped());
        let mut supervisor = command.spawn().unwrap();
        let mut reader = BufReader::new(supervisor.stdout.take().unwrap());
        let mut group = String::new();
        reader.read_line(&mut group).unwrap();
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
        // Ends when the last process of the job is dead.
        reader.read_to_string(&mut String::new()).unwrap();
        let group = serde_json::from_str(&group).unwrap();
        assert!(mica_launcher::cleanup(&group));
    }
}

fn many_at_once() {
    let tree = tree();
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    std::thread::scope(|scope| {
        let run =
            |code: i32| output(&shell(tree.path(), &format!("sleep 0.2; exit {code}"))).0.code();
        let jobs: Vec<_> = (0..50).map(|code| (code, scope.spawn(move || run(code)))).collect();
        for (code, job) in jobs {
            assert_eq!(job.join().unwrap(), code);
        }
    });
    assert_eq!(open(), before);
}
