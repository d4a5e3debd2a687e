//! Builds the example workspaces with the machine's own compiler.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

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

#[test]
fn python_over_cxx() {
    let workspace = copy_of("rules");
    let built = try_build(workspace.path(), "//design:A").unwrap();
    let plan = built.graph.plan(&built.target).unwrap();
    let layers: Vec<_> = plan.layers().map(|module| module.label.name()).collect();
    assert_eq!(layers, ["A", "B", "C", "D", "E", "F"]);
    let said = run(&tree_of(&built).path().join("design/A"), &["one"]);
    assert_eq!(said, "A: B > D > F C > E > F one\n");
}

#[test]
fn scripts_data_and_tools() {
    let workspace = copy_of("rules");
    let built = try_build(workspace.path(), "//shell:report").unwrap();
    let tree = tree_of(&built);
    assert_eq!(run(&tree.path().join("shell/report"), &[]), "\n4 bytes a.txt\n8 bytes b.txt\n");
    assert!(!tree.path().join("shell/files/c.skip").exists());
    // The tool was needed to build only.
    assert!(!tree.path().join("shell/measure").exists());
    let process = &built.graph.plan(&built.target).unwrap().target.process;
    assert_eq!(process.cmd, ["shell/table.txt"]);
    assert_eq!(process.env["TITLE"], "files by size");
}

#[test]
fn generated_headers_and_configurations() {
    let workspace = copy_of("rules");
    let built = try_build(workspace.path(), "//generated:program").unwrap();
    assert_eq!(built.target.to_string(), "//generated:main");
    assert_eq!(run(&tree_of(&built).path().join("generated/main"), &[]), "safe\n");
    let options = BuildOptions {
        config: BuildOptions::default().config.with_flag("speed", "fast"),
        ..BuildOptions::default()
    };
    let target = "//generated:program".parse().unwrap();
    let fast = build(workspace.path(), &target, &options).unwrap();
    assert_eq!(run(&tree_of(&fast).path().join("generated/main"), &[]), "fast\n");
}

#[test]
fn packages_and_bases() {
    let workspace = copy_of("rules");
    let built = try_build(workspace.path(), "//service:service").unwrap();
    let plan = built.graph.plan(&built.target).unwrap();
    let layers: Vec<_> = plan.layers().map(|module| module.label.to_string()).collect();
    assert_eq!(layers, ["//base:site", "//base:rootfs", "//generated:main"]);
    assert!(plan.layers().any(|module| module.root));
    assert_eq!(plan.target.process.entrypoint, ["generated/main"]);
    assert_eq!(plan.target.limits.memory, Some(256 << 20));
    let tree = tree_of(&built);
    assert!(tree.path().join("etc/os-release").exists());
    assert!(tree.path().join("usr/lib/python3/site-packages/colour/__init__.py").exists());
}

/// A workspace of one `BUILD` file and some others.
fn workspace_of(files: &[(&str, &str)]) -> tempfile::TempDir {
    let scratch = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = scratch.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    scratch
}

fn error(files: &[(&str, &str)]) -> String {
    try_build(workspace_of(files).path(), "//:x").unwrap_err().to_string()
}

#[test]
fn a_failing_compiler_is_quoted() {
    let message = error(&[
        ("BUILD", "cc_binary(name = 'x', srcs = ['x.c'])\n"),
        ("x.c", "int main(void) {\n    return nothing;\n}\n"),
    ]);
    assert!(message.starts_with("cannot compile //:x: "), "{message}");
    assert!(message.contains("x.c:2:12: error:"), "{message}");
    assert!(!message.contains("/tmp"), "{message}");
}

#[test]
fn warnings_are_handed_on() {
    let workspace = workspace_of(&[
        ("BUILD", "cc_library(name = 'x', srcs = ['x.c'], copts = ['-Wall'])\n"),
        ("x.c", "static int unused;\n"),
    ]);
    let built = try_build(workspace.path(), "//:x").unwrap();
    let [(label, text)] = built.said.as_slice() else { panic!("{:?}", built.said) };
    assert_eq!(label.to_string(), "//:x");
    assert!(text.contains("x.c:1:12: warning:"), "{text}");
}

