//! Images of other tools: what their configuration says of a job, and packages in the form that those tools load.
//!
//! An exported archive is an OCI image layout with docker's `manifest.json` beside it, as docker writes it itself: `docker load`,
//! `podman load` and skopeo (`oci-archive:`, `docker-archive:`) read it. Layers are plain tars; each is written twice, first to learn
//! its hash and size.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;

use mica_graph::{HealthCheck, Manifest, Process, Service};
use mica_squashfs::Image;
use serde::Deserialize;
use serde_json::json;
use sha2::Digest as _;

use crate::registry::oci::form::{self, sha256};
use crate::registry::oci::names;
use crate::tar::{TarError, write_tar};

/// What an image's configuration says of its jobs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// How it is started.
    pub process: Process,
    /// How it lives.
    pub service: Service,
    /// Its notes.
    pub labels: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Document {
    #[serde(default)]
    config: Option<Config>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    exposed_ports: Option<BTreeMap<String, serde_json::Value>>,
    stop_signal: Option<String>,
    healthcheck: Option<Health>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Health {
    test: Vec<String>,
    interval: Option<u64>,
    timeout: Option<u64>,
    start_period: Option<u64>,
    retries: Option<u32>,
}

impl ImageDefaults {
    /// Reads an OCI or docker image configuration. Ports that are none of TCP or UDP are left out.
    ///
    /// # Errors
    /// It is not JSON of that shape.
    pub fn parse(config: &[u8]) -> serde_json::Result<Self> {
        let config = serde_json::from_slice::<Document>(config)?.config.unwrap_or_default();
        let said = |text: Option<String>| text.filter(|text| !text.is_empty());
        let pair = |text: String| {
            let (name, value) = text.split_once('=')?;
            Some((name.to_owned(), value.to_owned()))
        };
        let process = Process {
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            env: config.env.unwrap_or_default().into_iter().filter_map(pair).collect(),
            workdir: said(config.working_dir),
            user: said(config.user),
        };
        let service = Service {
            ports: config
                .exposed_ports
                .unwrap_or_default()
                .keys()
                .filter_map(|p| p.parse().ok())
                .collect(),
            health: config.healthcheck.and_then(Health::check),
            stop_signal: said(config.stop_signal),
            stop_timeout: None,
        };
        Ok(Self { process, service, labels: config.labels.unwrap_or_default() })
    }
}

impl Health {
    fn check(self) -> Option<HealthCheck> {
        let mut check = match self.test.split_first()? {
            (how, [command]) if how == "CMD-SHELL" => HealthCheck::shell(command),
            (how, words) if how == "CMD" && !words.is_empty() => {
                HealthCheck { command: words.to_vec(), ..HealthCheck::shell("") }
            }
            _ => return None,
        };
        let ms = |time: Option<u64>| time.filter(|time| *time > 0).map(|time| time / 1_000_000);
        check.interval_ms = ms(self.interval);
        check.timeout_ms = ms(self.timeout);
        check.start_period_ms = ms(self.start_period);
        check.retries = self.retries.filter(|retries| *retries > 0);
        Some(check)
    }
}

/// Writes a package as an archive for other tools; `images` are its layers', in its order.
///
/// # Errors
/// An image is damaged, or the other side takes no more.
pub fn export_archive(
    package: &Manifest,
    images: &[Arc<Image>],
    out: &mut dyn Write,
) -> Result<(), TarError> {
    let facts = images.iter().rev().map(|image| {
        let mut count = Count { hash: sha2::Sha256::new(), size: 0 };
        write_tar(image, &mut count)?;
        Ok((form::named(count.hash.finalize().as_slice()), count.size))
    });
    let facts = facts.collect::<Result<Vec<_>, TarError>>()?;
    let config = form::plain_config(package, facts.iter().map(|(digest, _)| digest.as_str()));
    let descriptor = |kind: &str, digest: &str, size: u64| json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size });
    let layer = |(digest, size): &(String, u64)| descriptor("layer.v1.tar", digest, *size);
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &sha256(&config), config.len() as u64),
        "layers": facts.iter().map(layer).collect::<Vec<_>>(),
    }))
    .map_err(io::Error::from)?;
    let mut of_manifest = descriptor("manifest.v1+json", &sha256(&manifest), manifest.len() as u64);
    of_manifest["annotations"] =
        json!({ "org.opencontainers.image.ref.name": package.version.to_string() });
    let index = json!({ "schemaVersion": 2, "manifests": [of_manifest] });
    let blob = |digest: &str| format!("blobs/sha256/{}", digest.trim_start_matches("sha256:"));
    let docker = json!([{
        "Config": blob(&sha256(&config)),
        "RepoTags": names::reference(&package.name, &package.version).map(|name| vec![name]),
        "Layers": facts.iter().map(|(digest, _)| blob(digest)).collect::<Vec<_>>(),
    }]);
    document(out, "oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    document(out, "index.json", index.to_string().as_bytes())?;
    document(out, "manifest.json", docker.to_string().as_bytes())?;
    document(out, &blob(&sha256(&manifest)), &manifest)?;
    document(out, &blob(&sha256(&config)), &config)?;
    let mut written = Vec::new();
    for (image, (digest, size)) in images.iter().rev().zip(&facts) {
        // Two layers may be one blob.
        if !written.contains(&digest) {
            begin(out, &blob(digest), *size)?;
            write_tar(image, out)?;
            end(out, *size)?;
            written.push(digest);
        }
    }
    out.write_all(&[0; 1024])?;
    Ok(out.flush()?)
}

fn document(out: &mut dyn Write, path: &str, bytes: &[u8]) -> io::Result<()> {
    begin(out, path, bytes.len() as u64)?;
    out.write_all(bytes)?;
    end(out, bytes.len() as u64)
}

fn begin(out: &mut dyn Write, path: &str, size: u64) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_path(path)?;
    header.set_size(size);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    out.write_all(header.as_bytes())
}

fn end(out: &mut dyn Write, size: u64) -> io::Result<()> {
    let over = (size % 512) as usize;
    out.write_all(&[0; 512][..(512 - over) % 512])
}

struct Count {
    hash: sha2::Sha256,
    size: u64,
}

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_says() {
        let text = br#"{"architecture": "amd64", "config": {"Entrypoint": ["/app"], "Cmd": null, "Env": ["A=b=c", "odd"],
            "WorkingDir": "", "User": "7", "ExposedPorts": {"80/tcp": {}, "1/sctp": {}}, "StopSignal": "SIGINT",
            "Labels": {"k": "v"}, "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 2000000000, "Retries": 0}}}"#;
        let said = ImageDefaults::parse(text).unwrap();
        assert_eq!(said.process.entrypoint, ["/app"]);
        assert_eq!(said.process.env, BTreeMap::from([("A".to_owned(), "b=c".to_owned())]));
        assert_eq!((said.process.workdir, said.process.user.as_deref()), (None, Some("7")));
        assert_eq!(
            said.service.ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["80/tcp"]
        );
        let health = said.service.health.unwrap();
        assert_eq!(
            (health.command[2].as_str(), health.interval_ms, health.retries),
            ("true", Some(2000), None)
        );
        assert_eq!(said.labels["k"], "v");
        assert_eq!(ImageDefaults::parse(b"{}").unwrap(), ImageDefaults::default());
        assert!(ImageDefaults::parse(b"7").is_err());
    }
}
