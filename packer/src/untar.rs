//! An archive into a folder, to be packed: the layers of containers and the roots of distributions come as tars.
//!
//! Nothing is written outside of the folder, whatever names and links an archive holds. The marks of OCI layers (`.wh.NAME`)
//! are files like others here; whoever shows the packed layer knows them. What cannot be made is named, not dropped silently.
//!
//! Bounded are the entries ([`MAX_ENTRIES`](crate::tar_guard::MAX_ENTRIES)), the size of one file, and what headers say of an entry.
//! Paths are no longer than the system takes them.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags,
    chmodat, chownat, fchmod, fchown, fsetxattr, futimens, makedev, mkdirat, mknodat, openat2,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::{Archive, Entry, EntryType, Header};

use crate::tar_guard::Guard;

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

/// What of an archive is kept besides contents, names, times and who may read, write and execute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Owners, attributes, set-id bits and devices: for root, in a folder that nobody else reaches.
    Everything,
    /// Set-id bits, and devices where they can be made; everything belongs to the caller. For a folder that nobody else
    /// reaches.
    Modes,
    /// No more.
    Plain,
}

/// Takes a tar apart in a folder. Returns what could not be made, or was not, as it is in the archive.
///
/// # Errors
/// As above; what was written by then stays.
pub fn untar(from: impl Read, dir: &Path, keep: Keep) -> Result<Vec<String>, UntarError> {
    let owners = keep == Keep::Everything;
    let mut archive = Archive::new(Guard::new(from));
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(owners);
    archive.set_unpack_xattrs(owners);
    archive.set_overwrite(true);
    if keep == Keep::Plain {
        archive.set_mask(SET_ID);
    }
    let (mut notices, mut folders, mut dropped) = (Vec::new(), Vec::new(), Dropped::default());
    for entry in archive.entries().map_err(UntarError::Read)? {
        let mut entry = entry.map_err(UntarError::Read)?;
        // Longer ones no system call takes, and looking for what of them is there takes its time.
        if entry.path_bytes().len() > LONGEST_PATH {
            let too_long =
                io::Error::new(io::ErrorKind::InvalidFilename, "a name in it is too long");
            return Err(UntarError::Read(too_long));
        }
        dropped.count(&mut entry, keep);
        match entry.header().entry_type() {
            EntryType::Directory => folders.extend(folder(&mut entry, dir, keep)?),
            EntryType::Char | EntryType::Block if keep == Keep::Plain => {
                dropped.device(path_of(&entry)?);
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                if !node(&entry, dir, keep)? {
                    dropped.device(path_of(&entry)?);
                }
            }
            EntryType::Link if dropped.is_another_name(&entry) => {}
            _ => place(&mut entry, dir)?,
        }
    }
    // Those within others first, and of one that the archive has twice the later.
    folders.reverse();
    folders.sort_by(|a, b| b.path.cmp(&a.path));
    folders.dedup_by(|earlier, later| earlier.path == later.path);
    folders.iter().try_for_each(|folder| folder.finish(dir, owners))?;
    notices.extend(dropped.notices(keep));
    Ok(notices)
}

/// PATH_MAX.
const LONGEST_PATH: usize = 4096;

/// The bits of a mode by which a program has the rights of its file's owner or group.
const SET_ID: u32 = 0o6000;

/// What is left out.
#[derive(Default)]
struct Dropped {
    /// Entries with attributes, and their names.
    attributes: u64,
    names: BTreeSet<String>,
    set_id: u64,
    owners: u64,
    devices: BTreeSet<PathBuf>,
}

/// As many names are told, and as many devices may have further names.
const MOST_TOLD: usize = 1000;

impl Dropped {
    fn count<R: Read>(&mut self, entry: &mut Entry<'_, R>, keep: Keep) {
        if keep == Keep::Everything {
            return;
        }
        // What can't be read is an error when the entry is placed.
        if let Ok(Some(extensions)) = entry.pax_extensions() {
            let before = self.names.len();
            let names = extensions.filter_map(|extension| {
                Some(extension.ok()?.key().ok()?.strip_prefix(ATTRIBUTE)?.to_owned())
            });
            let names: Vec<String> = names.collect();
            self.attributes += u64::from(!names.is_empty());
            self.names.extend(names.into_iter().take(MOST_TOLD.saturating_sub(before)));
        }
        if keep == Keep::Plain {
            let header = entry.header();
            self.set_id += u64::from(header.mode().is_ok_and(|mode| mode & SET_ID != 0));
            let me = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            let own =
                header.uid().ok() == Some(me.0.into()) && header.gid().ok() == Some(me.1.into());
            self.owners += u64::from(!own);
        }
    }