#[test]
fn outputs_from_before_a_crash_are_checked() {
    let workspace =
        workspace_of(&[("BUILD", "genrule(name = 'x', outs = ['o'], cmd = 'echo 1 > $@')\n")]);
    let built = try_build(workspace.path(), "//:x").unwrap();
    let output = &built.graph.module(&built.target).unwrap().outputs[0].source;
    // As after a crash of the machine: another boot, and a file that looks the same but is not.
    let state = fs::read_dir(workspace.path().join(".mica/out/state"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let text = fs::read_to_string(&state).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    fs::write(&state, text.replace(boot.trim(), "another")).unwrap();
    assert_eq!(try_build(workspace.path(), "//:x").unwrap().actions_run, 0);
    let times = fs::metadata(output).unwrap().modified().unwrap();
    fs::write(output, "2\n").unwrap();
    fs::File::options().write(true).open(output).unwrap().set_modified(times).unwrap();
    assert_eq!(try_build(workspace.path(), "//:x").unwrap().actions_run, 1);
    assert_eq!(fs::read_to_string(output).unwrap(), "1\n");
}

#[test]
fn what_is_not_declared_is_not_there() {
    let message = error(&[
        ("BUILD", "cc_binary(name = 'x', srcs = ['x.c'])\n"),
        ("x.c", "#include \"lib/secret.h\"\nint main(void) { return 0; }\n"),
        ("lib/BUILD", "cc_library(name = 'lib', hdrs = ['secret.h'])\n"),
        ("lib/secret.h", ""),
    ]);
    assert!(message.contains("lib/secret.h: No such file"), "{message}");
    assert!(
        message.contains("lib/secret.h is in the workspace, but //:x does not list it"),
        "{message}"
    );
}

#[test]
fn a_missing_dependency_is_a_link_error() {
    let message = error(&[
        ("BUILD", "cc_library(name = 'x', srcs = ['x.c'])\n"),
        ("x.c", "int other(void);\nint x(void) { return other(); }\n"),
    ]);
    assert!(message.starts_with("cannot link //:x: "), "{message}");
    assert!(message.contains("undefined reference to `other'"), "{message}");
}

#[test]
fn no_compiler() {
    use mica_packer::build::Toolchain;
    let workspace =
        workspace_of(&[("BUILD", "cc_binary(name = 'x', srcs = ['x.c'])\n"), ("x.c", "")]);
    let with = |toolchain: Toolchain| {
        let options = BuildOptions { toolchain, ..BuildOptions::default() };
        build(workspace.path(), &"//:x".parse().unwrap(), &options).unwrap_err().to_string()
    };
    let message = "cannot compile //:x: there is no C compiler on this machine; install one (`apt install gcc`) or set CC";
    assert_eq!(with(Toolchain::find(|_| None)), message);
    // A wrong CC is not replaced by another compiler behind the user's back.
    let wrong = |name: &str| match name {
        "CC" => Some("no-such-compiler".into()),
        name => std::env::var_os(name),
    };
    assert_eq!(with(Toolchain::find(wrong)), message);
}

#[test]
fn outputs_of_genrules() {
    let of = |cmd: &str| {
        error(&[("BUILD", &format!("genrule(name = 'x', outs = ['o'], cmd = '{cmd}')\n"))])
    };
    assert_eq!(of("true"), "cannot generate //:x: its output `o` was not made");
    assert_eq!(
        of("mkfifo $@"),
        "cannot generate //:x: its output `o` is neither a file nor a folder"
    );
    let link = "ln -s $$PWD/x $@ && touch x";
    assert_eq!(
        of(link),
        "cannot generate //:x: its output `o` is a symlink into the folder it was made in"
    );
    let failed = of("echo to stdout; echo to stderr >&2; exit 3");
    assert_eq!(
        failed,
        "cannot generate //:x: bash ended with exit status: 3\nto stderr\nto stdout"
    );
    assert!(of("false | true").contains("exit status: 1"));
}

#[test]
fn a_genrule_s_environment_is_the_same_everywhere() {
    let workspace = workspace_of(&[(
        "BUILD",
        "genrule(name = 'x', outs = ['o'], cmd = 'env | sort > $@; ls -A >> $@')\n",
    )]);
    let built = try_build(workspace.path(), "//:x").unwrap();
    let module = built.graph.module(&built.target).unwrap();
    let text = fs::read_to_string(&module.outputs[0].source).unwrap();
    let names: Vec<_> = text.lines().map(|line| line.split('=').next().unwrap()).collect();
    assert_eq!(
        names,
        [
            "HOME",
            "LC_ALL",
            "OUT",
            "OUTS",
            "PATH",
            "PWD",
            "SHLVL",
            "SOURCE_DATE_EPOCH",
            "SRCS",
            "TMPDIR",
            "TZ",
            "_",
            "o"
        ]
    );
}

#[test]
fn folders_as_outputs() {
    let workspace = workspace_of(&[(
        "BUILD",
        "genrule(name = 'x', outs = ['site'], cmd = 'mkdir -p $@/sub; echo 1 > $@/sub/one; ln -s one $@/sub/link')\n\
         genrule(name = 'y', srcs = [':x'], outs = ['list'], cmd = 'cd $(SRCS) && find . | sort > $$OLDPWD/$@')\n",
    )]);
    let built = try_build(workspace.path(), "//:y").unwrap();
    let list =
        fs::read_to_string(&built.graph.module(&built.target).unwrap().outputs[0].source).unwrap();
    assert_eq!(list, ".\n./sub\n./sub/link\n./sub/one\n");
    let again = try_build(workspace.path(), "//:y").unwrap();
    assert_eq!(again.actions_run, 0);
}

#[test]
fn outputs_may_turn_from_files_into_folders() {
    let workspace =
        workspace_of(&[("BUILD", "genrule(name = 'x', outs = ['o'], cmd = 'echo 1 > $@')\n")]);
    try_build(workspace.path(), "//:x").unwrap();
    for build in [
        "genrule(name = 'x', outs = ['o/p'], cmd = 'echo 2 > $@')\n",
        "genrule(name = 'x', outs = ['o'], cmd = 'echo 3 > $@')\n",
    ] {
        fs::write(workspace.path().join("BUILD"), build).unwrap();
        let built = try_build(workspace.path(), "//:x").unwrap();
        assert!(built.graph.module(&built.target).unwrap().outputs[0].source.is_file());
    }
}

#[test]
fn a_killed_build_leaves_nothing_half() {
    let workspace = workspace_of(&[(
        "BUILD",
        "genrule(name = 'x', outs = ['o'], cmd = 'echo half > $@; exit 1')\n",
    )]);
    let tmp = workspace.path().join(".mica/out/tmp");
    fs::create_dir_all(tmp.join("7/root")).unwrap();
    try_build(workspace.path(), "//:x").unwrap_err();
    assert!(!workspace.path().join(".mica/out/bin/o").exists());
    assert!(!tmp.join("7").exists(), "what a killed build left is swept");
}

#[test]
fn names_that_are_not_utf_8_are_refused_by_name() {
    use std::os::unix::ffi::OsStrExt;
    let workspace = workspace_of(&[("BUILD", "filegroup(name = 'x', srcs = glob(['*']))\n")]);
    let name = std::ffi::OsStr::from_bytes(b"bad\xff");
    fs::write(workspace.path().join(name), "").unwrap();
    let error = try_build(workspace.path(), "//:x").unwrap_err();
    let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(chain.starts_with("cannot read //: the name of "), "{chain}");
}

#[test]
fn symlink_loops_are_refused() {
    let workspace =
        workspace_of(&[("BUILD", "filegroup(name = 'x', srcs = glob(['**']))\n"), ("a/b", "")]);
    std::os::unix::fs::symlink("..", workspace.path().join("a/loop")).unwrap();
    let error = try_build(workspace.path(), "//:x").unwrap_err();
    let chain = format!("{error}: {}", std::error::Error::source(&error).unwrap());
    assert!(chain.contains("is a symlink to a folder it is in"), "{chain}");
}
