//! Subordinate ids: the users of a job that an ordinary user starts, where `/etc/subuid` grants some.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use common::{Ran, User, World, need_fuse};

/// An ordinary user with an account and ids of its own, in a mount namespace in which the account exists.
struct Account {
    world: World,
    uid: u32,
}

const FIRST: u32 = 700_000;

impl Account {
    fn new() -> Self {
        need_fuse();
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes an account");
        let world = World::new(User::Ordinary);
        world.write("tree/etc/passwd", "root:x:0:0::/:/bin/sh\nweb:x:33:34::/:/bin/sh\n");
        world.write("tree/etc/group", "root:x:0:\nweb:x:34:\nlog:x:50:web\n");
        world.write("tree/hello.txt", "hello\n");
        let uid = std::fs::metadata(world.dir.path()).unwrap().uid();
        world.write(
            "accounts/passwd",
            &format!("root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nann:x:{uid}:{uid}::/:/bin/sh\n"),
        );
        for name in ["subuid", "subgid"] {
            world.write(&format!("accounts/{name}"), &format!("ann:{FIRST}:65536\n"));
        }
        world.hand_over();
        world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
        // Another image has programs: the host's own root, which is what a job of app.xar sees.
        Self { world, uid }
    }

    fn command(&self, args: &[&str]) -> Command {
        let script = format!(
            "for f in passwd subuid subgid; do mount --bind '{0}'/accounts/$f /etc/$f || exit 99; done; exec \"$@\"",
            self.world.dir.path().display()
        );
        let inner = self.world.mica(args);
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", &script, "sh"]).arg(inner.get_program());
        command.args(inner.get_args()).env_clear().current_dir(self.world.dir.path());
        for (name, value) in inner.get_envs() {
            command.env(name, value.unwrap());
        }
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        let ran: Ran = self.command(args).output().unwrap().into();
        assert_eq!(ran.code, Some(0), "mica {args:?}\n{ran:#?}");
        ran.stdout
    }
}

#[test]
fn a_job_has_all_users_and_its_owner_can_remove_what_they_leave() {
    let account = Account::new();
    let world = &account.world;
    let script = "cat /proc/self/uid_map; id -u; mkdir -p d && echo x > d/f && chown -R 33:34 d && chmod -R go= d && ls -ln d | tail -1 && id -G";
    let run = ["run", "--name", "job", "--image", "app.xar", "--", "sh", "-c", script];
    let said = account.ok(&run);
    let lines: Vec<Vec<&str>> =
        said.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["0", "0", "1"], "{said}");
    assert_eq!((&lines[1][0], &lines[2][0]), (&"1", &"0"), "{said}");
    assert_eq!(lines[3][2..4], ["33", "34"], "{said}");
    let upper = world.path("state/jobs");
    let left = Command::new("find")
        .arg(&upper)
        .args(["-name", "f", "-uid", "700032", "-gid", "700033"])
        .output()
        .unwrap();
    assert!(!left.stdout.is_empty(), "{left:?}");

    // What the owner may not read is committed all the same, with the owners the job saw.
    account.ok(&["commit", "--keep-owners", "--output", "layer.xar", "job"]);
    let listed = account.ok(&["image", "ls", "-l", "layer.xar"]);
    assert!(listed.lines().any(|line| line.contains("33") && line.ends_with("d/f")), "{listed}");
    account.ok(&["start", "-a", "job"]);
    account.ok(&["rm", "job"]);
    assert_eq!(std::fs::read_dir(&upper).unwrap().count(), 0);

    // A user by a name of the host's root, which this job sees: the main and the further groups.
    let said = account.ok(&[
        "run",
        "--rm",
        "-u",
        "nobody:5",
        "--group-add",
        "50",
        "--image",
        "app.xar",
        "--",
        "sh",
        "-c",
        "id -u; id -g; id -G",
    ]);
    assert_eq!(said, "65534\n5\n5 50\n");
    assert_ne!(account.uid, 0);
    world.ends_clean();
}

