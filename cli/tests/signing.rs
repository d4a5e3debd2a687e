//! Signed packages, and the policy that asks for them; Debian's minisign judges, both ways.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::Write;
use std::path::PathBuf;
use std::process::Stdio;

use common::{User, World, need_fuse};

/// A world with the keys `a` (mica's), `b` (mica's, with a password) and `c` (minisign's).
fn world_with_keys() -> World {
    let world = World::new(User::Me);
    world.ok(&["key", "new", "a", "--no-password"]);
    with_input(&world, &["key", "new", "b", "--password-stdin"], "secret\n");
    judge(&world, &["-G", "-W", "-p", "c.pub", "-s", "c.key"], true);
    world.write(
        "graph.json",
        r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}]}]}"#,
    );
    world
}

fn with_input(world: &World, args: &[&str], input: &str) -> String {
    let mut child = world.mica(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "mica {args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Debian's minisign, which must find it good or bad.
#[track_caller]
fn judge(world: &World, args: &[&str], good: bool) {
    let output = world.command("minisign").args(args).output();
    let output = output.expect("this test needs minisign");
    assert_eq!(output.status.success(), good, "minisign {args:?}: {output:?}");
}

/// Publishes a version with something of its own in it; the hex digits of its manifest.
fn pack(world: &World, version: &str, more: &[&str]) -> String {
    world.write("data/note.txt", version);
    let args = ["pack", "--graph", "graph.json", "--target", "//:m", "--version", version];
    world.ok(&[&args[..], more].concat());
    let index = std::fs::read_to_string(world.path("registry/packages/m/index.json")).unwrap();
    let entry = index.split(&format!("\"version\":\"{version}\"")).nth(1).unwrap();
    entry.split("blake3:").nth(1).unwrap()[..64].to_owned()
}

fn manifest(world: &World, hex: &str) -> PathBuf {
    world.path("registry/blobs/blake3").join(&hex[..2]).join(hex)
}

fn signatures(world: &World, hex: &str) -> PathBuf {
    world.path("registry/signatures").join(format!("{hex}.minisig"))
}

/// The user's configuration.
fn policy(world: &World, text: &str) {
    world.write("home/.config/mica/config.toml", text);
}

const A_SIGNS_ALL: &str = "[[trust]]\nnames = [\"*\"]\nkeys = [\"../../../a.pub\"]\n";

#[test]
fn minisign_and_mica_take_each_others_keys_and_signatures() {
    let world = world_with_keys();
    let hex = pack(&world, "v1", &["--sign", "a.key"]);
    let (message, signature) = (manifest(&world, &hex), signatures(&world, &hex));
    let (message, signature) = (message.to_str().unwrap(), signature.to_str().unwrap());
    judge(&world, &["-V", "-H", "-p", "a.pub", "-m", message, "-x", signature], true);
    judge(&world, &["-V", "-H", "-p", "c.pub", "-m", message, "-x", signature], false);

    // A key of minisign's signs with mica; so does one with a password.
    let hex = pack(&world, "v2", &["--sign", "c.key"]);
    let (message, signature) = (manifest(&world, &hex), signatures(&world, &hex));
    let (message, signature) = (message.to_str().unwrap(), signature.to_str().unwrap());
    judge(&world, &["-V", "-H", "-p", "c.pub", "-m", message, "-x", signature], true);
    with_input(&world, &["sign", "m@v2", "--key", "b.key", "--password-stdin"], "secret\n");
    let said = world.fails(1, &["sign", "m@v2", "--key", "b.key"]);
    assert!(said.contains("--password-stdin"), "{said}");

    // minisign signs a manifest, with a key of its own and with one of mica's, and mica takes it.
    for key in ["a", "c"] {
        let hex = pack(&world, &format!("by-{key}"), &[]);
        let (message, signature) = (manifest(&world, &hex), signatures(&world, &hex));
        let (message, signature) = (message.to_str().unwrap(), signature.to_str().unwrap());
        judge(
            &world,
            &["-S", "-W", "-s", &format!("{key}.key"), "-m", message, "-x", signature],
            true,
        );
        policy(&world, &A_SIGNS_ALL.replace("a.pub", &format!("{key}.pub")));
        world.ok(&["pull", &format!("m@by-{key}")]);
        policy(&world, &A_SIGNS_ALL.replace("a.pub", "b.pub"));
        let said = world.fails(1, &["pull", &format!("m@by-{key}")]);
        assert!(
            said.contains("has 0 of the 1 signatures") && said.contains("config.toml"),
            "{said}"
        );
    }
    let said = world.fails(1, &["key", "new", "a", "--no-password"]);
    assert!(said.contains("a.key exists"), "{said}");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(world.path("b.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_not_signed_as_the_policy_says_is_not_used() {
    need_fuse();
    let world = world_with_keys();
    let good = pack(&world, "good", &["--sign", "a.key"]);
    let bad = pack(&world, "bad", &[]);
    // Both are here already, and a job of each was made, when the policy comes.
    for version in ["good", "bad"] {
        let reference = format!("m@{version}");
        world.ok(&["run", "--name", version, &reference, "--", "true"]);
        world.ok(&["save", &reference, "-o", &format!("{version}.tar")]);
    }
    policy(&world, A_SIGNS_ALL);
    let refused = |code, args: &[&str]| {
        let said = world.fails(code, args);
        assert!(said.contains("m@bad (blake3:") && said.contains("is not signed"), "{said}");
        assert!(said.contains("config.toml") && said.contains("hint: "), "{said}");
    };
    let all = || {
        world.ok(&["run", "--rm", "--pull", "never", "m@good", "--", "true"]);
        for verb in ["run", "mount"] {
            let said = world
                .fails(if verb == "run" { 125 } else { 1 }, &[verb, "--verify", "never", "m@good"]);
            assert!(said.contains("must be verified") && said.contains("hint: "), "{said}");
        }
        world.ok(&["start", "--attach", "good"]);
        refused(1, &["pull", "m@bad"]);
        for pull in ["never", "missing", "always"] {
            refused(125, &["run", "--rm", "--pull", pull, "m@bad", "--", "true"]);
            refused(1, &["mount", "--pull", pull, "m@bad"]);
        }
        refused(1, &["start", "bad"]);
        refused(1, &["start", "--attach", "bad"]);
    };
    all();
    // A workspace cannot take back what the user asks for.
    world.write("mica.toml", "[[trust]]\nnames = [\"*\"]\nkeys = []\n");
    all();
    std::fs::remove_file(world.path("mica.toml")).unwrap();

    // From archives, into other caches.
    for version in ["good", "bad"] {
        let reference = format!("m@{version}");
        let there =
            |args: &[&str]| world.mica(args).env("MICA_CACHE", world.path("other")).output();
        assert!(there(&["load", "-i", &format!("{version}.tar")]).unwrap().status.success());
        let ran = there(&["run", "--rm", "--pull", "never", &reference, "--", "true"]).unwrap();
        assert_eq!(ran.status.success(), version == "good", "{ran:?}");
    }

    // The signature of one package is worth nothing for another.
    std::fs::copy(signatures(&world, &good), signatures(&world, &bad)).unwrap();
    let said = world.fails(1, &["pull", "m@bad"]);
    assert!(said.contains("has 0 of the 1 signatures"), "{said}");

    // An image that was altered where it lies.
    let inspected = world.ok(&["inspect", "m@good"]).stdout;
    let digest = inspected.split("\"layers\"").nth(1).unwrap().split("blake3:").nth(1).unwrap();
    let image = world.path("cache/blobs").join(&digest[..64]);
    let mut bytes = std::fs::read(&image).unwrap();
    bytes[5000] ^= 1;
    std::fs::remove_file(&image).unwrap();
    std::fs::write(&image, bytes).unwrap();
    let said = world.fails(125, &["run", "--rm", "--pull", "never", "m@good", "--", "true"]);
    assert!(said.contains(&digest[..64]), "{said}");
}

#[test]
fn signers_are_shown_counted_and_healed() {
    let world = world_with_keys();
    let hex = pack(&world, "v1", &["--sign", "a.key"]);
    world.ok(&["pull", "m@v1"]);
    policy(
        &world,
        &(A_SIGNS_ALL.replace("\"../../../a.pub\"", "\"../../../a.pub\", \"../../../c.pub\"")
            + "threshold = 2\n"),
    );
    let said = world.fails(1, &["pull", "m@v1"]);
    assert!(said.contains("has 1 of the 2 signatures"), "{said}");
    // The same key twice is one key.
    world.ok(&["sign", "m@v1", "--key", "a.key"]);
    world.fails(1, &["pull", "m@v1"]);
    world.ok(&["sign", "m@v1", "--key", "c.key"]);
    world.ok(&["pull", "m@v1"]);
    let id = |name: &str| {
        let text = std::fs::read_to_string(world.path(&format!("{name}.pub"))).unwrap();
        text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned()
    };
    let inspected = world.ok(&["inspect", "m@v1"]).stdout;
    let comment = format!("mica m@v1 (blake3:{hex})");
    assert!(inspected.contains(&id("a")) && inspected.contains(&comment), "{inspected}");
    let listed = world.ok(&["images", "--digests"]).stdout;
    assert!(listed.contains(&id("a")) && listed.contains(&id("c")), "{listed}");
    assert!(!listed.contains('?'), "both were verified: {listed}");

    // One flipped bit is found, named and healed.
    let path = world.path("cache/signatures").join(&hex);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let damaged = world.run(&["cache", "verify"]);
    assert_eq!(damaged.code, Some(1));
    assert!(damaged.stdout.contains(path.to_str().unwrap()), "{damaged:?}");
    world.ok(&["cache", "verify", "--repair"]);
    assert_eq!(world.ok(&["cache", "verify"]).stdout, "");
    world.ok(&["pull", "m@v1"]);

    policy(&world, &A_SIGNS_ALL.replace("../../../a.pub", "nowhere.pub"));
    let said = world.fails(1, &["images"]);
    assert!(said.contains("nowhere.pub") && said.contains("[[trust]]"), "{said}");
}
