//! Lists the directories of an input on several threads.
//!
//! Every entry is found relative to its directory, which is held open meanwhile. Large directories
//! are dealt out in parts. What comes out depends on the input alone.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mica_squashfs::write::Attribute;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::attributes::AttributeReader;
use super::content::{Identity, Root};
use super::joined;
use crate::ScanCache;

/// Entries of a directory that one thread inspects at a time.
const PART: usize = 1024;

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Box<[u8]>,
    pub(super) stat: Inspected,
    pub(super) xattrs: Vec<Attribute>,
    /// Of a symlink.
    pub(super) target: Vec<u8>,
    /// Which listing is that of this directory.
    pub(super) below: Option<usize>,
}

/// What `stat` said.
#[derive(Clone, Debug)]
pub(super) struct Inspected {
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u64,
    pub(super) rdev: u64,
    pub(super) blocks: u64,
    pub(super) identity: Identity,
}

impl Inspected {
    #[allow(clippy::useless_conversion, clippy::unnecessary_cast)] // types differ by architecture
    pub(super) fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: stat.st_nlink as u64,
            rdev: stat.st_rdev.into(),
            blocks: stat.st_blocks as u64,
            identity: Identity::of(stat),
        }
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    fn append_to(&self, bytes: &mut Vec<u8>) {
        for number in [self.mode, self.uid, self.gid] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        for number in [self.nlink, self.rdev] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.identity.to_bytes());
    }
}

/// A system call that failed, and below the root on what.
pub(super) struct Failure {
    pub(super) action: &'static str,
    pub(super) path: Vec<u8>,
    pub(super) source: Errno,
}

/// The entries of one directory, in byte order of their names.
#[derive(Default)]
pub(super) struct Listing {
    parts: Vec<Vec<Entry>>,
}

impl Listing {
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.parts.into_iter().flatten()
    }
}

/// A directory, and all directories below and with it; the first is that one.
pub(super) struct Listings {
    pub(super) root: Entry,
    pub(super) all: Vec<Listing>,
}

impl Listings {
    /// A hash of all names and of all that `stat` says of them; none if one of them is so young
    /// that it may change and look the same.
    pub(super) fn fingerprint(&self, root: &Root) -> Option<[u8; 32]> {
        let (mut hasher, mut bytes) = (blake3::Hasher::new(), Vec::new());
        let mut stack = Vec::new();
        let mut entries: Vec<&Entry> = vec![&self.root];
        loop {
            for entry in entries {
                if root.is_racy(&entry.stat.identity) {
                    return None;
                }
                bytes.extend_from_slice(&(entry.name.len() as u64).to_le_bytes());
                bytes.extend_from_slice(&entry.name);
                entry.stat.append_to(&mut bytes);
                stack.extend(entry.below);
            }
            // The entries of a directory have names; this ends them.
            bytes.extend_from_slice(&[0; 8]);
            // Long pieces are hashed much faster than short ones.
            if bytes.len() >= 64 << 10 {
                hasher.update(&bytes);
                bytes.clear();
            }
            let Some(index) = stack.pop() else { break };
            entries = self.all[index].parts.iter().flatten().collect();
        }
        Some(*hasher.update(&bytes).finalize().as_bytes())
    }
}

/// Lists `root` and everything below it. Files that `known` knows to have no extended attributes are
/// not asked for them.
pub(super) fn list(
    root: &Root,
    known: Option<&ScanCache>,
    jobs: usize,
) -> Result<Listings, Failure> {
    let mut top = entry(root, b".", known)?;
    top.below = Some(0);
    let lister = Lister {
        root,
        known,
        state: Mutex::new(State {
            queue: vec![Job::Directory { listing: 0, path: Vec::new() }],
            listings: vec![Listing::default()],
            busy: 0,
            failure: None,
        }),
        wake: Condvar::new(),
    };
    // Most inputs of a build are small: helpers come when there is something to do for them.
    let mut reader = AttributeReader::new();
    lister.one(&mut reader);
    std::thread::scope(|scope| {
        let jobs = if lister.lock().queue.is_empty() { 1 } else { jobs };
        (1..jobs).for_each(|_| drop(scope.spawn(|| lister.all(&mut AttributeReader::new()))));
        lister.all(&mut reader);
    });
    let state = lister.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.failure {
        Some(failure) => Err(failure),
        None => Ok(Listings { root: top, all: state.listings }),
    }
}

/// The entry `name` of the directory `root`.
pub(super) fn entry(root: &Root, name: &[u8], known: Option<&ScanCache>) -> Result<Entry, Failure> {
    let failed = |action| move |source| Failure { action, path: name.to_vec(), source };
    // Not the root's own descriptor: extended attributes cannot be reached through one that was
    // only opened as a path.
    let dir = root.open(b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("open"))?;
    inspect(&dir, name.into(), known, &mut AttributeReader::new())
        .map_err(|(action, source)| failed(action)(source))
}

