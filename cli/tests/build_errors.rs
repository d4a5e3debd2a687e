//! Errors of packing: message and exit code.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{User, World};

/// A workspace with one BUILD file.
fn workspace(build: &str) -> World {
    let world = World::new(User::Me);
    world.write("mono/mica.toml", "");
    world.write("mono/app/BUILD", build);
    world.write("mono/app/a.txt", "a");
    world.write("mono/app/b.txt", "b");
    world
}

fn pack(target: &str) -> [&str; 7] {
    ["pack", "--workspace", "mono", "--target", target, "--version", "v1"]
}

#[test]
fn a_cycle_is_named() {
    let world = workspace(
        "filegroup(name = \"x\", srcs = [\"a.txt\"], data = [\":y\"])\n\
         filegroup(name = \"y\", srcs = [\"b.txt\"], data = [\":x\"])\n",
    );
    let said = world.fails(1, &pack("//app:x"));
    assert!(said.contains("//app:x -> //app:y -> //app:x"), "{said}");
}

#[test]
fn a_target_that_does_not_exist_gets_suggestions() {
    let world = workspace("filegroup(name = \"greeting\", srcs = [\"a.txt\"])\n");
    let said = world.fails(1, &pack("//app:greting"));
    assert!(said.contains("//app:greting") && said.contains("//app:greeting"), "{said}");
}

#[test]
fn two_modules_with_different_files_at_one_path_are_both_named() {
    let world = World::new(User::Me);
    world.write("a/file", "one");
    world.write("b/file", "two");
    world.write(
        "graph.json",
        r#"{"modules": [
            {"label": "//:a", "outputs": [{"path": "etc/file", "source": "a/file"}], "deps": ["//:b"]},
            {"label": "//:b", "outputs": [{"path": "etc/file", "source": "b/file"}]}]}"#,
    );
    let said =
        world.fails(1, &["pack", "--graph", "graph.json", "--target", "//:a", "--version", "v1"]);
    assert!(said.contains("etc/file") && said.contains("//:a") && said.contains("//:b"), "{said}");
}

#[test]
fn a_syntax_error_points_at_file_line_and_column() {
    let world = workspace("filegroup(name = \"x\",\n    srcs = [\"a.txt\"]]\n");
    let said = world.fails(1, &pack("//app:x"));
    assert!(said.contains("app/BUILD:2:"), "{said}");
}

#[test]
fn a_missing_compiler_is_named_with_its_remedy() {
    let world = World::new(User::Me);
    world.write("mono/mica.toml", "");
    world.write("mono/BUILD", "cc_binary(name = \"x\", srcs = [\"x.c\"])\n");
    world.write("mono/x.c", "int main(void) { return 0; }\n");
    let output = world.mica(&pack("//:x")).env("PATH", "/nonexistent").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("compiler") && said.contains("apt install"), "{said}");
}

#[test]
fn usage_errors_exit_with_2() {
    let world = World::new(User::Me);
    for args in [&["pack"][..], &["nonsense"], &["image", "pack"]] {
        world.fails(2, args);
    }
    // 2 may be the program's own.
    world.fails(125, &["run", "--memory", "much", "A"]);
}
