//! Workspaces and repositories that want more than to be packed.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::{USERS, User, World};

/// A workspace of one BUILD file.
fn workspace(user: User, build: &str) -> World {
    let world = World::new(user);
    world.write("w/WORKSPACE", "");
    world.write("w/BUILD", build);
    world.hand_over();
    world
}

fn pack(world: &World, more: &[&str]) -> common::Ran {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    // Each time under a version of its own.
    let version = format!("v{}", SERIAL.fetch_add(1, Ordering::Relaxed));
    let words = ["pack", "--workspace", "w", "--target", "//:x", "--version", &version];
    world.run(&[&words[..], more].concat())
}

#[test]
fn planning_runs_and_writes_nothing() {
    for user in USERS {
        let build = "genrule(name = 'x', outs = ['o'], cmd = 'touch MARK; echo 1 > $@')\n";
        let world = workspace(user, build);
        let mark = world.path("mark");
        world.write("w/BUILD", &build.replace("MARK", mark.to_str().unwrap()));
        let target = ["--workspace", "w", "--target", "//:x"];
        let said = world.ok(&[&["plan"][..], &target].concat()).stdout;
        assert!(said.contains("not built"), "{said}");
        let json = world.ok(&[&["plan", "--json"][..], &target].concat()).stdout;
        assert!(json.contains("\"built\": false") || json.contains("\"built\":false"), "{json}");
        let dry = world.ok(&[&["pack", "--dry-run"][..], &target].concat()).stderr;
        assert!(dry.contains("would build"), "{dry}");
        world.ok(&[&["why"][..], &target, &["o"]].concat());
        world.ok(&[&["why"][..], &target, &["//:x"]].concat());
        assert!(!mark.exists(), "{user:?}");
        assert!(!world.path("w/.mica").exists(), "{user:?}");
        // Once it is built, it is looked at as it is.
        assert_eq!(pack(&world, &["--unconfined"]).code, Some(0));
        assert!(mark.exists(), "it would have been seen");
        let said = world.ok(&[&["plan"][..], &target].concat()).stdout;
        assert!(!said.contains("not built"), "{said}");
    }
}

/// What an action might try, each with a word that it prints if that works. Nothing here changes the host: these are tried
/// unconfined, too.
const ATTEMPTS: [(&str, &str); 6] = [
    ("shadow", "head -c 1 /etc/shadow"),
    ("home", "cat $HOME_ON_HOST/secret"),
    ("undeclared", "cat $WORKSPACE/undeclared"),
    ("neighbour", "ls $WORKSPACE/.."),
    ("network", "exec 3<>/dev/tcp/127.0.0.1/$PORT"),
    ("host processes", "test -d /proc/$OUTER"),
];

/// What would change the host, or the test's own files: tried by confined actions only.
const CHANGES: [(&str, &str); 3] = [
    ("programs", "touch /usr/bin/mica-was-here"),
    ("input", "echo spoiled > large"),
    ("mount", "mkdir m && mount -t tmpfs none m"),
];

