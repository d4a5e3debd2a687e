//! Lists the directories of an input on several threads.
//!
//! Every entry is found relative to its directory, which is held open meanwhile. Large directories
//! are dealt out in parts. What comes out depends on the input alone.
//!
//! First come names and `stat`s, with which an unchanged input is told: one system call per entry,
//! and nothing to allocate. Extended attributes and the targets of symlinks follow if they are
//! wanted, see [`details`](super::details).

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use mica_squashfs::write::Attribute;
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::content::{Identity, Root};
use super::joined;

/// Entries of a directory that one thread inspects at a time.
const PART: usize = 1024;

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

/// What few entries have.
#[derive(Debug, Default)]
pub(super) struct Details {
    pub(super) xattrs: Vec<Attribute>,
    /// Of a symlink.
    pub(super) target: Vec<u8>,
}

/// An entry of a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Box<[u8]>,
    pub(super) stat: Inspected,
    pub(super) details: Details,
    /// Where its entry in the scan cache is.
    pub(super) known: Option<u32>,
    /// Which listing is that of this directory.
    pub(super) below: Option<usize>,
}

/// A system call that failed, and below the root on what.
pub(super) struct Failure {
    pub(super) action: &'static str,
    pub(super) path: Vec<u8>,
    pub(super) source: Errno,
}

/// Names in byte order, each ended by NUL.
#[derive(Default)]
struct Names {
    bytes: Vec<u8>,
    /// Where each starts, and its length.
    places: Vec<(u32, u32)>,
}

impl Names {
    fn read(dir: &OwnedFd) -> rustix::io::Result<Self> {
        let (mut names, mut buffer) = (Self::default(), Vec::<u8>::with_capacity(32 << 10));
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes_with_nul();
            if !matches!(name, b".\0" | b"..\0") {
                let start = u32::try_from(names.bytes.len()).map_err(|_| Errno::OVERFLOW)?;
                names.places.push((start, name.len() as u32 - 1));
                names.bytes.extend_from_slice(name);
            }
        }
        let Self { bytes, places } = &mut names;
        places.sort_unstable_by_key(|&(start, length)| &bytes[start as usize..][..length as usize]);
        Ok(names)
    }

    fn get(&self, index: usize) -> &[u8] {
        let (start, length) = self.places[index];
        &self.bytes[start as usize..][..length as usize]
    }

    fn c_str(&self, index: usize) -> rustix::io::Result<&CStr> {
        let bytes = &self.bytes[self.places[index].0 as usize..];
        CStr::from_bytes_until_nul(bytes).map_err(|_| Errno::INVAL)
    }
}

/// Some consecutive entries of a directory.
pub(super) struct Part {
    names: Arc<Names>,
    /// Which of the names is that of the first entry.
    first: usize,
    pub(super) found: Vec<Inspected>,
    /// Which entries are directories, and the listing of each.
    below: Vec<(usize, usize)>,
    /// Hash of names and `stat`s; none if one of them is so young that it may change and look the
    /// same.
    fingerprint: Option<[u8; 32]>,
    /// By entry, what [`details`](super::details) found.
    pub(super) details: BTreeMap<usize, Details>,
    /// Per entry where it is in the scan cache, if anything was looked up there.
    pub(super) known: Vec<Option<u32>>,
}

impl Part {
    pub(super) fn name(&self, index: usize) -> &[u8] {
        self.names.get(self.first + index)
    }

    fn into_entries(mut self) -> impl Iterator<Item = Entry> {
        let mut below = std::mem::take(&mut self.below).into_iter().peekable();
        (0..self.found.len()).map(move |index| Entry {
            name: self.name(index).into(),
            stat: self.found[index].clone(),
            details: self.details.remove(&index).unwrap_or_default(),
            known: self.known.get(index).copied().flatten(),
            below: below.next_if(|(entry, _)| *entry == index).map(|(_, listing)| listing),
        })
    }
}

/// The entries of one directory, in byte order of their names.
#[derive(Default)]
pub(super) struct Listing {
    /// Below the root.
    pub(super) path: Arc<[u8]>,
    pub(super) parts: Vec<Option<Part>>,
}

impl Listing {
    pub(super) fn into_entries(self) -> impl Iterator<Item = Entry> {
        self.parts.into_iter().flatten().flat_map(Part::into_entries)
    }
}

/// A directory, and all directories below and with it; the first is that one.
pub(super) struct Listings {
    pub(super) root: Inspected,
    pub(super) all: Vec<Listing>,
}

impl Listings {
    /// A hash of all names and of all that `stat` says of them; none if one of them is so young
    /// that it may change and look the same.
    pub(super) fn fingerprint(&self, root: &Root) -> Option<[u8; 32]> {
        let mut bytes = Vec::new();
        self.root.append_to(&mut bytes);
        let mut stack = vec![0];
        while let Some(index) = stack.pop() {
            let parts = &self.all[index].parts;
            bytes.extend_from_slice(&(parts.len() as u64).to_le_bytes());
            for part in parts.iter().flatten() {
                bytes.extend_from_slice(&part.fingerprint?);
                stack.extend(part.below.iter().map(|(_, listing)| listing));
            }
        }
        (!root.is_racy(&self.root.identity)).then(|| *blake3::hash(&bytes).as_bytes())
    }
}

