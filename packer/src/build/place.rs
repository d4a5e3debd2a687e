//! Where the inputs of actions really are, and that they are what they must be.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use mica_graph::Digest;

use super::error::BuildError;

/// An input on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
    /// A file or folder.
    At(PathBuf),
    /// An output of an earlier action that is a link to something that is not part of the build: it stays a link.
    Link(PathBuf),
}

impl Input {
    /// What is at `path`, which may be a link, but not out of `base`; both have no other links in them.
    pub(super) fn beneath(base: &Path, path: &Path, made: bool) -> Result<Self, BuildError> {
        let real = match path.canonicalize() {
            Ok(real) => real,
            Err(error) if made && error.kind() == io::ErrorKind::NotFound => path.to_owned(),
            Err(error) => return Err(BuildError::io("find", path, error)),
        };
        if real.starts_with(base) {
            return Ok(Self::At(real));
        }
        match fs::read_link(path) {
            Ok(target) if made => Ok(Self::Link(target)),
            _ => Err(BuildError::Outside { path: path.to_owned() }),
        }
    }

    pub(super) fn digest(&self) -> Result<Digest, BuildError> {
        match self {
            Self::At(path) => digest_of(path),
            Self::Link(target) => Ok(of_link(target)),
        }
    }
}

/// Opens a regular file; what else might be there holds nobody.
pub(super) fn open(path: &Path) -> Result<(File, fs::Metadata), BuildError> {
    let nonblock = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(nonblock.bits() as i32)
        .open(path)
        .map_err(BuildError::when("open", path))?;
    let meta = file.metadata().map_err(BuildError::when("read", path))?;
    if !meta.is_file() {
        return Err(no_file(path));
    }
    Ok((file, meta))
}

fn no_file(path: &Path) -> BuildError {
    let source = io::Error::new(io::ErrorKind::InvalidInput, "it is neither a file nor a folder");
    BuildError::io("read", path, source)
}

fn grows(path: &Path) -> BuildError {
    BuildError::io("read", path, io::Error::other("it changes while it is read"))
}

/// Copies content and executable bit of a file.
pub(super) fn copy(from: &Path, to: &Path) -> Result<(), BuildError> {
    use std::io::Read as _;
    let (file, meta) = open(from)?;
    let mut made = File::create_new(to).map_err(BuildError::when("create", to))?;
    let copied = io::copy(&mut file.take(meta.len() + 1), &mut made);
    if copied.map_err(BuildError::when("copy", from))? != meta.len() {
        return Err(grows(from));
    }
    let mode = if meta.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
    fs::set_permissions(to, Permissions::from_mode(mode))
        .map_err(BuildError::when("set the mode of", to))
}

fn of_link(target: &Path) -> Digest {
    let target = target.as_os_str().as_encoded_bytes();
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"link").update(&(target.len() as u64).to_le_bytes()).update(target);
    hasher.finalize().into()
}

/// The digest of an output, which may be a link.
pub(super) fn digest_of_output(path: &Path) -> Result<Digest, BuildError> {
    match fs::read_link(path) {
        Ok(target) => Ok(of_link(&target)),
        Err(_) => digest_of(path),
    }
}

/// The digest of a file's content and executable bit, or of all that is in a folder.
pub(super) fn digest_of(path: &Path) -> Result<Digest, BuildError> {
    use std::io::Read as _;
    let meta = fs::metadata(path).map_err(BuildError::when("read", path))?;
    let mut hasher = blake3::Hasher::new();
    if meta.is_dir() {
        hasher.update(b"folder");
        let mut names = Vec::new();
        for entry in fs::read_dir(path).map_err(BuildError::when("list", path))? {
            names.push(entry.map_err(BuildError::when("list", path))?.file_name());
        }
        names.sort();
        for name in names {
            let entry = path.join(&name);
            let bytes = name.as_encoded_bytes();
            hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
            match fs::read_link(&entry) {
                Ok(target) => {
                    let target = target.as_os_str().as_encoded_bytes();
                    hasher.update(b"link").update(&(target.len() as u64).to_le_bytes());
                    hasher.update(target);
                }
                Err(_) => _ = hasher.update(digest_of(&entry)?.as_bytes()),
            }
        }
    } else {
        let executable = meta.permissions().mode() & 0o111 != 0;
        hasher.update(if executable { b"program" } else { b"content" });
        let (file, meta) = open(path)?;
        let mut file = file.take(meta.len() + 1);
        hasher.update_reader(&mut file).map_err(BuildError::when("read", path))?;
        if file.limit() != 1 {
            return Err(grows(path));
        }
    }
    Ok(hasher.finalize().into())
}