#[test]
fn without_ranges_there_is_one_user() {
    let account = Account::new();
    account.world.write("accounts/subgid", "");
    let run = [
        "run",
        "--rm",
        "--image",
        "app.xar",
        "--",
        "sh",
        "-c",
        "cat /proc/self/uid_map | wc -l; id -u",
    ];
    assert_eq!(account.ok(&run), "1\n0\n");
    let ran: Ran = account
        .command(&["run", "--rm", "--image", "app.xar", "--", "sh", "-c", "chown 33 hello.txt"])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let ran: Ran = account
        .command(&["run", "-d", "--name", "job", "--image", "app.xar", "--", "sleep", "100"])
        .output()
        .unwrap()
        .into();
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let ran: Ran = account.command(&["exec", "-u", "33", "job", "true"]).output().unwrap().into();
    assert!(ran.code == Some(125) && ran.stderr.contains("/etc/subuid"), "{ran:?}");
    account.ok(&["rm", "-f", "job"]);
}

#[test]
fn the_root_of_a_job_can_be_nobody_outside() {
    let account = Account::new();
    let world = World::new(User::Me);
    world.write("tree/hello.txt", "hello\n");
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    // Root, where the account of an ordinary user has ids.
    let root = Account { world, uid: 0 };
    let folder = account.world.path("accounts");
    std::process::Command::new("cp")
        .arg("-r")
        .arg(folder)
        .arg(root.world.path("accounts"))
        .status()
        .unwrap();
    let script = "cat /proc/self/uid_map; stat -c %u:%g hello.txt .; echo more >> hello.txt; echo x > new; chown 33:34 new; \
                  echo y > /data/kept; stat -c %u new /data/kept; echo out > /dev/stdout";
    let run = [
        "run",
        "--name",
        "job",
        "--userns",
        "remap:ann",
        "-v",
        "vol:/data",
        "--image",
        "app.xar",
        "--",
        "sh",
        "-c",
        script,
    ];
    let said = root.ok(&run);
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "700000", "65536", "0:0", "0:0", "33", "0", "out"], "{said}");
    let owner = |name: &str| {
        let found = Command::new("find")
            .arg(root.world.path("state"))
            .args(["-name", name, "-printf", "%U:%G "])
            .output()
            .unwrap();
        String::from_utf8(found.stdout).unwrap()
    };
    assert_eq!(
        (owner("new").as_str(), owner("hello.txt").as_str()),
        ("700033:700034 ", "700000:700000 ")
    );
    assert_eq!(owner("kept"), "0:0 ", "a volume is for jobs with other ids, too");
    root.ok(&["start", "-a", "job"]);
    let said = root.ok(&[
        "run",
        "--rm",
        "-u",
        "33",
        "--image",
        "app.xar",
        "--",
        "sh",
        "-c",
        "id -u > /dev/stdout",
    ]);
    assert_eq!(said, "33\n", "a user's streams are its own");
    root.ok(&["cp", "job:/packages/app/new", "copied"]);
    root.ok(&["rm", "job"]);

    // By the setting, for all jobs that don't say otherwise.
    let first = |ran: Ran| ran.stdout.split_whitespace().nth(1).map(str::to_owned);
    let run = |flags: &[&str]| {
        let args = [
            &["run", "--rm"][..],
            flags,
            &["--image", "app.xar", "--", "cat", "/proc/self/uid_map"],
        ];
        let mut command = root.command(&args.concat());
        command.env("MICA_USERNS_REMAP", "ann").output().unwrap().into()
    };
    assert_eq!(first(run(&[])).as_deref(), Some("700000"));
    assert_eq!(first(run(&["-u", "33"])).as_deref(), Some("700000"));
    assert_eq!(first(run(&["--userns", "private"])).as_deref(), Some("0"));
    let ran: Ran = run(&["--userns", "remap:bob"]);
    assert!(ran.code == Some(125) && ran.stderr.contains("grant no ids to bob"), "{ran:?}");
    root.world.ends_clean();
}