#[test]
fn actions_reach_nothing_but_their_inputs() {
    for user in USERS {
        let world = workspace(user, "");
        world.write("home/secret", "secret");
        world.write("w/undeclared", "secret");
        world.write("w/small", "small");
        world.write("w/large", &"large\n".repeat(1 << 19));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let names = [
            ("$HOME_ON_HOST", world.path("home").display().to_string()),
            ("$WORKSPACE", world.path("w").display().to_string()),
            ("$PORT", listener.local_addr().unwrap().port().to_string()),
            ("$OUTER", std::process::id().to_string()),
        ];
        let mut script =
            "cat small; head -1 large; id -un; cc --version >/dev/null && echo compiler; \
                          python3 -c 'print(6 * 7)'\n"
                .to_owned();
        script.push_str("CHANGES\n");
        for (word, attempt) in ATTEMPTS {
            script.push_str(&format!("( {attempt} ) >/dev/null 2>&1 && echo REACHED {word}\n"));
        }
        script.push_str("true\n");
        for (name, value) in &names {
            script = script.replace(name, value);
        }
        let attempt = |(word, attempt): &(&str, &str)| {
            format!("( {attempt} ) >/dev/null 2>&1 && echo REACHED {word}\n")
        };
        let changes: String = CHANGES.iter().map(attempt).collect();
        world.write("w/try.sh", &script.replace("CHANGES\n", &changes));
        world.write(
            "w/BUILD",
            "genrule(name = 'x', srcs = ['try.sh', 'small', 'large'], outs = ['o'], \
             cmd = 'bash try.sh > $@')\n",
        );
        world.hand_over();
        let ran = pack(&world, &[]);
        assert_eq!(ran.code, Some(0), "{user:?} {ran:?}");
        let said = std::fs::read_to_string(world.path("w/.mica/out/bin/o")).unwrap();
        assert!(!said.contains("REACHED"), "{user:?}: {said}");
        assert!(said.contains("smalllarge\n") && said.contains("42"), "{user:?}: {said}");
        assert!(said.contains("compiler"), "{user:?}: {said}");
        let large = std::fs::read_to_string(world.path("w/large")).unwrap();
        assert!(!large.contains("spoiled"), "{user:?}");
        // The attempts can succeed: unconfined most do.
        world.write("w/try.sh", &script.replace("CHANGES\n", ""));
        world.hand_over();
        assert_eq!(pack(&world, &["--unconfined"]).code, Some(0));
        let said = std::fs::read_to_string(world.path("w/.mica/out/bin/o")).unwrap();
        for word in ["home", "undeclared", "neighbour", "network", "host processes"] {
            assert!(said.contains(&format!("REACHED {word}")), "{user:?} {word}: {said}");
        }
    }
}

#[test]
fn what_actions_leave_is_not_followed() {
    for user in USERS {
        let world = workspace(user, "");
        let victim = world.path("victim");
        std::fs::create_dir(&victim).unwrap();
        std::fs::write(victim.join("o"), "theirs").unwrap();
        std::fs::set_permissions(victim.join("o"), PermissionsExt::from_mode(0o600)).unwrap();
        let victim = victim.to_str().unwrap().to_owned();
        let of = |outs: &str, cmd: &str| {
            let cmd = cmd.replace("VICTIM", &victim);
            world.write(
                "w/BUILD",
                &format!("genrule(name = 'x', outs = ['{outs}'], cmd = '{cmd}')\n"),
            );
            world.hand_over();
            pack(&world, &["--unconfined"])
        };
        // The folder of an output becomes a link.
        let ran = of("sub/o", "rm -r sub; ln -s VICTIM sub");
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("is behind a symlink that the action made"), "{ran:?}");
        // The output is a link: what it leads to keeps its mode.
        let ran = of("l", "ln -s VICTIM/o $@");
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let meta = std::fs::metadata(Path::new(&victim).join("o")).unwrap();
        assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read(Path::new(&victim).join("o")).unwrap(), b"theirs");
        // Programs that would have their maker's rights for everybody.
        let ran = of("d", "mkdir $@ && cp /bin/true $@/t && chmod 6755 $@/t && chmod 2777 $@");
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let made = std::fs::metadata(world.path("w/.mica/out/bin/d/t")).unwrap();
        assert_eq!(made.permissions().mode() & 0o7000, 0);
        let tmp = std::fs::metadata(world.path("w/.mica/out/tmp")).unwrap();
        assert_eq!(tmp.permissions().mode() & 0o7777, 0o700);
    }
}

