//! Who can change what a path names: the caller and root only, or others as well.
//!
//! As sshd(8)'s StrictModes and git's safe.directory: a file counts if it and every folder on the way to it belong to the
//! caller or to root, and nobody else can write them. A folder that others can write counts where it is sticky
//! (`/tmp`): they can't rename or remove in it what is not theirs, and the next step is checked by itself.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

/// What makes a path one that another account can change.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// This file or folder, for that reason.
    #[error("{} {reason}", path.display())]
    Foreign {
        /// On the way, or the path itself.
        path: PathBuf,
        /// `belongs to user 1001`, `can be written by everybody`, …
        reason: String,
    },
    /// It can't be told.
    #[error("cannot look at {}", path.display())]
    Unknown {
        /// What could not be looked at.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Fails if anybody but the user `uid` and root can change the file or folder at `path`, or put another in its place.
///
/// What counts is where the file lies, and that nobody else has led there: links on the way must be the caller's or root's
/// as well, for what a file means depends on where it was found.
///
/// # Errors
/// Somebody else can, or it can't be told.
pub fn check(path: &Path, uid: u32) -> Result<(), Distrust> {
    check_from(path, uid, 0)
}

/// The same of the folders above only, where the last one has been looked at when it was opened.
///
/// # Errors
/// As of [`check`].
pub fn check_above(path: &Path, uid: u32) -> Result<(), Distrust> {
    check_from(path, uid, 1)
}

fn check_from(path: &Path, uid: u32, first: usize) -> Result<(), Distrust> {
    let unknown = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Distrust::Unknown { path, source }
    };
    let named = std::path::absolute(path).map_err(unknown(path))?;
    for part in named.ancestors() {
        let stat = rustix::fs::lstat(part).map_err(|error| unknown(part)(error.into()))?;
        // Everybody may write through a link, nobody can change one.
        let link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        if link && let Some(reason) = strange(&stat, uid, true) {
            return Err(Distrust::Foreign { path: part.to_owned(), reason });
        }
    }
    let real = std::fs::canonicalize(path).map_err(unknown(path))?;
    for (index, part) in real.ancestors().enumerate().skip(first) {
        let stat = rustix::fs::lstat(part).map_err(|error| unknown(part)(error.into()))?;
        let reason =
            distrust(&stat, uid, index > 0).or_else(|| listed(part, &stat, uid, index > 0));
        if let Some(reason) = reason {
            return Err(Distrust::Foreign { path: part.to_owned(), reason });
        }
    }
    Ok(())
}

/// Why a file or folder can be changed by others than `uid` and root, or `None`. On the way to something, a folder that
/// all may write is fine if it is sticky.
pub fn distrust(stat: &Stat, uid: u32, on_the_way: bool) -> Option<String> {
    if let Some(reason) = strange(stat, uid, on_the_way) {
        return Some(reason);
    }
    let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if on_the_way && folder && stat.st_mode & 0o1000 != 0 {
        return None;
    }
    if stat.st_mode & 0o002 != 0 {
        return Some("can be written by everybody".to_owned());
    }
    if stat.st_mode & 0o020 != 0 && !is_private_group(stat.st_gid, uid) {
        return Some(format!("can be written by group {}", stat.st_gid));
    }
    None
}

/// Whom an access list (acl(5)) lets write that is not to be trusted, or `None`. The mode shows as its group's what anybody
/// in the list may at most.
fn listed(path: &Path, stat: &Stat, uid: u32, on_the_way: bool) -> Option<String> {
    let sticky = on_the_way && stat.st_mode & 0o1000 != 0;
    if stat.st_mode & 0o020 == 0 || sticky {
        return None;
    }
    let mut list = Vec::with_capacity(LONGEST_LIST);
    match rustix::fs::getxattr(
        path,
        c"system.posix_acl_access",
        rustix::buffer::spare_capacity(&mut list),
    ) {
        Ok(_) => writers(&list).find_map(|writer| match writer {
            Writer::User(other) => {
                (other != uid && other != 0).then(|| format!("can be written by user {other}"))
            }
            Writer::Group(gid) => {
                (!is_private_group(gid, uid)).then(|| format!("can be written by group {gid}"))
            }
        }),
        Err(Errno::RANGE) => Some("has an access list that is too long to be told".to_owned()),
        // There is none.
        Err(_) => None,
    }
}

/// As the kernel keeps it (`XATTR_SIZE_MAX`).
const LONGEST_LIST: usize = 64 << 10;

/// Who is named in an access list.
#[derive(Debug, PartialEq, Eq)]
enum Writer {
    User(u32),
    Group(u32),
}

/// Those in a list that may write: a version, then a tag, rights and an id for each entry (`linux/posix_acl_xattr.h`).
fn writers(list: &[u8]) -> impl Iterator<Item = Writer> {
    list.get(4..).unwrap_or_default().chunks_exact(8).filter_map(|entry| {
        let &[tag, _, rights, _, a, b, c, d] = entry else { return None };
        let id = u32::from_le_bytes([a, b, c, d]);
        match (rights & 2, tag) {
            (0, _) => None,
            (_, 0x02) => Some(Writer::User(id)),
            (_, 0x08) => Some(Writer::Group(id)),
            _ => None,
        }
    })
}

/// Why the owner is not one to be trusted, or `None`.
fn strange(stat: &Stat, uid: u32, on_the_way: bool) -> Option<String> {
    let foreign = stat.st_uid != uid && stat.st_uid != 0;
    (foreign && !(on_the_way && is_unmapped(stat.st_uid)))
        .then(|| format!("belongs to user {}", stat.st_uid))
}

