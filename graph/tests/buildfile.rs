//! What build files mean, and what is said when they are wrong.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod memory;

use insta::assert_snapshot;
use memory::Memory;
use mica_graph::buildfile::Dep;

fn deps(workspace: &Memory, target: &str, attr: &str) -> Vec<String> {
    let loaded = workspace.load(target).unwrap();
    let deps = loaded.targets[&loaded.target].deps(attr);
    deps.iter()
        .map(|dep| match dep {
            Dep::File(path) => path.clone(),
            Dep::Target(label) => label.to_string(),
            Dep::Output(label, path) => format!("{path} of {label}"),
        })
        .collect()
}

#[test]
fn macros_globs_and_selects() {
    let workspace = Memory::new([
        (
            "tools/defs.bzl",
            "load(':names.bzl', 'prefix')\ndef lib(name, **kwargs):\n    native.cc_library(name = prefix + name, srcs = native.glob(['**/*.c'], exclude = ['skip/**']), **kwargs)\n",
        ),
        ("tools/names.bzl", "prefix = 'lib_'\n"),
        (
            "a/BUILD",
            r#"
load("//tools:defs.bzl", "lib")
load("@rules_cc//cc:defs.bzl", "cc_library")
package(default_visibility = ["//visibility:public"])
licenses(["notice"])
exports_files(["a.c"])
lib(
    name = "x",
    deps = [":y"] + select({
        "@platforms//os:linux": ["//b:b"],
        "//conditions:default": ["//never:evaluated"],
    }),
    visibility = ["//visibility:public"],
)
[cc_library(name = n, srcs = ["a.c"]) for n in ("y", "z")]
"#,
        ),
        ("a/a.c", ""),
        ("a/deep/er/c.c", ""),
        ("a/skip/d.c", ""),
        ("a/sub/BUILD", ""),
        ("a/sub/e.c", ""),
        ("b/BUCK", "alias(name = 'b', actual = '//c:real')\n"),
        (
            "c/BUILD.bazel",
            "cc_library(name = 'real', srcs = ['gen.c'])\ngenrule(name = 'g', outs = ['gen.c'], cmd = 'echo > $@')\nprint('c', 1)\n",
        ),
        ("never/BUILD", "fail('not needed')"),
    ]);
    assert_eq!(deps(&workspace, "//a:lib_x", "srcs"), ["a/a.c", "a/deep/er/c.c"]);
    assert_eq!(deps(&workspace, "//a:lib_x", "deps"), ["//a:y", "//c:real"]);
    assert_eq!(deps(&workspace, "//c:real", "srcs"), ["c/gen.c of //c:g"]);
    let loaded = workspace.load("//a:lib_x").unwrap();
    let labels: Vec<_> = loaded.targets.keys().map(ToString::to_string).collect();
    assert_eq!(labels, ["//a:lib_x", "//a:y", "//c:g", "//c:real"]);
    assert_eq!(loaded.printed, ["c 1"]);
    assert_eq!(
        loaded.files,
        ["tools/names.bzl", "tools/defs.bzl", "a/BUILD", "b/BUCK", "c/BUILD.bazel"]
    );
}

#[test]
fn config_settings() {
    let workspace = Memory::new([
        (
            "c/BUILD",
            "config_setting(name = 'arm', constraint_values = ['@platforms//cpu:arm64'])\n\
             config_setting(name = 'fast', define_values = {'fast': '1'})\n\
             config_setting(name = 'slow', values = {'define': 'fast=0'})\n",
        ),
        (
            "BUILD",
            "filegroup(name = 'x', srcs = select({'//c:arm': ['arm'], '//c:slow': ['slow'], '//c:fast': ['fast']}))\n\
             filegroup(name = 'y', srcs = select({'//c:arm': ['arm'], 'DEFAULT': ['slow']}))\n",
        ),
        ("arm", ""),
        ("fast", ""),
        ("slow", ""),
    ]);
    assert_eq!(deps(&workspace, "//:x", "srcs"), ["fast"]);
    assert_eq!(deps(&workspace, "//:y", "srcs"), ["slow"]);
}

