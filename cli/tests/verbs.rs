//! Verbs that look at things: `why`, `diff`, `xar`, `config`, `info`, `version`, `completion`.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::process::Command;

use common::{USERS, User, World, need_fuse};
use serde_json::Value;

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Packs `//:top` over `//:base` as this version, from the folders `top` and `base`.
fn pack(world: &World, version: &str) {
    world.write(
        "graph.json",
        r#"{"modules": [
            {"label": "//:base", "outputs": [{"path": "", "source": "base"}]},
            {"label": "//:top", "deps": ["//:base"], "outputs": [{"path": "", "source": "top"}]}]}"#,
    );
    world.hand_over();
    world.ok(&["pack", "-q", "--graph", "graph.json", "--target", "//:top", "--version", version]);
}

#[test]
fn why_names_the_module_of_a_path_and_those_it_hides() {
    let world = World::new(User::Me);
    world.write("base/etc/note", "from both\n");
    world.write("base/etc/other", "other\n");
    world.write("base/old/x", "hidden\n");
    world.write("top/etc/note", "from both\n");
    world.write("top/.wh.old", "");
    pack(&world, "v1");
    let rows = |path: &str| -> Vec<(String, bool)> {
        let rows = json(&world.ok(&["why", "top@v1", path, "--json"]).stdout);
        let row = |row: &Value| {
            (row["module"].as_str().unwrap().to_owned(), row["shown"].as_bool().unwrap())
        };
        rows.as_array().unwrap().iter().map(row).collect()
    };
    let (top, base) = ("//:top".to_owned(), "//:base".to_owned());
    assert_eq!(rows("etc/note"), [(top.clone(), true), (base.clone(), false)]);
    assert_eq!(rows("/etc/other"), [(base.clone(), true)]);
    assert_eq!(rows("etc"), [(top, true), (base.clone(), true)], "a folder is merged");
    assert_eq!(rows("old/x"), [(base, false)], "a whiteout hides it");
    let text = world.ok(&["why", "top@v1", "etc/note"]).stdout;
    assert!(text.contains("shown") && text.contains("hidden"), "{text}");
    assert!(
        world.fails(1, &["why", "top@v1", "nothing"]).contains("no layer of top@v1 has /nothing")
    );
}

#[test]
fn why_names_the_dependencies_that_lead_there() {
    let world = World::new(User::Me);
    world.write("top/usr/top", "top\n");
    world.write("base/usr/base", "base\n");
    world.write(
        "graph.json",
        r#"{"modules": [
            {"label": "//:base", "outputs": [{"path": "", "source": "base"}]},
            {"label": "//:group", "deps": ["//:base"]},
            {"label": "//:top", "deps": ["//:group"], "outputs": [{"path": "", "source": "top"}]}]}"#,
    );
    let target = ["why", "--graph", "graph.json", "--target"];
    let why = |words: &[&str]| world.ok(&[&target, words].concat()).stdout;
    let path = "//:top -> //:group -> //:base\n";
    assert_eq!(why(&["//:top", "//:base"]), path);
    assert_eq!(why(&["//:top", "/usr/base"]), path);
    assert_eq!(why(&["//:top", "usr"]), format!("//:top\n{path}"), "topmost first");
    let rows = json(&why(&["//:top", "//:group", "--json"]));
    assert_eq!(rows, serde_json::json!([["//:top", "//:group"]]));
    for (words, said) in [
        (["//:group", "//:top"], "//:group does not depend on //:top"),
        (["//:top", "//:bass"], "there is no target //:bass (did you mean `//:base`?)"),
        (["//:top", "usr/none"], "no module of //:top has /usr/none"),
    ] {
        let error = world.fails(1, &[&target[..], &words].concat());
        assert!(error.contains(said), "{error}");
    }
    world.fails(2, &["why", "//:base"]);
    world.fails(2, &["why", "top@v1", "--target", "//:top", "//:base"]);
    world.fails(2, &["why", "--graph", "graph.json", "top@v1", "//:base"]);
}

