//! Packages by OCI registries, as files, and lazily; containerd and skopeo judge.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{User, World, need_fuse};

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_long(what: &str, mut condition: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < until, "{what} did not come up in 60 seconds");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Debian's docker-registry; its address.
fn docker_registry(world: &World) -> (Server, String) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = world.path("oci");
    let config = format!(
        "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
         storage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: {address}, secret: x}}\n",
        dir.display()
    );
    world.write("registry.yml", &config);
    let mut command = Command::new("docker-registry");
    command.arg("serve").arg(world.path("registry.yml")).stdout(Stdio::null());
    let child = command.stderr(Stdio::null()).spawn();
    let server = Server(child.expect("docker-registry is needed by the tests"));
    wait_long("docker-registry", || TcpStream::connect(address).is_ok());
    (server, address.to_string())
}

/// A workspace with one program that needs no other file.
fn static_program(world: &World) {
    world.write("ws/WORKSPACE", "");
    world.write(
        "ws/BUILD",
        "sh_binary(name = \"hello\", srcs = [\"hello.sh\"], data = [\":lib\"])\nfilegroup(name = \"lib\", srcs = [\"greet\"])\n",
    );
    world.write("ws/hello.sh", "#!/bin/sh\nexec \"$(dirname \"$0\")/greet\"\n");
    world.write(
        "ws/greet.c",
        "#include <stdio.h>\nint main(void) { puts(\"hello from a layer\"); }\n",
    );
    let built = Command::new("cc")
        .args(["-static", "-o", "greet", "greet.c"])
        .current_dir(world.path("ws"))
        .status()
        .expect("a C compiler is needed by the tests");
    assert!(built.success());
    let script = world.path("ws/hello.sh");
    std::fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    world.hand_over();
}

