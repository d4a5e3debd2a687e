//! Jobs that start before their images are here, from a server that may not answer.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::BufRead;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{User, World, need_fuse};

/// A server that is stopped with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn serve(world: &World) -> (Server, String) {
    let mut command = world.mica(&["serve", "--listen", "127.0.0.1:0", "--root"]);
    let mut child = command.arg(world.path("registry")).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Server(child), line.trim().to_owned())
}

/// A published package with a static program, and more that the program doesn't need.
fn published(user: User) -> World {
    let world = World::new(user);
    world.write("ws/WORKSPACE", "");
    world.write(
        "ws/BUILD",
        "sh_binary(name = \"hello\", srcs = [\"hello.sh\"], data = [\"greet\", \"noise.bin\"])\n",
    );
    world.write("ws/hello.sh", "#!/bin/sh\nexec \"$(dirname \"$0\")/greet\"\n");
    world.write("ws/greet.c", "#include <stdio.h>\nint main(void) { puts(\"hello\"); }\n");
    let mut cc = Command::new("cc");
    cc.args(["-static", "-o", "greet", "greet.c"]).current_dir(world.path("ws"));
    assert!(cc.status().expect("a C compiler is needed by the tests").success());
    std::fs::write(world.path("ws/noise.bin"), common::noise(6_000_000)).unwrap();
    executable(&world.path("ws/hello.sh"));
    world.hand_over();
    let pack = ["pack", "-q", "--target", "//:hello", "--version", "v1"];
    let done = world.mica(&pack).current_dir(world.path("ws")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    world
}

fn executable(path: &Path) {
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// The command has spoken HTTP before it starts the supervisor, and the supervisor speaks it again.
#[test]
fn uncached_starts_over_http_in_the_foreground() {
    need_fuse();
    for user in common::USERS {
        let world = published(user);
        let (server, url) = serve(&world);
        for round in 0..6 {
            let cache = world.path(&format!("cache{round}"));
            let mut run = world.mica(&["run", "--rm", "--lazy", "--registry", &url, "hello"]);
            let ran = common::within(60, run.env("MICA_CACHE", cache));
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "hello\n"), "{ran:?}");
        }
        drop(server);
        world.ends_clean();
    }
}

#[test]
fn the_deadline_of_a_lazy_start_is_its_deadline() {
    need_fuse();
    let world = published(User::Me);
    let (server, url) = serve(&world);
    world.ok(&["pull", "--lazy", "hello", "--registry", &url]);
    let pid = rustix::process::Pid::from_child(&server.0);
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let since = Instant::now();
    let run = ["run", "--rm", "--lazy", "--lazy-deadline", "3", "--registry", &url, "hello@v1"];
    let ran = world.within(60, &run);
    let took = since.elapsed();
    assert_eq!(ran.code, Some(125), "{ran:?}");
    assert!(ran.stderr.contains("cannot fetch chunk"), "{ran:?}");
    let expected = Duration::from_secs(3)..Duration::from_secs(6);
    assert!(expected.contains(&took), "{took:?}");
}
