//! An archive into a folder, to be packed: the layers of containers and the roots of distributions come as tars.
//!
//! Nothing is written outside of the folder, whatever names and links an archive holds. The marks of OCI layers (`.wh.NAME`)
//! are files like others here; whoever shows the packed layer knows them. What cannot be made is named, not dropped silently.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chmodat,
    chownat, makedev, mknodat, openat2, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType, Header};

/// An archive that was not taken apart.
#[derive(Debug, thiserror::Error)]
pub enum UntarError {
    /// It is no tar, or ends early.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// The folder can't be used.
    #[error("cannot write {}", path.display())]
    Write {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A name that leaves the folder.
    #[error("the archive has the name {}, which leads out of it", .0.display())]
    Outside(PathBuf),
}

/// Takes a tar apart in a folder, with `owners` and attributes as they are in it, or the caller's. Returns what could not be
/// made as it was.
///
/// # Errors
/// As above; what was written by then stays.
pub fn untar(from: impl Read, dir: &Path, owners: bool) -> Result<Vec<String>, UntarError> {
    let mut archive = Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(owners);
    archive.set_unpack_xattrs(owners);
    archive.set_overwrite(true);
    let (mut notices, mut folders, mut dropped) = (Vec::new(), Vec::new(), Dropped::default());
    for entry in archive.entries().map_err(UntarError::Read)? {
        let mut entry = entry.map_err(UntarError::Read)?;
        if !owners {
            dropped.count(&mut entry);
        }
        match entry.header().entry_type() {
            // Their modes may forbid to write into them.
            EntryType::Directory => folders.push(entry),
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                notices.extend(node(&entry, dir, owners)?);
            }
            _ => place(&mut entry, dir)?,
        }
    }
    folders.sort_by(|a, b| b.path_bytes().cmp(&a.path_bytes()));
    folders.iter_mut().try_for_each(|folder| place(folder, dir))?;
    notices.extend(dropped.notice());
    Ok(notices)
}

/// Extended attributes that are left out.
#[derive(Default)]
struct Dropped {
    files: u64,
    names: BTreeSet<String>,
}

impl Dropped {
    fn count<R: Read>(&mut self, entry: &mut Entry<'_, R>) {
        // What can't be read is an error when the entry is placed.
        let Ok(Some(extensions)) = entry.pax_extensions() else { return };
        let names: Vec<String> = extensions
            .filter_map(|extension| {
                Some(extension.ok()?.key().ok()?.strip_prefix(ATTRIBUTE)?.to_owned())
            })
            .collect();
        self.files += u64::from(!names.is_empty());
        self.names.extend(names);
    }

    fn notice(self) -> Option<String> {
        let Self { files, names } = self;
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let all = format!("{files} entries without their extended attributes ({names})");
        (files > 0).then(|| format!("{all}: import as root to keep them"))
    }
}

/// How tar calls an extended attribute of a file, before its name.
const ATTRIBUTE: &str = "SCHILY.xattr.";

fn place<R: Read>(entry: &mut Entry<'_, R>, dir: &Path) -> Result<(), UntarError> {
    let path = path_of(entry)?;
    // A file of an earlier entry, in whose place there is a folder now, or the other way round, is the archive's mistake.
    match entry.unpack_in(dir) {
        Ok(true) => Ok(()),
        Ok(false) => Err(UntarError::Outside(path)),
        Err(source) => Err(UntarError::Write { path, source }),
    }
}

/// A device or a FIFO; what it is called, if this user can't make it.
fn node<R: Read>(
    entry: &Entry<'_, R>,
    dir: &Path,
    owners: bool,
) -> Result<Option<String>, UntarError> {
    let path = path_of(entry)?;
    let failed = |source: io::Error| UntarError::Write { path: path.clone(), source };
    let inside: PathBuf =
        path.components().filter(|part| matches!(part, Component::Normal(_))).collect();
    let (Some(parent), Some(name)) = (inside.parent(), inside.file_name()) else {
        return Err(UntarError::Outside(path));
    };
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(UntarError::Outside(path));
    }
    let root = File::open(dir).map_err(failed)?;
    let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    let folder = match openat2(root.as_fd(), parent, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {
            fs::create_dir_all(dir.join(parent)).map_err(failed)?;
            openat2(root.as_fd(), parent, flags, Mode::empty(), resolve)
        }
        opened => opened,
    };
    let folder = folder.map_err(|error| failed(error.into()))?;
    let header = entry.header();
    let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or_default();
    let device = makedev(number(header.device_major()), number(header.device_minor()));
    let (kind, device) = match header.entry_type() {
        EntryType::Char => (FileType::CharacterDevice, device),
        EntryType::Block => (FileType::BlockDevice, device),
        _ => (FileType::Fifo, 0),
    };
    let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o600) & 0o7777);
    let mut made = mknodat(&folder, name, kind, mode, device);
    if made == Err(Errno::EXIST) {
        // The later entry counts, as with files.
        made = unlinkat(&folder, name, AtFlags::empty())
            .and_then(|()| mknodat(&folder, name, kind, mode, device));
    }
    match made {
        Err(Errno::PERM) => {
            return Ok(Some(format!("{}: a device, which only root can make", path.display())));
        }
        made => made.and_then(|()| dress(&folder, name, header, mode, owners)),
    }
    .map_err(|error| failed(error.into()))?;
    Ok(None)
}

