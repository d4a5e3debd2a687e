//! Whose settings count, and where things are kept when the surroundings say nothing, or something wrong.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use common::{Ran, User, World};

/// Another account of the node.
const EVE: u32 = 12_346;

fn chmod(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// `mica config show`, from a folder, without the variables that would come before files.
fn show(world: &World, folder: &str) -> Ran {
    let mut command = world.mica(&["config", "show"]);
    command.current_dir(world.path(folder)).env_remove("MICA_REGISTRY").env_remove("MICA_STATE");
    command.output().unwrap().into()
}

#[track_caller]
fn refuses(world: &World, folder: &str, why: &str) {
    for _ in 0..2 {
        let ran = show(world, folder);
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains(why) && ran.stderr.contains("mica config trust"), "{ran:?}");
    }
    let mut ps = world.mica(&["ps"]);
    let ran = Ran::from(ps.current_dir(world.path(folder)).output().unwrap());
    assert_eq!(ran.code, Some(1), "{ran:?}");
}

#[test]
fn a_workspace_that_others_can_write_sets_nothing_unless_told() {
    let world = World::new(User::Me);
    world.write("open/mica.toml", "registry = \"/planted\"\nstate = \"/planted/state\"\n");
    world.write("open/own/deep/file", "");
    assert!(show(&world, "open/own/deep").stdout.contains("/planted"));
    // The file, the folder, and a folder on the way.
    chmod(world.path("open/mica.toml"), 0o666);
    refuses(&world, "open/own/deep", "can be written by everybody");
    chmod(world.path("open/mica.toml"), 0o644);
    chmod(world.path("open"), 0o777);
    refuses(&world, "open/own/deep", "can be written by everybody");
    chmod(world.path("open"), 0o755);
    chmod(world.dir.path(), 0o777);
    refuses(&world, "open/own", "can be written by everybody");
    chmod(world.dir.path(), 0o755);

    // Sticky as /tmp: nobody can replace what is root's or the caller's there.
    chmod(world.path("open"), 0o1777);
    assert!(show(&world, "open/own").stdout.contains("/planted"));
    chmod(world.path("open"), 0o777);
    world.ok(&["config", "trust", "open"]);
    let folder = world.path("open").canonicalize().unwrap();
    assert_eq!(world.ok(&["config", "trust", "--list"]).stdout.trim(), folder.to_str().unwrap());
    assert!(show(&world, "open/own").stdout.contains("/planted"));
    let kept = world.path("home/.config/mica/trusted.toml").metadata().unwrap();
    assert_eq!(kept.mode() & 0o777, 0o600);
    world.ok(&["config", "trust", "--remove", "open"]);
    refuses(&world, "open/own", "can be written by everybody");
    world.fails(1, &["config", "trust", "--remove", "open"]);
}

