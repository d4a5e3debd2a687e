//! A tar archive into a tree of files, which stays below where it was told to go.
//!
//! An archive out of a job is the job's to choose, and so is what an earlier one has left in the same folder. So no symbolic
//! link below the target is followed: folders are opened one from the other, a link in the way of a folder is replaced by
//! the folder, and hard links lead to files of the same tree. Without `--archive` files are their copier's, without
//! set-user-id and set-group-id bits, and device nodes are left out. On the job's side the root is the job's, so that what
//! it has for links leads to its own files; a link to a folder stays, as docker has it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, linkat, mkdirat, mknodat,
    openat, statat, symlinkat, unlinkat,
};
use rustix::io::Errno;
use tar::{Entry, EntryType};

use crate::output::note;

/// What is kept of what the archive says, and what the target's links are.
#[derive(Clone, Copy)]
pub(super) struct Rules {
    /// Owners, set-id bits, devices.
    pub(super) keep_owners: bool,
    /// The root of this process is the job's: its links may be followed.
    pub(super) inside: bool,
    /// The bits that new files of the caller don't have.
    pub(super) umask: u32,
}

/// Takes an archive apart at `to`: into it if that is a folder, else under its name, as `cp -r` does.
pub(super) fn write(from: impl Read, to: &Path, rules: Rules) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", to.display());
    let mut archive = tar::Archive::new(from);
    let mut tree: Option<Tree> = None;
    for entry in archive.entries().with_context(failed)? {
        let mut entry = entry.with_context(failed)?;
        let name = entry.path().with_context(failed)?.into_owned();
        let tree = match &mut tree {
            Some(tree) => tree,
            None => tree.insert(Tree::open(to, &name, rules)?),
        };
        let Some(parts) = tree.parts(&name)? else { continue };
        let shown =
            || format!("cannot write {}", to.join(parts.iter().collect::<PathBuf>()).display());
        tree.unpack(&mut entry, &parts).with_context(shown)?;
    }
    match tree {
        Some(tree) => tree.finish().with_context(failed),
        None => Ok(()),
    }
}

struct Tree {
    /// The target, or the folder that it is in.
    top: OwnedFd,
    /// The name in it that replaces the first part of each entry's.
    renamed: Option<OsString>,
    rules: Rules,
    /// The way from the top to the open folder.
    way: Vec<Step>,
    at: OwnedFd,
    /// What the target itself gets at the end, if it was made.
    of_top: Option<Attributes>,
}

/// A folder on the way.
struct Step {
    name: OsString,
    /// This copy has made it.
    new: bool,
    identity: (u64, u64),
    /// What it gets when it is left: it may forbid writing into it.
    attributes: Option<Attributes>,
}

#[derive(Clone, Copy)]
struct Attributes {
    mode: u32,
    mtime: Option<i64>,
    owner: Option<(u32, u32)>,
}

const FOLDER: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

fn open_folder(path: &Path) -> rustix::io::Result<OwnedFd> {
    openat(CWD, path, FOLDER, Mode::empty())
}

