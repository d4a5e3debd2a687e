//! What a person is shown has no control characters, whoever chose the words.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{User, World, need_fuse};

/// Moves the cursor, clears the screen, sets the title, and turns the direction of writing.
const EVIL: &str = "a\u{1b}[2J\u{1b}]0;owned\u{7}b\r\u{9b}31mc\u{202e}d\u{2028}e";

#[track_caller]
fn is_clean(what: &str, text: &str) {
    let bad =
        |c: &char| c.is_control() && *c != '\n' && *c != '\t' || "\u{202e}\u{2028}".contains(*c);
    assert_eq!(text.chars().find(bad), None, "{what}: {text:?}");
}

#[test]
fn commands_labels_and_names_of_files_are_escaped() {
    need_fuse();
    let world = World::new(User::Me);
    let file = format!("tree/{EVIL}");
    world.write(&file, "x");
    world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
    world.ok(&[
        "run",
        "-d",
        "--name",
        "job",
        "--label",
        &format!("l={EVIL}"),
        "--image",
        "app.xar",
        "--",
        "/bin/sh",
        "-c",
        "exec sleep 300",
        EVIL,
    ]);
    world.ok(&["exec", "-d", "job", "/bin/sh", "-c", "exec sleep 300", EVIL]);
    let renamed = world.path(EVIL);
    std::fs::copy(world.path("app.xar"), &renamed).unwrap();
    let renamed = renamed.to_str().unwrap();
    for words in [
        &["ps", "-a", "--no-trunc"][..],
        &["top", "job"],
        &["image", "ls", "app.xar"],
        &["image", "info", renamed],
        &["events", "--since", "1h", "--until", "0s"],
        &["volume", "ls"],
        &["history", EVIL],
        &["inspect", EVIL],
        &["rm", EVIL],
        &["pull", EVIL],
        &["mount", EVIL],
        &["network", "rm", EVIL],
        &["image", "ls", EVIL],
        &["exec", "job", EVIL],
        &["cp", &format!("job:/{EVIL}"), "x"],
    ] {
        let ran = world.run(words);
        is_clean(&format!("{words:?}"), &ran.stderr);
        is_clean(&format!("{words:?}"), &ran.stdout);
        assert!(!ran.stdout.is_empty() || !ran.stderr.is_empty(), "{words:?}");
    }
    // Where it is to be read by programs it is what it is, and what a job prints is the job's.
    let json: serde_json::Value =
        serde_json::from_str(&world.ok(&["ps", "--json"]).stdout).unwrap();
    assert_eq!(json[0]["config"]["labels"]["l"], EVIL);
    world.ok(&["rm", "-f", "job"]);
}