/// Owner, mode (of which making it left out what the umask says) and time.
fn dress(
    folder: &impl AsFd,
    name: &OsStr,
    header: &Header,
    mode: Mode,
    owners: bool,
) -> rustix::io::Result<()> {
    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
    if owners {
        let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
        let (uid, gid) = (id(header.uid()).map(Uid::from_raw), id(header.gid()).map(Gid::from_raw));
        chownat(folder, name, uid, gid, nofollow)?;
    }
    // It is no link: it was made just now.
    chmodat(folder, name, mode, AtFlags::empty())?;
    let time = Timespec { tv_sec: header.mtime().unwrap_or(0) as i64, tv_nsec: 0 };
    utimensat(folder, name, &Timestamps { last_access: time, last_modification: time }, nofollow)
}

fn path_of<R: Read>(entry: &Entry<'_, R>) -> Result<PathBuf, UntarError> {
    Ok(entry.path().map_err(UntarError::Read)?.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, link) in entries {
            let mut header = tar::Header::new_gnu();
            header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let content = if *kind == EntryType::Regular { link.as_bytes() } else { b"" };
            if content.is_empty() && !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_is_written_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        fs::create_dir(&inside).unwrap();
        fs::create_dir(&outside).unwrap();
        let out = outside.to_str().unwrap();
        for entries in [
            vec![("../out/x", EntryType::Regular, "text")],
            vec![("link", EntryType::Symlink, out), ("link/x", EntryType::Regular, "text")],
            vec![("up", EntryType::Symlink, "../out"), ("up/x", EntryType::Fifo, "")],
            vec![("../out/f", EntryType::Fifo, "")],
            vec![("hard", EntryType::Link, "../out/kept")],
        ] {
            fs::write(outside.join("kept"), "kept").unwrap();
            let result = untar(&archive(&entries)[..], &inside, false);
            assert!(result.is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
        }
        // An absolute name starts at the folder.
        untar(&archive(&[("/etc/x", EntryType::Regular, "text")])[..], &inside, false).unwrap();
        assert_eq!(fs::read_to_string(inside.join("etc/x")).unwrap(), "text");
        assert!(untar(&b"no tar at all"[..], &inside, false).is_err());
    }

    #[test]
    fn a_fifo_is_as_the_archive_has_it() {
        use std::os::unix::fs::{FileTypeExt, MetadataExt};
        let dir = tempfile::tempdir().unwrap();
        let mut builder = tar::Builder::new(Vec::new());
        for kind in [EntryType::Regular, EntryType::Fifo] {
            let mut header = Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o622);
            header.set_mtime(1_234_567_890);
            header.set_size(0);
            builder.append_data(&mut header, "run/queue", io::empty()).unwrap();
        }
        let archive = builder.into_inner().unwrap();
        assert_eq!(untar(&archive[..], dir.path(), false).unwrap(), Vec::<String>::new());
        let found = fs::symlink_metadata(dir.path().join("run/queue")).unwrap();
        assert!(found.file_type().is_fifo(), "the later entry counts");
        // Also what a umask would take.
        assert_eq!((found.mode() & 0o7777, found.mtime()), (0o622, 1_234_567_890));
    }

    #[test]
    fn attributes_that_are_left_out_are_named() {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["a", "b", "c"] {
            if name != "c" {
                let pax = [("SCHILY.xattr.user.kind", &b"x"[..]), ("SCHILY.xattr.user.b", b"y")];
                builder.append_pax_extensions(pax).unwrap();
            }
            let mut header = tar::Header::new_ustar();
            header.set_path(name).unwrap();
            header.set_size(0);
            header.set_mode(0o644);
            header.set_cksum();
            builder.append(&header, &b""[..]).unwrap();
        }
        let archive = builder.into_inner().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let notices = untar(&archive[..], dir.path(), false).unwrap();
        assert_eq!(
            notices,
            ["2 entries without their extended attributes (user.b, user.kind): \
              import as root to keep them"]
        );
    }
}
