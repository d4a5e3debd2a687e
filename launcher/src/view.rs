//! What a job without a root of its own sees of the host: programs, not data.
//!
//! A read-only bind keeps nobody from connect(2) to a socket, from writing to a FIFO, from flock(2), or, as root, from reading
//! what only root may read. So such a job gets what programs need to run, on a root that is empty otherwise: no `/home`,
//! `/root`, `/var`, `/run`, `/srv`, `/mnt`, and of `/etc` no keys, no passwords and nobody's configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::os;

/// What the job sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Root {
    /// This directory.
    Tree(#[serde(with = "os")] PathBuf),
    /// The host's programs, read-only, with a tree mounted beside them.
    Host {
        /// The directory to show.
        #[serde(with = "os")]
        tree: PathBuf,
        /// Where the job sees it: two components at least, such as `/packages/A-953bc`.
        #[serde(with = "os")]
        at: PathBuf,
        /// How much of the host is there.
        #[serde(default)]
        view: HostView,
    },
}

/// How much of the host a job sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HostView {
    /// These paths, as far as they are there; `*` stands for any characters of a last component.
    Paths(Vec<PathBuf>),
    /// All of it, but `/run`, where daemons listen, and what every job gets afresh.
    Whole,
}

impl Default for HostView {
    fn default() -> Self {
        Self::Paths(Self::usual())
    }
}

/// Where programs are.
const PROGRAMS: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib*", "/opt"];

/// What programs need of `/etc` to run: libraries, certificates, names, time and language, alternatives. Nothing in it is
/// a key or a password, also not in folders.
const ETC: &str = "ld.so.cache ld.so.conf ld.so.conf.d ld-musl* \
    ssl/certs ssl/cert.pem ssl/openssl.cnf ca-certificates ca-certificates.conf crypto-policies \
    pki/tls/certs pki/tls/cert.pem pki/tls/openssl.cnf pki/ca-trust \
    passwd group nsswitch.conf hosts host.conf hostname resolv.conf gai.conf networks services protocols rpc ethertypes \
    netconfig krb5.conf gss localtime timezone locale.conf locale.alias default/locale \
    alternatives os-release lsb-release *-release debian_version \
    mime.types magic magic.mime terminfo inputrc profile profile.d bash.bashrc bashrc shells \
    java* python* perl R ImageMagick* fonts papersize OpenCL vulkan glvnd openmpi libibverbs.d";

impl HostView {
    /// The paths that are shown if nobody says otherwise.
    pub fn usual() -> Vec<PathBuf> {
        let etc = ETC.split_whitespace().map(|name| Path::new("/etc").join(name));
        PROGRAMS.iter().map(PathBuf::from).chain(etc).collect()
    }

    /// Is this path of the host certain to be there under the same name?
    pub(crate) fn shows(&self, path: &Path) -> bool {
        match self {
            Self::Whole => true,
            Self::Paths(paths) => paths.iter().any(|shown| path.starts_with(shown)),
        }
    }
}

/// A path of the host that a job sees under the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// In the job.
    pub target: PathBuf,
    /// What is there.
    pub kind: ShownKind,
}

/// What a job sees at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShownKind {
    /// This directory or file of the host, whose path has no links in it.
    Bind(PathBuf),
    /// A symbolic link that leads to something else that is shown.
    Symlink(PathBuf),
}