/// Whether the owner is one that our user namespace has no number for. In a sandbox of an ordinary user that is root too,
/// to whom the folders on the way belong; a file itself must have an owner that can be told.
fn is_unmapped(owner: u32) -> bool {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let overflow = read("/proc/sys/kernel/overflowuid").trim().parse();
    owner == overflow.unwrap_or(65534) && !maps_all(&read("/proc/self/uid_map"))
}

/// Whether a uid_map (user_namespaces(7)) is that of the host: every id is itself.
fn maps_all(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Whether the group has no member but this user: root's own, or one that is the user's alone, as distributions make it
/// for each account (a umask of 002 makes everything writable by that).
fn is_private_group(gid: u32, uid: u32) -> bool {
    if gid == 0 {
        return true;
    }
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    private_group(gid, uid, &read("/etc/passwd"), &read("/etc/group"))
}

/// The same on the text of passwd(5) and group(5).
fn private_group(gid: u32, uid: u32, passwd: &str, group: &str) -> bool {
    let field = |line: &str, at: usize| line.split(':').nth(at).map(str::to_owned);
    let number = |line: &str, at: usize| field(line, at).and_then(|word| word.parse::<u32>().ok());
    let Some(user) =
        passwd.lines().find(|line| number(line, 2) == Some(uid)).and_then(|line| field(line, 0))
    else {
        return false;
    };
    let Some(line) = group.lines().find(|line| number(line, 2) == Some(gid)) else { return false };
    let members = field(line, 3).unwrap_or_default();
    let alone = members.split(',').all(|member| member.is_empty() || member == user);
    let others =
        passwd.lines().any(|line| number(line, 3) == Some(gid) && number(line, 2) != Some(uid));
    alone && !others && field(line, 0).as_ref() == Some(&user)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn me() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_can_write_or_replace_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("folder"), dir.path().join("folder/file"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(&file, "").unwrap();
        for (mode, folder_mode, trusted) in [
            (0o644, 0o755, true),
            (0o666, 0o755, false),
            (0o600, 0o777, false),
            (0o600, 0o1777, true),
        ] {
            chmod(&file, mode);
            chmod(&folder, folder_mode);
            assert_eq!(check(&file, me()).is_ok(), trusted, "{mode:o} in {folder_mode:o}");
        }
        // A world-writable folder itself is no place of one's own, sticky or not.
        assert!(check(&folder, me()).is_err());
    }

    #[test]
    fn what_another_user_owns_is_not_trusted() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        if me() == 0 {
            std::os::unix::fs::chown(&file, Some(12345), Some(0)).unwrap();
            let error = check(&file, 0).unwrap_err();
            assert!(error.to_string().ends_with("belongs to user 12345"), "{error}");
            symlink(&file, dir.path().join("link")).unwrap();
            assert!(check(&dir.path().join("link"), 0).is_err());
            // A link of somebody else's to a file of one's own.
            let (own, planted) = (dir.path().join("own"), dir.path().join("planted"));
            std::fs::write(&own, "").unwrap();
            check(&own, 0).unwrap();
            symlink(&own, &planted).unwrap();
            check(&planted, 0).unwrap();
            std::os::unix::fs::lchown(&planted, Some(12345), Some(0)).unwrap();
            assert!(check(&planted, 0).is_err());
        } else {
            assert!(check(&file, me() + 1).is_err());
        }
    }

    /// The list of setfacl(1): the owner's, a user's, the group's, the mask's and everybody's rights.
    fn list(user: u32, rights: u16) -> Vec<u8> {
        let entries = [
            (1, 6, u32::MAX),
            (2, rights, user),
            (4, 4, u32::MAX),
            (16, 6, u32::MAX),
            (32, 4, u32::MAX),
        ];
        let mut list = 2_u32.to_le_bytes().to_vec();
        for (tag, rights, id) in entries {
            list.extend([u16::to_le_bytes(tag), u16::to_le_bytes(rights)].concat());
            list.extend(u32::to_le_bytes(id));
        }
        list
    }

    #[test]
    fn whom_an_access_list_lets_write_is_told() {
        let all = |list: &[u8]| writers(list).collect::<Vec<_>>();
        assert_eq!(all(&list(12345, 6)), [Writer::User(12345)]);
        assert_eq!(all(&list(12345, 4)), []);
        assert_eq!(all(b"x"), []);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let set = |text: &[u8]| {
            let flags = rustix::fs::XattrFlags::empty();
            rustix::fs::setxattr(&file, c"system.posix_acl_access", text, flags)
        };
        match set(&list(12345, 6)) {
            Ok(()) => {}
            // A file system without lists.
            Err(Errno::OPNOTSUPP) => return,
            Err(error) => panic!("{error}"),
        }
        let error = check(&file, me()).unwrap_err();
        assert!(error.to_string().ends_with("can be written by user 12345"), "{error}");
        set(&list(12345, 4)).unwrap();
        check(&file, me()).unwrap();
        set(&list(me(), 6)).unwrap();
        check(&file, me()).unwrap();
    }

    #[test]
    fn a_namespace_without_all_ids_is_noticed() {
        assert!(maps_all("         0          0 4294967295\n"));
        assert!(!maps_all("         0       1000          1\n"));
        assert!(!maps_all(""));
    }

    #[test]
    fn the_group_of_one_user_is_that_user() {
        let passwd = "root:x:0:0::/root:/bin/sh\nann:x:1000:1000::/:\nbob:x:1001:1001::/:\neve:x:1002:50::/:\n";
        let group = "root:x:0:\nstaff:x:50:\nann:x:1000:\nbob:x:1001:eve\n";
        assert!(private_group(1000, 1000, passwd, group));
        assert!(!private_group(1001, 1001, passwd, group));
        assert!(!private_group(50, 1002, passwd, group));
        assert!(!private_group(1000, 1001, passwd, group));
    }
}