enum Job {
    /// Open a directory and find its names.
    Directory { listing: usize, path: Vec<u8> },
    /// Inspect some of them.
    Part { listing: usize, part: usize, path: Arc<[u8]>, dir: Arc<OwnedFd>, names: Vec<Box<[u8]>> },
}

struct State {
    queue: Vec<Job>,
    listings: Vec<Listing>,
    /// Jobs taken from the queue and not done.
    busy: usize,
    failure: Option<Failure>,
}

struct Lister<'a> {
    root: &'a Root,
    known: Option<&'a ScanCache>,
    state: Mutex<State>,
    wake: Condvar,
}

impl Lister<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does jobs until none is left and none can come.
    fn all(&self, reader: &mut AttributeReader) {
        while self.one(reader) {}
    }

    fn one(&self, reader: &mut AttributeReader) -> bool {
        let mut state = self.lock();
        let job = loop {
            if state.failure.is_some() || (state.queue.is_empty() && state.busy == 0) {
                self.wake.notify_all();
                return false;
            }
            match state.queue.pop() {
                Some(job) => break job,
                None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        };
        state.busy += 1;
        drop(state);
        let done = match job {
            Job::Directory { listing, path } => self.directory(listing, path, reader),
            Job::Part { listing, part, path, dir, names } => {
                self.part(listing, part, &path, &dir, names, reader)
            }
        };
        let mut state = self.lock();
        state.busy -= 1;
        if let Err(failure) = done {
            state.failure.get_or_insert(failure);
        }
        self.wake.notify_all();
        true
    }

    fn directory(
        &self,
        listing: usize,
        path: Vec<u8>,
        reader: &mut AttributeReader,
    ) -> Result<(), Failure> {
        let failed = |action| {
            let path = path.clone();
            move |source| Failure { action, path, source }
        };
        let dir = self.root.open(&path, OFlags::RDONLY | OFlags::DIRECTORY);
        let dir = Arc::new(dir.map_err(failed("open"))?);
        let mut names = entry_names(&dir).map_err(failed("list"))?;
        let path: Arc<[u8]> = path.into();
        let count = names.len().div_ceil(PART).max(1);
        let mut later = Vec::new();
        for part in (1..count).rev() {
            let names = names.split_off(part * PART);
            let (path, dir) = (Arc::clone(&path), Arc::clone(&dir));
            later.push(Job::Part { listing, part, path, dir, names });
        }
        let mut state = self.lock();
        state.listings[listing].parts.resize_with(count, Vec::new);
        state.queue.extend(later);
        drop(state);
        self.wake.notify_all();
        self.part(listing, 0, &path, &dir, names, reader)
    }

    fn part(
        &self,
        listing: usize,
        part: usize,
        path: &[u8],
        dir: &OwnedFd,
        names: Vec<Box<[u8]>>,
        reader: &mut AttributeReader,
    ) -> Result<(), Failure> {
        let mut entries = Vec::with_capacity(names.len());
        for name in names {
            let shown = || joined(path, &name);
            let found = inspect(dir, name.clone(), self.known, reader);
            entries.push(found.map_err(|(action, source)| Failure {
                action,
                path: shown(),
                source,
            })?);
        }
        let mut state = self.lock();
        let is_dir = |entry: &&mut Entry| entry.stat.kind() == FileType::Directory;
        for entry in entries.iter_mut().filter(is_dir) {
            let below = state.listings.len();
            state.listings.push(Listing::default());
            let path = joined(path, &entry.name);
            state.queue.push(Job::Directory { listing: below, path });
            entry.below = Some(below);
        }
        state.listings[listing].parts[part] = entries;
        Ok(())
    }
}

fn inspect(
    dir: &OwnedFd,
    name: Box<[u8]>,
    known: Option<&ScanCache>,
    reader: &mut AttributeReader,
) -> Result<Entry, (&'static str, Errno)> {
    let stat = rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW);
    let stat = Inspected::of(&stat.map_err(|source| ("inspect", source))?);
    let (mut xattrs, mut target) = (Vec::new(), Vec::new());
    if stat.kind() == FileType::Symlink {
        let found = rustix::fs::readlinkat(dir, &*name, Vec::new());
        target = found.map_err(|source| ("read", source))?.into_bytes();
    }
    if !known.is_some_and(|known| known.is_plain(&stat.identity.to_bytes())) {
        let found = reader.read(dir.as_fd(), &name);
        xattrs = found.map_err(|source| ("read the extended attributes of", source))?;
    }
    Ok(Entry { name, stat, xattrs, target, below: None })
}

fn entry_names(dir: &OwnedFd) -> rustix::io::Result<Vec<Box<[u8]>>> {
    let (mut names, mut buffer) = (Vec::new(), Vec::<u8>::with_capacity(32 << 10));
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}
