//! Looking after a node's images, and after single images.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::path::PathBuf;
use std::process::Command;

use common::{User, World, need_fuse};

/// A world whose cache has the package A@v1.
fn pulled() -> World {
    let world = World::new(User::Me);
    world.workspace("monorepo");
    let pack = ["pack", "--workspace", "monorepo", "--target", "//app:A", "--version", "v1"];
    world.ok(&pack);
    world.ok(&["pull", "A@v1"]);
    world
}

fn blobs(world: &World) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(world.path("cache/blobs")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_flipped_bit_in_the_cache_is_found_named_and_healed() {
    let world = pulled();
    assert_eq!(world.ok(&["cache", "verify"]).stdout, "");
    let victim = blobs(&world).remove(0);
    let mut bytes = std::fs::read(&victim).unwrap();
    bytes[4200] ^= 4;
    std::fs::remove_file(&victim).unwrap();
    std::fs::write(&victim, bytes).unwrap();
    let ran = world.run(&["cache", "verify"]);
    assert_eq!((ran.code, ran.stdout.trim()), (Some(1), victim.to_str().unwrap()), "{ran:?}");
    world.ok(&["cache", "verify", "--repair"]);
    assert_eq!(world.ok(&["cache", "verify"]).stdout, "");
    assert!(victim.exists());
}

#[test]
fn prune_never_takes_what_a_job_uses() {
    need_fuse();
    let world = pulled();
    let id = world.ok(&["run", "-d", "--entrypoint", "/bin/sleep", "A@v1", "60"]).stdout;
    let before = blobs(&world).len();
    world.ok(&["prune", "--all", "--force"]);
    assert_eq!(blobs(&world).len(), before);
    world.ok(&["rm", "--force", id.trim()]);
    let reclaimed = world.ok(&["prune", "--all", "--force"]).stdout;
    assert!(reclaimed.trim().parse::<u64>().unwrap() > 6 * 4096, "{reclaimed}");
    assert!(blobs(&world).is_empty());
    assert!(world.ok(&["df"]).stdout.contains("reclaimable"));
    assert_eq!(world.ok(&["images", "-q"]).stdout, "");
}

#[test]
fn a_package_moves_on_to_another_registry() {
    let world = pulled();
    let pushed = world.ok(&["push", "A@v1", "--registry", "other", "--tag", "stable"]);
    assert!(pushed.stderr.contains("sent 6 of 6 layers"), "{pushed:?}");
    let again = world.ok(&["push", "A@v1", "--registry", "other"]);
    assert!(again.stderr.contains("sent 0 of 6 layers"), "{again:?}");
    assert_eq!(pushed.stdout, again.stdout, "the digest of one manifest");
    world.ok(&["rm-image", "A@v1"]);
    world.ok(&["pull", "A@stable", "--registry", "other"]);
    assert_eq!(world.ok(&["images", "-q"]).stdout, "A@v1\n");
}

#[test]
fn an_image_is_unpacked_verified_and_compared() {
    let world = World::new(User::Me);
    world.write("tree/etc/a", "one\n");
    world.write("tree/bin/big", &"some text that compresses\n".repeat(40_000));
    std::os::unix::fs::symlink("etc/a", world.path("tree/link")).unwrap();
    world.ok(&["image", "pack", "tree", "-o", "a.xar", "--verify"]);
    world.ok(&["image", "verify", "a.xar"]);
    world.ok(&["image", "unpack", "a.xar", "out"]);
    let mut diff = Command::new("diff");
    diff.args(["-r", "--no-dereference"]).arg(world.path("tree")).arg(world.path("out"));
    assert!(diff.status().unwrap().success());
    let said = world.fails(1, &["image", "unpack", "a.xar", "out"]);
    assert!(said.contains("not empty"), "{said}");

    world.write("tree/etc/a", "two\n");
    world.ok(&["image", "pack", "tree", "-o", "b.xar", "--previous", "a.xar"]);
    let delta = world.ok(&["image", "delta", "a.xar", "b.xar", "--json"]).stdout;
    let number = |key: &str| -> u64 {
        let line = delta.lines().find(|line| line.contains(&format!("\"{key}\""))).unwrap();
        line.split(':').nth(1).unwrap().trim().trim_end_matches(',').parse().unwrap()
    };
    assert!(
        number("bytes") < number("total") && number("new_blocks") < number("blocks"),
        "{delta}"
    );

    let mut bytes = std::fs::read(world.path("a.xar")).unwrap();
    bytes[4096 + 100..4096 + 200].fill(0xff);
    std::fs::write(world.path("bad.xar"), bytes).unwrap();
    let ran = world.run(&["image", "verify", "bad.xar"]);
    assert!(ran.code == Some(1) && ran.stdout.contains("/bin/big"), "{ran:?}");
}
