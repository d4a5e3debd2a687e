//! Which cgroup hierarchies the host has and where the caller sits in them, from the text of two files in `/proc`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The host's cgroup hierarchies, each with the caller's own directory in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Version 1, one hierarchy per set of controllers.
    pub v1: Vec<Hierarchy>,
    /// The unified hierarchy. On a hybrid host it exists beside version 1 and has few controllers or none.
    pub v2: Option<PathBuf>,
}

/// A version 1 hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its controllers, such as `cpu` and `cpuacct`.
    pub controllers: Vec<String>,
    /// The caller's own directory.
    pub path: PathBuf,
}

impl Layout {
    /// Reads `/proc/self/cgroup` and `/proc/self/mountinfo`, given as text.
    ///
    /// A hierarchy that is not mounted, or mounted so that the caller's own group is out of sight, is left out.
    pub fn parse(proc_self_cgroup: &str, mountinfo: &str) -> Self {
        let mounts: Vec<_> = mountinfo.lines().filter_map(MountLine::parse).collect();
        let mut layout = Self::default();
        for line in proc_self_cgroup.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(controllers), Some(own)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            if number == "0" && controllers.is_empty() {
                let mut v2 = mounts.iter().filter(|m| m.fs == "cgroup2");
                layout.v2 = v2.find_map(|m| m.directory_of(own));
                continue;
            }
            let controllers: Vec<_> = controllers.split(',').map(str::to_owned).collect();
            let mut v1 = mounts.iter().filter(|m| m.fs == "cgroup" && m.has_all(&controllers));
            if let Some(path) = v1.find_map(|m| m.directory_of(own)) {
                layout.v1.push(Hierarchy { controllers, path });
            }
        }
        layout
    }

    /// The version 1 hierarchy of a controller.
    pub(crate) fn hierarchy(&self, controller: &str) -> Option<&Hierarchy> {
        self.v1.iter().find(|h| h.controllers.iter().any(|c| c == controller))
    }
}

/// A line of mountinfo, as far as we need it.
struct MountLine<'a> {
    root: PathBuf,
    mount_point: PathBuf,
    fs: &'a str,
    options: &'a str,
}

impl<'a> MountLine<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, fs) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (root, mount_point) = (unescape(mount.next()?), unescape(mount.next()?));
        let mut fs = fs.split(' ');
        Some(Self { root, mount_point, fs: fs.next()?, options: fs.nth(1)? })
    }

    fn has_all(&self, controllers: &[String]) -> bool {
        controllers.iter().all(|c| self.options.split(',').any(|option| option == c))
    }

    /// Where the group with this path, relative to the hierarchy's root, is found below the mount.
    fn directory_of(&self, group: &str) -> Option<PathBuf> {
        let below = Path::new(group).strip_prefix(&self.root).ok()?;
        if below.components().any(|c| c == std::path::Component::ParentDir) {
            return None;
        }
        Some(if below.as_os_str().is_empty() {
            self.mount_point.clone()
        } else {
            self.mount_point.join(below)
        })
    }
}

/// Undoes the octal escapes of mountinfo.
pub(crate) fn unescape(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(code) if bytes[at] == b'\\' => {
                out.push(code);
                at += 4;
            }
            _ => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    PathBuf::from(OsStr::from_bytes(&out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid() {
        let layout = Layout::parse(
            "8:pids:/\n4:memory:/process_api/5abd\n2:cpuacct,cpu:/\n9:name=systemd:/\n0::/\n",
            "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755\n\
             32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             39 31 0:36 / /sys/fs/cgroup/pids rw,relatime - cgroup cgroup rw,pids\n\
             41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(layout.v2.as_deref(), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(
            layout.hierarchy("memory").unwrap().path,
            Path::new("/sys/fs/cgroup/memory/process_api/5abd")
        );
        assert_eq!(layout.hierarchy("cpu").unwrap().path, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert!(layout.hierarchy("name=systemd").is_none());
    }

    #[test]
    fn unified_below_a_namespace_root() {
        let layout = Layout::parse(
            "0::/user.slice/job\n",
            "41 31 0:38 /user.slice /mnt/c\\040g rw - cgroup2 cgroup2 rw,nsdelegate\n",
        );
        assert_eq!(layout.v2.as_deref(), Some(Path::new("/mnt/c g/job")));
        let outside = Layout::parse(
            "0::/../other\n",
            "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
        );
        assert_eq!(outside.v2, None);
    }
}
