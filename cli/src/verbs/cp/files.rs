//! A tree of files into a tar archive, and out of one.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};

/// Whether the path asks for what a folder holds: `FOLDER/.`.
fn means_content(path: &Path) -> bool {
    path.as_os_str().as_bytes().ends_with(b"/.") || path == Path::new(".")
}

/// Writes what is at `path` as an archive whose first entry is called like it.
pub(super) fn read(path: &Path, follow: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let failed = || format!("cannot read {}", path.display());
    let path_to_read = match follow {
        true => fs::canonicalize(path).with_context(failed)?,
        false => path.to_owned(),
    };
    let meta = fs::symlink_metadata(&path_to_read).with_context(failed)?;
    let name = match path.file_name() {
        Some(name) if !means_content(path) => PathBuf::from(name),
        _ => PathBuf::from("."),
    };
    let mut tar = tar::Builder::new(out);
    tar.follow_symlinks(false);
    if meta.is_dir() {
        tar.append_dir_all(&name, &path_to_read).with_context(failed)?;
    } else {
        tar.append_path_with_name(&path_to_read, &name).with_context(failed)?;
    }
    tar.into_inner().and_then(Write::flush).with_context(failed)
}

/// Takes an archive apart at `to`: into it if that is a folder, else under its name, as `cp -r` does.
pub(super) fn write(from: impl Read, to: &Path, keep_owners: bool) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", to.display());
    let mut archive = tar::Archive::new(from);
    archive.set_preserve_permissions(true);
    archive.set_preserve_mtime(true);
    archive.set_preserve_ownerships(keep_owners);
    let mut into_folder = fs::metadata(to).is_ok_and(|meta| meta.is_dir());
    if !into_folder && to.as_os_str().as_bytes().ends_with(b"/") {
        bail!("there is no folder {}", to.display());
    }
    let mut folders = Vec::new();
    for entry in archive.entries().with_context(failed)? {
        let mut entry = entry.with_context(failed)?;
        let name = entry.path().with_context(failed)?.into_owned();
        // `FOLDER/.` becomes a new folder of the target's name, whose first entry is `.`.
        into_folder |= name.components().next().is_none_or(|part| part == Component::CurDir);
        let target = target(&name, to, into_folder)?;
        if entry.header().entry_type().is_dir() {
            // Its permissions come last: they may forbid writing into it.
            match fs::create_dir(&target) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && target.is_dir() => {}
                result => result.with_context(failed)?,
            }
            folders.push((target, entry.header().mode().unwrap_or(0o755)));
            continue;
        }
        if let Some(link) = entry
            .link_name()
            .with_context(failed)?
            .filter(|_| entry.header().entry_type().is_hard_link())
        {
            fs::hard_link(self::target(&link, to, into_folder)?, &target).with_context(failed)?;
            continue;
        }
        entry.unpack(&target).with_context(|| format!("cannot write {}", target.display()))?;
    }
    for (folder, mode) in folders.into_iter().rev() {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).with_context(failed)?;
    }
    Ok(())
}

/// Where an entry goes.
fn target(name: &Path, to: &Path, into_folder: bool) -> anyhow::Result<PathBuf> {
    let mut inside = PathBuf::new();
    let mut parts = name.components().filter(|part| !matches!(part, Component::RootDir));
    if !into_folder {
        parts.next();
    }
    for part in parts {
        match part {
            Component::Normal(part) => inside.push(part),
            Component::CurDir => {}
            _ => bail!("the archive has an entry with .. in its name: {}", name.display()),
        }
    }
    Ok(if inside.as_os_str().is_empty() { to.to_owned() } else { to.join(inside) })
}
