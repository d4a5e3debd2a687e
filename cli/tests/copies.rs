//! Copies between jobs and the host: what a job can't do by what it lets be copied, and what is copied how.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Stdio;

use common::{USERS, User, World, need_fuse, wait_for};

/// A world with a job called `job` that has run `script` and sleeps.
fn world(user: User, script: &str) -> World {
    world_with(user, &[], script)
}

/// The same with flags for the job.
fn world_with(user: User, flags: &[&str], script: &str) -> World {
    need_fuse();
    let world = World::new(user);
    world.write("tree/hello.txt", "hello\n");
    world.hand_over();
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    let script = format!("{script}; : > /tmp/ready; exec sleep 300");
    let job = ["--image", "app.xar", "--", "/bin/sh", "-ec", &script];
    world.ok(&[&["run", "-d", "--name", "job"], flags, &job[..]].concat());
    wait_for(|| world.run(&["exec", "job", "test", "-e", "/tmp/ready"]).code == Some(0));
    world
}

/// What the command that copies had open when it went into the job is not the job's, also if that sees it and may trace.
#[test]
fn a_job_gets_at_nothing_of_the_command_that_copies() {
    for user in USERS {
        let flags = ["--pid", "host", "--cap-add", "SYS_PTRACE"];
        let world = world_with(user, &flags, "mkdir /tmp/in");
        world.write("secret/keys", "");
        world.hand_over();
        let line = format!("exec 9<secret; exec {} cp - job:/tmp/in", world.binary().display());
        let mut command = world.command("/bin/sh");
        let mut copy = command.args(["-c", &line]).stdin(Stdio::piped()).spawn().unwrap();
        let mut archive = tar::Builder::new(copy.stdin.take().unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        archive.append_data(&mut header, "begun/", std::io::empty()).unwrap();
        // Now it is there, and waits for more.
        wait_for(|| world.run(&["exec", "job", "test", "-d", "/tmp/in/begun"]).code == Some(0));
        let script = "for p in /proc/[0-9]*; do grep -qs copy-job-files $p/cmdline || continue; echo seen; \
            ls $p/fd/9/; cat $p/environ; done; true";
        let ran = world.run(&["exec", "job", "/bin/sh", "-c", script]);
        assert!(ran.stdout.contains("seen"), "{ran:?}");
        for own in ["keys", "MICA_STATE"] {
            assert!(!ran.stdout.contains(own), "{user:?} {ran:?}");
        }
        drop(archive.into_inner().unwrap());
        assert!(copy.wait().unwrap().success());
        world.ok(&["rm", "-f", "job"]);
    }
}

fn sh(world: &World, script: &str) {
    world.ok(&["exec", "job", "/bin/sh", "-ec", script]);
}

fn text(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn no_copy_out_of_a_job_leaves_its_target() {
    for user in USERS {
        let world = world(user, "mkdir /tmp/out");
        world.write("precious/keys", "mine\n");
        std::fs::create_dir(world.path("D")).unwrap();
        world.hand_over();
        let precious = world.path("precious");
        let link =
            format!("ln -s {} /tmp/out/results; ln -s {0}/keys /tmp/out/keys", precious.display());
        sh(&world, &link);
        world.ok(&["cp", "job:/tmp/out/.", "D"]);
        assert!(world.path("D/results").is_symlink());
        // The next version of the same folder writes through the links that the first has left.
        let script =
            "rm /tmp/out/*; mkdir -m 777 /tmp/out/results; echo theirs > /tmp/out/results/keys;
            echo theirs > /tmp/out/results/new; echo theirs > /tmp/out/keys;
            cp /bin/true /tmp/out/tool; chmod 6777 /tmp/out/tool /tmp/out/results/new";
        sh(&world, script);
        world.ok(&["cp", "job:/tmp/out/.", "D"]);
        assert_eq!(text(precious.join("keys")), "mine\n");
        assert!(!precious.join("new").exists());
        assert_eq!(text(world.path("D/results/keys")), "theirs\n");
        assert_eq!(text(world.path("D/keys")), "theirs\n");
        let owner = world.path("precious").metadata().unwrap().uid();
        for file in ["D/tool", "D/results", "D/results/new"] {
            let meta = world.path(file).symlink_metadata().unwrap();
            assert_eq!(meta.mode() & 0o6022, 0, "{file} {:o} as {user:?}", meta.mode());
            assert_eq!(meta.uid(), owner, "{file}");
        }
        world.ok(&["rm", "-f", "job"]);
    }
}

#[test]
fn hostile_archives_stay_below_their_target() {
    let world = world(User::Me, "mkdir -p /tmp/in; ln -s /etc /tmp/in/link");
    let (mut archive, outside) = (tar::Builder::new(Vec::new()), world.path("outside"));
    std::fs::create_dir(&outside).unwrap();
    let mut add = |name: &str, kind: tar::EntryType, link: Option<&Path>, text: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(text.len() as u64);
        match link {
            Some(link) => archive.append_link(&mut header, name, link).unwrap(),
            None => archive.append_data(&mut header, name, text.as_bytes()).unwrap(),
        }
    };
    use tar::EntryType::{Link, Regular, Symlink};
    add("top/escape", Symlink, Some(&outside), "");
    add("top/escape/file", Regular, None, "x");
    add("top/etc", Symlink, Some(Path::new("/etc")), "");
    add("top/passwd", Link, Some(Path::new("top/etc/passwd")), "");
    std::fs::write(world.path("hostile.tar"), archive.into_inner().unwrap()).unwrap();
    // On the host's side the archive comes from a job; here it goes into one, whose links are its own.
    let line = format!("{} cp - job:/tmp/in < hostile.tar", world.binary().display());
    world.command("/bin/sh").args(["-c", &line]).output().unwrap();
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    world.ok(&["rm", "-f", "job"]);
}

#[test]
fn every_kind_of_file_is_copied_or_left_out() {
    for user in USERS {
        let world =
            world(user, "mkdir /tmp/s; cd /tmp/s; echo 1 > a; ln a b; mkfifo ff; echo 2 > z");
        world.ok(&["cp", "job:/tmp/s", "out"]);
        let meta = |name: &str| world.path("out").join(name).symlink_metadata().unwrap();
        assert!(meta("ff").file_type().is_fifo());
        assert_eq!((meta("a").ino(), meta("a").nlink()), (meta("b").ino(), 2));
        assert_eq!(text(world.path("out/z")), "2\n");
        // The way in: a socket has no content, and is left out.
        let socket = UnixListener::bind(world.path("out/socket")).unwrap();
        world.hand_over();
        world.ok(&["cp", "out", "job:/tmp/in"]);
        sh(&world, "cd /tmp/in; test -p ff; test a -ef b; test ! -e socket; test $(cat z) = 2");
        drop(socket);
        let said = world.fails(1, &["cp", "out/socket", "job:/tmp/x"]);
        assert!(said.contains("is a socket"), "{said}");
        // What has no length until it is read.
        world.ok(&["cp", "job:/proc/version", "version"]);
        assert!(text(world.path("version")).contains("Linux"));
        world.ok(&["rm", "-f", "job"]);
    }
}

#[test]
fn a_link_that_is_the_target_stays_and_leads_to_the_new_content() {
    let world =
        world(User::Me, "mkdir /tmp/c; cd /tmp/c; echo old > real; ln -s real cur; ln -s . here");
    world.write("new", "new\n");
    world.ok(&["cp", "new", "job:/tmp/c/cur"]);
    sh(&world, "cd /tmp/c; test -L cur; test $(cat real) = new");
    world.ok(&["cp", "new", "job:/tmp/c/here"]);
    sh(&world, "cd /tmp/c; test -L here; test $(cat new) = new");
    // A folder that the job has as a link gets what a folder of the same name holds.
    world.write("d/here/inside", "inside\n");
    world.ok(&["cp", "d/.", "job:/tmp/c"]);
    sh(&world, "cd /tmp/c; test -L here; test $(cat inside) = inside");
    world.ok(&["rm", "-f", "job"]);
}

#[test]
fn a_file_that_grows_is_copied_as_it_was() {
    let world = world(User::Me, ":");
    let grow =
        "head -c 3000000 /dev/zero > /tmp/g; while :; do head -c 65536 /dev/zero >> /tmp/g; done";
    world.ok(&["exec", "-d", "job", "/bin/sh", "-c", grow]);
    wait_for(|| world.run(&["exec", "job", "test", "-s", "/tmp/g"]).code == Some(0));
    for _ in 0..4 {
        world.ok(&["cp", "job:/tmp/g", "g"]);
        assert!(world.path("g").metadata().unwrap().len() > 0);
    }
    world.ok(&["rm", "-f", "job"]);
}

#[test]
fn depth_costs_neither_descriptors_nor_paths() {
    let world = world(User::Me, ":");
    // More than descriptors may be open, and than a path may be long.
    let depth = 1100;
    let script = format!(
        "mkdir /tmp/top; cd /tmp/top; i=0; while [ $i -lt {depth} ]; do mkdir folder; cd -P folder; i=$((i+1)); done; echo deep > file"
    );
    sh(&world, &script);
    world.ok(&["cp", "job:/tmp/top", "out"]);
    world.ok(&["cp", "out", "job:/tmp/again"]);
    let script = format!(
        "cd -P /tmp/again; i=0; while [ $i -lt {depth} ]; do cd -P folder; i=$((i+1)); done; test $(cat file) = deep"
    );
    sh(&world, &script);
    world.ok(&["rm", "-f", "job"]);
    mica_durable::remove_tree(&world.path("out")).unwrap();
}

#[test]
fn folders_that_were_there_keep_their_modes() {
    let world = world(
        User::Me,
        "mkdir -p /tmp/out/sub; chmod 777 /tmp/out /tmp/out/sub; echo x > /tmp/out/sub/f",
    );
    let sub = world.path("D/sub");
    std::fs::create_dir_all(&sub).unwrap();
    for path in [world.path("D"), sub.clone()] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o700)).unwrap();
    }
    world.ok(&["cp", "job:/tmp/out/.", "D"]);
    assert_eq!(text(sub.join("f")), "x\n");
    for path in [world.path("D"), sub] {
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o700, "{}", path.display());
    }
    world.ok(&["rm", "-f", "job"]);
}