#[test]
fn an_out_folder_that_came_with_the_workspace_is_not_followed() {
    for link in [".mica", ".mica/out", ".mica/out/tmp", ".mica/out/bin", ".mica/out/state"] {
        let world = workspace(User::Me, "genrule(name = 'x', outs = ['o'], cmd = 'echo 1 > $@')\n");
        world.write("victim/kept/file", "theirs");
        let at = world.path("w").join(link);
        std::fs::create_dir_all(at.parent().unwrap()).unwrap();
        symlink(world.path("victim"), &at).unwrap();
        let ran = pack(&world, &[]);
        assert_eq!(ran.code, Some(1), "{link}: {ran:?}");
        assert!(ran.stderr.contains(link), "{ran:?}");
        let left: Vec<_> = std::fs::read_dir(world.path("victim")).unwrap().collect();
        assert_eq!(left.len(), 1, "{link}");
        assert!(world.path("victim/kept/file").exists(), "{link}");
    }
    let world = workspace(User::Me, "genrule(name = 'x', outs = ['o'], cmd = 'echo 1 > $@')\n");
    world.write("victim", "theirs");
    std::fs::create_dir_all(world.path("w/.mica/out")).unwrap();
    symlink(world.path("victim"), world.path("w/.mica/out/.gitignore")).unwrap();
    assert_eq!(pack(&world, &[]).code, Some(0));
    assert_eq!(std::fs::read(world.path("victim")).unwrap(), b"theirs");
}

#[test]
fn an_action_ends_in_time_with_all_it_started() {
    for unconfined in [&[][..], &["--unconfined"]] {
        let build = "genrule(name = 'x', outs = ['o'], cmd = 'yes & sleep 31415')\n";
        let world = workspace(User::Ordinary, build);
        let begun = Instant::now();
        let ran = pack(&world, &[&["--action-timeout", "2"][..], unconfined].concat());
        assert_eq!(ran.code, Some(1), "{ran:?}");
        assert!(ran.stderr.contains("was ended after 2 s"), "{ran:?}");
        assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());
    }
}

/// Settings, attributes, hooks and variables by which git starts programs.
fn trap(world: &World, repository: &Path, script: &str) {
    let git = |dir: &Path, words: &[&str]| {
        let identity = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "safe.directory=*"];
        let ran =
            Command::new("git").arg("-C").arg(dir).args(identity).args(words).output().unwrap();
        assert!(ran.status.success(), "git {words:?}: {ran:?}");
    };
    git(repository, &["init", "--quiet"]);
    world.write("sub/file", "1");
    git(&world.path("sub"), &["init", "--quiet"]);
    git(&world.path("sub"), &["add", "."]);
    git(&world.path("sub"), &["commit", "--quiet", "--message", "1"]);
    world.write("w/.gitattributes", "*.txt filter=a.b=c diff=d\n*.dat filter=p\n");
    world.write("w/a.txt", "text");
    world.write("w/a.dat", "data");
    let sub = world.path("sub").display().to_string();
    git(
        repository,
        &["-c", "protocol.file.allow=always", "submodule", "--quiet", "add", &sub, "s"],
    );
    git(repository, &["add", "--all"]);
    git(repository, &["commit", "--quiet", "--message", "1"]);
    for (name, value) in [
        ("core.fsmonitor", script),
        ("core.sshCommand", script),
        ("core.gitProxy", script),
        ("core.pager", script),
        ("core.editor", script),
        ("core.askPass", script),
        ("pager.status", "true"),
        ("diff.external", script),
        ("diff.d.command", script),
        ("diff.d.textconv", script),
        ("filter.a.b=c.clean", script),
        ("filter.a.b=c.smudge", script),
        ("filter.a.b=c.required", "true"),
        ("filter.p.process", script),
        ("filter.p.required", "true"),
        ("credential.helper", script),
        ("gpg.program", script),
        ("log.showSignature", "true"),
        ("alias.status", &format!("!{script}")),
        ("alias.rev-parse", &format!("!{script}")),
        ("status.submoduleSummary", "true"),
        ("submodule.recurse", "true"),
    ] {
        git(repository, &["config", name, value]);
        if !name.starts_with("alias") {
            git(&repository.join("s"), &["config", name, value]);
        }
    }
    for hook in ["post-index-change", "fsmonitor-watchman", "pre-auto-gc", "reference-transaction"]
    {
        let hook = repository.join(".git/hooks").join(hook);
        std::fs::copy(script, &hook).unwrap();
    }
    // So that git has to look into the files.
    for file in ["w/a.txt", "w/a.dat", "w/s/file"] {
        let file = world.path(file);
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, text).unwrap();
    }
}

