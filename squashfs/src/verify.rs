//! Reading everything in an image, to find what is damaged.

use std::collections::HashSet;
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::jobs;
use crate::read::{FileBlocks, Image, Inode, InodeKind, ReadError, WalkEntry, WalkFault, walk};

/// Blocks that one thread checks at a time.
const BATCH: u64 = 32;

/// What [`verify`] found.
#[derive(Debug, Default)]
pub struct Verified {
    /// Files of any kind, by path.
    pub files: u64,
    /// Bytes of file content read, holes not counted.
    pub bytes: u64,
    /// What is damaged, in the order of paths. Empty: the image is good.
    pub damage: Vec<Damage>,
}

/// A damaged place.
#[derive(Debug, thiserror::Error)]
#[error("/{}{}", String::from_utf8_lossy(.path), block.map_or_else(String::new, |b| format!(": block {b}")))]
pub struct Damage {
    /// Path of the file; empty for the root or the image as a whole.
    pub path: Vec<u8>,
    /// Block of the file, if it is the content.
    pub block: Option<u64>,
    /// What is wrong.
    #[source]
    pub fault: Fault,
}

/// What is wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The directory cannot be walked.
    #[error(transparent)]
    Walk(#[from] WalkFault),
    /// Names are not sorted, so that the kernel would not find some of them.
    #[error("the directory is not sorted at {name:?}")]
    Order {
        /// First name out of order.
        name: String,
    },
    /// A name is listed, but a lookup does not find it.
    #[error("the directory's index does not lead to {name:?}")]
    Index {
        /// The name.
        name: String,
    },
    /// The entry and its inode disagree on number or kind.
    #[error("the directory entry {name:?} does not match its inode")]
    Entry {
        /// The name.
        name: String,
    },
    /// The export table leads elsewhere.
    #[error("the export table does not lead to inode {number}")]
    Export {
        /// The inode's number.
        number: u32,
    },
    /// The superblock counts other inodes than there are.
    #[error("the superblock counts {claimed} inodes, there are {found}")]
    Count {
        /// What the superblock says.
        claimed: u32,
        /// What the tree has.
        found: usize,
    },
}

/// Reads all directories, inodes, xattrs, targets and blocks of an image, on `threads` threads (`None`: all
/// processors).
pub fn verify(image: &Image, threads: Option<NonZero<usize>>) -> Verified {
    let damage = Mutex::new(Vec::new());
    let bytes = AtomicU64::new(0);
    let report = |path: &[u8], block, fault| {
        let entry = Damage { path: path.to_vec(), block, fault };
        damage.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
    };
    let files = jobs::run(
        jobs::count(threads),
        |job: Job| {
            let mut buffer = Vec::new();
            for (index, block) in job.blocks.stored(job.first..job.end) {
                match block.and_then(|_| job.blocks.read(index, &mut buffer)) {
                    Ok(()) => drop(bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed)),
                    Err(error) => report(&job.path, Some(index), error.into()),
                }
            }
        },
        |submit| walk_all(image, &report, submit),
    );
    let mut damage = damage.into_inner().unwrap_or_else(PoisonError::into_inner);
    damage.sort_by(|a, b| (&a.path, a.block).cmp(&(&b.path, b.block)));
    Verified { files, bytes: bytes.into_inner(), damage }
}

struct Job {
    path: Arc<[u8]>,
    blocks: Arc<FileBlocks>,
    first: u64,
    end: u64,
}

type Report<'a> = &'a dyn Fn(&[u8], Option<u64>, Fault);

fn walk_all(image: &Image, report: Report<'_>, submit: &dyn Fn(Job)) -> u64 {
    let mut files = 0;
    let (mut inodes, mut sets) = (HashSet::new(), HashSet::new());
    let mut whole = true;
    for entry in walk(image) {
        match entry {
            Ok(entry) => {
                files += 1;
                // Hard links are read once.
                if inodes.insert(entry.inode.reference)
                    && let Err(fault) = check_entry(image, &entry, &mut sets, report, submit)
                {
                    report(&entry.path, None, fault);
                }
            }
            Err(error) => {
                whole = false;
                report(&error.path, None, error.fault.into());
            }
        }
    }
    let claimed = image.superblock().inodes;
    if whole && inodes.len() as u64 != u64::from(claimed) {
        report(b"", None, Fault::Count { claimed, found: inodes.len() });
    }
    files
}

fn check_entry(
    image: &Image,
    entry: &WalkEntry,
    sets: &mut HashSet<u32>,
    report: Report<'_>,
    submit: &dyn Fn(Job),
) -> Result<(), Fault> {
    let inode = &entry.inode;
    // What files share is checked once.
    if inode.xattr_set().is_some_and(|set| sets.insert(set)) {
        for key in image.xattr_keys(inode)? {
            image.xattr_value(&key)?;
        }
    }
    if image.inode_of_number(inode.number)?.is_some_and(|found| found != inode.reference) {
        return Err(Fault::Export { number: inode.number });
    }
    match inode.kind {
        InodeKind::Directory { .. } => check_directory(image, inode, &entry.path, report)?,
        InodeKind::Symlink { .. } => drop(image.read_link(inode)?),
        InodeKind::File { .. } => {
            let blocks = Arc::new(image.blocks(inode)?);
            let path: Arc<[u8]> = entry.path.as_slice().into();
            let count = blocks.count();
            // Of a file of more than a few thousand pieces there may be more blocks than anybody can count.
            let batch = BATCH.max(count / 4096);
            for first in (0..count).step_by(batch as usize) {
                let end = count.min(first + batch);
                submit(Job { path: Arc::clone(&path), blocks: Arc::clone(&blocks), first, end });
            }
        }
        _ => {}
    }
    Ok(())
}

/// Entries against their inodes, order, and index. The walk itself reports entries that cannot be read.
fn check_directory(
    image: &Image,
    inode: &Inode,
    path: &[u8],
    report: Report<'_>,
) -> Result<(), Fault> {
    let mut last: Option<Vec<u8>> = None;
    for entry in image.read_dir(inode)? {
        let Ok(entry) = entry else { return Ok(()) };
        let name = || String::from_utf8_lossy(&entry.name).into_owned();
        if last.as_ref().is_some_and(|last| *last >= entry.name) {
            return Err(Fault::Order { name: name() });
        }
        if image.lookup(inode, &entry.name)? != Some(entry.inode) {
            return Err(Fault::Index { name: name() });
        }
        if let Ok(found) = image.inode(entry.inode)
            && (found.number != entry.number || found.file_kind() != entry.kind)
        {
            report(path, None, Fault::Entry { name: name() });
        }
        last = Some(entry.name);
    }
    Ok(())
}
