//! Workspaces that lead out of themselves, or never end.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mica_packer::build::{
    BuildOptions, ExecuteError, Executor, Invocation, Layout, ROOT, Ran, Staging, TMP, Unconfined,
    build, plan,
};

/// Not confined, but as careful with inputs as if it were.
#[derive(Debug)]
struct Careful;

impl Executor for Careful {
    fn layout(&self, folder: &Path) -> Layout {
        Layout { root: folder.join(ROOT), tmp: folder.join(TMP), inputs: Staging::Copies }
    }

    fn run(&self, invocation: &Invocation<'_>) -> Result<Ran, ExecuteError> {
        for shown in invocation.shown {
            let at = invocation.folder.join(ROOT).join(&shown.path);
            if shown.source.is_file() {
                fs::copy(&shown.source, at).unwrap();
            }
        }
        Unconfined::default().run(invocation)
    }
}

fn options() -> BuildOptions {
    BuildOptions { executor: Arc::new(Careful), ..BuildOptions::default() }
}

/// All that is said of an error.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(&format!(": {cause}"));
        next = cause.source();
    }
    text
}

/// A workspace beside a folder with a secret.
struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new(files: &[(&str, &str)]) -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(world.path("out")).unwrap();
        fs::write(world.path("out/secret"), "SECRET = 'secret'\n").unwrap();
        fs::write(world.path("out/BUILD"), "filegroup(name = 'y', srcs = ['secret'])\n").unwrap();
        fs::create_dir(world.path("w")).unwrap();
        for (path, text) in files {
            let path = world.path("w").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        world
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    fn link(&self, to: &str, at: &str) {
        symlink(self.path(to), self.path("w").join(at)).unwrap();
    }

    /// Plans and builds, within a minute; the errors, or nothing.
    fn try_both(&self) -> [Result<(), String>; 2] {
        let (sender, receiver) = std::sync::mpsc::channel();
        let workspace = self.path("w");
        std::thread::spawn(move || {
            let target = "//:x".parse().unwrap();
            let planned = plan(&workspace, &target, &options()).map(drop);
            let built = build(&workspace, &target, &options()).map(drop);
            sender.send([planned, built].map(|done| done.map_err(|error| chain(&error)))).unwrap();
        });
        receiver.recv_timeout(Duration::from_secs(60)).expect("it hangs")
    }

    fn errors(&self) -> [String; 2] {
        self.try_both().map(Result::unwrap_err)
    }
}

const PLAIN: &str = "filegroup(name = 'x', srcs = glob(['**']))\n";

#[test]
fn build_files_do_not_lead_out_of_the_workspace() {
    for load in
        ["/etc/passwd", "//../out:secret", "//:../out/secret", ":/etc/passwd", "//:link.bzl"]
    {
        let text = format!("load('{load}', 'SECRET')\n{PLAIN}");
        let world = World::new(&[("BUILD", &text)]);
        world.link("out/secret", "link.bzl");
        for error in world.errors() {
            assert!(!error.contains("SECRET ="), "{load}: {error}");
        }
    }
    let world = World::new(&[]);
    world.link("out/secret", "BUILD");
    for error in world.errors() {
        assert!(error.contains("leads out of the workspace"), "{error}");
    }
    let world = World::new(&[("BUILD", "filegroup(name = 'x', srcs = ['//far:y'])\n")]);
    world.link("out", "far");
    for error in world.errors() {
        assert!(error.contains("far"), "{error}");
    }
}

#[test]
fn a_link_within_the_workspace_is_as_good_as_a_file() {
    let world = World::new(&[
        ("BUILD", "load('//:l.bzl', 'f')\nf()\n"),
        (
            "real/l.bzl",
            "def f():\n    native.genrule(name = 'x', srcs = ['in'], outs = ['o'], cmd = 'cat in > $@')\n",
        ),
        ("real/in", "text"),
    ]);
    symlink("real/l.bzl", world.path("w/l.bzl")).unwrap();
    world.link("w/real/in", "in");
    for done in world.try_both() {
        done.unwrap();
    }
    assert_eq!(fs::read(world.path("w/.mica/out/bin/o")).unwrap(), b"text");
}