/// Lists `root` and everything below it.
pub(super) fn list(root: &Root, jobs: usize) -> Result<Listings, Failure> {
    let top = inspect(root, b".")?;
    let lister = Lister {
        root,
        state: Mutex::new(State {
            queue: vec![Job::Directory { listing: 0, path: Arc::default() }],
            listings: vec![Listing::default()],
            busy: 0,
            failure: None,
        }),
        wake: Condvar::new(),
    };
    // Most inputs of a build are small: helpers come when there is something to do for them.
    lister.one();
    std::thread::scope(|scope| {
        let jobs = if lister.lock().queue.is_empty() { 1 } else { jobs };
        // Where there can be no more threads, those there are do the work.
        let mut further =
            (1..jobs).map(|_| std::thread::Builder::new().spawn_scoped(scope, || lister.all()));
        let _all_started = further.all(|started| started.is_ok());
        lister.all();
    });
    let state = lister.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.failure {
        Some(failure) => Err(failure),
        None => Ok(Listings { root: top, all: state.listings }),
    }
}

/// What `stat` says of the entry `name` of the directory `root`.
pub(super) fn inspect(root: &Root, name: &[u8]) -> Result<Inspected, Failure> {
    let failed = |action| move |source| Failure { action, path: name.to_vec(), source };
    let dir = root.open(b"", OFlags::PATH | OFlags::DIRECTORY).map_err(failed("open"))?;
    let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.map(|stat| Inspected::of(&stat)).map_err(failed("inspect"))
}

enum Job {
    /// Open a directory and find its names.
    Directory { listing: usize, path: Arc<[u8]> },
    /// Inspect some of them.
    Part { listing: usize, part: usize, path: Arc<[u8]>, dir: Arc<OwnedFd>, names: Arc<Names> },
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
    state: Mutex<State>,
    wake: Condvar,
}

/// A job that is being done. Dropped only if that panics: then nobody waits for it.
struct Unfinished<'l> {
    lister: &'l Lister<'l>,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut state = self.lister.lock();
        state.busy -= 1;
        let failure = Failure { action: "list", path: Vec::new(), source: Errno::IO };
        state.failure.get_or_insert(failure);
        drop(state);
        self.lister.wake.notify_all();
    }
}

impl Lister<'_> {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does jobs until none is left and none can come.
    fn all(&self) {
        while self.one() {}
    }

    fn one(&self) -> bool {
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
        let unfinished = Unfinished { lister: self };
        let done = match job {
            Job::Directory { listing, path } => self.directory(listing, path),
            Job::Part { listing, part, path, dir, names } => {
                self.part(listing, part, &path, &dir, names)
            }
        };
        std::mem::forget(unfinished);
        let mut state = self.lock();
        state.busy -= 1;
        if let Err(failure) = done {
            state.failure.get_or_insert(failure);
        }
        self.wake.notify_all();
        true
    }

    fn directory(&self, listing: usize, path: Arc<[u8]>) -> Result<(), Failure> {
        let failed = |action| {
            let path = path.to_vec();
            move |source| Failure { action, path, source }
        };
        let dir = self.root.open(&path, OFlags::RDONLY | OFlags::DIRECTORY);
        let dir = Arc::new(dir.map_err(failed("open"))?);
        let names = Arc::new(Names::read(&dir).map_err(failed("list"))?);
        let count = names.places.len().div_ceil(PART).max(1);
        let later = |part| {
            let (path, dir, names) = (Arc::clone(&path), Arc::clone(&dir), Arc::clone(&names));
            Job::Part { listing, part, path, dir, names }
        };
        let mut state = self.lock();
        state.listings[listing].path = Arc::clone(&path);
        state.listings[listing].parts.resize_with(count, || None);
        state.queue.extend((1..count).rev().map(later));
        drop(state);
        if count > 1 {
            self.wake.notify_all();
        }
        self.part(listing, 0, &path, &dir, names)
    }

    fn part(
        &self,
        listing: usize,
        part: usize,
        path: &[u8],
        dir: &OwnedFd,
        names: Arc<Names>,
    ) -> Result<(), Failure> {
        let first = part * PART;
        let count = (names.places.len() - first).min(PART);
        let (mut found, mut directories) = (Vec::with_capacity(count), Vec::new());
        let (mut bytes, mut racy) = (Vec::with_capacity(count * 128), false);
        for index in 0..count {
            let name = names.get(first + index);
            let stat = names
                .c_str(first + index)
                .and_then(|name| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW));
            let stat = Inspected::of(&stat.map_err(|source| {
                let (action, path) = ("inspect", joined(path, name));
                Failure { action, path, source }
            })?);
            bytes.extend_from_slice(&(name.len() as u64).to_le_bytes());
            bytes.extend_from_slice(name);
            stat.append_to(&mut bytes);
            racy |= self.root.is_racy(&stat.identity);
            if stat.kind() == FileType::Directory {
                directories.push(index);
            }
            found.push(stat);
        }
        let fingerprint = (!racy).then(|| *blake3::hash(&bytes).as_bytes());
        let (below, details, known) = (Vec::new(), BTreeMap::new(), Vec::new());
        let mut done = Part { names, first, found, below, fingerprint, details, known };
        let mut state = self.lock();
        for index in directories {
            let below = state.listings.len();
            state.listings.push(Listing::default());
            let path = joined(path, done.name(index)).into();
            state.queue.push(Job::Directory { listing: below, path });
            done.below.push((index, below));
        }
        state.listings[listing].parts[part] = Some(done);
        Ok(())
    }
}
