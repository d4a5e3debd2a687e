//! An image that need not be packed, because neither it nor its input has changed.

use std::path::Path;
use std::time::Duration;

use mica_graph::Digest;
use mica_squashfs::chunks::ChunkTable;

use crate::PackOptions;
use crate::pack::{Packed, chunks_path, index_path};
use crate::scan::{Identity, Scan};
use crate::scan_cache::{IDENTITY, last_image};

/// What is kept of a pack: see [`encode`].
const LENGTH: usize = 32 + IDENTITY + 32 + 4 * 8;

/// The image at `image`, and the state of its input from which it was made.
pub(crate) struct Made {
    state: [u8; 32],
    packed: Packed,
}

impl Made {
    /// If the cache knows it, and it is still what it was.
    pub(crate) fn find(image: &Path, cache: &Path, options: &PackOptions) -> Option<Self> {
        let recorded = <[u8; LENGTH]>::try_from(last_image(cache)?).ok()?;
        let (state, rest) = recorded.split_first_chunk()?;
        let (known, rest) = rest.split_first_chunk()?;
        let (digest, numbers) = rest.split_first_chunk()?;
        if *known != identity(image)? || (options.index && !index_path(image).is_file()) {
            return None;
        }
        let chunks = ChunkTable::parse(&std::fs::read(chunks_path(image)).ok()?).ok()?;
        let mut numbers = numbers
            .chunks_exact(8)
            .map(|bytes| bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes)));
        let mut number = || numbers.next().unwrap_or_default();
        let packed = Packed {
            digest: Digest::from_bytes(*digest),
            size: number(),
            inodes: number(),
            files: number(),
            bytes_in: number(),
            duplicates: 0,
            reused: 0,
            unchanged: true,
            chunks,
            notices: Vec::new(),
            elapsed: Duration::ZERO,
        };
        Some(Self { state: *state, packed })
    }

    /// Whether it is what packing an input with this fingerprint would give.
    pub(crate) fn is_of(&self, fingerprint: &[u8; 32], options: &PackOptions) -> bool {
        self.state == state(fingerprint, options)
    }

    pub(crate) fn into_packed(self) -> Packed {
        self.packed
    }
}

/// What [`Made::find`] needs to know the image again; nothing if it could not tell a change, or if
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