/// What is there of these paths, those that hold others first. A link stays one if it leads to what is shown; otherwise the
/// job sees what it leads to. Sockets, FIFOs and devices are not shown.
pub(crate) fn shown(paths: &[PathBuf]) -> io::Result<Vec<Shown>> {
    let mut links = Vec::new();
    let mut found: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    // A path may fit several patterns.
    for path in expand(paths)?.into_iter().collect::<BTreeSet<_>>() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_symlink() {
            links.push(path);
        } else if metadata.is_file() || metadata.is_dir() {
            // The folders above it may be links.
            let Ok(real) = fs::canonicalize(&path) else { continue };
            found.insert(path, real);
        }
    }
    let mut all = Vec::new();
    for target in links {
        let (Ok(to), Ok(real)) = (fs::read_link(&target), fs::canonicalize(&target)) else {
            continue;
        };
        let kept = found.keys().any(|shown| real.starts_with(shown));
        if kept {
            all.push(Shown { target, kind: ShownKind::Symlink(to) });
        } else if fs::metadata(&real).is_ok_and(|there| there.is_file() || there.is_dir()) {
            found.insert(target, real);
        }
    }
    // What lies in another one of them is there by it.
    let inside = |path: &Path| path.ancestors().skip(1).any(|above| found.contains_key(above));
    all.retain(|shown| !inside(&shown.target));
    all.extend(found.iter().filter(|(target, _)| !inside(target)).map(|(target, real)| Shown {
        target: target.clone(),
        kind: ShownKind::Bind(real.clone()),
    }));
    all.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(all)
}

/// Paths for patterns. A folder is read once, and only for a pattern.
fn expand(paths: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    let mut read: BTreeMap<&Path, Vec<PathBuf>> = BTreeMap::new();
    let mut all = Vec::new();
    for path in paths {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { continue };
        if path.components().any(|part| part == Component::ParentDir) || !path.is_absolute() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let pattern = name.as_bytes();
        if !pattern.contains(&b'*') {
            all.push(path.clone());
            continue;
        }
        if !read.contains_key(parent) {
            let names = match fs::read_dir(parent) {
                Ok(entries) => entries.map(|e| Ok(e?.path())).collect::<io::Result<_>>()?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
                Err(error) => return Err(error),
            };
            read.insert(parent, names);
        }
        let fits = |path: &&PathBuf| {
            path.file_name().is_some_and(|name| matches(pattern, name.as_bytes()))
        };
        all.extend(read[parent].iter().filter(fits).cloned());
    }
    Ok(all)
}

/// Does a name fit a pattern, in which `*` stands for any characters?
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.iter().position(|&byte| byte == b'*') {
        None => pattern == name,
        Some(at) => {
            let (start, rest) = (&pattern[..at], &pattern[at + 1..]);
            name.starts_with(start) && (at..=name.len()).any(|from| matches(rest, &name[from..]))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("lib*", "lib64", true),
            ("lib*", "lib", true),
            ("lib*", "alib", false),
            ("*-release", "os-release", true),
            ("a*b*c", "abbc", true),
            ("a*b*c", "abb", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }

    #[test]
    fn links_stay_links_where_they_lead_to_what_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let at = |name: &str| dir.join(name);
        fs::create_dir_all(at("usr/bin")).unwrap();
        fs::create_dir_all(at("etc/ssl/certs")).unwrap();
        fs::create_dir_all(at("run")).unwrap();
        fs::write(at("run/resolv"), "").unwrap();
        symlink("usr/bin", at("bin")).unwrap();
        symlink("../run/resolv", at("etc/resolv.conf")).unwrap();
        symlink("nowhere", at("etc/hosts")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("etc/fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let names = ["usr", "bi*", "etc/resolv.conf", "etc/ssl/certs", "etc/hosts", "etc/fifo"];
        let paths: Vec<_> =
            names.iter().chain(&["usr/bin", "gone", "no/*"]).map(|n| at(n)).collect();
        let all = shown(&paths).unwrap();
        let expected = [
            (at("bin"), ShownKind::Symlink("usr/bin".into())),
            (at("etc/resolv.conf"), ShownKind::Bind(at("run/resolv"))),
            (at("etc/ssl/certs"), ShownKind::Bind(at("etc/ssl/certs"))),
            (at("usr"), ShownKind::Bind(at("usr"))),
        ];
        let got: Vec<_> = all.into_iter().map(|shown| (shown.target, shown.kind)).collect();
        assert_eq!(got, expected);
        assert!(shown(&["etc".into()]).is_err() && shown(&["/a/../b".into()]).is_err());
    }
}
