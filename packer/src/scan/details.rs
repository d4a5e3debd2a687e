//! What a scan needs to know of entries besides their `stat`: extended attributes, and the targets
//! of symlinks.
//!
//! Files that the scan cache knows to have no attributes are not asked for them, and a directory
//! that has nothing else is not even opened.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use super::attributes::AttributeReader;
use super::content::Root;
use super::joined;
use super::list::{Details, Failure, Inspected, Listing, Listings, Part};
use crate::ScanCache;

/// Completes what was listed.
pub(super) fn complete(
    listings: &mut Listings,
    root: &Root,
    known: Option<&ScanCache>,
    jobs: usize,
) -> Result<(), Failure> {
    let known = known.filter(|known| !known.is_empty());
    let all: Vec<Mutex<&mut Listing>> = listings.all.iter_mut().map(Mutex::new).collect();
    let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
    let work = || {
        let mut reader = AttributeReader::new();
        while let Some(listing) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(found) = directory(&mut listing, root, known, &mut reader) {
                failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(found);
                next.store(all.len(), Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        // Where there can be no more threads, those there are do the work.
        let mut further =
            (1..jobs.min(all.len())).map(|_| std::thread::Builder::new().spawn_scoped(scope, work));
        let _all_started = further.all(|started| started.is_ok());
        work();
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(()),
    }
}

/// Those of the entry `name` of the directory `root`.
pub(super) fn of_entry(root: &Root, name: &[u8], stat: &Inspected) -> Result<Details, Failure> {
    let failed = |action| move |source| Failure { action, path: name.to_vec(), source };
    // Not the root's own descriptor: extended attributes cannot be reached through one that was
    // only opened as a path.
    let dir = root.open(b"", OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed("open"))?;
    read(&dir, name, stat, &mut AttributeReader::new())
        .map_err(|(action, source)| failed(action)(source))
}

fn directory(
    listing: &mut Listing,
    root: &Root,
    known: Option<&ScanCache>,
    reader: &mut AttributeReader,
) -> Result<(), Failure> {
    let mut dir = None;
    for part in listing.parts.iter_mut().flatten() {
        look_up(part, known);
        for index in 0..part.found.len() {
            let (name, stat) = (part.name(index), &part.found[index]);
            let at = part.known.get(index).copied().flatten();
            if known.zip(at).is_some_and(|(known, at)| known.is_plain(at)) {
                continue;
            }
            let failed = |(action, source)| {
                let path = joined(&listing.path, name);
                Failure { action, path, source }
            };
            let dir = match &dir {
                Some(dir) => dir,
                None => {
                    let opened = root.open(&listing.path, OFlags::RDONLY | OFlags::DIRECTORY);
                    let path = || listing.path.to_vec();
                    dir.insert(opened.map_err(|source| {
                        let action = "open";
                        Failure { action, path: path(), source }
                    })?)
                }
            };
            let details = read(dir, name, stat, reader).map_err(failed)?;
            if !details.xattrs.is_empty() || !details.target.is_empty() {
                part.details.insert(index, details);
            }
        }
    }
    Ok(())
}

/// Finds the part's files in the cache.
fn look_up(part: &mut Part, known: Option<&ScanCache>) {
    let Some(known) = known else { return };
    let find = |stat: &Inspected| match stat.kind() {
        FileType::RegularFile => known.find(&stat.identity.to_bytes()),
        _ => None,
    };
    part.known = part.found.iter().map(find).collect();
}

/// What is said of a file of which the input has only a part; the path follows.
const PART: &str =
    "take the content, of which only a part is here (mount the upper once more to complete it), of";

fn read(
    dir: &OwnedFd,
    name: &[u8],
    stat: &Inspected,
    reader: &mut AttributeReader,
) -> Result<Details, (&'static str, Errno)> {
    let mut details = Details::default();
    if stat.kind() == FileType::Symlink {
        let found = rustix::fs::readlinkat(dir, name, Vec::new());
        details.target = found.map_err(|source| ("read", source))?.into_bytes();
    }
    let found = reader.read(dir.as_fd(), name);
    details.xattrs = found.map_err(|source| ("read the extended attributes of", source))?;
    // Its holes are not zeros: a mount's server that was killed, or overlayfs, left them in a layer below.
    let is_part = |name: &[u8]| name.ends_with(b".overlay.metacopy");
    if stat.kind() == FileType::RegularFile && details.xattrs.iter().any(|x| is_part(&x.name)) {
        return Err((PART, Errno::NODATA));
    }
    Ok(details)
}
