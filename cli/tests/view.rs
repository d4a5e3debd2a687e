//! What a job sees of the host: its programs, and nothing of mica's own, whatever volumes it has.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::path::Path;

use common::{Ran, USERS, User, World, need_fuse};

/// A world whose folders are not below /tmp, which jobs get afresh.
fn world(user: User) -> World {
    need_fuse();
    let world = World::below(user, Path::new("/var/tmp"));
    world.write("tree/hello.txt", "hello\n");
    world.write("data/secret", "secret\n");
    world.write("home/own", "own\n");
    std::fs::create_dir(world.path("mnt")).unwrap();
    std::fs::copy("/bin/true", world.path("home/program")).unwrap();
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world
}

fn run(world: &World, flags: &[&str], command: &[&str]) -> Ran {
    world.run(&[&["run", "--rm"], flags, &["--image", "app.xar", "--"], command].concat())
}

#[test]
fn a_job_without_a_root_sees_programs_and_no_data() {
    for user in USERS {
        let world = world(user);
        let secret = world.path("data/secret");
        let script = format!(
            "cat {} {1}/home/own; ls -d /home /root /var /run /srv /mnt; cat /etc/shadow; ls -A $HOME; \
             echo x > $HOME/mine && cat $HOME/mine hello.txt; id -u >/dev/null && pwd",
            secret.display(),
            world.dir.path().display()
        );
        let ran = run(&world, &[], &["sh", "-c", &script]);
        assert_eq!(ran.stdout, "x\nhello\n/packages/app\n", "{ran:?}");
        assert_eq!(ran.code, Some(0));
        // What is asked for is there.
        let data = world.path("data").display().to_string();
        let shown =
            run(&world, &["-v", &format!("{data}:{data}:ro")], &["cat", secret.to_str().unwrap()]);
        assert_eq!(shown.stdout, "secret\n", "{shown:?}");
        let all = run(&world, &["--host-root"], &["cat", secret.to_str().unwrap()]);
        assert_eq!(all.stdout, "secret\n", "{all:?}");
        let settings = "home/.config/mica/config.toml";
        world.write(settings, &format!("host-paths = [\"default\", \"{data}\"]\n"));
        world.hand_over();
        let set = run(&world, &[], &["cat", secret.to_str().unwrap(), "/etc/passwd"]);
        assert!(set.stdout.starts_with("secret\nroot:"), "{set:?}");
        let listed = world.ok(&["config", "show"]).stdout;
        assert!(listed.contains("host-paths") && listed.contains(&data), "{listed}");
        for (file, paths, why) in [
            (settings, "data", "data is not an absolute path without .."),
            (settings, "/", "/ is not a part of the host"),
            ("mica.toml", "/home", "a workspace may not say what jobs are given"),
        ] {
            world.write(file, &format!("host-paths = [\"{paths}\"]\n"));
            world.hand_over();
            let said = world.fails(125, &["run", "--image", "app.xar", "--", "true"]);
            assert!(said.contains(why), "{said}");
            std::fs::remove_file(world.path(file)).unwrap();
        }
        world.ends_clean();
    }
}

