//! A version never changes its content, whichever way other content comes.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use common::{USERS, World};

/// One of the two places that a version comes from, with a cache, an archive and a registry of its own.
struct Place {
    folder: &'static str,
    archive: &'static str,
    cache: &'static str,
    registry: &'static str,
}

const ONE: Place = Place { folder: "one", archive: "one.tar", cache: "cache-1", registry: "reg-1" };
const TWO: Place = Place { folder: "two", archive: "two.tar", cache: "cache-2", registry: "reg-2" };

impl Place {
    fn import(&self) -> Vec<&'static str> {
        vec!["import", self.folder, "--name", "a", "--version", "v1"]
    }

    fn load(&self) -> Vec<&'static str> {
        vec!["load", "-i", self.archive]
    }

    fn pull(&self) -> Vec<&'static str> {
        vec!["pull", "a@v1", "--registry", self.registry]
    }

    fn make(&self, world: &World) {
        let save = vec!["save", "a@v1", "-o", self.archive];
        let push = vec!["push", "a@v1", "--registry", self.registry];
        for args in [self.import(), save, push] {
            let mut command = world.mica(&args);
            let output = command.env("MICA_CACHE", world.path(self.cache)).output().unwrap();
            assert!(output.status.success(), "{args:?} {output:?}");
        }
    }
}

#[test]
fn other_content_under_a_known_version_is_refused() {
    for user in USERS {
        let world = World::new(user);
        for place in [ONE, TWO] {
            world.write(&format!("{}/f", place.folder), place.folder);
            world.hand_over();
            place.make(&world);
        }
        world.ok(&[&ONE.import()[..], &["--tag", "stable"]].concat());
        let content = || world.ok(&["inspect", "a@stable"]).stdout;
        let before = content();
        for way in [TWO.import(), TWO.load(), TWO.pull()] {
            let said = world.fails(1, &way);
            assert_eq!(said.matches("blake3:").count(), 2, "both digests: {said}");
            assert!(said.contains("--replace"), "{said}");
            assert_eq!(content(), before, "{way:?}");
        }
        // The same once more is no other content.
        for way in [ONE.import(), ONE.load(), ONE.pull()] {
            world.ok(&way);
            assert_eq!(content(), before, "{way:?}");
        }
        for (there, back) in
            [(TWO.import(), ONE.pull()), (TWO.load(), ONE.import()), (TWO.pull(), ONE.load())]
        {
            world.ok(&[&there[..], &["--replace"]].concat());
            assert_ne!(content(), before, "{there:?}");
            world.ok(&[&back[..], &["--replace"]].concat());
            assert_eq!(content(), before, "{back:?}");
        }
    }
}