#[test]
fn git_runs_nothing_of_a_repository() {
    let build = "filegroup(name = 'x', srcs = ['a.txt'])\n";
    for user in USERS {
        let world = workspace(user, build);
        let script = world.path("script");
        let marks = world.path("marks");
        std::fs::create_dir(&marks).unwrap();
        let text = format!("#!/bin/sh\necho \"$0 $*\" > {}/$$\nexit 1\n", marks.display());
        std::fs::write(&script, text).unwrap();
        std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let script = script.to_str().unwrap();
        trap(&world, &world.path("w"), script);
        world.hand_over();
        let run = |traps: &[(&str, &str)]| {
            let mut command = world.mica(&["pack", "--workspace", "w", "--target", "//:x"]);
            command.envs(traps.iter().copied());
            command.output().unwrap()
        };
        let seen = || {
            let mut all = String::new();
            for entry in std::fs::read_dir(&marks).unwrap() {
                std::fs::File::open(entry.unwrap().path())
                    .unwrap()
                    .read_to_string(&mut all)
                    .unwrap();
            }
            all
        };
        let ran = run(&[]);
        assert!(ran.status.success(), "{user:?} {ran:?}");
        assert_eq!(seen(), "", "{user:?}");
        let trace = world.path("trace");
        let other = world.path("sub/.git");
        let ran = run(&[
            ("GIT_EXTERNAL_DIFF", script),
            ("GIT_SSH_COMMAND", script),
            ("GIT_ASKPASS", script),
            ("GIT_PAGER", script),
            ("GIT_EXEC_PATH", world.path("no-such-folder").to_str().unwrap()),
            ("GIT_TRACE", trace.to_str().unwrap()),
            ("GIT_DIR", other.to_str().unwrap()),
            ("GIT_CONFIG_COUNT", "1"),
            ("GIT_CONFIG_KEY_0", "core.fsmonitor"),
            ("GIT_CONFIG_VALUE_0", script),
            ("GIT_CONFIG_PARAMETERS", "'core.fsmonitor'='/no/such'"),
        ]);
        assert!(ran.status.success(), "{user:?} {ran:?}");
        assert_eq!(seen(), "", "{user:?}");
        assert!(!trace.exists());
        let version = String::from_utf8(ran.stdout).unwrap();
        let head = ["-c", "safe.directory=*", "rev-parse", "HEAD"];
        let head = Command::new("git").arg("-C").arg(world.path("w")).args(head).output().unwrap();
        let head = String::from_utf8(head.stdout).unwrap();
        assert!(version.contains(head.trim()), "{version} {head}: of the folder, not of GIT_DIR");
        // The traps are live.
        let status =
            world.command("git").arg("-C").arg(world.path("w")).arg("status").output().unwrap();
        assert!(seen().contains("script"), "{status:?}");
    }
}

#[test]
fn a_submodule_that_changed_makes_the_workspace_changed() {
    let world = workspace(User::Me, "filegroup(name = 'x', srcs = ['a.txt'])\n");
    let script = "/bin/true";
    trap(&world, &world.path("w"), script);
    world.write("w/s/file", "changed");
    let version = world.ok(&["pack", "--workspace", "w", "--target", "//:x"]).stdout;
    assert!(version.contains("-dirty"), "{version}");
}

#[test]
fn a_folder_that_looks_like_a_bare_repository_is_none() {
    let world = workspace(User::Me, "filegroup(name = 'x', srcs = ['a.txt'])\n");
    world.write("w/a.txt", "text");
    let mark = world.path("mark");
    let ran =
        Command::new("git").args(["init", "--quiet", "--bare"]).arg(world.path("bare")).output();
    assert!(ran.unwrap().status.success());
    for name in ["HEAD", "config", "objects", "refs"] {
        std::fs::rename(world.path("bare").join(name), world.path("w").join(name)).unwrap();
    }
    let config = format!(
        "[core]\n repositoryformatversion = 0\n bare = false\n worktree = {}\n fsmonitor = \"touch {} #\"\n",
        world.path("w").display(),
        mark.display()
    );
    world.write("w/config", &config);
    world.ok(&["pack", "--workspace", "w", "--target", "//:x"]);
    assert!(!mark.exists());
}