/// The error of `//a:x` in a package with this build file.
fn error(build: &str) -> String {
    let workspace = Memory::new([
        ("a/BUILD", build),
        ("a/a.c", ""),
        ("a/sub/BUILD", ""),
        ("a/sub/b.c", ""),
        (
            "tools/defs.bzl",
            "def lib(name, srcs):\n    native.cc_library(\n        name = name,\n        sources = srcs,\n    )\n",
        ),
        ("tools/loop.bzl", "load('//tools:loop2.bzl', 'x')\n"),
        ("tools/loop2.bzl", "load(':loop.bzl', 'x')\n"),
        ("config/BUILD", "filegroup(name = 'group')\n"),
        ("broken/BUILD", "cc_library(name = 'b'\n"),
    ]);
    workspace.error("//a:x")
}

#[test]
fn errors_of_the_language() {
    assert_snapshot!(error("cc_library(\n    name = 'x',\n    srcs = ['a.c'\n)\n"), @r"
    a/BUILD:4:1: parse error: unexpected symbol ')', expected symbol ']'
    4 | )
      | ^
    ");
    assert_snapshot!(error("cc_libary(name = 'x')\n"), @r"
    a/BUILD:1:1: variable `cc_libary` not found, did you mean `cc_library`?
    1 | cc_libary(name = 'x')
      | ^^^^^^^^^
    ");
    assert_snapshot!(error("x = 1 + 'a'\n"), @r"
    a/BUILD:1:5: operation `+` not supported for types `int` and `string`
    1 | x = 1 + 'a'
      |     ^^^^^^^
    ");
    assert_snapshot!(error("fail('no', 1)\n"), @r"
    a/BUILD:1:1: fail: no 1
    1 | fail('no', 1)
      | ^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("load('//tools:def.bzl', 'lib')\n"), @r"
    a/BUILD:1:6: there is no file tools/def.bzl to load
    1 | load('//tools:def.bzl', 'lib')
      |      ^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("load('//tools:defs.bzl', 'lip')\n"), @r"
    a/BUILD:1:26: module has no symbol `lip`, did you mean `lib`?
    1 | load('//tools:defs.bzl', 'lip')
      |                          ^^^^^
    ");
    assert_snapshot!(error("load('@other//tools:defs.bzl', 'lib')\n"), @r"
    a/BUILD:1:6: `@other//tools:defs.bzl` is in another repository, and mica builds one workspace
    1 | load('@other//tools:defs.bzl', 'lib')
      |      ^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("load('//tools:loop.bzl', 'x')\n"), @"load() cycle: tools/loop.bzl -> tools/loop2.bzl -> tools/loop.bzl");
    assert_snapshot!(error("load('//tools:defs.bzl', 'lib')\n\nlib(name = 'x', srcs = [])\n"), @r"
    tools/defs.bzl:2:5: cc_library has no attribute `sources` (did you mean `resources`?)
    2 |     native.cc_library(
      |     ^^^^^^^^^^^^^^^^^^
    called from a/BUILD:3:1
    ");
}

#[test]
fn errors_of_rules() {
    assert_snapshot!(error("cc_library(name = 'x', dep = [])\n"), @r"
    a/BUILD:1:1: cc_library has no attribute `dep` (did you mean `deps`?)
    1 | cc_library(name = 'x', dep = [])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', linkstatic = True)\n"), @r"
    a/BUILD:1:1: linkstatic is not supported: each library is a shared object, and so a layer of its own
    1 | cc_library(name = 'x', linkstatic = True)
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', alwayslink = True)\n"), @r"
    a/BUILD:1:1: cc_library has no attribute `alwayslink`
    1 | cc_library(name = 'x', alwayslink = True)
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("py_binary(name = 'x', srcs = ['a.c'], python_version = 'PY2')\n"), @r"
    a/BUILD:1:56: PY2 is not supported: Python 3 runs it
    1 | py_binary(name = 'x', srcs = ['a.c'], python_version = 'PY2')
      |                                                        ^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', srcs = 'a.c')\n"), @r"
    a/BUILD:1:1: attribute `srcs` of cc_library: a list of strings is wanted here, not string
    1 | cc_library(name = 'x', srcs = 'a.c')
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', srcs = ['a.c', 1])\n"), @r"
    a/BUILD:1:1: attribute `srcs` of cc_library: a list of strings is wanted here, but it holds int
    1 | cc_library(name = 'x', srcs = ['a.c', 1])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(srcs = ['a.c'])\n"), @r"
    a/BUILD:1:1: cc_library needs a `name`, a string
    1 | cc_library(srcs = ['a.c'])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library('x')\n"), @r"
    a/BUILD:1:1: wrong number of positional arguments, expected 0, got 1
    1 | cc_library('x')
      | ^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(name = '../x')\n"), @r"
    a/BUILD:1:1: `:../x` is not a label: a part of its path is empty, `.` or `..`
    1 | cc_library(name = '../x')
      | ^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("alias(name = 'x')\n"), @r"
    a/BUILD:1:1: alias `x` needs the attribute `actual`
    1 | alias(name = 'x')
      | ^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("filegroup(name = 'x')\nfilegroup(name = 'x')\n"), @r"
    a/BUILD:2:1: `x` is declared twice, first at a/BUILD:1:1
    2 | filegroup(name = 'x')
      | ^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("filegroup(name = 'x', srcs = glob(['/etc/*']))\n"), @r"
    a/BUILD:1:30: bad pattern `/etc/*`: it is absolute
    1 | filegroup(name = 'x', srcs = glob(['/etc/*']))
      |                              ^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("filegroup(name = 'x', srcs = glob(['*.h'], allow_empty = False))\n"), @r"
    a/BUILD:1:30: glob matches no file, and allow_empty is False
    1 | filegroup(name = 'x', srcs = glob(['*.h'], allow_empty = False))
      |                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("mica_package(name = 'x', binary = ':y', memory = -1)\nfilegroup(name = 'y')\n"), @r"
    a/BUILD:1:1: `memory` is a positive number
    1 | mica_package(name = 'x', binary = ':y', memory = -1)
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
}

#[test]
fn errors_of_selects() {
    let of = |select: &str| error(&format!("filegroup(name = 'x', srcs = select({select}))\n"));
    assert_snapshot!(of("{'@platforms//os:linx': []}"), @r"
    a/BUILD:1:30: `@platforms//os:linx` is no known constraint (did you mean `linux`?)
    1 | filegroup(name = 'x', srcs = select({'@platforms//os:linx': []}))
      |                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(of("{'@platforms//os:macos': []}"), @r"
    a/BUILD:1:30: no key of this select holds, and it has no //conditions:default
    1 | filegroup(name = 'x', srcs = select({'@platforms//os:macos': []}))
      |                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(of("{'@platforms//os:macos': []}, no_match_error = 'only on a Mac'"), @r"
    a/BUILD:1:30: only on a Mac
    1 | filegroup(name = 'x', srcs = select({'@platforms//os:macos': []}, no_match_error = 'only on a Mac'))
      |                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(of("{'@platforms//os:linux': ['a.c'], 'config//cpu:x86_64': []}"), @r"
    a/BUILD:1:30: both `@platforms//os:linux` and `config//cpu:x86_64` hold in this select
    1 | filegroup(name = 'x', srcs = select({'@platforms//os:linux': ['a.c'], 'config//cpu:x86_64': []}))
      |                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(of("{'//config:group': []}"), @r"
    a/BUILD:1:30: //config:group is a filegroup; a key of select is a config_setting
    1 | filegroup(name = 'x', srcs = select({'//config:group': []}))
      |                              ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(of("{'//config:grop': []}"), @"there is no target //config:grop in config/BUILD (did you mean `//config:group`?)");
    assert_snapshot!(of("{':later': []}"), @r"
    a/BUILD:1:30: //a:later is not declared above this select
    1 | filegroup(name = 'x', srcs = select({':later': []}))
      |                              ^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(of("{'//broken:b': []}"), @r"
    broken/BUILD:2:1: parse error: unexpected new line, expected symbol ')'
    2 |
      | ^
    ");
}

#[test]
fn errors_of_labels() {
    assert_snapshot!(error(""), @"there is no target //a:x in a/BUILD");
    assert_snapshot!(
        Memory::new([]).error("@other//a:x"),
        @"@other//a:x is in another repository, and mica builds one workspace"
    );
    assert_snapshot!(error("cc_library(name = 'xx')\n"), @"there is no target //a:x in a/BUILD (did you mean `//a:xx`?)");
    assert_snapshot!(Memory::new([("app/BUILD", "")]).error("//ap:x"), @"there is no package //ap: no BUILD file in ap (did you mean `//app`?)");
    assert_snapshot!(error("cc_library(\n    name = 'x',\n    srcs = [\n        'A.c',\n    ],\n)\n"), @r"
    a/BUILD:4:9: there is no target and no file //a:A.c (did you mean `a.c`?)
    4 |         'A.c',
      |         ^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', deps = [':y'])\ncc_library(name = 'yy')\n"), @r"
    a/BUILD:1:32: there is no target and no file //a:y (did you mean `x`?)
    1 | cc_library(name = 'x', deps = [':y'])
      |                                ^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', deps = ['//tols:y'])\n"), @r"
    a/BUILD:1:32: there is no package //tols: no BUILD file in tols (did you mean `//tools`?)
    1 | cc_library(name = 'x', deps = ['//tols:y'])
      |                                ^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', deps = ['@numpy//:numpy'])\n"), @r"
    a/BUILD:1:32: @numpy//:numpy is in another repository, and mica builds one workspace
    1 | cc_library(name = 'x', deps = ['@numpy//:numpy'])
      |                                ^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', srcs = ['sub/b.c'])\n"), @r"
    a/BUILD:1:32: `a/sub/b.c` belongs to the package //a/sub: name it from there
    1 | cc_library(name = 'x', srcs = ['sub/b.c'])
      |                                ^^^^^^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', srcs = ['a b.c'])\n"), @r"
    a/BUILD:1:1: attribute `srcs` of cc_library: `a b.c` is not a label: it holds white space
    1 | cc_library(name = 'x', srcs = ['a b.c'])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(
        error("cc_library(name = 'x', deps = [':y'])\ncc_library(name = 'y', deps = [':x'])\n"),
        @"dependency cycle: //a:x -> //a:y -> //a:x"
    );
    assert_snapshot!(error("alias(name = 'x', actual = ':y')\nalias(name = 'y', actual = ':x')\n"), @"dependency cycle: //a:x -> //a:y -> //a:x");
}

#[test]
fn two_shared_objects_of_one_name() {
    let workspace = Memory::new([
        ("a/BUILD", "cc_library(name = 'util', srcs = ['u.c'])\n"),
        ("a/u.c", ""),
        ("b/BUILD", "cc_library(name = 'util', srcs = ['u.c'])\n"),
        ("b/u.c", ""),
        ("BUILD", "cc_binary(name = 'x', srcs = ['x.c'], deps = ['//a:util', '//b:util'])\n"),
        ("x.c", ""),
    ]);
    let error = workspace.error("//:x");
    let message = "//:x needs both `a/libutil.so` and `b/libutil.so`, and a program can load only one of a name: give one another `soname`";
    assert!(error.contains(message), "{error}");
}

#[test]
fn errors_of_analysis() {
    assert_snapshot!(error("cc_library(name = 'x', deps = [':y'])\nfilegroup(name = 'y')\n"), @r"
    a/BUILD:1:32: //a:y is a filegroup, not a library to link (is `data` meant?)
    1 | cc_library(name = 'x', deps = [':y'])
      |                                ^^^^
    ");
    assert_snapshot!(error("cc_library(name = 'x', srcs = ['BUILD'])\n"), @r"
    a/BUILD:1:1: `a/BUILD` is no C or C++ source or header
    1 | cc_library(name = 'x', srcs = ['BUILD'])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("cc_binary(name = 'x')\n"), @r"
    a/BUILD:1:1: //a:x has no source to compile
    1 | cc_binary(name = 'x')
      | ^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("sh_binary(name = 'x', srcs = [])\n"), @r"
    a/BUILD:1:1: //a:x needs one script in `srcs`, not 0
    1 | sh_binary(name = 'x', srcs = [])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("py_binary(name = 'x', srcs = ['a.c', 'BUILD'])\n"), @r"
    a/BUILD:1:1: which of the sources of //a:x is to be run? Name it by `main`
    1 | py_binary(name = 'x', srcs = ['a.c', 'BUILD'])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("genrule(name = 'x', outs = ['o'])\n"), @r"
    a/BUILD:1:1: //a:x needs the attribute `cmd`
    1 | genrule(name = 'x', outs = ['o'])
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("genrule(name = 'x', cmd = 'true')\n"), @r"
    a/BUILD:1:1: //a:x needs the attribute `outs`
    1 | genrule(name = 'x', cmd = 'true')
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("genrule(name = 'x', outs = ['a', 'b'], cmd = 'echo > $@')\n"), @r"
    a/BUILD:1:46: `$@` is one file, and //a:x makes 2
    1 | genrule(name = 'x', outs = ['a', 'b'], cmd = 'echo > $@')
      |                                              ^^^^^^^^^^^
    ");
    assert_snapshot!(error("genrule(name = 'x', outs = ['a'], cmd = 'cat $(location a.c)')\n"), @r"
    a/BUILD:1:1: `$(location a.c)`: //a:a.c is not among the labels of //a:x
    1 | genrule(name = 'x', outs = ['a'], cmd = 'cat $(location a.c)')
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("genrule(name = 'x', outs = ['a'], cmd = '$(CC) -v')\n"), @r"
    a/BUILD:1:1: `$(CC)` is not known here; `$$` gives a `$`
    1 | genrule(name = 'x', outs = ['a'], cmd = '$(CC) -v')
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(error("genrule(name = 'x', outs = ['../a'], cmd = 'true')\n"), @r"
    a/BUILD:1:29: `../a` cannot be the name of an output
    1 | genrule(name = 'x', outs = ['../a'], cmd = 'true')
      |                             ^^^^^^
    ");
    assert_snapshot!(error("config_setting(name = 'x')\n"), @r"
    a/BUILD:1:1: //a:x is a config_setting: nothing to build
    1 | config_setting(name = 'x')
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^
    ");
    assert_snapshot!(
        error("filegroup(name = 'x', data = [':y', ':z'])\n[genrule(name = n, outs = ['o'], cmd = 'echo > $@') for n in ['y', 'z']]\n"),
        @r"
    a/BUILD:2:2: //a:z and //a:y both make `a/o`
    2 | [genrule(name = n, outs = ['o'], cmd = 'echo > $@') for n in ['y', 'z']]
      |  ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    "
    );
    assert_snapshot!(
        error("filegroup(name = 'x', data = [':y', ':z'])\ngenrule(name = 'y', outs = ['o'], cmd = '')\ngenrule(name = 'z', outs = ['o/p'], cmd = '')\n"),
        @r"
    a/BUILD:3:1: //a:z makes `a/o/p`, but //a:y makes a file `a/o`
    3 | genrule(name = 'z', outs = ['o/p'], cmd = '')
      | ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
    "
    );
}