#[test]
fn programs_that_a_job_does_not_see_are_explained() {
    for user in USERS {
        let world = world(user);
        let program = world.path("home/program").display().to_string();
        let ran = run(&world, &[], &[&program]);
        assert_eq!(ran.code, Some(127), "{ran:?}");
        assert!(
            ran.stderr.contains("hint: it is there on the host, but not in the job"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains("--host-root"), "{ran:?}");
        let home = world.path("home").display().to_string();
        let ran = run(&world, &["-w", &home], &["true"]);
        assert!(ran.code == Some(125) && ran.stderr.contains("--host-root"), "{ran:?}");
        assert_eq!(run(&world, &["--host-root"], &[&program]).code, Some(0));
        assert_eq!(run(&world, &["-v", &format!("{home}:{home}")], &[&program]).code, Some(0));
        let ran = run(&world, &[], &["/no/such/program"]);
        assert!(ran.code == Some(127) && !ran.stderr.contains("hint"), "{ran:?}");
    }
}

/// Looks for every file and socket of mica's in the folders given, and says what it found.
const SEARCH: &str = "import os, socket, sys
found = []
for top in sys.argv[1:]:
    for folder, names, files in os.walk(top):
        for name in files:
            path = os.path.join(folder, name)
            if name == 'control':
                try:
                    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                    os.chdir(folder); s.connect('control'); found.append('connected ' + path)
                except OSError: pass
            if name in ('config.json', 'status.json', 'events.jsonl') or name.endswith('.xar'):
                try: open(path).close(); found.append(path)
                except OSError: pass
print(found or 'nothing')
";

#[test]
fn no_job_sees_another_ones_files_or_sockets() {
    for user in USERS {
        let world = world(user);
        world.ok(&[
            "run",
            "-d",
            "--name",
            "other",
            "-v",
            "kept:/kept",
            "--image",
            "app.xar",
            "--",
            "sleep",
            "1000",
        ]);
        if user == User::Me {
            world.ok(&["mount", "--image", "app.xar", "mnt"]);
        }
        std::fs::rename(world.path("app.xar"), world.path("state/app.xar")).unwrap();
        std::os::unix::fs::symlink("..", world.path("data/up")).unwrap();
        std::os::unix::fs::symlink("../state", world.path("data/state")).unwrap();
        let dir = world.dir.path().display().to_string();
        let ways: [(&[&str], &str); 6] = [
            (&[], &dir),
            (&["--host-root"], &dir),
            (&["-v", "/:/h"], &format!("/h{dir}")),
            (&["-v", "/var:/data"], &dir.replace("/var/", "/data/")),
            (&["-v", &format!("{dir}:/w"), "-v", &format!("{dir}/data/up:/u")], "/w"),
            (&["-v", &format!("{dir}/data/up:/u:rslave,ro"), "-v", "kept:/kept"], "/u"),
        ];
        for (flags, place) in ways {
            for more in
                [&[][..], &["-u", "0", "--privileged", "--yes"], &["-u", "0", "--cap-add", "ALL"]]
            {
                let more: Vec<&str> =
                    more.iter().copied().filter(|flag| *flag != "--yes").collect();
                let script = format!(
                    "umount -l {place}/state 2>/dev/null; exec python3 -c \"$0\" {place} {dir} /kept"
                );
                let flags = [&["run", "--rm"], flags, &more].concat();
                let tail = ["--image", "state/app.xar", "--", "sh", "-c", &script, SEARCH];
                let ran = world.run(&[&flags[..], &tail].concat());
                // Its package may lie where the job sees it; mica's own is not there.
                assert_eq!(ran.stdout, "nothing\n", "{flags:?} {ran:?}");
            }
        }
        for source in ["state", "state/jobs", "cache", "runtime", "data/state", "data/../state"] {
            let volume = format!("{dir}/{source}:/x");
            let ran = run(&world, &["-v", &volume], &["true"]);
            assert_eq!(ran.code, Some(125), "{ran:?}");
        }
        let ran = world.run(&[
            "run",
            "--rm",
            "-v",
            &format!("{dir}/data/state:/x"),
            "--image",
            "state/app.xar",
            "--",
            "true",
        ]);
        assert!(ran.stderr.contains("mica's own, and hidden from jobs"), "{ran:?}");
        // Volumes that mica keeps are no secret.
        let kept = ["-v", "kept:/kept", "--image", "state/app.xar", "--", "touch", "/kept/file"];
        world.ok(&[&["run", "--rm"], &kept[..]].concat());
        if user == User::Me {
            world.ok(&["umount", "mnt"]);
        }
        world.ok(&["rm", "-f", "other"]);
        world.ends_clean();
    }
}

#[test]
fn mica_in_a_privileged_job_starts_jobs_of_its_own() {
    let world = world(User::Me);
    let binary = world.binary();
    let mount = format!("{}:/mica:ro", binary.parent().unwrap().display());
    let script = "export PATH=/mica:$PATH MICA_STATE=/tmp/s MICA_CACHE=/tmp/c MICA_RUNTIME=/tmp/r; \
        mica run --rm --image /work/app.xar -- cat hello.txt && \
        mica run --rm --host-root --privileged --image /work/app.xar -- sh -c 'ls /tmp/s /tmp/c /tmp/r /h 2>&1 | grep -c jobs'; exit 0";
    let work = format!("{}:/work", world.dir.path().display());
    let flags = ["--privileged", "--device", "/dev/fuse", "-v", &mount, "-v", &work];
    let ran = run(&world, &flags, &["sh", "-c", script]);
    assert_eq!(ran.stdout, "hello\n0\n", "{ran:?}");
    world.ends_clean();
}

/// Two accounts on one node: neither's jobs get at the other one's jobs, whatever is shown to them.
#[test]
fn no_user_reaches_another_ones_jobs() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root, for two accounts");
    let (one, two) = (world(User::Ordinary), world(User::Me));
    let give = |folder: &Path| {
        let given =
            std::process::Command::new("chown").args(["-R", "12346:12346"]).arg(folder).status();
        assert!(given.unwrap().success());
    };
    give(two.dir.path());
    let second = |args: &[&str]| -> Ran {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", "12346", "--regid", "12346", "--clear-groups", "--"]);
        command
            .arg(two.binary())
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap());
        for name in ["cache", "state", "runtime", "registry"] {
            command.env(format!("MICA_{}", name.to_uppercase()), two.path(name));
        }
        command.env("HOME", two.path("home")).current_dir(two.dir.path()).output().unwrap().into()
    };
    std::fs::set_permissions(one.dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    one.ok(&[
        "run",
        "-d",
        "--name",
        "victim",
        "-e",
        "TOKEN=t0p",
        "--image",
        "app.xar",
        "--",
        "sleep",
        "1000",
    ]);
    let folder = one.dir.path().display().to_string();
    let state = format!("{folder}/state");
    for (flags, place) in [
        (vec![], folder.clone()),
        (vec!["--host-root"], folder.clone()),
        (vec!["--host-root", "--pid", "host", "-u", "0"], folder.clone()),
        (vec!["-v", "/:/h", "-u", "0", "--privileged"], format!("/h{folder}")),
    ] {
        let script = format!(
            "cat /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n' | grep TOKEN; ls {state}/jobs 2>/dev/null; \
             python3 -c \"$0\" {place}; echo end"
        );
        let tail = ["--image", "app.xar", "--", "sh", "-c", &script, SEARCH];
        let ran = second(&[&["run", "--rm"][..], &flags, &tail].concat());
        let found: Vec<_> = ran.stdout.lines().collect();
        let images = format!("['{place}/app.xar']");
        assert!(
            found == ["nothing", "end"] || found == [images.as_str(), "end"],
            "{flags:?} {ran:?}"
        );
    }
    let ran = second(&[
        "run",
        "--rm",
        "-v",
        &format!("{state}:/s"),
        "--image",
        "app.xar",
        "--",
        "ls",
        "/s",
    ]);
    assert_ne!(ran.code, Some(0), "{ran:?}");
    assert_eq!(one.ok(&["exec", "victim", "printenv", "TOKEN"]).stdout, "t0p\n");
    one.ok(&["rm", "-f", "victim"]);
    one.ends_clean();
}

/// What the host shows to root is shown to root's jobs that are told so, but for mica's folders of every account.
#[test]
fn what_other_accounts_keep_in_the_usual_places_is_hidden_from_roots_jobs() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let world = world(User::Me);
    let theirs = Path::new("/tmp/mica-4242424242");
    std::fs::create_dir(theirs).unwrap();
    std::fs::write(theirs.join("config.json"), "TOKEN=t0p").unwrap();
    let seen = run(&world, &["-v", "/:/h:ro"], &["ls", "-A", "/h/tmp/mica-4242424242"]);
    let taken = run(&world, &["-v", "/tmp/mica-4242424242:/h"], &["ls", "-A", "/h"]);
    std::fs::remove_dir_all(theirs).unwrap();
    assert_eq!((seen.code, seen.stdout.as_str()), (Some(0), ""), "{seen:?}");
    assert_eq!(taken.code, Some(125), "{taken:?}");
    world.ends_clean();
}
