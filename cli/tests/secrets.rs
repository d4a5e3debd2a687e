//! Where tokens, passwords and keys go, and where they don't.
#![allow(clippy::unwrap_used)] // helpers of tests, outside of test functions

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

use common::{User, World};

/// A server that notes the heads of all requests, and answers each with the same.
struct Listening {
    address: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Listening {
    fn new(answer: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::default());
        let (answer, noted) = (answer.to_owned(), Arc::clone(&heads));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answer, noted) = (answer.clone(), Arc::clone(&noted));
                std::thread::spawn(move || one(stream.unwrap(), &answer, &noted));
            }
        });
        Self { address, heads }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came since the last time.
    fn heads(&self) -> String {
        std::mem::take(&mut *self.heads.lock().unwrap()).join("\n")
    }
}

fn one(mut stream: TcpStream, answer: &str, noted: &Mutex<Vec<String>>) {
    let (mut head, mut length) = (String::new(), 0);
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 || line.trim().is_empty() {
            break;
        }
        let line = line.to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        head += &line;
    }
    noted.lock().unwrap().push(head);
    std::io::copy(&mut reader.take(length), &mut std::io::sink()).unwrap();
    stream.write_all(answer.as_bytes()).unwrap();
}

const NOTHING: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const DENIED: &str = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

fn moved(to: &Listening) -> String {
    format!(
        "HTTP/1.1 307 Temporary Redirect\r\nLocation: {}/elsewhere\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        to.url()
    )
}

#[test]
fn a_token_goes_to_the_registry_that_the_user_named() {
    let server = Listening::new(NOTHING);
    let world = World::new(User::Me);
    world.write("workspace/mica.toml", &format!("registry = \"{}\"\n", server.url()));
    world.hand_over();
    let pull = |registry: Option<&str>, token: (&str, &str)| {
        let mut command = world.mica(&["pull", "A"]);
        command.current_dir(world.path("workspace")).env_remove("MICA_REGISTRY");
        command.env(token.0, token.1).envs(registry.map(|registry| ("MICA_REGISTRY", registry)));
        command.output().unwrap();
        let heads = server.heads();
        assert!(heads.contains("get /"), "{heads}");
        heads.contains("authorization: bearer secret")
    };
    assert!(!pull(None, ("MICA_TOKEN", "secret")), "the workspace named it");
    assert!(pull(Some(&server.url()), ("MICA_TOKEN", "secret")));
    assert!(pull(None, ("MICA_TOKEN", &format!("{}=secret", server.address))));
    assert!(!pull(Some(&server.url()), ("MICA_TOKEN", "other.example=secret")));
    let name = format!("MICA_TOKEN_127_0_0_1_{}", server.address.port());
    assert!(pull(None, (&name, "secret")));
}

/// As seen by a proxy, which is where requests to other machines go here.
#[test]
fn nothing_that_proves_who_we_are_goes_over_plain_http() {
    for answer in [NOTHING, DENIED] {
        let proxy = Listening::new(answer);
        let world = World::new(User::Me);
        let auth = r#"{"auths":{"reg.example":{"auth":"dTpwYXNzd29yZA=="}}}"#;
        world.write("auth.json", auth);
        world.write("helped.json", r#"{"credHelpers":{"reg.example":"test"}}"#);
        let helper = "#!/bin/sh\necho '{\"Username\":\"u\",\"Secret\":\"password\"}'\n";
        world.write("bin/docker-credential-test", helper);
        let helper = world.path("bin/docker-credential-test");
        std::fs::set_permissions(helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        world.hand_over();
        let path = format!("{}:{}", world.path("bin").display(), std::env::var("PATH").unwrap());
        for registry in
            ["http://reg.example/r", "http://u:password@reg.example/r", "oci://reg.example/r"]
        {
            for file in ["none.json", "auth.json", "helped.json"] {
                for verb in [&["pull", "A"][..], &["tag", "A@1", "x"]] {
                    let mut command = world.mica(verb);
                    command.args(["--registry", registry, "--tls-verify=false", "--authfile"]);
                    command.arg(world.path(file)).env("PATH", &path).env("MICA_TOKEN", "secret");
                    command.env("http_proxy", proxy.url()).env("https_proxy", proxy.url());
                    let output = command.output().unwrap();
                    assert!(!output.status.success());
                    let heads = proxy.heads();
                    assert!(heads.contains("reg.example"), "{registry} {file}: {heads} {output:?}");
                    assert!(!heads.contains("authorization"), "{registry} {file}: {heads}");
                }
            }
        }
    }
}

#[test]
fn another_origin_sees_nothing_that_proves_who_we_are() {
    let elsewhere = Listening::new(NOTHING);
    let server = Listening::new(&moved(&elsewhere));
    let world = World::new(User::Me);
    let bucket = format!("s3://bucket/r?endpoint={}&region=x", server.url());
    let oci = format!("oci://{}/r", server.address);
    for registry in [server.url(), bucket, oci] {
        let mut command = world.mica(&["pull", "A", "--registry", &registry]);
        command.env("MICA_TOKEN", "secret").env("AWS_ACCESS_KEY_ID", "key");
        command.env("AWS_SECRET_ACCESS_KEY", "secret").env("AWS_SESSION_TOKEN", "session");
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let (here, there) = (server.heads(), elsewhere.heads());
        assert!(here.contains("authorization"), "{registry}: {here} {output:?}");
        assert!(there.contains("get /elsewhere"), "{registry}: {there}");
        for secret in ["authorization", "x-amz", "session", "secret"] {
            assert!(!there.contains(secret), "{registry}: {there}");
        }
    }
}