#[test]
fn what_another_account_planted_is_not_used() {
    let world = World::new(User::Me);
    if !rustix::process::geteuid().is_root() {
        // Nobody but root can plant something as somebody else; a wrong owner is a wrong mode's twin, tested above.
        return;
    }
    world.write("sticky/mica.toml", "registry = \"/planted\"\n");
    world.write("sticky/own/file", "");
    chmod(world.path("sticky"), 0o1777);
    chown(world.path("sticky/mica.toml"), Some(EVE), None).unwrap();
    refuses(&world, "sticky/own", "belongs to user 12346");
    // A link of Eve's to a file of the caller's: what is relative in it would be hers.
    world.write("mine/mica.toml", "registry = \"registry\"\n");
    fs::remove_file(world.path("sticky/mica.toml")).unwrap();
    symlink(world.path("mine/mica.toml"), world.path("sticky/mica.toml")).unwrap();
    lchown(world.path("sticky/mica.toml"), Some(EVE), None).unwrap();
    refuses(&world, "sticky/own", "belongs to user 12346");
    fs::remove_file(world.path("sticky/mica.toml")).unwrap();

    // The settings and keys of the user, and files with passwords, are no different.
    let settings = world.path("home/.config/mica/config.toml");
    world.write("home/.config/mica/config.toml", "quota = \"1g\"\n");
    assert_eq!(show(&world, "mine").code, Some(0));
    chown(&settings, Some(EVE), None).unwrap();
    let ran = show(&world, "mine");
    assert!(ran.code == Some(1) && ran.stderr.contains("belongs to user 12346"), "{ran:?}");
    let key = world.ok(&["key", "new", "--no-password", "key"]).stdout;
    let public = ["key.pub", "key"].into_iter().find(|name| world.path(name).exists());
    let public = world.path(public.unwrap());
    chown(&settings, Some(0), None).unwrap();
    world.write(
        "home/.config/mica/config.toml",
        &format!("[[trust]]\nnames = [\"*\"]\nkeys = [{public:?}]\n"),
    );
    chown(&public, Some(EVE), None).unwrap();
    let ran = show(&world, "mine");
    assert!(ran.code == Some(1) && ran.stderr.contains("belongs to user 12346"), "{key} {ran:?}");
    fs::remove_file(&settings).unwrap();
    world.write("auth.json", r#"{"credHelpers": {"registry.example": "planted"}}"#);
    chown(world.path("auth.json"), Some(EVE), None).unwrap();
    let pull = ["pull", "x@1", "--registry", "oci://registry.example/x", "--authfile", "auth.json"];
    let error = world.fails(1, &pull);
    assert!(error.contains("belongs to user 12346"), "{error}");
}

#[test]
fn settings_that_are_no_files_hold_nobody_up() {
    let world = World::new(User::Me);
    for folder in ["fifo", "zero", "folder", "loop", "huge"] {
        fs::create_dir(world.path(folder)).unwrap();
    }
    let at = |folder: &str| world.path(folder).join("mica.toml");
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    symlink("/dev/zero", at("zero")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    symlink("mica.toml", at("loop")).unwrap();
    fs::File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
    for folder in ["fifo", "zero", "folder", "huge"] {
        let mut command = world.command("timeout");
        command.arg("20").arg(world.binary()).args(["config", "show"]);
        let ran = Ran::from(command.current_dir(world.path(folder)).output().unwrap());
        assert_eq!(ran.code, Some(1), "{folder}: {ran:?}");
    }
}

#[test]
fn without_home_and_session_there_is_a_place_all_the_same() {
    let world = World::new(User::Ordinary);
    world.hand_over();
    let places = |set: &[(&str, &str)]| {
        let mut command = world.mica(&["config", "show", "--json"]);
        for name in ["HOME", "MICA_STATE", "MICA_CACHE", "MICA_RUNTIME", "MICA_REGISTRY"] {
            command.env_remove(name);
        }
        let ran = Ran::from(command.envs(set.iter().copied()).output().unwrap());
        assert_eq!(ran.code, Some(0), "{ran:?}");
        ran.stdout
    };
    // As in podman's hooks, Slurm's prolog, and cron.
    assert!(places(&[]).contains("/mica"));
    // A session that is another account's, or gone, is none.
    for folder in ["/run/user/0", "/no/such/folder", "/tmp", "/root"] {
        let shown = places(&[("XDG_RUNTIME_DIR", folder)]);
        assert!(!shown.contains(&format!("{folder}/mica\"")), "{shown}");
    }
    // A home where the user has no business.
    let closed = world.path("closed");
    fs::create_dir(&closed).unwrap();
    chmod(&closed, 0o000);
    let shown = places(&[("HOME", closed.to_str().unwrap())]);
    assert!(!shown.contains(closed.to_str().unwrap()) || world.user == User::Me, "{shown}");
}

#[test]
fn a_workspace_does_not_say_whose_ids_jobs_have() {
    let world = World::new(User::Me);
    world.write("own/mica.toml", "userns-remap = \"nobody\"\n");
    let ran = show(&world, "own");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stderr.contains("a workspace may not say what jobs are given"), "{ran:?}");
}

/// A workspace, or a variable, that names other folders doesn't open those of the user's settings to jobs.
#[test]
fn folders_of_weaker_settings_stay_hidden() {
    for user in [User::Me, User::Ordinary] {
        let world = World::new(user);
        world.write("plain/file", "x");
        world.ok(&["image", "pack", "plain", "-o", "app.xar"]);
        let dir = world.dir.path().display();
        for setting in ["state", "cache", "runtime"] {
            let settings = format!("{setting} = \"{dir}/own/{setting}\"\n");
            world.write("home/.config/mica/config.toml", &settings);
            world.write(&format!("own/{setting}/jobs/secret"), "secret\n");
            world.hand_over();
            let run = |flags: &[&str], path: &str| {
                let path = format!("{path}/own/{setting}/jobs/secret");
                let job = ["--image", "app.xar", "--", "cat", &path];
                world.run(&[&["run", "--rm"], flags, &job].concat())
            };
            let above = run(&["-v", &format!("{dir}:/w")], "/w");
            assert_eq!((above.code, above.stdout.as_str()), (Some(1), ""), "{above:?}");
            let whole = run(&["--host-root"], &dir.to_string());
            assert_eq!((whole.code, whole.stdout.as_str()), (Some(1), ""), "{whole:?}");
        }
    }
}
