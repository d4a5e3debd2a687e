//! Folders of the host that no job may see, such as those with the sockets of other jobs, and where a bind would show them.
//!
//! A folder has more paths than its own: below every mount of its file system (a bind of the host's, a subvolume mounted
//! twice). All of these are looked for in what a job gets.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cgroup::unescape;

/// What no job sees of the host, whatever volumes it has.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Hidden {
    /// These folders are empty in a job, wherever a volume or the host's root would show them.
    pub folders: Vec<PathBuf>,
    /// Folders in them from which volumes may come nevertheless.
    pub but: Vec<PathBuf>,
}

/// A mount of the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HostMount {
    /// Number of its file system.
    device: String,
    /// What of its file system is shown.
    root: PathBuf,
    /// Where.
    point: PathBuf,
    kind: String,
}

/// The lines of `/proc/self/mountinfo`.
pub(crate) fn mounts(mountinfo: &str) -> Vec<HostMount> {
    let parse = |line: &str| {
        let (mount, fs) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(2);
        Some(HostMount {
            device: fields.next()?.to_owned(),
            root: unescape(fields.next()?),
            point: unescape(fields.next()?),
            kind: fs.split(' ').next()?.to_owned(),
        })
    };
    mountinfo.lines().filter_map(parse).collect()
}

/// Where the host mounts something when it is asked for.
pub(crate) fn automounts(mounts: &[HostMount]) -> Vec<PathBuf> {
    mounts.iter().filter(|mount| mount.kind == "autofs").map(|mount| mount.point.clone()).collect()
}

/// All paths of a folder, which is given by one without links.
pub(crate) fn paths_of(folder: &Path, mounts: &[HostMount]) -> Vec<PathBuf> {
    // The last of those at the same place lies on top.
    let on = mounts.iter().filter(|mount| folder.starts_with(&mount.point));
    let mut paths = vec![folder.to_owned()];
    let Some(on) = on.max_by_key(|mount| mount.point.components().count()) else { return paths };
    let Ok(below) = folder.strip_prefix(&on.point) else { return paths };
    let in_fs = on.root.join(below);
    for mount in mounts.iter().filter(|mount| mount.device == on.device) {
        if let Ok(below) = in_fs.strip_prefix(&mount.root) {
            let path = joined(&mount.point, below);
            if !paths.contains(&path) {
                paths.push(path);
            }
        } else if mount.root.starts_with(&in_fs) && !mount.point.starts_with(folder) {
            // A part of it, elsewhere.
            paths.push(mount.point.clone());
        }
    }
    paths
}

/// Without the slash that joining nothing would leave at the end.
pub(crate) fn joined(path: &Path, below: &Path) -> PathBuf {
    if below.as_os_str().is_empty() { path.to_owned() } else { path.join(below) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_found_below_every_mount_of_its_file_system() {
        let text = "\
1 0 8:1 / / rw - ext4 /dev/a rw
2 1 8:2 / /var rw shared:1 - ext4 /dev/b rw
3 1 8:2 /lib /srv/x\\040y rw - ext4 /dev/b rw
4 1 8:2 / /mnt rw - ext4 /dev/b rw
5 1 8:2 /lib/mica/jobs /data rw - ext4 /dev/b rw
6 1 8:2 /cache /cache rw - ext4 /dev/b rw
9 2 8:2 /lib/mica/jobs/1/hosts /var/lib/mica/jobs/1/hosts ro - ext4 /dev/b rw
7 1 0:9 / /net rw - autofs map rw
8 1 8:1 /home /homes rw - ext4 /dev/a rw";
        let mounts = mounts(text);
        let paths = |folder: &str| paths_of(Path::new(folder), &mounts);
        assert_eq!(
            paths("/var/lib/mica"),
            ["/var/lib/mica", "/srv/x y/mica", "/mnt/lib/mica", "/data"].map(PathBuf::from)
        );
        assert_eq!(
            paths("/home/ann/.local"),
            ["/home/ann/.local", "/homes/ann/.local"].map(PathBuf::from)
        );
        assert_eq!(automounts(&mounts), [PathBuf::from("/net")]);
    }
}
