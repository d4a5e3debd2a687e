//! The life of a job: what people do with one that runs, as root and as an ordinary user.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::{Read, Write};
use std::process::Stdio;

use common::{Ran, USERS, User, World, need_fuse, wait_for};

/// A world with an image `app.xar` that holds `hello.txt`.
fn world(user: User) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("tree/hello.txt", "hello\n");
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world
}

/// Starts a job called `job` with these flags.
fn start(world: &World, flags: &[&str], script: &str) {
    let args = [
        &["run", "-d", "--name", "job"],
        flags,
        &["--image", "app.xar", "--", "/bin/sh", "-c", script],
    ];
    world.ok(&args.concat());
}

fn status(world: &World) -> String {
    world.ok(&["ps", "-a"]).stdout
}

/// Runs `mica` on a terminal at which this is typed, once the job has printed `prompt`: before, the terminal is not raw.
fn on_terminal(world: &World, args: &[&str], prompt: &str, typed: &str) -> Ran {
    let line = format!("{} {}", world.binary().display(), args.join(" "));
    let mut child = world
        .command("timeout")
        .args(["60", "script", "-qefc", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut printed = Vec::new();
    while !String::from_utf8_lossy(&printed).contains(prompt) {
        let mut buffer = [0; 1024];
        match out.read(&mut buffer).unwrap() {
            0 => break,
            count => printed.extend_from_slice(&buffer[..count]),
        }
    }
    // It stays open until the command has ended: to the job its end would be a key of its own.
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(typed.as_bytes()).unwrap();
    out.read_to_end(&mut printed).unwrap();
    let code = child.wait().unwrap().code();
    Ran { code, stdout: String::from_utf8_lossy(&printed).into_owned(), stderr: String::new() }
}

#[test]
fn exec_runs_a_program_in_the_jobs_namespaces_with_its_own_streams_and_code() {
    for user in USERS {
        let world = world(user);
        start(&world, &["-e", "KEPT=yes"], "exec sleep 1000");
        let ran = world.ok(&["exec", "-e", "NEW=too", "job", "sh", "-c", "echo $KEPT $NEW; pwd"]);
        assert_eq!(ran.stdout, "yes too\n/packages/app\n");
        assert_eq!(world.ok(&["exec", "-w", "/tmp", "job", "pwd"]).stdout, "/tmp\n");
        for ns in ["mnt", "pid", "ipc", "uts", "net", "user"] {
            let script = format!("readlink /proc/1/ns/{ns} /proc/self/ns/{ns} | uniq | wc -l");
            let ran = world.run(&["exec", "job", "sh", "-c", &script]);
            assert_eq!(ran.stdout, "1\n", "{ns} is that of the job's init");
        }
        world.fails(7, &["exec", "job", "sh", "-c", "exit 7"]);
        world.fails(127, &["exec", "job", "no-such-program"]);
        world.fails(126, &["exec", "job", "/packages/app/hello.txt"]);
        let mut child = world
            .mica(&["exec", "-i", "job", "sh", "-c", "cat; echo e >&2"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"in\n").unwrap();
        let ran: Ran = child.wait_with_output().unwrap().into();
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("in\n", "e\n"));
        world.ok(&["rm", "-f", "job"]);
        world.fails(125, &["exec", "job", "true"]);
        start(&world, &["--rm"], "exec sleep 1000");
        world.ok(&["rm", "-f", "job"]);
    }
}

#[test]
fn a_job_with_a_terminal() {
    for user in USERS {
        let world = world(user);
        let run = ["run", "--rm", "-it", "--image", "app.xar", "--", "sh"];
        let ran = on_terminal(&world, &run, "# ", "tty; echo $TERM; exit 5\n");
        assert_eq!(ran.code, Some(5), "{ran:?}");
        assert!(ran.stdout.contains("/dev/pts/0") && ran.stdout.contains("xterm"), "{ran:?}");

        let run = ["run", "-it", "--name", "job", "--image", "app.xar", "--", "sh"];
        let ran = on_terminal(&world, &run, "# ", "\x10\x11");
        assert_eq!(ran.code, Some(0), "ctrl-p ctrl-q lets go: {ran:?}");
        assert!(status(&world).contains("running"), "{}", status(&world));
        let ran = on_terminal(&world, &["exec", "-it", "job", "sh"], "# ", "tty; exit 6\n");
        assert!(ran.code == Some(6) && ran.stdout.contains("/dev/pts/"), "{ran:?}");
        let ran = on_terminal(&world, &["attach", "job"], "", "echo $((40+2)); exit 3\n");
        assert!(ran.code == Some(3) && ran.stdout.contains("42"), "{ran:?}");
        assert!(world.ok(&["logs", "job"]).stdout.contains("42"));

        let said = world.fails(125, &["run", "-it", "--image", "app.xar", "--", "sh"]);
        assert!(said.contains("not a terminal"), "{said}");
    }
}

#[test]
fn attach_takes_part_in_output_and_input() {
    for user in USERS {
        let world = world(user);
        start(&world, &["-i"], "while read line; do echo got $line; done");
        let mut child = world
            .mica(&["attach", "job"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
        let mut out = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        assert_eq!(line, "got one\n");
        world.ok(&["kill", "job"]);
        assert_eq!(child.wait().unwrap().code(), Some(137), "attach ends with the job");
    }
}

#[test]
fn a_paused_job_stands_still() {
    for user in USERS {
        let world = world(user);
        start(&world, &[], "while :; do echo tick; sleep 0.01; done");
        wait_for(|| !world.ok(&["logs", "-n", "1", "job"]).stdout.is_empty());
        world.ok(&["pause", "job"]);
        assert!(status(&world).contains("(paused)"), "{}", status(&world));
        world.fails(1, &["pause", "job"]);
        world.fails(125, &["exec", "job", "true"]);
        // What was on its way has arrived by the second look.
        let count = || world.ok(&["logs", "job"]).stdout.lines().count();
        wait_for(|| {
            let before = count();
            std::thread::sleep(std::time::Duration::from_millis(50));
            before == count()
        });
        let before = count();
        world.ok(&["unpause", "job"]);
        wait_for(|| count() > before);
        world.ok(&["pause", "job"]);
        world.ok(&["stop", "-t", "60", "job"]);
        assert!(status(&world).contains("exited (143)"), "stop wakes it: {}", status(&world));
    }
}

#[test]
fn restart_policies() {
    for user in USERS {
        let world = world(user);
        start(&world, &["--restart", "on-failure:2"], "echo x >> runs; exit 4");
        assert_eq!(world.ok(&["wait", "job"]).stdout, "4\n");
        let record = world.ok(&["inspect", "job"]).stdout;
        assert!(record.contains("\"restarts\": 2"), "{record}");
        world.ok(&["rm", "job"]);

        start(&world, &["--restart", "always"], "echo x");
        wait_for(|| world.ok(&["logs", "job"]).stdout.lines().count() >= 3);
        world.ok(&["stop", "job"]);
        assert!(status(&world).contains("exited"), "stopped for good: {}", status(&world));
        world.ok(&["start", "job"]);
        wait_for(|| world.ok(&["logs", "job"]).stdout.lines().count() >= 6);
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}

#[test]
fn an_ended_job_starts_again_with_what_it_wrote() {
    for user in USERS {
        let world = world(user);
        start(&world, &[], "cat note 2>/dev/null; echo kept > note");
        world.ok(&["wait", "job"]);
        world.ok(&["start", "job"]);
        world.ok(&["wait", "job"]);
        assert_eq!(world.ok(&["logs", "job"]).stdout, "kept\n");
        let ran = world.ok(&["start", "-a", "job"]);
        assert_eq!(ran.stdout, "kept\n");
        world.ok(&["restart", "job"]);
        world.ok(&["wait", "job"]);
    }
}

#[test]
fn health_checks_are_shown() {
    for user in USERS {
        let world = world(user);
        let flags = ["--health-cmd", "test -e /tmp/well", "--health-interval", "50ms"];
        let flags = [&flags[..], &["--health-retries", "2"]].concat();
        start(&world, &flags, "exec sleep 1000");
        wait_for(|| status(&world).contains("(unhealthy)"));
        world.ok(&["exec", "job", "touch", "/tmp/well"]);
        wait_for(|| status(&world).contains("(healthy)"));
        assert_ne!(world.ok(&["ps", "-q", "--filter", "health=healthy"]).stdout, "");
        world.ok(&["rm", "-f", "job"]);
    }
}

#[test]
fn files_are_copied_both_ways_while_it_runs_and_afterwards() {
    for user in USERS {
        let world = world(user);
        start(
            &world,
            &[],
            "mkdir d; echo x > d/x; ln -s /etc/hostname d/link; touch /tmp/ready; exec sleep 1000",
        );
        wait_for(|| world.run(&["exec", "job", "test", "-e", "/tmp/ready"]).code == Some(0));
        world.ok(&["cp", "job:/packages/app/d", "out"]);
        assert_eq!(std::fs::read_to_string(world.path("out/x")).unwrap(), "x\n");
        assert!(world.path("out/link").is_symlink());
        world.write("data/f", "given\n");
        world.hand_over();
        world.ok(&["cp", "data", "job:/tmp"]);
        assert_eq!(world.ok(&["exec", "job", "cat", "/tmp/data/f"]).stdout, "given\n");
        world.ok(&["cp", "data/f", "job:/packages/app/new"]);
        let said = world.fails(1, &["cp", "job:/missing", "out"]);
        assert!(said.contains("/missing") && said.matches("error:").count() == 1, "{said}");
        world.ok(&["stop", "-t", "0", "job"]);
        world.ok(&["cp", "job:/packages/app/new", "back"]);
        assert_eq!(std::fs::read_to_string(world.path("back")).unwrap(), "given\n");
        world.ok(&["cp", "data/f", "job:/packages/app/later"]);
        world.ok(&["start", "job"]);
        assert_eq!(world.ok(&["exec", "job", "cat", "later"]).stdout, "given\n");
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}

#[test]
fn what_a_job_wrote_becomes_a_layer() {
    for user in USERS {
        let world = world(user);
        start(&world, &[], "echo new > new.txt; rm hello.txt");
        world.ok(&["wait", "job"]);
        world.ok(&["commit", "job", "-o", "layer.xar"]);
        let args = [
            "run",
            "--rm",
            "--image",
            "layer.xar",
            "--image",
            "app.xar",
            "--",
            "sh",
            "-c",
            "cat new.txt; ls",
        ];
        assert_eq!(world.ok(&args).stdout, "new\nnew.txt\n");
        let said = world.fails(1, &["commit", "job"]);
        assert!(said.contains("--output"), "{said}");
    }
}

#[test]
fn names_limits_processes_and_events() {
    for user in USERS {
        let world = world(user);
        start(&world, &["--label", "team=a"], "sleep 1000 & exec sleep 2000");
        wait_for(|| world.ok(&["top", "job"]).stdout.contains("sleep 1000"));
        assert!(!world.ok(&["top", "job"]).stdout.contains("mica-init"));
        assert!(world.ok(&["stats", "--json", "job"]).stdout.contains("\"cpu_percent\""));
        world.ok(&["rename", "job", "other"]);
        world.fails(1, &["stop", "job"]);
        assert_eq!(world.ok(&["ps", "--filter", "label=team=b", "-q"]).stdout, "");
        assert_ne!(
            world.ok(&["ps", "--filter", "label=team", "--filter", "name=oth", "-q"]).stdout,
            ""
        );
        world.ok(&["update", "--restart", "always", "other"]);
        world.ok(&["kill", "-s", "KILL", "other"]);
        world.ok(&["wait", "other"]);
        let record = world.ok(&["inspect", "other"]).stdout;
        assert!(record.contains("\"restart\": \"always\""), "{record}");
        world.ok(&["rm", "other"]);
        let events = world
            .ok(&["events", "--since", "1h", "--until", "0s", "--filter", "name=other"])
            .stdout;
        let actions: Vec<_> = events.lines().filter_map(|line| line.split(' ').nth(1)).collect();
        for action in ["rename", "destroy"] {
            assert!(actions.contains(&action), "{action} is missing: {events}");
        }
    }
}

#[test]
fn a_private_network_with_published_ports() {
    for user in USERS {
        let world = world(user);
        let server = "from socketserver import *\nclass H(StreamRequestHandler):\n def handle(s): s.wfile.write(b'hello')\n\
            print('up', flush=True)\nTCPServer(('0.0.0.0', 80 if __import__('os').geteuid() == 0 else 8080), H).serve_forever()";
        world.write("server.py", server);
        world.hand_over();
        // A port that is free now; that another takes it meanwhile is not to be expected.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let publish = format!("127.0.0.1:{port}:80");
        start(
            &world,
            &["-p", &publish, "-v", "./server.py:/tmp/server.py"],
            "exec python3 /tmp/server.py",
        );
        wait_for(|| world.ok(&["logs", "job"]).stdout.contains("up"));
        let mut text = String::new();
        wait_for(|| {
            let stream = std::net::TcpStream::connect(("127.0.0.1", port));
            stream
                .is_ok_and(|mut stream| stream.read_to_string(&mut text).is_ok() && text == "hello")
        });
        let ns = world.ok(&["exec", "job", "readlink", "/proc/self/ns/net"]).stdout;
        assert_ne!(ns.trim(), std::fs::read_link("/proc/self/ns/net").unwrap().to_string_lossy());
        let names = world.ok(&["exec", "job", "cat", "/etc/resolv.conf"]).stdout;
        assert_eq!(names, "nameserver 169.254.1.1\n");
        world.ok(&["rm", "-f", "job"]);
        world.ends_clean();
    }
}

#[test]
fn named_volumes_outlive_their_jobs() {
    for user in USERS {
        let world = world(user);
        let run = |flags: &[&str], script: &str| {
            let args = [&["run", "--rm"], flags, &["--image", "app.xar", "--", "sh", "-c", script]];
            world.run(&args.concat())
        };
        assert_eq!(run(&["-v", "data:/srv"], "echo kept > /srv/f").code, Some(0));
        let mount = ["--mount", "source=data,target=/srv,readonly"];
        let ran = run(&mount, "cat /srv/f; echo x > /srv/f || echo refused");
        assert_eq!(ran.stdout, "kept\nrefused\n", "{ran:?}");
        assert_eq!(world.ok(&["volume", "ls", "-q"]).stdout, "data\n");
        start(&world, &["-v", "data:/srv"], "sleep 1000");
        let said = world.fails(1, &["volume", "rm", "data"]);
        assert!(said.contains("in use"), "{said}");
        world.ok(&["rm", "-f", "job"]);
        world.ok(&["volume", "rm", "data"]);
        assert_eq!(world.ok(&["volume", "ls", "-q"]).stdout, "");
    }
}

#[test]
fn flags_of_confinement() {
    for user in USERS {
        let world = world(user);
        let run = |flags: &[&str], script: &str| {
            let args = [&["run", "--rm"], flags, &["--image", "app.xar", "--", "sh", "-c", script]];
            world.ok(&args.concat()).stdout
        };
        let seccomp = "grep Seccomp: /proc/self/status | cut -f 2";
        assert_eq!(run(&[], seccomp), "2\n");
        assert_eq!(run(&["--seccomp", "unconfined"], seccomp), "0\n");
        assert_eq!(run(&["--umask", "077"], "umask"), "0077\n");
        assert_eq!(run(&["--oom-score-adj", "500"], "cat /proc/self/oom_score_adj"), "500\n");
        assert_eq!(
            run(&["--uts", "host"], "hostname").trim(),
            rustix::system::uname().nodename().to_str().unwrap()
        );
        let host = std::fs::read_link("/proc/self/ns/ipc").unwrap();
        assert_eq!(
            run(&["--ipc", "host"], "readlink /proc/self/ns/ipc").trim(),
            host.to_str().unwrap()
        );
        let bounding = "grep CapBnd /proc/self/status | cut -f 2";
        assert_ne!(run(&["--privileged"], bounding), run(&[], bounding));
        let said = world.fails(125, &["run", "--gpus", "all", "--image", "app.xar", "--", "true"]);
        assert!(said.contains("CDI"), "{said}");
    }
}

#[test]
fn a_hundred_jobs_at_once() {
    let world = world(User::Me);
    let children: Vec<_> = (0..100)
        .map(|_| {
            let args = ["run", "-d", "--image", "app.xar", "--", "sleep", "1000"];
            world.mica(&args).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    let ids: Vec<String> = children
        .into_iter()
        .map(|child| {
            let ran: Ran = child.wait_with_output().unwrap().into();
            assert_eq!(ran.code, Some(0), "{ran:?}");
            ran.stdout.trim().to_owned()
        })
        .collect();
    assert_eq!(world.ok(&["ps", "-q"]).stdout.lines().count(), 100);
    let rm: Vec<&str> = ["rm", "-f"].into_iter().chain(ids.iter().map(String::as_str)).collect();
    world.ok(&rm);
    assert_eq!(world.ok(&["ps", "-a", "-q"]).stdout, "");
    world.ends_clean();
}

#[test]
fn a_commit_that_is_interrupted_leaves_nothing_behind() {
    let world = world(User::Me);
    start(&world, &[], "head -c 40000000 /dev/urandom > big; : > /tmp/ready; exec sleep 300");
    wait_for(|| world.run(&["exec", "job", "test", "-e", "/tmp/ready"]).code == Some(0));
    for signal in ["INT", "KILL"] {
        let mut commit = world.mica(&["commit", "-o", "layer.xar", "job"]);
        let mut commit = commit.stderr(Stdio::null()).spawn().unwrap();
        wait_for(|| {
            let done = commit.try_wait().unwrap().is_some();
            done || status(&world).contains("(paused)")
        });
        assert!(commit.try_wait().unwrap().is_none(), "it ended before it could be interrupted");
        let signal = match signal {
            "INT" => rustix::process::Signal::INT,
            _ => rustix::process::Signal::KILL,
        };
        let pid = rustix::process::Pid::from_child(&commit);
        rustix::process::kill_process(pid, signal).unwrap();
        commit.wait().unwrap();
        wait_for(|| !status(&world).contains("(paused)"));
        world.ok(&["exec", "job", "/bin/true"]);
    }
    // One that somebody has paused stays so.
    world.ok(&["pause", "job"]);
    world.ok(&["commit", "-o", "layer.xar", "job"]);
    assert!(status(&world).contains("(paused)"));
    world.ok(&["rm", "-f", "job"]);
    world.ends_clean();
}