#[test]
fn why_says_for_what_a_module_was_packed_again() {
    let world = World::new(User::Me);
    world.write("base/file", "one\n");
    world.write("base/gone", "gone\n");
    world.write("top/other", "one\n");
    pack(&world, "v1");
    world.write("base/file", "two\n");
    world.write("base/.wh.new", "");
    std::fs::remove_file(world.path("base/gone")).unwrap();
    let said = |words: &[&str]| {
        let shown =
            json(&world.ok(&[&["why", "--json", "--since", "top@v1"], words].concat()).stdout);
        let row = |row: &Value| format!("{} {}", row["change"], row["path"]).replace('"', "");
        let changes = shown["changes"].as_array().unwrap().iter().map(row);
        (shown["state"].as_str().unwrap().to_owned(), changes.collect::<Vec<_>>())
    };
    let target = ["--graph", "graph.json", "--target", "//:top"];
    let changed =
        ("changed".to_owned(), ["A .wh.new", "C file", "D gone"].map(Into::into).to_vec());
    let before = said(&[&target[..], &["//:base"]].concat());
    pack(&world, "v2");
    assert_eq!((&before, &said(&["top@v2", "//:base"])), (&changed, &changed));
    assert_eq!(said(&["top@v2", "//:top"]).0, "same");
    assert_eq!(said(&[&target[..], &["//:top"]].concat()).0, "same");
    let row = |module| world.ok(&["why", "top@v2", module]).stdout;
    assert!(row("//:base").contains("packed") && row("//:top").contains("reused"));

    let graph = ["pack", "-q", "--graph", "graph.json", "--target"];
    world.ok(&[&graph[..], &["//:top", "--version", "v3", "--level", "1"]].concat());
    assert_eq!(said(&["top@v3", "//:top"]), ("parameters".to_owned(), vec![]));
    world.ok(&[&graph[..], &["//:base", "--name", "top", "--version", "v0"]].concat());
    let new = world.ok(&["why", "top@v1", "//:top", "--since", "top@v0"]);
    assert_eq!(
        (new.stdout, new.stderr),
        (String::new(), "since top@v0: //:top is not in it\n".into())
    );
    let error = world.fails(1, &["why", "top@v2", "file", "--since", "top@v1"]);
    assert!(error.contains("file is no module"), "{error}");
}

#[test]
fn diff_lists_changed_paths_and_what_a_pull_fetches() {
    let world = World::new(User::Me);
    world.write("base/same", "same\n");
    world.write("base/below", "base\n");
    std::fs::write(world.path("base/large"), common::noise(3 << 20)).unwrap();
    world.write("top/changed", "one\n");
    world.write("top/gone", "gone\n");
    world.write("top/mode", "mode\n");
    pack(&world, "v1");
    world.write("top/changed", "two\n");
    std::fs::remove_file(world.path("top/gone")).unwrap();
    world.write("top/added/x", "new\n");
    world.write("top/.wh.below", "");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(world.path("top/mode"), executable).unwrap();
    pack(&world, "v2");
    let ran = world.ok(&["diff", "top@v1", "top@v2"]);
    assert_eq!(ran.stdout, "A /added\nA /added/x\nD /below\nC /changed\nD /gone\nC /mode\n");
    assert!(ran.stderr.contains("6 paths, 1 layers"), "{ran:?}");

    // What is said is what a node that has the old one fetches: the new layer, which is small, whole.
    let said = json(&world.ok(&["diff", "--json", "top@v1", "top@v2"]).stdout);
    let pull = |args: &[&str]| {
        let ran = world.mica(args).env("MICA_CACHE", world.path("fresh")).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).unwrap()
    };
    pull(&["pull", "top@v1"]);
    let explained = json(&pull(&["pull", "--explain", "--json", "top@v2"]));
    assert_eq!(said["bytes"], explained["fetch"]);
    assert!(world.ok(&["diff", "top@v2", "top@v2"]).stdout.is_empty());
}

