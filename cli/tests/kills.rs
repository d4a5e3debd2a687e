//! kill -9 of `save`, `load` and `prune` at random moments: whatever is left is whole, and the next command does it all.
//! (`pull` and `push` are killed by the tests of the crate `fetcher`.)
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests, outside of test functions

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use common::{User, World, noise};

/// A package of three modules in two versions, which differ in one of them; both are in the cache.
fn packed() -> World {
    let world = World::new(User::Me);
    world.write("ws/WORKSPACE", "");
    world.write(
        "ws/BUILD",
        "sh_binary(name = \"A\", srcs = [\"a.sh\"], data = [\":x\", \":y\"])\n\
         filegroup(name = \"x\", srcs = [\"x.bin\"])\nfilegroup(name = \"y\", srcs = [\"y.bin\"])\n",
    );
    world.write("ws/a.sh", "#!/bin/sh\n");
    let bytes = noise(6_000_000);
    std::fs::write(world.path("ws/x.bin"), &bytes[..3_000_000]).unwrap();
    for (version, part) in [("one", &bytes[3_000_000..]), ("two", &bytes[3_100_000..])] {
        std::fs::write(world.path("ws/y.bin"), part).unwrap();
        let pack = ["pack", "--workspace", "ws", "--target", "//:A", "--version", version, "-q"];
        world.ok(&pack);
        world.ok(&["pull", &format!("A@{version}"), "-q"]);
    }
    world
}

/// Moments that differ from run to run, up to a bit more than a command takes; the seed is printed.
struct Moments {
    state: u64,
    longest: Duration,
}

impl Moments {
    fn of(run: impl FnOnce()) -> Self {
        let since = Instant::now();
        run();
        let state = UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        println!("seed {state}");
        Self { state, longest: since.elapsed() * 11 / 10 }
    }

    /// Starts a command and kills it.
    fn kill(&mut self, mut command: Command) {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let share = (self.state >> 40) as f64 / f64::from(1 << 24);
        std::thread::sleep(self.longest.mul_f64(share));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// `mica` with a cache of its own.
fn with_cache(world: &World, cache: &str, args: &[&str]) -> Command {
    let mut command = world.mica(args);
    command.env("MICA_CACHE", world.path(cache));
    command
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

#[test]
fn a_killed_save_leaves_the_file_that_was_there() {
    let world = packed();
    let save = ["save", "A@one", "A@two", "-o", "out/new.tar"];
    std::fs::create_dir(world.path("out")).unwrap();
    let mut moments = Moments::of(|| drop(world.ok(&save)));
    let whole = std::fs::read(world.path("out/new.tar")).unwrap();
    for round in 0..40 {
        let before = round % 2 == 0;
        match before {
            true => std::fs::write(world.path("out/new.tar"), "before").unwrap(),
            false => std::fs::remove_file(world.path("out/new.tar")).unwrap_or_default(),
        }
        moments.kill(world.mica(&save));
        match std::fs::read(world.path("out/new.tar")) {
            Ok(bytes) => assert!(bytes == whole || (before && bytes == b"before"), "{round}"),
            Err(_) => assert!(!before, "{round}"),
        }
        // What has a name is there for the moment between that and the rename.
        assert!(names(&world.path("out")).len() <= 2, "{:?}", names(&world.path("out")));
        for left in names(&world.path("out")).iter().filter(|name| *name != "new.tar") {
            std::fs::remove_file(world.path("out").join(left)).unwrap();
        }
    }
    world.ok(&["cache", "verify"]);
    world.ok(&save);
    assert!(std::fs::read(world.path("out/new.tar")).unwrap() == whole);
}

#[test]
fn a_killed_load_goes_on() {
    let world = packed();
    world.ok(&["save", "A@one", "A@two", "-o", "both.tar"]);
    let load = || with_cache(&world, "other", &["load", "-i", "both.tar"]);
    let mut moments =
        Moments::of(|| drop(succeeds(with_cache(&world, "first", &["load", "-i", "both.tar"]))));
    for round in 0..40 {
        moments.kill(load());
        succeeds(with_cache(&world, "other", &["cache", "verify"]));
        if round % 8 == 7 {
            succeeds(load());
            let said = succeeds(with_cache(&world, "other", &["cache", "verify"]));
            assert!(said.contains("verified"), "{said}");
            succeeds(with_cache(&world, "other", &["save", "A@one", "A@two", "-o", "again.tar"]));
            assert!(std::fs::metadata(world.path("again.tar")).unwrap().len() > 8_000_000);
            succeeds(with_cache(&world, "other", &["prune", "--all", "--force"]));
            for folder in ["blobs", "manifests", "incoming", "leases", "packages"] {
                assert_eq!(names(&world.path("other").join(folder)), [""; 0], "{folder}");
            }
        }
    }
}

#[test]
fn a_killed_prune_removes_whole_files() {
    let world = packed();
    world.ok(&["save", "A@one", "A@two", "-o", "both.tar"]);
    let prune = ["prune", "--all", "--force"];
    let load = || succeeds(with_cache(&world, "other", &["load", "-i", "both.tar"]));
    load();
    let mut moments = Moments::of(|| drop(succeeds(with_cache(&world, "other", &prune))));
    for round in 0..30 {
        load();
        moments.kill(with_cache(&world, "other", &prune));
        succeeds(with_cache(&world, "other", &["cache", "verify"]));
        // What is still known is known whole, or can be had again.
        succeeds(with_cache(&world, "other", &["images"]));
        if round % 10 == 9 {
            succeeds(with_cache(&world, "other", &prune));
            for folder in ["blobs", "manifests", "incoming", "leases", "packages"] {
                assert_eq!(names(&world.path("other").join(folder)), [""; 0], "{folder}");
            }
        }
    }
}
