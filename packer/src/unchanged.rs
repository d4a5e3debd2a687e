//! An image that need not be packed, because neither it nor its input has changed.

use std::path::Path;
use std::time::Instant;

use mica_graph::Digest;
use mica_squashfs::chunks::ChunkTable;

use crate::pack::{Packed, chunks_path, index_path};
use crate::scan::{Identity, Scan, fingerprint};
use crate::scan_cache::{IDENTITY, last_image};
use crate::{PackOptions, ScanError};

/// What is kept of a pack: see [`encode`].
const LENGTH: usize = 32 + IDENTITY + 32 + 4 * 8;

/// The image at `image`, if it is the one that was made of `dir` in this way and nothing has
/// changed since.
pub(crate) fn find(
    dir: &Path,
    image: &Path,
    cache: &Path,
    options: &PackOptions,
) -> Result<Option<Packed>, ScanError> {
    let started = Instant::now();
    let recorded = last_image(cache).and_then(|last| <[u8; LENGTH]>::try_from(last).ok());
    let (Some(recorded), Some(identity)) = (recorded, identity(image)) else { return Ok(None) };
    let (key, rest) = recorded.split_at(32);
    let (known, rest) = rest.split_at(IDENTITY);
    if known != identity || (options.index && !index_path(image).is_file()) {
        return Ok(None);
    }
    let chunks = match std::fs::read(chunks_path(image)).map(|bytes| ChunkTable::parse(&bytes)) {
        Ok(Ok(chunks)) => chunks,
        _ => return Ok(None),
    };
    let found = fingerprint(dir, &options.scan())?;
    if found.is_none_or(|found| state(&found, options) != key) {
        return Ok(None);
    }
    let (digest, numbers) = rest.split_at(32);
    let number = |index: usize| {
        numbers[index * 8..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
    };
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest);
    Ok(Some(Packed {
        digest: Digest::from_bytes(bytes),
        size: number(0),
        inodes: number(1),
        files: number(2),
        bytes_in: number(3),
        duplicates: 0,
        reused: 0,
        unchanged: true,
        chunks,
        notices: Vec::new(),
        elapsed: started.elapsed(),
    }))
}

/// What [`find`] needs to know the image again; nothing if it could not tell a change, or if
/// there is something to tell people each time.
pub(crate) fn encode(scan: &Scan, image: &Path, packed: &Packed, options: &PackOptions) -> Vec<u8> {
    let fingerprint = scan.fingerprint.filter(|_| packed.notices.is_empty() && options.chunks);
    let (Some(fingerprint), Some(identity)) = (fingerprint, identity(image)) else {
        return Vec::new();
    };
    let numbers = [packed.size, packed.inodes, packed.files, packed.bytes_in];
    let numbers = numbers.map(u64::to_le_bytes).concat();
    let state = state(&fingerprint, options);
    [&state[..], &identity, packed.digest.as_bytes(), &numbers].concat()
}

/// The input and how it is packed.
fn state(fingerprint: &[u8; 32], options: &PackOptions) -> [u8; 32] {
    let header = options.header.as_ref().map(|header| header.target.as_deref());
    let how = format!("{} {} {:?} {header:?}", options.description(), options.mtime, options.owner);
    let mut hasher = blake3::Hasher::new();
    hasher.update(fingerprint).update(how.as_bytes());
    *hasher.finalize().as_bytes()
}

fn identity(image: &Path) -> Option<[u8; IDENTITY]> {
    Some(Identity::of(&rustix::fs::stat(image).ok()?).to_bytes())
}