#[test]
fn a_xar_runs_like_the_program_it_holds() {
    need_fuse();
    for user in USERS {
        let world = World::new(user);
        let script = "#!/bin/sh\necho \"$FROM_OUTSIDE $@\"; cat given; cat >> made; cat $(dirname $0)/data; exit 3\n";
        world.write("tree/run.sh", script);
        world.write("tree/data", "inside\n");
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(world.path("tree/run.sh"), executable).unwrap();
        world.write("given", "given\n");
        // As XAR's own tool makes them: its header, another UUID, mksquashfs's image at 4096.
        let header = "#!/usr/bin/env xarexec_fuse\nOFFSET=\"4096\"\nUUID=\"d770950c\"\nVERSION=\"1582659264\"\n\
            XAREXEC_TARGET=\"run.sh\"\nXAREXEC_TRAMPOLINE_NAMES=\"'app'\"\n#xar_stop\necho This XAR file should not be executed by sh\nexit 1\n";
        world.write("header", header);
        world.hand_over();
        let make = "mksquashfs tree image -all-root -quiet -no-progress >/dev/null && \
            truncate -s 4096 header && cat header image > app.xar";
        let made = world.command("sh").args(["-c", make]).status().unwrap();
        assert!(made.success(), "this test needs squashfs-tools");
        let output = world
            .command("sh")
            .args(["-c", "echo typed | \"$0\" xar run app.xar -x 'a b'"])
            .arg(world.binary())
            .env("FROM_OUTSIDE", "yes")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(
            (output.status.code(), &*said),
            (Some(3), "yes app.xar -x a b\ngiven\ninside\n"),
            "{output:?}"
        );
        assert_eq!(std::fs::read_to_string(world.path("made")).unwrap(), "typed\n");
        assert!(world.ok(&["xar", "info", "app.xar"]).stdout.contains("UUID=\"d770950c\""));
        world.ok(&["xar", "verify", "app.xar"]);
        assert!(world.fails(125, &["xar", "run", "image"]).contains("is not a XAR"));
        world.ends_clean();
    }
}