impl Tree {
    /// Where an archive goes whose first entry is called so. The target itself was chosen by the caller: a link there leads
    /// where it leads.
    fn open(to: &Path, first: &Path, rules: Rules) -> anyhow::Result<Self> {
        let failed = || format!("cannot write {}", to.display());
        let tree = |top: OwnedFd, renamed, new| -> anyhow::Result<Self> {
            let (at, of_top) = (top.try_clone()?, new);
            Ok(Self { top, renamed, rules, way: Vec::new(), at, of_top })
        };
        let mut new = None;
        // `FOLDER/.` becomes a new folder of the target's name, whose first entry is `.`.
        let content = first.components().next().is_none_or(|part| part == Component::CurDir);
        if content {
            match fs::create_dir(to) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(failed);
                }
                Err(_) => {}
                Ok(()) => new = Some(Attributes { mode: 0o755, mtime: None, owner: None }),
            }
        }
        if content || to.is_dir() {
            return tree(open_folder(to).with_context(failed)?, None, new);
        }
        if to.as_os_str().as_bytes().ends_with(b"/") {
            bail!("there is no folder {}", to.display());
        }
        // A link to a file: the file changes, and the link stays.
        let real = match to.symlink_metadata() {
            Ok(meta) if meta.is_symlink() => to.canonicalize().with_context(failed)?,
            _ => to.to_owned(),
        };
        let above = real.parent().filter(|above| !above.as_os_str().is_empty());
        let top = open_folder(above.unwrap_or(Path::new("."))).with_context(failed)?;
        let name = real.file_name().with_context(failed)?;
        tree(top, Some(name.to_owned()), None)
    }

    /// The way from the top to where an entry goes; empty for the top itself.
    fn parts(&self, name: &Path) -> anyhow::Result<Option<Vec<OsString>>> {
        let mut parts = Vec::new();
        for part in name.components() {
            match part {
                Component::Normal(part) => parts.push(part.to_owned()),
                Component::CurDir | Component::RootDir => {}
                _ => bail!("the archive has an entry with .. in its name: {}", name.display()),
            }
        }
        if let Some(renamed) = &self.renamed {
            match parts.first_mut() {
                Some(first) => first.clone_from(renamed),
                None => return Ok(None),
            }
        }
        Ok(Some(parts))
    }

    /// Opens the folder at the end of these parts, made where it is missing.
    fn go(&mut self, parts: &[OsString]) -> anyhow::Result<()> {
        let common =
            self.way.iter().zip(parts).take_while(|(step, part)| step.name == **part).count();
        while self.way.len() > common {
            self.leave()?;
        }
        for part in &parts[common..] {
            let (at, new) = self.step(&self.at, part)?;
            self.at = at;
            let identity = identity(&self.at)?;
            self.way.push(Step { name: part.clone(), new, identity, attributes: None });
        }
        Ok(())
    }

    /// Goes one folder up. That is `..`, unless a link of the job or somebody who moved it has led elsewhere.
    fn leave(&mut self) -> anyhow::Result<()> {
        let Some(step) = self.way.pop() else { return Ok(()) };
        let above = openat(&self.at, "..", FOLDER, Mode::empty());
        if let Some(attributes) = step.attributes {
            apply(&self.at, &attributes)?;
        }
        let expected = match self.way.last() {
            Some(step) => step.identity,
            None => identity(&self.top)?,
        };
        self.at = match above {
            Ok(above) if identity(&above)? == expected => above,
            _ => self.find(&self.way.iter().map(|step| step.name.clone()).collect::<Vec<_>>())?,
        };
        Ok(())
    }

    /// The folder at the end of these parts, which is there.
    fn find(&self, parts: &[OsString]) -> anyhow::Result<OwnedFd> {
        let links = if self.rules.inside { OFlags::empty() } else { OFlags::NOFOLLOW };
        let mut at = self.top.try_clone()?;
        for part in parts {
            at = openat(&at, part, FOLDER | links, Mode::empty())?;
        }
        Ok(at)
    }

    /// The folder of this name in another one. A link is not followed, but replaced; unless the root is the job's own and the
    /// link leads to a folder.
    fn step(&self, at: &OwnedFd, name: &OsString) -> io::Result<(OwnedFd, bool)> {
        match openat(at, name, FOLDER | OFlags::NOFOLLOW, Mode::empty()) {
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => {
                if self.rules.inside
                    && let Ok(folder) = openat(at, name, FOLDER, Mode::empty())
                {
                    return Ok((folder, false));
                }
                let stat = statat(at, name, AtFlags::SYMLINK_NOFOLLOW)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                    return Err(io::Error::new(
                        io::ErrorKind::NotADirectory,
                        "there is a file of that name",
                    ));
                }
                unlinkat(at, name, AtFlags::empty())?;
            }
            other => return Ok((other?, false)),
        }
        mkdirat(at, name, Mode::RWXU)?;
        Ok((openat(at, name, FOLDER | OFlags::NOFOLLOW, Mode::empty())?, true))
    }

    fn unpack(
        &mut self,
        entry: &mut Entry<'_, impl Read>,
        parts: &[OsString],
    ) -> anyhow::Result<()> {
        let kind = entry.header().entry_type();
        let attributes = self.attributes(entry)?;
        let Some((name, above)) = parts.split_last().filter(|_| !kind.is_dir()) else {
            if !kind.is_dir() {
                bail!("it is the target folder itself");
            }
            self.go(parts)?;
            // What was there before keeps what it had, as with cp(1).
            match self.way.last_mut() {
                Some(step) if step.new || self.rules.keep_owners => {
                    step.attributes = Some(attributes)
                }
                None if self.of_top.is_some() => self.of_top = Some(attributes),
                _ => {}
            }
            return Ok(());
        };
        self.go(above)?;
        let at = self.at.try_clone()?;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = new_file(&at, name)?;
                io::copy(entry, &mut file)?;
                return apply(&file, &attributes);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().context("a link leads nowhere")?;
                clear(&at, name)?;
                symlinkat(&target[..], &at, name)?;
            }
            EntryType::Link => {
                let target = entry.link_name()?.context("a link leads nowhere")?.into_owned();
                return self.hard_link(&target, &at, name);
            }
            EntryType::Fifo => {
                node(&at, name, FileType::Fifo, attributes.mode, 0)?;
            }
            EntryType::Char | EntryType::Block => {
                if !self.rules.keep_owners {
                    let shown = parts.iter().collect::<PathBuf>();
                    note(format_args!(
                        "left out the device node {} (--archive copies it)",
                        shown.display()
                    ));
                    return Ok(());
                }
                let header = entry.header();
                let device = rustix::fs::makedev(
                    header.device_major()?.unwrap_or(0),
                    header.device_minor()?.unwrap_or(0),
                );
                let kind = if kind == EntryType::Char {
                    FileType::CharacterDevice
                } else {
                    FileType::BlockDevice
                };
                node(&at, name, kind, attributes.mode, device)?;
            }
            // Headers of formats that the reader has used already.
            _ => return Ok(()),
        }
        self.apply_at(&at, name, &attributes)
    }

    /// What an entry says of itself, as far as it is to be kept.
    fn attributes(&self, entry: &Entry<'_, impl Read>) -> anyhow::Result<Attributes> {
        let header = entry.header();
        let kept = match self.rules {
            Rules { keep_owners: true, .. } => 0o7777,
            Rules { inside: true, .. } => 0o1777,
            // As cp(1) does: what is the caller's has the modes that his files have.
            Rules { umask, .. } => 0o1777 & !umask,
        };
        let owner = |id: io::Result<u64>| -> anyhow::Result<u32> { Ok(u32::try_from(id?)?) };
        let owner = match self.rules.keep_owners {
            true => Some((owner(header.uid())?, owner(header.gid())?)),
            false => None,
        };
        Ok(Attributes {
            mode: header.mode()? & kept,
            mtime: i64::try_from(header.mtime()?).ok(),
            owner,
        })
    }

    /// Another name for a file of the same tree.
    fn hard_link(&self, target: &Path, at: &OwnedFd, name: &OsString) -> anyhow::Result<()> {
        let parts = self.parts(target)?.unwrap_or_default();
        let Some((last, above)) = parts.split_last() else { bail!("a link leads nowhere") };
        let from = self.find(above)?;
        let stat = statat(&from, last, AtFlags::SYMLINK_NOFOLLOW)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            bail!("a hard link leads to a folder");
        }
        clear(at, name)?;
        Ok(linkat(&from, last, at, name, AtFlags::empty())?)
    }

    /// Owner and time of what is no file and no folder.
    fn apply_at(
        &self,
        at: &OwnedFd,
        name: &OsString,
        attributes: &Attributes,
    ) -> anyhow::Result<()> {
        if let Some((uid, gid)) = attributes.owner {
            rustix::fs::chownat(
                at,
                name,
                Some(Uid::from_raw(uid)),
                Some(Gid::from_raw(gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        Ok(rustix::fs::utimensat(at, name, &times(attributes.mtime), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Leaves all folders.
    fn finish(mut self) -> anyhow::Result<()> {
        while !self.way.is_empty() {
            self.leave()?;
        }
        match self.of_top {
            Some(attributes) => apply(&self.top, &attributes),
            None => Ok(()),
        }
    }
}

fn identity(folder: &OwnedFd) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn times(mtime: Option<i64>) -> Timestamps {
    let now = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let modified = mtime.map_or(now, |tv_sec| Timespec { tv_sec, tv_nsec: 0 });
    Timestamps { last_access: now, last_modification: modified }
}

/// Owner first: changing it takes set-id bits away.
fn apply(file: &impl AsFd, attributes: &Attributes) -> anyhow::Result<()> {
    if let Some((uid, gid)) = attributes.owner {
        rustix::fs::fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode))?;
    Ok(rustix::fs::futimens(file, &times(attributes.mtime))?)
}

/// Makes room for something that is no folder.
fn clear(at: &OwnedFd, name: &OsString) -> anyhow::Result<()> {
    match unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => bail!("there is a folder of that name"),
        Err(error) => Err(error.into()),
    }
}

/// A new FIFO or device node with exactly this mode. It gets that when it is made: chmod(2) would go by the name, in whose
/// place somebody may have put a link meanwhile. The process has one thread, so nobody else sees the umask.
fn node(
    at: &OwnedFd,
    name: &OsString,
    kind: FileType,
    mode: u32,
    device: u64,
) -> anyhow::Result<()> {
    clear(at, name)?;
    let umask = rustix::process::umask(Mode::empty());
    let made = mknodat(at, name, kind, Mode::from_raw_mode(mode), device);
    rustix::process::umask(umask);
    Ok(made?)
}

/// A new file, in the place of the one that is there. One that is mounted (`/etc/hosts` of a job) can't be replaced, so it
/// is written.
fn new_file(at: &OwnedFd, name: &OsString) -> anyhow::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match unlinkat(at, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(Errno::BUSY) => {
            let file = File::from(openat(
                at,
                name,
                flags | OFlags::TRUNC | OFlags::NONBLOCK,
                Mode::empty(),
            )?);
            if !file.metadata()?.is_file() {
                bail!("there is something else of that name");
            }
            return Ok(file);
        }
        Err(Errno::ISDIR | Errno::PERM) => bail!("there is a folder of that name"),
        Err(error) => return Err(error.into()),
    }
    Ok(openat(at, name, flags | OFlags::CREATE | OFlags::EXCL, Mode::RUSR | Mode::WUSR)?.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    /// Somebody who can write the target, as a job that has it for a volume, puts a link in the place of what was made.
    #[test]
    fn a_link_in_the_place_of_a_new_fifo_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let secret = dir.path().join("secret");
        fs::write(&secret, "").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let rules = Rules { keep_owners: false, inside: false, umask: 0o027 };
        let tree = Tree::open(dir.path(), Path::new("."), rules).unwrap();
        let attributes = Attributes { mode: 0o666, mtime: Some(0), owner: None };
        let fifo = OsString::from("fifo");
        node(&tree.at, &fifo, FileType::Fifo, attributes.mode, 0).unwrap();
        assert_eq!(dir.path().join("fifo").metadata().unwrap().mode() & 0o7777, 0o666);
        fs::remove_file(dir.path().join("fifo")).unwrap();
        symlink(&secret, dir.path().join("fifo")).unwrap();
        let before = secret.metadata().unwrap();
        tree.apply_at(&tree.at, &fifo, &attributes).unwrap();
        let after = secret.metadata().unwrap();
        assert_eq!((after.mode(), after.mtime()), (before.mode(), before.mtime()));
    }
}