fn pack(world: &World, version: &str, registry: &str) {
    let mut command = world.mica(&[
        "pack",
        "-q",
        "--target",
        "//:hello",
        "--version",
        version,
        "--registry",
        registry,
    ]);
    let done = command.current_dir(world.path("ws")).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn an_oci_registry_serves_mica_skopeo_and_containerd() {
    need_fuse();
    let root = rustix::process::geteuid().is_root();
    assert!(root, "this test needs root: containerd mounts the layers it unpacks");
    let world = World::new(User::Me);
    let (_server, address) = docker_registry(&world);
    let registry = format!("oci://{address}/team");
    static_program(&world);
    pack(&world, "v1", &registry);
    world.write("ws/hello.sh", "#!/bin/sh\n# changed\nexec \"$(dirname \"$0\")/greet\"\n");
    let script = world.path("ws/hello.sh");
    std::fs::set_permissions(script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    pack(&world, "v2", &registry);
    let with = |args: &[&str]| {
        let mut all = args.to_vec();
        all.extend(["--registry", registry.as_str()]);
        world.ok(&all).stdout
    };
    with(&["tag", "hello@v1", "stable"]);
    assert!(with(&["images", "--remote"]).contains("stable"));
    let history: serde_json::Value =
        serde_json::from_str(&with(&["history", "hello", "--json"])).unwrap();
    assert_eq!(history[0]["version"], "v2");
    assert_eq!(history[1]["tags"][0], "stable");
    with(&["pull", "-q", "hello@stable"]);
    assert!(with(&["pull", "--explain", "hello"]).contains("LAYER"));
    assert_eq!(world.ok(&["run", "--rm", "hello@v1"]).stdout, "hello from a layer\n");

    // Stock containerd, told only what turns the layers into tars.
    let dir = world.path("containerd");
    let socket = dir.join("sock");
    let config = format!(
        "version = 2\nroot = \"{0}/root\"\nstate = \"{0}/state\"\n\
         disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \"{0}/sock\"\n\
         [stream_processors.\"mica\"]\naccepts = [\"application/vnd.mica.layer.v1.squashfs\"]\n\
         returns = \"application/vnd.oci.image.layer.v1.tar\"\npath = \"{1}\"\nargs = [\"image\", \"to-tar\"]\n",
        dir.display(),
        world.binary().display()
    );
    world.write("containerd/config.toml", &config);
    let daemon = Command::new("containerd")
        .arg("-c")
        .arg(dir.join("config.toml"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let daemon = Server(daemon.expect("containerd is needed by the tests"));
    let ctr =
        |args: &[&str]| Command::new("ctr").arg("-a").arg(&socket).args(args).output().unwrap();
    wait_long("containerd", || ctr(&["version"]).status.success());
    let image = format!("{address}/team/hello:v2");
    let pulled = ctr(&["images", "pull", "--plain-http", "--snapshotter", "native", &image]);
    assert!(pulled.status.success(), "{}", String::from_utf8_lossy(&pulled.stderr));
    let id = format!("mica-test-{}", std::process::id());
    let ran = ctr(&["run", "--rm", "--snapshotter", "native", &image, &id, "/greet"]);
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    drop(daemon);
    assert_eq!(said, "hello from a layer\n", "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn packages_travel_as_files() {
    let world = World::new(User::Ordinary);
    static_program(&world);
    let registry = world.path("registry").display().to_string();
    pack(&world, "v1", &registry);
    world.write("ws/hello.sh", "#!/bin/sh\n# changed\nexec \"$(dirname \"$0\")/greet\"\n");
    pack(&world, "v2", &registry);
    world.ok(&["pull", "-q", "hello@v1"]);
    world.ok(&["pull", "-q", "hello@v2"]);
    world.ok(&["save", "hello@v1", "hello@v2", "-o", "all.tar"]);
    world.ok(&["save", "hello@v2", "--since", "hello@v1", "-o", "diff.tar"]);
    let inspected = Command::new("skopeo")
        .args(["inspect", &format!("oci-archive:{}:hello:v1", world.path("all.tar").display())])
        .output()
        .expect("skopeo is needed by the tests");
    assert!(inspected.status.success(), "{}", String::from_utf8_lossy(&inspected.stderr));
    let forget = || std::fs::remove_dir_all(world.path("cache")).unwrap();
    forget();
    assert_eq!(world.ok(&["load", "-i", "all.tar"]).stdout, "hello@v1\nhello@v2\n");
    world.ok(&["cache", "verify"]);
    forget();
    let error = world.fails(1, &["load", "-i", "diff.tar"]);
    assert!(error.contains("hint: it was saved with --since"), "{error}");
    // From a pipe, and with one byte wrong.
    world.ok(&["pull", "-q", "hello@v1"]);
    let piped =
        world.command("sh").args(["-c", "cat diff.tar | \"$0\" load"]).arg(world.binary()).output();
    let piped = piped.unwrap();
    assert_eq!(String::from_utf8_lossy(&piped.stdout), "hello@v2\n");
    forget();
    let mut bytes = std::fs::read(world.path("all.tar")).unwrap();
    let end = bytes.len() - 3000;
    bytes[end] ^= 1;
    std::fs::write(world.path("bad.tar"), bytes).unwrap();
    let error = world.fails(1, &["load", "-i", "bad.tar"]);
    assert!(error.contains("damaged"), "{error}");
    let error = world.fails(1, &["load", "-i", "ws/hello.sh"]);
    assert!(error.contains("cannot load"), "{error}");
}

fn serve(world: &World, root: &Path) -> (Server, String) {
    use std::io::BufRead;
    let mut command = world.mica(&["serve", "--listen", "127.0.0.1:0", "--root"]);
    let mut child = command.arg(root).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    (Server(child), line.trim().to_owned())
}

#[test]
fn a_job_starts_before_its_images_are_here() {
    need_fuse();
    for user in common::USERS {
        let world = World::new(user);
        static_program(&world);
        // Large enough for a chunk table, and the larger part of it not needed.
        let noise: Vec<u8> =
            (0..6_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        std::fs::write(world.path("ws/noise.bin"), noise).unwrap();
        world.write("ws/BUILD", "sh_binary(name = \"hello\", srcs = [\"hello.sh\"], data = [\"greet\", \"noise.bin\"])\n");
        world.hand_over();
        let root = world.path("registry");
        pack(&world, "v1", &root.display().to_string());
        let (server, url) = serve(&world, &root);
        let fetched = world.ok(&["pull", "--lazy", "hello", "--registry", &url]).stderr;
        assert!(fetched.contains("lazy "), "{fetched}");
        let run = ["run", "--rm", "--lazy", "--lazy-deadline", "1", "--registry", &url, "hello"];
        drop(server);
        let error = world.fails(125, &run);
        assert!(error.contains("cannot fetch chunk"), "{error}");
        world.fails(1, &["pull", "-q", "hello", "--registry", &url]);
        let (server, url) = serve(&world, &root);
        let run = ["run", "--rm", "--lazy", "--registry", &url, "hello"];
        assert_eq!(world.ok(&run).stdout, "hello from a layer\n");
        drop(server);
        world.ends_clean();
        world.ok(&["cache", "verify"]);
    }
}