/// Python with XAR's own tools, in the world's folder.
fn xars_python(world: &World, arguments: &[&str]) {
    let tools = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("xar");
    let at = tools.display();
    assert!(tools.exists(), "this test needs PyPI's xar in {at}: scripts/test installs it");
    let mut python = Command::new("python3");
    python.args(arguments).env("PYTHONPATH", &tools).current_dir(world.dir.path());
    let ran = python.output().expect("this test needs python3");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

/// Reads a XAR as XAR's own tests do, but takes one that can be run.
const UNXAR: &str = "
import sys
from xar import xar_builder
from xar.tests.xar_test_helpers import XarTestCase
xar_builder.BORING_SHEBANG = '#!/usr/bin/env xarexec_fuse'
case = XarTestCase('assertTrue')
case.assertEquals = case.assertEqual
case._unxar('ours.xar', 'out')
case.assertDirectoryEqual('tree', 'out')
";

#[test]
fn xars_own_tool_makes_what_we_run_and_reads_what_we_make() {
    need_fuse();
    for user in USERS {
        let world = World::new(user);
        let main = "import sys, os, json\nfrom app import word\ndef main():\n    \
            print(json.dumps(sys.argv[:3] + [word.WORD, os.getenv('XAR_RUNTIME_FILES')]))\n    sys.exit(7)\n";
        world.write("py/app/__init__.py", "");
        world.write("py/app/main.py", main);
        world.write("py/app/word.py", "WORD = 'inside'\n");
        let make =
            "-m xar.make_xar --python py --python-entry-point app.main:main --output app.xar";
        xars_python(&world, &make.split(' ').collect::<Vec<_>>());
        world.hand_over();
        let said = |at: &str, file: &str, ran: common::Ran| {
            let expected = serde_json::json!([file, "x", "y z", "inside", at]);
            assert_eq!((ran.code, json(&ran.stdout)), (Some(7), expected), "{ran:?}");
        };
        said("/packages/app", "app.xar", world.run(&["xar", "run", "app.xar", "x", "y z"]));
        let info = world.ok(&["xar", "info", "app.xar"]).stdout;
        assert!(info.contains("XAREXEC_TARGET=\"bootstrap_xar.sh\""), "{info}");
        world.ok(&["xar", "verify", "app.xar"]);
        world.ok(&["import", "-q", "app.xar", "--version", "1"]);
        said("/packages/app-1", "app.xar", world.run(&["run", "--rm", "app@1", "x", "y z"]));
        // From a mount, as xarexec_fuse calls it. One without an account can't mount.
        if user == User::Me {
            let mounted = world.ok(&["mount", "--image", "app.xar"]).stdout;
            let mounted = mounted.trim();
            let mut start = world.command(format!("{mounted}/bootstrap_xar.sh"));
            let ran = start.args(["./app.xar", "x", "y z"]).output().unwrap();
            said(mounted, "./app.xar", ran.into());
            world.ok(&["umount", mounted]);
        }
        world.ok(&["image", "unpack", "app.xar", "tree"]);
        let target = ["--xar-target", "bootstrap_xar.sh"];
        world.ok(&[&["image", "pack", "tree", "-o", "ours.xar"], &target[..]].concat());
        said("/packages/ours", "ours.xar", world.run(&["xar", "run", "ours.xar", "x", "y z"]));
        xars_python(&world, &["-c", UNXAR]);
        world.ends_clean();
    }
}

#[test]
fn settings_say_where_they_come_from() {
    let world = World::new(User::Me);
    world.write("work/mica.toml", "registry = \"published\"\nquota = \"5g\"\n");
    world.write("home/.config/mica/config.toml", "quota = \"1g\"\nuserns-remap = \"nobody\"\n");
    let mut command = world.mica(&["config", "show", "--origin", "--json"]);
    command.current_dir(world.path("work")).env_remove("MICA_REGISTRY");
    let shown = json(&String::from_utf8(command.output().unwrap().stdout).unwrap());
    let of = |name: &str| {
        (shown[name]["value"].as_str().unwrap(), shown[name]["origin"].as_str().unwrap())
    };
    assert_eq!(of("cache"), (world.path("cache").to_str().unwrap(), "environment"));
    let file = world.path("work/mica.toml");
    assert_eq!(of("quota"), ("5368709120", file.to_str().unwrap()));
    assert_eq!(
        of("registry"),
        (world.path("work/published").to_str().unwrap(), file.to_str().unwrap())
    );
    assert!(of("userns-remap").1.ends_with("home/.config/mica/config.toml"));
    assert_eq!(of("mirrors"), ("-", "default"));
    assert!(world.ok(&["config", "show"]).stdout.contains("registry"));
}

#[test]
fn what_this_host_gives_and_which_mica_it_is() {
    for user in USERS {
        let world = World::new(user);
        world.hand_over();
        let info = json(&world.ok(&["info", "--json"]).stdout);
        let is_root = world.command("id").arg("-u").output().unwrap().stdout == b"0\n";
        assert_eq!(info["rootless"], !is_root);
        assert_eq!(info["jobs"], 0);
        assert_eq!(info["state"], world.path("state").to_str().unwrap());
        let version = world.ok(&["version", "--json"]).stdout;
        assert_eq!(json(&version)["version"], info["version"]);
        assert!(world.ok(&["version"]).stdout.starts_with("mica "));
        assert!(world.ok(&["info"]).stdout.contains("cgroups"));
    }
}

#[test]
fn completions_and_manual_pages_are_what_shells_and_man_read() {
    let world = World::new(User::Me);
    let bash = world.ok(&["completion", "bash"]).stdout;
    world.write("mica.bash", &bash);
    // Bash itself completes a verb and a flag by it.
    let script = ". ./mica.bash; COMP_WORDS=(mica un); COMP_CWORD=1; _mica mica un mica; echo ${COMPREPLY[@]}; \
        COMP_WORDS=(mica run --read); COMP_CWORD=2; _mica mica --read run; echo ${COMPREPLY[@]}";
    let ran = Command::new("bash").args(["-c", script]).current_dir(world.dir.path()).output();
    let ran = ran.expect("this test needs bash");
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said, "unpause\n--read-only\n", "{ran:?}");
    for (shell, mark) in [("zsh", "#compdef mica"), ("fish", "complete -c mica")] {
        assert!(world.ok(&["completion", shell]).stdout.contains(mark), "{shell}");
    }
    world.ok(&["completion", "--man", "man"]);
    for page in ["mica.1", "mica-run.1", "mica-network-create.1"] {
        let text = std::fs::read_to_string(world.path(&format!("man/{page}"))).unwrap();
        assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
    world.fails(2, &["completion"]);
}
