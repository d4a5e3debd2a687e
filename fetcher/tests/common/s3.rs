//! moto's S3 server, started for a test.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mica_fetcher::registry::OpenOptions;

/// A running store with a bucket named `bucket`; killed on drop.
pub struct Store {
    child: Child,
    pub address: SocketAddr,
    keys: [String; 2],
}

impl Drop for Store {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Store {
    pub fn start() -> Self {
        let moto = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto");
        let how = "scripts/test installs it";
        assert!(moto.exists(), "this test needs moto in {}: {how}", moto.display());
        let mut child = Command::new("python3")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/common/s3.py"))
            .arg(moto)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("this test needs python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let [port, key, secret] = words[..] else { panic!("moto did not start: {line}") };
        let address = SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
        Self { child, address, keys: [key.to_owned(), secret.to_owned()] }
    }

    /// An address in it, also by way of a proxy.
    pub fn through(&self, way: SocketAddr, place: &str) -> String {
        format!("s3://{place}?endpoint=http://{way}")
    }

    pub fn address(&self, place: &str) -> String {
        self.through(self.address, place)
    }

    /// Short time limits and the user's keys.
    pub fn options(&self) -> OpenOptions {
        self.options_with(&self.keys[0], &self.keys[1])
    }

    pub fn options_with(&self, key: &str, secret: &str) -> OpenOptions {
        self.options_of(&[("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", secret)])
    }

    /// With these settings.
    pub fn options_of(&self, settings: &[(&str, &str)]) -> OpenOptions {
        let mut options = super::hasty();
        options.http.idle_timeout = std::time::Duration::from_secs(20);
        let settings = settings.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        options.http.aws = settings.collect();
        options
    }

    pub fn key(&self) -> &str {
        &self.keys[0]
    }

    pub fn secret(&self) -> &str {
        &self.keys[1]
    }
}
