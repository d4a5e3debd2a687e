//! A host of its own for a test of networks: a network namespace with an outside (another one) behind it, so nothing of the
//! machine's own network changes.

use std::io::Read;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Ran, User, World, need_fuse, wait_for};

/// A network namespace, for as long as its process lives.
pub(crate) struct Namespace(pub Child);

impl Namespace {
    pub(crate) fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep 1000"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs unshare (util-linux) and ip (iproute2)");
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).expect("a network namespace");
        Self(child)
    }

    /// `nsenter`'s argument.
    pub(crate) fn flag(&self) -> String {
        format!("--net=/proc/{}/ns/net", self.0.id())
    }

    /// Runs a line of shell; its output if it succeeds.
    pub(crate) fn sh(&self, line: &str) -> Result<String, String> {
        let output =
            Command::new("nsenter").args([&self.flag(), "sh", "-c", line]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            return Ok(text);
        }
        Err(format!("{line}: {text}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

pub(crate) struct Host {
    pub world: World,
    pub inside: Namespace,
    pub outside: Namespace,
}

/// The host's address, and that of a machine beyond it.
pub(crate) const HOST: &str = "192.0.2.1";
pub(crate) const BEYOND: &str = "192.0.2.2";

impl Host {
    pub(crate) fn new() -> Self {
        need_fuse();
        assert!(rustix::process::geteuid().is_root(), "this test needs root: it makes networks");
        let world = World::new(User::Me);
        world.write("tree/hello.txt", "hello\n");
        world.ok(&["image", "pack", "tree", "-o", "app.xar"]);
        let (inside, outside) = (Namespace::new(), Namespace::new());
        let peer = outside.0.id();
        let line = format!(
            "ip link add out type veth peer name in netns {peer} && ip addr add {HOST}/24 dev out && ip link set out up"
        );
        inside.sh(&line).unwrap();
        outside.sh(&format!("ip addr add {BEYOND}/24 dev in && ip link set in up")).unwrap();
        Self { world, inside, outside }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = self.world.command("nsenter");
        command.arg(self.inside.flag()).arg(self.world.binary()).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().unwrap().into()
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> Ran {
        let ran = self.run(args);
        assert_eq!(ran.code, Some(0), "mica {args:?}\n{ran:#?}");
        ran
    }

    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let ran = self.run(args);
        assert!(ran.code.is_some_and(|code| code != 0), "mica {args:?}\n{ran:#?}");
        ran.stderr
    }

    /// Starts a job that answers `hello` to whoever asks at port 80, and waits until it does.
    pub(crate) fn serve(&self, name: &str, flags: &[&str]) {
        let python = ["python3", "-m", "http.server", "--bind", "::", "80"];
        let serve = [&["--image", "app.xar", "--"][..], &python].concat();
        self.ok(&[&["run", "-d", "--name", name], flags, &serve].concat());
        wait_for(|| self.reaches(name, "127.0.0.1"));
    }

    /// A program beyond the host that answers `hello`, and says on standard error whom.
    pub(crate) fn listen_outside(&self) -> Child {
        let tree = self.world.path("tree");
        let listen = format!("cd {} && exec python3 -m http.server --bind :: 80", tree.display());
        let child = Command::new("nsenter")
            .args([&self.outside.flag(), "sh", "-c", &listen])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        wait_for(|| self.outside.sh("curl -sSm3 http://127.0.0.1/hello.txt").is_ok());
        child
    }

    /// Does this job get an answer from there?
    pub(crate) fn reaches(&self, job: &str, place: &str) -> bool {
        self.run(&["exec", job, "curl", "-sSm3", &format!("http://{place}/hello.txt")]).stdout
            == "hello\n"
    }

    pub(crate) fn members(&self, network: &str) -> Vec<(String, String)> {
        let text = self.ok(&["network", "inspect", network]).stdout;
        let value: Value = serde_json::from_str(&text).unwrap();
        let members = value[0]["members"].as_array().unwrap().iter();
        let word = |value: &Value| value.as_str().unwrap().to_owned();
        members.map(|m| (word(&m["job"]), word(&m["address"]))).collect()
    }

    pub(crate) fn address(&self, job: &str) -> String {
        let text = self.ok(&["inspect", job]).stdout;
        let value: Value = serde_json::from_str(&text).unwrap();
        let address = value["status"]["link"]["address"].as_str().unwrap();
        address.split('/').next().unwrap().to_owned()
    }

    /// What is on the host of mica's.
    pub(crate) fn traces(&self) -> String {
        self.inside.sh("ip -o link | grep -oE ' (mica-[0-9a-f]{8}|m[0-9a-f]{12})[:@]' || true; nft list tables").unwrap()
    }
}
