//! Builds the example workspaces with the machine's own compiler.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use mica_packer::build::{BuildError, BuildOptions, Built, build};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testdata").join(name)
}

/// A copy of an example that a test may change.
fn copy_of(name: &str) -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let from = example(name);
    let status = Command::new("cp").arg("-a").arg(from.join(".")).arg(scratch.path()).status();
    assert!(status.unwrap().success());
    scratch
}

fn try_build(workspace: &Path, target: &str) -> Result<Built, BuildError> {
    build(workspace, &target.parse().unwrap(), &BuildOptions::default())
}

/// Copies what a target needs into a folder, as a job would see it.
fn tree_of(built: &Built) -> tempfile::TempDir {
    let tree = tempfile::tempdir().unwrap();
    for module in built.graph.plan(&built.target).unwrap().layers() {
        for output in &module.outputs {
            let to = tree.path().join(&output.path);
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            let status =
                Command::new("cp").arg("-RT").arg(&output.source).arg(&to).status().unwrap();
            assert!(status.success());
        }
    }
    tree
}

fn run(program: &Path, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .output();
    let output = output.unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn six_modules_six_layers() {
    let workspace = copy_of("monorepo");
    let built = try_build(workspace.path(), "//app:A").unwrap();
    let plan = built.graph.plan(&built.target).unwrap();
    let layers: Vec<_> = plan.layers().map(|module| module.label.to_string()).collect();
    assert_eq!(
        layers,
        ["//app:A", "//lib/b:B", "//lib/c:C", "//lib/d:D", "//lib/e:E", "//lib/f:F"]
    );
    assert_eq!(plan.target.process.entrypoint, ["app/A"]);
    let tree = tree_of(&built);
    let said = run(&tree.path().join("app/A"), &["one", "two"]);
    let cpu = std::env::consts::ARCH;
    assert_eq!(
        said,
        format!("hello from A (first edition): B > D > F on {cpu}, C > E > F on {cpu} one two\n")
    );
    assert_eq!(run(&tree.path().join("app/A.sh"), &["one", "two"]), said);
}

#[test]
fn only_what_changed_is_built_again() {
    let workspace = copy_of("monorepo");
    let first = try_build(workspace.path(), "//app:A").unwrap();
    assert_eq!((first.actions_run, first.actions_reused), (13, 0));
    let second = try_build(workspace.path(), "//app:A").unwrap();
    assert_eq!((second.actions_run, second.actions_reused), (0, 13));

    let source = workspace.path().join("app/A.c");
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text.replace("first edition", "second edition")).unwrap();
    let third = try_build(workspace.path(), "//app:A").unwrap();
    assert_eq!((third.actions_run, third.actions_reused), (2, 11));
    let said = run(&tree_of(&third).path().join("app/A"), &[]);
    assert!(said.starts_with("hello from A (second edition)"), "{said}");

    // A comment changes the source, but not the object: nothing is linked again.
    let text = fs::read_to_string(&source).unwrap();
    fs::write(&source, text + "/* nothing */\n").unwrap();
    let fourth = try_build(workspace.path(), "//app:A").unwrap();
    assert_eq!((fourth.actions_run, fourth.actions_reused), (1, 12));

    // An output that somebody changed is made again.
    fs::write(workspace.path().join(".mica/out/bin/app/A"), "spoiled").unwrap();
    let fifth = try_build(workspace.path(), "//app:A").unwrap();
    assert_eq!((fifth.actions_run, fifth.actions_reused), (1, 12));
}

#[test]
fn same_bytes_in_any_folder() {
    let digests = || {
        let workspace = copy_of("monorepo");
        let built = try_build(workspace.path(), "//app:A").unwrap();
        let modules = built.graph.modules();
        let outputs = modules.flat_map(|module| module.outputs.clone());
        outputs
            .map(|output| (output.path, mica_graph::Digest::of(&fs::read(output.source).unwrap())))
            .collect::<Vec<_>>()
    };
    assert_eq!(digests(), digests());
}

#[test]
fn run_paths_are_relative() {
    let workspace = copy_of("monorepo");
    let built = try_build(workspace.path(), "//app:A").unwrap();
    let module = built.graph.module(&"//app:A".parse().unwrap()).unwrap();
    let program = fs::read(&module.outputs[0].source).unwrap();
    let text = String::from_utf8_lossy(&program);
    assert!(text.contains("$ORIGIN/../lib/b:$ORIGIN/../lib/c"), "no relative RUNPATH in app/A");
    assert!(
        !text.contains(workspace.path().to_str().unwrap()),
        "the workspace's folder is in app/A"
    );
}