    fn device(&mut self, path: PathBuf) {
        if self.devices.len() < MOST_TOLD {
            self.devices.insert(path);
        }
    }

    /// Of a device that was left out.
    fn is_another_name<R: Read>(&self, entry: &Entry<'_, R>) -> bool {
        let target = entry.link_name().ok().flatten();
        target.is_some_and(|target| self.devices.contains(&*target))
    }

    fn notices(self, keep: Keep) -> Vec<String> {
        let Self { attributes, names, set_id, owners, devices } = self;
        let names = names.into_iter().collect::<Vec<_>>().join(", ");
        let mut notices = Vec::new();
        if attributes > 0 {
            let hint = if keep == Keep::Modes { ": import as root to keep them" } else { "" };
            notices.push(format!(
                "{attributes} entries without their extended attributes ({names}){hint}"
            ));
        }
        if set_id > 0 {
            notices
                .push(format!("{set_id} entries without their set-user-id and set-group-id bits"));
        }
        let device = |path: PathBuf| match keep {
            Keep::Plain => format!("without the device {}", path.display()),
            _ => format!("{}: a device, which only root can make", path.display()),
        };
        notices.extend(devices.into_iter().map(device));
        if owners > 0 {
            notices.push(format!("{owners} entries belong to you, not to their owners"));
        }
        notices
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

/// What a folder gets in the end: its mode may forbid to write into it, and writing changes its time.
struct Folder {
    path: Box<OsStr>,
    mode: u32,
    mtime: u64,
    uid: Option<u32>,
    gid: Option<u32>,
}

impl Folder {
    fn finish(&self, dir: &Path, owners: bool) -> Result<(), UntarError> {
        let failed = |source: Errno| UntarError::Write {
            path: PathBuf::from(&*self.path),
            source: source.into(),
        };
        let root = open_root(dir).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = match openat2(&root, &*self.path, flags, Mode::empty(), INSIDE) {
            // A later entry took its place.
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            opened => opened.map_err(failed)?,
        };
        if owners {
            let (uid, gid) = (self.uid.map(Uid::from_raw), self.gid.map(Gid::from_raw));
            fchown(&fd, uid, gid).map_err(failed)?;
        }
        fchmod(&fd, Mode::from_raw_mode(self.mode)).map_err(failed)?;
        futimens(&fd, &times(self.mtime)).map_err(failed)
    }
}

/// Links of the archive lead to where they would if the folder were the root.
const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

fn open_root(dir: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty())
}

/// The path of an entry from the folder on; nothing if it is the folder itself.
fn inside(path: &Path) -> Result<PathBuf, UntarError> {
    match path.components().any(|part| part == Component::ParentDir) {
        true => Err(UntarError::Outside(path.to_owned())),
        false => {
            Ok(path.components().filter(|part| matches!(part, Component::Normal(_))).collect())
        }
    }
}

/// Opens the folder that an entry is in, made if need be.
fn parent_of(root: &OwnedFd, dir: &Path, inside: &Path) -> io::Result<OwnedFd> {
    let parent = inside.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    match openat2(root, parent, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => {
            fs::create_dir_all(dir.join(parent))?;
            Ok(openat2(root, parent, flags, Mode::empty(), resolve)?)
        }
        opened => Ok(opened?),
    }
}

/// Makes a folder that can be written, and says what becomes of it in the end.
fn folder<R: Read>(
    entry: &mut Entry<'_, R>,
    dir: &Path,
    keep: Keep,
) -> Result<Option<Folder>, UntarError> {
    let path = path_of(entry)?;
    let inside = inside(&path)?;
    let failed = |source: io::Error| UntarError::Write { path: path.clone(), source };
    let Some(name) = inside.file_name() else { return Ok(None) };
    let root = open_root(dir).map_err(|error| failed(error.into()))?;
    let parent = parent_of(&root, dir, &inside).map_err(failed)?;
    match mkdirat(&parent, name, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(error) => return Err(failed(error.into())),
    }
    // What is there already may be a link to a folder, of this archive.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = openat2(&root, &inside, flags, Mode::empty(), INSIDE)
        .map_err(|error| failed(error.into()))?;
    if keep == Keep::Everything {
        attributes(entry, &fd).map_err(failed)?;
    }
    let lost = if keep == Keep::Plain { SET_ID } else { 0 };
    let header = entry.header();
    let id = |id: io::Result<u64>| id.ok().and_then(|id| u32::try_from(id).ok());
    Ok(Some(Folder {
        path: inside.into_os_string().into_boxed_os_str(),
        mode: header.mode().unwrap_or(0o755) & 0o7777 & !lost,
        mtime: header.mtime().unwrap_or(0),
        uid: id(header.uid()),
        gid: id(header.gid()),
    }))
}

/// Gives a folder the extended attributes that the archive says.
fn attributes<R: Read>(entry: &mut Entry<'_, R>, fd: &OwnedFd) -> io::Result<()> {
    let Some(extensions) = entry.pax_extensions()? else { return Ok(()) };
    for extension in extensions {
        let extension = extension?;
        if let Some(name) = extension.key_bytes().strip_prefix(ATTRIBUTE.as_bytes()) {
            fsetxattr(fd, name, extension.value_bytes(), XattrFlags::empty())?;
        }
    }
    Ok(())
}

/// Makes a device or a FIFO; false if this user can't.
fn node<R: Read>(entry: &Entry<'_, R>, dir: &Path, keep: Keep) -> Result<bool, UntarError> {
    let path = path_of(entry)?;
    let failed = |source: io::Error| UntarError::Write { path: path.clone(), source };
    let inside = inside(&path)?;
    let Some(name) = inside.file_name() else { return Err(UntarError::Outside(path)) };
    let root = open_root(dir).map_err(|error| failed(error.into()))?;
    let folder = parent_of(&root, dir, &inside).map_err(failed)?;
    let header = entry.header();
    let number = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or_default();
    let device = makedev(number(header.device_major()), number(header.device_minor()));
    let (kind, device) = match header.entry_type() {
        EntryType::Char => (FileType::CharacterDevice, device),
        EntryType::Block => (FileType::BlockDevice, device),
        _ => (FileType::Fifo, 0),
    };
    let kept = if keep == Keep::Plain { 0o1777 } else { 0o7777 };
    let mode = Mode::from_raw_mode(header.mode().unwrap_or(0o600) & kept);
    let mut made = mknodat(&folder, name, kind, mode, device);
    if made == Err(Errno::EXIST) {
        // The later entry counts, as with files.
        made = unlinkat(&folder, name, AtFlags::empty())
            .and_then(|()| mknodat(&folder, name, kind, mode, device));
    }
    match made {
        Err(Errno::PERM) => return Ok(false),
        made => made.and_then(|()| dress(&folder, name, header, mode, keep == Keep::Everything)),
    }
    .map_err(|error| failed(error.into()))?;
    Ok(true)
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
    utimensat(folder, name, &times(header.mtime().unwrap_or(0)), nofollow)
}

fn times(mtime: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(mtime).unwrap_or(i64::MAX), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
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
            let result = untar(&archive(&entries)[..], &inside, Keep::Modes);
            assert!(result.is_err(), "{entries:?}");
            assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{entries:?}");
        }
        // An absolute name starts at the folder.
        untar(&archive(&[("/etc/x", EntryType::Regular, "text")])[..], &inside, Keep::Modes)
            .unwrap();
        assert_eq!(fs::read_to_string(inside.join("etc/x")).unwrap(), "text");
        assert!(untar(&b"no tar at all"[..], &inside, Keep::Modes).is_err());
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
        assert_eq!(untar(&archive[..], dir.path(), Keep::Modes).unwrap(), Vec::<String>::new());
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
        let notices = untar(&archive[..], dir.path(), Keep::Modes).unwrap();
        assert_eq!(
            notices,
            ["2 entries without their extended attributes (user.b, user.kind): \
              import as root to keep them"]
        );
    }
}
