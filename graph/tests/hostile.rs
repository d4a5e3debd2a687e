//! Build files that try to exhaust the evaluator.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod memory;

use std::time::{Duration, Instant};

use memory::Memory;

/// Loading `text` as a build file fails, with this in the message, and soon.
fn refused(text: &str, message: &str) {
    let started = Instant::now();
    let error = Memory::new([("BUILD", text)]).error("//:x");
    assert!(error.contains(message), "{error}");
    assert!(error.len() < 4000, "an error of {} bytes", error.len());
    assert!(started.elapsed() < Duration::from_secs(120));
}

#[test]
fn size() {
    let error = Memory::new([("BUILD", "#".repeat(10 << 20).as_str())]).error("//:x");
    insta::assert_snapshot!(error, @"BUILD has 10485760 bytes; a build file may have 2097152");
}

#[test]
fn nesting() {
    refused(&"(".repeat(100_000), "nested too deeply");
    refused(&format!("x = {}{}", "[".repeat(100_000), "]".repeat(100_000)), "nested too deeply");
    refused(&format!("x = {}1", "-".repeat(100_000)), "too long");
    refused(&format!("x = {}1", "not ".repeat(100_000)), "too long");
    refused(&format!("x = 1{}", " + 1".repeat(100_000)), "too long");
    refused(&format!("x = {}1", "1 if 1 else ".repeat(100_000)), "too long");
    refused(&format!("x = {}1", "lambda: ".repeat(100_000)), "too long");
    refused(&format!("x = a{}", ".a".repeat(100_000)), "too long");
    refused(&format!("x = a{}", "()".repeat(100_000)), "too long");
    refused(&format!("x = a{}", "[0]".repeat(100_000)), "too long");
    let ifs: String = (0..500).map(|depth| format!("{}if 1:\n", " ".repeat(depth + 1))).collect();
    refused(&format!("def f():\n{ifs}"), "nested too deeply");
    let elifs = "  elif 1:\n    pass\n".repeat(50_000);
    refused(&format!("def f():\n  if 1:\n    pass\n{elifs}"), "too many `elif`");
}

#[test]
fn what_is_within_the_bounds_is_evaluated() {
    let deep = format!("x = {}{}\n", "[".repeat(150), "]".repeat(150));
    let long = format!("y = 1{}\n", " + 1".repeat(1_900));
    let list = format!("z = [{}]\n", "'a' + 'b', ".repeat(50_000));
    let text = format!("{deep}{long}{list}filegroup(name = 'x')\n");
    Memory::new([("BUILD", text.as_str())]).load("//:x").unwrap();
}

#[test]
fn recursion_and_endless_work() {
    refused("def f():\n  f()\nf()\n", "overflow");
    refused("def f(x):\n  return [f(x) for _ in range(10)]\nf(1)\n", "overflow");
    let loops =
        "def f():\n  for a in range(100000):\n    for b in range(100000):\n      pass\nf()\n";
    refused(loops, "exceeded");
    refused(
        "def f():\n  x = []\n  a = 'a' * 10000\n  for _ in range(100000):\n    x.append(a + 'b')\nf()\n",
        "exceeded",
    );
}

#[test]
fn a_ladder_of_loads() {
    let files: Vec<_> = (0..1_000)
        .map(|n| (format!("f{n}.bzl"), format!("load(':f{}.bzl', 'x')\n", n + 1)))
        .collect();
    let mut workspace = vec![("BUILD", "load(':f0.bzl', 'x')\n")];
    workspace.extend(files.iter().map(|(path, text)| (path.as_str(), text.as_str())));
    let error = Memory::new(workspace).error("//:x");
    assert!(error.contains("nested deeper than 64 files"), "{error}");
}

#[test]
fn odd_text() {
    for text in [
        "\0",
        "\u{feff}x",
        "'",
        "'''",
        "\"\\",
        "a\\",
        "x = '\\",
        "#",
        "\t\tx",
        "]",
        ")))",
        "}",
        ",,,",
        "é = 1",
        "x = 'é",
        "load(",
        "load()",
        "load('')",
        "load('x')",
        "load('//:', 'x')",
        "load('..//a', 'b')",
    ] {
        let error = Memory::new([("BUILD", text)]).error("//:x");
        assert!(error.contains("BUILD"), "{text:?}: {error}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_gives_an_error_or_targets(text in "[ \n\t()\\[\\]{}'\"#,:=a-z0-9+*@/\\\\é-]{0,200}") {
        drop(Memory::new([("BUILD", text.as_str())]).load("//:x"));
    }
}