#[test]
fn globs_and_inputs_do_not_lead_out_of_the_workspace() {
    // A folder elsewhere is not looked into.
    let world = World::new(&[("BUILD", PLAIN), ("a", "")]);
    world.link("out", "far");
    let planned = plan(&world.path("w"), &"//:x".parse().unwrap(), &options()).unwrap();
    let module = planned.graph.module(&planned.target).unwrap();
    let outputs: Vec<_> = module.outputs.iter().map(|output| output.path.as_str()).collect();
    assert_eq!(outputs, ["BUILD", "a", "far"]);
    // Nor named through a link.
    let world = World::new(&[("BUILD", "filegroup(name = 'x', srcs = ['far/secret'])\n")]);
    world.link("out", "far");
    for error in world.errors() {
        assert!(error.contains("far"), "{error}");
    }
    let world = World::new(&[("BUILD", "mica_tree(name = 'x', dir = 'far/deeper')\n")]);
    fs::create_dir(world.path("out/deeper")).unwrap();
    world.link("out", "far");
    for error in world.errors() {
        assert!(error.contains("far leads out of the workspace"), "{error}");
    }
    // Nor an input of an action.
    let text = "genrule(name = 'x', srcs = ['in'], outs = ['o'], cmd = 'cat in > $@')\n";
    let world = World::new(&[("BUILD", text)]);
    world.link("out/secret", "in");
    for error in world.errors() {
        assert!(error.contains("leads out of the workspace"), "{error}");
    }
    // Nor by way of an output that is a link.
    let text = format!(
        "genrule(name = 'a', outs = ['l'], cmd = 'ln -s {}/out/secret $@')\n\
         genrule(name = 'x', srcs = [':a'], outs = ['o'], cmd = 'cp -P l $@')\n",
        World::new(&[]).dir.keep().display(),
    );
    let world = World::new(&[("BUILD", &text)]);
    let [_, built] = world.try_both();
    built.unwrap();
    assert!(fs::symlink_metadata(world.path("w/.mica/out/bin/o")).unwrap().is_symlink());
}

#[test]
fn what_never_ends_is_an_error_that_names_it() {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    let source = "genrule(name = 'x', srcs = ['in'], outs = ['o'], cmd = 'cat in > $@')\n";
    for (build, name) in [(source, "in"), ("load('//:f.bzl', 'a')\n", "f.bzl"), ("", "BUILD")] {
        for kind in [FileType::Fifo, FileType::Socket] {
            let world = World::new(&[("BUILD", build)]);
            let path = world.path("w").join(name);
            if name == "BUILD" {
                fs::remove_file(&path).unwrap();
            }
            mknodat(CWD, &path, kind, Mode::RUSR, 0).unwrap();
            for error in world.errors() {
                assert!(error.contains(name), "{error}");
            }
        }
    }
    // A file without an end.
    let world = World::new(&[("BUILD", source)]);
    symlink("/dev/zero", world.path("w/in")).unwrap();
    for error in world.errors() {
        assert!(error.contains("in leads out of the workspace"), "{error}");
    }
    // A record of an earlier build that came with the workspace.
    let world = World::new(&[("BUILD", source), ("in", "")]);
    build(&world.path("w"), &"//:x".parse().unwrap(), &options()).unwrap();
    let record = fs::read_dir(world.path("w/.mica/out/state")).unwrap().next().unwrap().unwrap();
    fs::remove_file(record.path()).unwrap();
    mknodat(CWD, record.path(), FileType::Fifo, Mode::RUSR, 0).unwrap();
    for done in world.try_both() {
        done.unwrap();
    }
}
