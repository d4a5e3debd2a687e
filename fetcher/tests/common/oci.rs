//! Debian's docker-registry, started for a test, and images that are images.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mica_squashfs::write::{Metadata, Node, NodeKind, Tree, WriteOptions, write};

/// A running registry; killed on drop.
pub struct Distribution {
    child: Child,
    pub address: SocketAddr,
}

impl Drop for Distribution {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Distribution {
    /// One that stores in `dir`; `more` is added to its configuration.
    pub fn start(dir: &Path, more: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        // A port that was free a moment ago; whoever is quicker makes us take another.
        loop {
            let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
            let config = format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage: {{filesystem: {{rootdirectory: {0}/data}}, delete: {{enabled: true}}}}\n\
                 http: {{addr: {address}, secret: x}}\n{more}",
                dir.display()
            );
            let file = dir.join("config.yml");
            std::fs::write(&file, config).unwrap();
            let mut command = Command::new("docker-registry");
            command.arg("serve").arg(&file).stdout(Stdio::null()).stderr(Stdio::null());
            // It ends with the test, also if that is killed.
            command.process_group(0);
            let mut child = command.spawn().expect("docker-registry is needed by the tests");
            if came_up(address, &mut child) {
                return Self { child, address };
            }
        }
    }

    pub fn address(&self, path: &str) -> String {
        format!("oci://{}/{path}", self.address)
    }
}

fn came_up(address: SocketAddr, child: &mut Child) -> bool {
    let until = Instant::now() + Duration::from_secs(60);
    while TcpStream::connect(address).is_err() {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(Instant::now() < until, "docker-registry did not come up in 60 seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// A squashfs with one file of noise.
pub fn image(seed: &str, len: usize) -> Vec<u8> {
    let mut tree = Tree::new(Metadata::with_mode(0o755));
    let dir = tree.make_directories(b"usr/lib").unwrap();
    let kind = NodeKind::File(Box::new(super::noise(seed, len)));
    tree.insert(dir, seed.as_bytes(), Node { metadata: Metadata::with_mode(0o644), kind }).unwrap();
    let mut bytes = std::io::Cursor::new(Vec::new());
    write(&tree, &WriteOptions::default(), &mut bytes).unwrap();
    bytes.into_inner()
}

/// Reads the head of an HTTP request.
pub fn read_head(stream: &mut TcpStream) -> std::io::Result<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
