//! Packing, publishing, serving and pulling: what moves, and what people are told when something is wrong.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use common::{User, World, need_fuse, noise};

/// `mica serve` on a free port; killed when dropped.
struct Served {
    child: Child,
    url: String,
}

impl Served {
    fn new(world: &World, more: &[&str]) -> Self {
        let mut args = vec!["serve", "--root", "registry", "--listen", "127.0.0.1:0"];
        if more.is_empty() {
            args.push("--allow-anonymous");
        }
        args.extend(more);
        let mut child = world.mica(&args).stdout(Stdio::piped()).spawn().unwrap();
        let mut url = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
        assert!(url.starts_with("http://"), "{url}");
        Self { child, url: url.trim().to_owned() }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn packed_monorepo() -> (World, PathBuf, String) {
    let world = World::new(User::Me);
    let workspace = world.workspace("monorepo");
    let packed = pack(&world);
    (world, workspace, packed.stdout.trim().to_owned())
}

fn pack(world: &World) -> common::Ran {
    world.ok(&["pack", "--workspace", "monorepo", "--target", "//app:A"])
}

fn images(registry: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in std::fs::read_dir(registry.join("blobs/blake3")).unwrap().flatten() {
        found.extend(std::fs::read_dir(dir.path()).unwrap().flatten().map(|entry| entry.path()));
    }
    found.sort();
    found
}

#[test]
fn publishing_on_this_machine_needs_the_token_that_serve_shows() {
    let (world, _, first) = packed_monorepo();
    world.ok(&["pull", &first]);
    let mut command = world.mica(&["serve", "--root", "other", "--listen", "127.0.0.1:0"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut url, mut said) = (String::new(), String::new());
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut url).unwrap();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let served = Served { child, url: url.trim().to_owned() };
    let (_, token) = said.trim().split_once("MICA_TOKEN=").unwrap();
    let push = |token: Option<&str>| {
        let mut command = world.mica(&["push", &first, "--registry", &served.url]);
        command.envs(token.map(|token| ("MICA_TOKEN", token))).output().unwrap()
    };
    assert!(!push(None).status.success());
    let wrong = push(Some("wrong"));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("token is wrong"), "{wrong:?}");
    assert!(push(Some(token)).status.success(), "{token}");
}

#[test]
fn a_changed_line_moves_one_layer() {
    let (world, workspace, first) = packed_monorepo();
    assert_eq!(first.len(), "A@".len() + 40, "the version is the commit: {first}");
    let before = images(&world.path("registry")).len();
    let served = Served::new(&world, &[]);
    let pulled = world.ok(&["pull", &first, "--registry", &served.url]);
    assert_eq!(pulled.stderr.matches("fetched").count(), 6, "{pulled:?}");
    assert!(pulled.stdout.starts_with("blake3:"), "{pulled:?}");

    let source = workspace.join("lib/e/E.c");
    let text = std::fs::read_to_string(&source).unwrap();
    std::fs::write(&source, text + "\nint e_added(void) { return 1; }\n").unwrap();
    let commit = world.commit(&workspace, "E grows");
    let packed = pack(&world);
    assert_eq!(packed.stderr.matches("packed").count(), 1, "{packed:?}");
    assert_eq!(packed.stdout.trim(), format!("A@{commit}"));
    assert_eq!(images(&world.path("registry")).len(), before + 2, "one image and one manifest");

    let pulled = world.ok(&["pull", &format!("A@{}", &commit[..7]), "--registry", &served.url]);
    assert_eq!(pulled.stderr.matches("fetched").count(), 1, "{pulled:?}");
    assert_eq!(pulled.stderr.matches("cached").count(), 5, "{pulled:?}");
    assert!(
        world.ok(&["pull", "A", "--registry", &served.url]).stderr.matches("fetched").count() == 0
    );
    assert_eq!(world.ok(&["images", "-q"]).stdout.lines().count(), 2);
}

#[test]
fn packing_again_writes_nothing_and_needs_a_new_version_for_new_content() {
    let (world, workspace, first) = packed_monorepo();
    let before = images(&world.path("registry"));
    let again = pack(&world);
    assert_eq!(again.stdout.trim(), first);
    assert_eq!(images(&world.path("registry")), before);

    let script = workspace.join("app/A.sh");
    let text = std::fs::read_to_string(&script).unwrap();
    std::fs::write(&script, text + "# changed\n").unwrap();
    let dirty = pack(&world).stdout;
    assert!(dirty.starts_with(&format!("{first}-dirty.")), "{dirty}");
    let commit = first.strip_prefix("A@").unwrap();
    let args = ["pack", "--workspace", "monorepo", "--target", "//app:A", "--version", commit];
    let said = world.fails(1, &args);
    assert!(
        said.contains(commit) && said.contains("blake3:"),
        "the digest that holds it is named: {said}"
    );
    let dry = world.ok(&["pack", "--workspace", "monorepo", "--target", "//app:A", "--dry-run"]);
    assert!(dry.stdout.is_empty() && dry.stderr.matches("would reuse").count() == 6, "{dry:?}");
}

/// A graph of one module, `m`, of the files in `data`.
fn one_module(world: &World) {
    world.write("data/note.txt", "one\n");
    world.write(
        "graph.json",
        r#"{"modules": [{"label": "//:m", "outputs": [{"path": "", "source": "data"}]}]}"#,
    );
}

fn pack_module(world: &World, version: &str) {
    world.ok(&["pack", "--graph", "graph.json", "--target", "//:m", "--version", version]);
}

#[test]
fn of_a_large_layer_only_the_changed_chunks_are_fetched() {
    let world = World::new(User::Me);
    one_module(&world);
    std::fs::write(world.path("data/model.bin"), noise(4 << 20)).unwrap();
    pack_module(&world, "v1");
    world.ok(&["pull", "m@v1"]);
    world.write("data/note.txt", "two\n");
    pack_module(&world, "v2");
    let pulled = world.ok(&["pull", "m@v2"]).stderr;
    assert!(pulled.contains("fetched") && pulled.contains("KiB of     4.0 MiB"), "{pulled}");
    assert_eq!(world.ok(&["cache", "verify"]).stdout, "");
}

#[test]
fn the_umask_of_a_checkout_makes_no_difference() {
    let (world, workspace, first) = packed_monorepo();
    let chmod = std::process::Command::new("chmod").args(["-R", "go-rwx"]).arg(&workspace).status();
    assert!(chmod.unwrap().success());
    let args = ["pack", "--workspace", "monorepo", "--target", "//app:A", "--version", "again"];
    let again = world.ok(&args);
    assert_eq!(again.stderr.matches("reused").count(), 6, "{first}: {again:?}");
}

#[test]
fn a_target_is_published_to_a_server_that_lets_us() {
    let world = World::new(User::Me);
    world.workspace("monorepo");
    world.write("token", "s3cret\n");
    let served = Served::new(&world, &["--token-file", "token"]);
    let args =
        ["pack", "--workspace", "monorepo", "--target", "//app:A", "--registry", &served.url];
    let said = world.fails(1, &args);
    assert!(said.contains("token"), "{said}");
    let output = world.mica(&args).env("MICA_TOKEN", "s3cret").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let reference = String::from_utf8(output.stdout).unwrap();
    world.ok(&["pull", reference.trim(), "--registry", &served.url]);
}

#[test]
fn publishing_without_a_token_is_allowed_expressly() {
    let world = World::new(User::Me);
    world.workspace("monorepo");
    let closed = Served::new(&world, &["--read-only"]);
    let pack = |url| ["pack", "--workspace", "monorepo", "--target", "//app:A", "--registry", url];
    world.fails(1, &pack(&closed.url));
    let open = Served::new(&world, &[]);
    let reference = world.ok(&pack(&open.url)).stdout;
    world.ok(&["pull", reference.trim(), "--registry", &open.url]);
}

#[test]
fn a_plain_file_server_is_a_registry() {
    let (world, _, reference) = packed_monorepo();
    let mut child = world
        .command("python3")
        .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", "registry"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("this test needs python3");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let port = line.split(" port ").nth(1).unwrap().split(' ').next().unwrap();
    let pulled =
        world.run(&["pull", &reference, "--registry", &format!("http://127.0.0.1:{port}")]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(pulled.code, Some(0), "{pulled:?}");
    assert_eq!(pulled.stderr.matches("fetched").count(), 6, "{pulled:?}");
}

/// Debian's nginx over the registry folder, with a configuration of its own.
fn nginx(world: &World) -> Served {
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let dir = world.dir.path().display();
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {dir}/nginx-{kind};"))
        .concat();
    world.write(
        "nginx.conf",
        &format!(
            "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.err;\n\
             events {{}}\nhttp {{ access_log {dir}/nginx.log; {paths}\n\
             server {{ listen {address}; root {dir}/registry; }} }}\n"
        ),
    );
    let mut command = std::process::Command::new("/usr/sbin/nginx");
    command.arg("-c").arg(world.path("nginx.conf")).stderr(Stdio::null());
    let child = command.spawn().expect("this test needs nginx");
    common::wait_for(|| std::net::TcpStream::connect(address).is_ok());
    Served { child, url: format!("http://{address}") }
}

#[test]
fn nginx_serves_a_registry_with_ranges() {
    let world = World::new(User::Me);
    one_module(&world);
    std::fs::write(world.path("data/model.bin"), noise(4 << 20)).unwrap();
    pack_module(&world, "v1");
    let served = nginx(&world);
    world.ok(&["pull", "m@v1", "--registry", &served.url]);
    world.write("data/note.txt", "two\n");
    pack_module(&world, "v2");
    // Only the changed chunks, by ranges.
    let pulled = world.ok(&["pull", "m@v2", "--registry", &served.url]).stderr;
    assert!(pulled.contains("KiB of     4.0 MiB"), "{pulled}");
    let log = std::fs::read_to_string(world.path("nginx.log")).unwrap();
    assert!(log.contains("\" 206 "), "{log}");

    // A fetch that was cut off goes on where it was: the first megabyte is here, the rest comes by one range.
    let inspected = world.ok(&["inspect", "m@v2"]).stdout;
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let digest = inspected["manifest"]["layers"][0]["digest"].as_str().unwrap();
    let digest = digest.strip_prefix("blake3:").unwrap();
    let blobs = world.path("registry/blobs/blake3").join(&digest[..2]);
    let image = std::fs::read(blobs.join(digest)).unwrap();
    let args = ["pull", "m@v2", "--registry", &served.url];
    let there =
        |args: &[&str]| world.mica(args).env("MICA_CACHE", world.path("other")).output().unwrap();
    assert!(there(&["images"]).status.success());
    std::fs::write(world.path("other/incoming").join(format!("{digest}.part")), &image[..1 << 20])
        .unwrap();
    let resumed = there(&args);
    let said = String::from_utf8_lossy(&resumed.stderr).into_owned();
    assert!(resumed.status.success() && said.contains("resumed     3.0 MiB"), "{said}");
    assert!(there(&["cache", "verify"]).status.success());
}

#[test]
fn a_credential_helper_is_asked() {
    let world = World::new(User::Me);
    world.write("token", "s3cret\n");
    let served = Served::new(&world, &["--token-file", "token"]);
    let host = served.url.strip_prefix("http://").unwrap();
    world.write(
        "bin/docker-credential-test",
        "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread -r host\necho \"$host\" >>asked\n\
         echo '{\"ServerURL\":\"x\",\"Username\":\"robot\",\"Secret\":\"s3cret\"}'\n",
    );
    let helper = world.path("bin/docker-credential-test");
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
    one_module(&world);
    let args = ["pack", "--graph", "graph.json", "--target", "//:m", "--version", "v1"];
    let pack = |config: &str| {
        world.write("home/.docker/config.json", config);
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{path}", world.path("bin").display());
        world.mica(&args).args(["--registry", &served.url]).env("PATH", path).output().unwrap()
    };
    // One that is not installed, or knows nothing, is as good as none.
    let refused = pack(&format!(r#"{{"credHelpers": {{"{host}": "nowhere"}}}}"#));
    assert!(
        !refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("token")
    );
    for config in [
        format!(r#"{{"credHelpers": {{"{host}": "test"}}}}"#),
        r#"{"credsStore": "test"}"#.to_owned(),
    ] {
        let packed = pack(&config);
        assert!(packed.status.success(), "{}", String::from_utf8_lossy(&packed.stderr));
    }
    let asked = std::fs::read_to_string(world.path("asked")).unwrap();
    assert!(asked.lines().count() >= 2 && asked.lines().all(|line| line == host), "{asked}");
}

#[test]
fn unknown_and_ambiguous_versions_are_explained() {
    let world = World::new(User::Me);
    world.workspace("monorepo");
    for version in ["abc1", "abc2"] {
        world.ok(&["pack", "--workspace", "monorepo", "--target", "//app:A", "--version", version]);
    }
    let said = world.fails(1, &["pull", "A@abc"]);
    assert!(said.contains("abc1") && said.contains("abc2"), "candidates are listed: {said}");
    let said = world.fails(1, &["pull", "A@zzz"]);
    assert!(said.contains("zzz") && said.contains("abc2"), "versions are listed: {said}");
    let said = world.fails(1, &["pull", "B"]);
    assert!(said.contains("no package B"), "{said}");
    world.fails(125, &["run", "A@zzz"]);
}

#[test]
fn a_registry_that_is_down_is_named() {
    let world = World::new(User::Me);
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let said = world.fails(1, &["pull", "A@v1", "--registry", &format!("http://127.0.0.1:{port}")]);
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("hint:"), "{said}");
}

#[test]
fn a_port_in_use_is_named() {
    let world = World::new(User::Me);
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let said = world.fails(1, &["serve", "--root", "registry", "--listen", &address]);
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}

#[test]
fn altered_and_truncated_images_never_count_as_cached() {
    for truncate in [false, true] {
        let (world, _, reference) = packed_monorepo();
        let image = images(&world.path("registry"))
            .into_iter()
            .find(|path| std::fs::read(path).unwrap().starts_with(b"#!/usr/bin/env xarexec_fuse"))
            .unwrap();
        let mut bytes = std::fs::read(&image).unwrap();
        match truncate {
            true => bytes.truncate(bytes.len() - 100),
            false => bytes[5000] ^= 1,
        }
        std::fs::remove_file(&image).unwrap();
        std::fs::write(&image, bytes).unwrap();
        let served = Served::new(&world, &[]);
        let said = world.fails(1, &["pull", &reference, "--registry", &served.url]);
        let digest = image.file_name().unwrap().to_string_lossy().into_owned();
        assert!(said.contains(&digest[..12]), "the layer is named: {said}");
        assert!(!world.path("cache/blobs").join(&digest).exists());
        world.fails(125, &["run", &reference]);
    }
}

#[test]
fn plan_and_inspect_agree_on_the_stack() {
    let (world, _, reference) = packed_monorepo();
    let plan =
        world.ok(&["plan", "--workspace", "monorepo", "--target", "//app:A", "--json"]).stdout;
    world.ok(&["pull", &reference]);
    let inspect = world.ok(&["inspect", &reference]).stdout;
    let modules = |text: &str| -> Vec<String> {
        let label = |line: &str| {
            Some(line.trim().strip_prefix("\"module\": \"")?.split('"').next()?.to_owned())
        };
        text.lines().filter_map(label).collect()
    };
    let stack = modules(&inspect);
    assert_eq!(stack.len(), 6);
    assert_eq!(stack[0], "//app:A");
    assert_eq!(modules(&plan), stack);
}

/// What the host's administrator pulled is there for everybody; each user's own cache lies above it.
#[test]
fn users_share_a_cache_that_only_its_owner_changes() {
    need_fuse();
    assert!(rustix::process::geteuid().is_root(), "this test needs root, to be two users");
    let (host, _, package) = packed_monorepo();
    host.ok(&["pull", &package]);
    let open = |path: &Path| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    open(host.dir.path());
    let user = World::new(User::Ordinary);
    let mica = |shared: &Path, args: &[&str]| -> common::Ran {
        let mut command = user.mica(args);
        command.env("MICA_REGISTRY", host.path("registry")).env("MICA_SHARED_CACHE", shared);
        command.output().unwrap().into()
    };
    let shared = host.path("cache");
    let pulled = mica(&shared, &["pull", &package]);
    assert_eq!(pulled.stderr.matches("cached").count(), 6, "{pulled:?}");
    let blobs = || std::fs::read_dir(user.path("cache/blobs")).unwrap().count();
    assert_eq!(blobs(), 0);
    let run = ["run", "--rm", "--network", "host", package.as_str(), "--", "one"];
    let ran = mica(&shared, &run);
    assert!(ran.code == Some(0) && ran.stdout.contains("hello"), "{ran:?}");
    assert_eq!(mica(&shared, &["prune", "--all", "--force"]).code, Some(0));
    assert!(host.ok(&["cache", "verify"]).stderr.contains("verified"), "it is as it was");
    assert_eq!(host.ok(&["pull", &package]).stderr.matches("cached").count(), 6);

    // One that may not be read is as good as none, and so is what its owner removes.
    let nobodys = host.path("private");
    std::fs::create_dir(&nobodys).unwrap();
    std::fs::rename(&shared, nobodys.join("cache")).unwrap();
    std::fs::set_permissions(&nobodys, std::fs::Permissions::from_mode(0o700)).unwrap();
    let pulled = mica(&nobodys.join("cache"), &["pull", &package]);
    assert_eq!(pulled.stderr.matches("fetched").count(), 6, "{pulled:?}");
    assert!(blobs() >= 6);
    let ran = mica(&nobodys.join("cache"), &run);
    assert!(ran.code == Some(0) && ran.stdout.contains("hello"), "{ran:?}");

    // And nobody writes into another's.
    open(&nobodys);
    let mut command = user.mica(&["pull", &package]);
    command.env("MICA_CACHE", nobodys.join("cache")).env("MICA_REGISTRY", host.path("registry"));
    let refused: common::Ran = command.output().unwrap().into();
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");
    user.ends_clean();
}

#[test]
fn a_bucket_is_reached_by_the_usual_variables() {
    let (world, _, package) = packed_monorepo();
    let moto = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto");
    assert!(moto.exists(), "this test needs moto in {}: scripts/test installs it", moto.display());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fetcher/tests/common/s3.py");
    let mut command = std::process::Command::new("python3");
    command.arg(script).arg(moto).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().expect("this test needs python3");
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let _store = Served { child, url: String::new() };
    let [port, key, secret] = line.split_whitespace().collect::<Vec<_>>()[..] else {
        panic!("moto did not start: {line}")
    };
    let mica = |secret: &str, args: &[&str]| -> common::Ran {
        let mut command = world.mica(args);
        command
            .env("MICA_REGISTRY", "s3://bucket/packages")
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
            .env("AWS_ACCESS_KEY_ID", key)
            .env("AWS_SECRET_ACCESS_KEY", secret);
        command.output().unwrap().into()
    };
    world.ok(&["pull", &package]);
    for args in [
        &["push", &package][..],
        &["tag", &package, "stable"],
        &["rm-image", &package],
        &["prune", "--force"],
        &["pull", "A@stable"],
    ] {
        let ran = mica(secret, args);
        assert_eq!(ran.code, Some(0), "{args:?} {ran:?}");
    }
    let listed = mica(secret, &["images", "--remote"]);
    assert!(listed.stdout.contains("stable"), "{listed:?}");
    let refused = mica("wrong", &["pull", "A@stable"]);
    assert_eq!(refused.code, Some(1));
    for part in
        ["s3://bucket/packages refuses to read: SignatureDoesNotMatch", "hint: keys come from"]
    {
        assert!(refused.stderr.contains(part), "{refused:?}");
    }
}