#[test]
fn a_repository_of_somebody_else_is_an_error_that_says_what_to_do() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("only root can make files of somebody else");
        return;
    }
    let world = workspace(User::Me, "filegroup(name = 'x', srcs = ['a.txt'])\n");
    trap(&world, &world.path("w"), "/bin/true");
    std::os::unix::fs::chown(world.path("w"), Some(12_345), None).unwrap();
    std::os::unix::fs::chown(world.path("w/.git"), Some(12_345), None).unwrap();
    let said = world.fails(1, &["pack", "--workspace", "w", "--target", "//:x"]);
    assert!(said.contains("belongs to another user") && said.contains("safe.directory"), "{said}");
    let path = world.path("w");
    let mut trusting = world.mica(&["pack", "--workspace", "w", "--target", "//:x"]);
    trusting.env("GIT_CONFIG_COUNT", "1").env("GIT_CONFIG_KEY_0", "safe.directory");
    let ran = trusting.env("GIT_CONFIG_VALUE_0", path).output().unwrap();
    assert!(ran.status.success(), "{ran:?}");
}

#[test]
fn what_is_packed_of_this_machine_is_said() {
    let world = World::new(User::Ordinary);
    world.write("real.sh", "#!/bin/sh\n");
    std::fs::create_dir(world.path("out")).unwrap();
    symlink(world.path("real.sh"), world.path("out/sh")).unwrap();
    world.write(
        "g.json",
        r#"{"modules":[{"label":"//a:sh","outputs":[{"path":"a/sh","source":"out/sh"}]}]}"#,
    );
    world.hand_over();
    let said = world.ok(&["pack", "--graph", "g.json", "--target", "//a:sh", "--version", "1"]);
    assert!(said.stderr.contains("//a:sh: /a/sh is a link to /"), "{said:?}");
    let world = workspace(User::Ordinary, "");
    world.write("tree/f", "1");
    let tree = world.path("tree").display().to_string();
    world.write("w/BUILD", &format!("mica_tree(name = 'x', dir = '{tree}')\n"));
    world.hand_over();
    let said = pack(&world, &[]);
    assert!(said.stderr.contains(&format!("//:x: packs {tree} of this machine")), "{said:?}");
}

#[test]
fn what_is_kept_of_earlier_packings_is_not_followed_elsewhere() {
    let world = workspace(User::Me, "filegroup(name = 'x', srcs = ['f'])\n");
    world.write("w/f", "1");
    world.write("victim/kept", "theirs");
    let victim = || std::fs::read_dir(world.path("victim")).unwrap().count();
    std::fs::create_dir_all(world.path("w/.mica/out")).unwrap();
    symlink(world.path("victim"), world.path("w/.mica/out/pack")).unwrap();
    assert_eq!(pack(&world, &[]).code, Some(0));
    assert_eq!(victim(), 1);
    // The same one step deeper, and a FIFO instead of what is kept.
    std::fs::remove_file(world.path("w/.mica/out/pack")).unwrap();
    assert_eq!(pack(&world, &[]).code, Some(0));
    let names = std::fs::read_dir(world.path("w/.mica/out/pack")).unwrap();
    let layer = names.map(|entry| entry.unwrap().path()).find(|path| path.is_dir()).unwrap();
    std::fs::remove_dir_all(&layer).unwrap();
    symlink(world.path("victim"), &layer).unwrap();
    world.write("w/f", "2");
    assert_ne!(pack(&world, &[]).code, Some(0));
    assert_eq!(victim(), 1);
    std::fs::remove_file(&layer).unwrap();
    std::fs::create_dir(&layer).unwrap();
    for name in ["scan", "image.xar", "image.xar.index"] {
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, layer.join(name), kind, mode, 0).unwrap();
    }
    assert_eq!(pack(&world, &[]).code, Some(0));
}
