//! Who still uses a mount that is out of the tree, and in which mount namespaces copies of it are left.
//!
//! Every mount namespace that was made meanwhile has a copy of all mounts: jobs, services, containers. That copy alone is no
//! use of it, or the mount could never end. Use is an open file, a working directory, a running program, memory that is
//! mapped; and the mount, or a part of it, at another place than its own, as a volume of a job has it.
//!
//! Nothing here asks a file system: one whose server hangs would hold us up.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::mountinfo;

/// A process that has to do with a mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// Who has to do with a mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// Those who use it.
    pub users: Vec<Holder>,
    /// One of each mount namespace that has only inherited a copy.
    pub copies: Vec<Holder>,
}

/// What a mount namespace has of the mount.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Has {
    Nothing,
    Copy,
    /// At a place of its own.
    Place,
}

/// As far as this process may look.
pub(crate) fn holders(device: (u32, u32), point: &Path) -> Holders {
    let mut holders = Holders::default();
    let mut namespaces: HashMap<u64, Has> = HashMap::new();
    let own = namespace("self");
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let folder = entry.path();
        let holder = || {
            let name = fs::read_to_string(folder.join("comm")).unwrap_or_default();
            Holder { pid, name: name.trim_end().to_owned() }
        };
        let mut first = false;
        let space = namespace(&pid.to_string());
        let has = space.map_or(Has::Nothing, |space| {
            *namespaces.entry(space).or_insert_with(|| {
                first = true;
                let text = fs::read_to_string(folder.join("mountinfo")).unwrap_or_default();
                shown(&text, device, point)
            })
        });
        if (has == Has::Place && first) || uses(&folder, device) {
            holders.users.push(holder());
        } else if has == Has::Copy && first && space != own {
            holders.copies.push(holder());
        }
    }
    holders
}

fn namespace(pid: &str) -> Option<u64> {
    Some(rustix::fs::stat(format!("/proc/{pid}/ns/mnt")).ok()?.st_ino)
}

/// What a table of mounts shows of the file system.
fn shown(mountinfo: &str, device: (u32, u32), point: &Path) -> Has {
    let entries = mountinfo::parse(mountinfo);
    let mut here = entries.iter().filter(|entry| entry.device == device).peekable();
    if here.peek().is_none() {
        return Has::Nothing;
    }
    match here.any(|entry| entry.point != point || entry.root != Path::new("/")) {
        true => Has::Place,
        false => Has::Copy,
    }
}

/// Whether a process has something of the file system open, or mapped.
fn uses(folder: &Path, device: (u32, u32)) -> bool {
    let is_on = |path: &Path| {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let stat = statx(CWD, path, flags, StatxFlags::empty());
        stat.is_ok_and(|stat| (stat.stx_dev_major, stat.stx_dev_minor) == device)
    };
    let links = ["cwd", "root", "exe"].iter().any(|name| is_on(&folder.join(name)));
    let open = || fs::read_dir(folder.join("fd")).into_iter().flatten().flatten();
    links || open().any(|entry| is_on(&entry.path())) || maps(folder, device)
}

fn maps(folder: &Path, (major, minor): (u32, u32)) -> bool {
    let wanted = format!("{major:02x}:{minor:02x}");
    let text = fs::read_to_string(folder.join("maps")).unwrap_or_default();
    text.lines().any(|line| line.split_whitespace().nth(3) == Some(&wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_no_use() {
        let line =
            |device, root, point| format!("1 2 {device} {root} {point} rw - fuse.mica mica rw\n");
        let mount = Path::new("/mnt/a");
        let shown = |text: &str| shown(text, (0, 57), mount) as u8;
        assert_eq!(shown(&line("0:58", "/", "/mnt/a")), Has::Nothing as u8);
        assert_eq!(shown(&line("0:57", "/", "/mnt/a")), Has::Copy as u8);
        assert_eq!(shown(&line("0:57", "/", "/data")), Has::Place as u8);
        assert_eq!(shown(&line("0:57", "/part", "/mnt/a")), Has::Place as u8);
    }

    #[test]
    fn an_open_file_is_use() {
        let file = tempfile::tempfile().unwrap();
        let stat = rustix::fs::fstat(&file).unwrap();
        let device = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        assert!(uses(Path::new("/proc/self"), device));
        assert!(!uses(Path::new("/proc/self"), (4000, 77)));
    }
}
