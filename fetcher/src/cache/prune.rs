//! What may be removed, and how much lies there.
//!
//! What a borrowed image lies in is kept as long as the image is, and counts as used when that was: so of those that are
//! removed for being unused the longest, the borrower goes before its bases.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use mica_graph::{Digest, PackageName, Version};

use super::borrowed::{Entry, parse_pair};
use super::lease::blobs;
use super::{Cache, CacheError};
use crate::file::{self, Lock, Named};
use crate::registry::layout::parse_hex;

/// What to remove. Blobs that no known package needs always go; what is leased never does.
#[derive(Clone, Debug, Default)]
pub struct PruneOptions {
    /// Also forget every package that is not in use.
    pub all: bool,
    /// With `all`: only those unused for so long.
    pub unused_for: Duration,
    /// Remove the blobs longest unused until no more than so many bytes are left.
    pub quota: Option<u64>,
    /// Remove interrupted fetches untouched for so long.
    pub keep_parts: Duration,
    /// Only say what would go.
    pub dry_run: bool,
}

/// What was removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Versions forgotten.
    pub versions: Vec<(PackageName, Version)>,
    /// Blobs removed, and their lengths.
    pub blobs: Vec<(Digest, u64)>,
    /// Interrupted fetches removed.
    pub parts: usize,
    /// Bytes of blobs and interrupted fetches together.
    pub bytes: u64,
}

/// How the cache's bytes are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// Number of blobs: images and chunk tables.
    pub blobs: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that jobs, mounts and pulls in progress use.
    pub leased: u64,
    /// Bytes that no known package needs.
    pub unneeded: u64,
    /// Number of interrupted or running fetches.
    pub parts: usize,
    /// Their bytes.
    pub part_bytes: u64,
    /// Number of images that lie in others but for a small part.
    pub borrowed: usize,
    /// How much more they would need as files of their own.
    pub spared: u64,
    /// The limit, if there is one.
    pub quota: Option<u64>,
}

impl DiskUse {
    /// Bytes that removing everything unused would free.
    pub fn reclaimable(&self) -> u64 {
        self.bytes - self.leased + self.part_bytes
    }
}

/// A blob, or the file of a borrowed image.
struct Stored {
    path: PathBuf,
    /// The blob or image.
    digest: Digest,
    size: u64,
    used: SystemTime,
    /// What a borrowed image says of itself.
    entry: Option<Entry>,
}

impl Cache {
    /// Removes what nobody uses.
    pub fn prune(&self, options: &PruneOptions) -> Result<Pruned, CacheError> {
        let _gc = self.exclusive("gc")?;
        let mut pruned = Pruned::default();
        let Some(leased) = self.leased()? else { return Ok(pruned) };
        if options.all {
            self.forget_unused(options, &leased, &mut pruned)?;
        }
        self.prune_parts(options, &mut pruned)?;
        let stored = self.stored()?;
        let (needed, manifests) = self.needed(&pruned.versions)?;
        let kept_files = &self.in_use(&leased, &stored) | &self.files_of(&needed, &stored);
        if !options.dry_run {
            self.retain("manifests", &manifests)?;
            self.retain("signatures", &manifests)?;
            self.retain("traces", &manifests)?;
            self.retain("touched", &needed)?;
            self.retain_checked(&needed, &leased)?;
        }
        let mut kept = Vec::new();
        for blob in stored {
            if kept_files.contains(&blob.path) {
                kept.push(blob);
            } else {
                self.drop_blob(&blob, options.dry_run, &mut pruned)?;
            }
        }
        if let Some(quota) = options.quota {
            let excess = total(&kept).saturating_sub(quota);
            let leased = self.in_use(&leased, &kept);
            self.drop_oldest(kept, &leased, excess, options.dry_run, &mut pruned)?;
        }
        Ok(pruned)
    }

    /// Frees at least `needed` bytes, if so many are not in use; says how many it freed.
    pub(crate) fn make_room(&self, needed: u64) -> Result<u64, CacheError> {
        let _gc = self.exclusive("gc")?;
        let mut pruned = Pruned::default();
        let Some(leased) = self.leased()? else { return Ok(0) };
        self.prune_parts(&PruneOptions::default(), &mut pruned)?;
        let excess = needed.saturating_sub(pruned.bytes);
        let stored = self.stored()?;
        let leased = self.in_use(&leased, &stored);
        self.drop_oldest(stored, &leased, excess, false, &mut pruned)?;
        tracing::info!(needed, freed = pruned.bytes, "made room in the cache");
        Ok(pruned.bytes)
    }

    /// Keeps the quota, as far as leases allow.
    pub(crate) fn keep_quota(&self) -> Result<(), CacheError> {
        let Some(quota) = self.quota else { return Ok(()) };
        let _gc = self.exclusive("gc")?;
        let Some(leased) = self.leased()? else { return Ok(()) };
        let stored = self.stored()?;
        let leased = self.in_use(&leased, &stored);
        let excess = total(&stored).saturating_sub(quota);
        self.drop_oldest(stored, &leased, excess, false, &mut Pruned::default())
    }

    /// How the bytes are used.
    pub fn disk_use(&self) -> Result<DiskUse, CacheError> {
        let _gc = self.exclusive("gc")?;
        let stored = self.stored()?;
        let leased = self.leased()?.map(|leased| self.in_use(&leased, &stored));
        let needed = self.files_of(&self.needed(&[])?.0, &stored);
        let mut usage = DiskUse { quota: self.quota, ..DiskUse::default() };
        for (file, entry) in borrowers(&stored) {
            let size = entry.listed.as_ref().map_or(0, |listed| listed.list.image_len());
            usage.borrowed += 1;
            usage.spared += size.saturating_sub(file.size);
        }
        for blob in stored {
            usage.blobs += 1;
            usage.bytes += blob.size;
            if leased.as_ref().is_none_or(|leased| leased.contains(&blob.path)) {
                usage.leased += blob.size;
            } else if !needed.contains(&blob.path) {
                usage.unneeded += blob.size;
            }
        }
        for path in self.parts()? {
            let Some(meta) = file::stat(&path)? else { continue };
            usage.parts += 1;
            usage.part_bytes += meta.len();
        }
        Ok(usage)
    }

    fn forget_unused(
        &self,
        options: &PruneOptions,
        leased: &HashSet<Digest>,
        pruned: &mut Pruned,
    ) -> Result<(), CacheError> {
        for name in self.names()? {
            let Some(index) = self.index(&name)? else { continue };
            let mut unused = Vec::new();
            for entry in index.versions {
                let path = self.manifest_path(&entry.manifest.digest);
                let age = file::stat(&path)?.and_then(|meta| meta.modified().ok()?.elapsed().ok());
                let manifest = self.manifest(&entry.manifest.digest)?;
                let in_use = manifest.is_some_and(|m| blobs(&m).iter().all(|d| leased.contains(d)));
                if !in_use && age.unwrap_or(Duration::MAX) >= options.unused_for {
                    unused.push(entry.version);
                }
            }
            if !options.dry_run && !unused.is_empty() {
                self.change_index(&name, |index| {
                    for version in &unused {
                        index.forget(version);
                    }
                })?;
            }
            pruned.versions.extend(unused.into_iter().map(|version| (name.clone(), version)));
        }
        Ok(())
    }

    /// The blobs and manifests of all packages known here, but for those in `forgotten`.
    fn needed(
        &self,
        forgotten: &[(PackageName, Version)],
    ) -> Result<(HashSet<Digest>, HashSet<Digest>), CacheError> {
        let (mut needed, mut manifests) = (HashSet::new(), HashSet::new());
        for name in self.names()? {
            let Some(index) = self.index(&name)? else { continue };
            for entry in index.versions {
                if forgotten.iter().any(|(n, v)| *n == name && *v == entry.version) {
                    continue;
                }
                manifests.insert(entry.manifest.digest);
                if let Some(manifest) = self.manifest(&entry.manifest.digest)? {
                    needed.extend(blobs(&manifest));
                }
            }
        }
        Ok((needed, manifests))
    }

    /// Removes those files of a folder whose digest is not among these.
    fn retain(&self, folder: &str, kept: &HashSet<Digest>) -> Result<(), CacheError> {
        let folder = self.folder(folder);
        for name in file::names(&folder)? {
            if parse_hex(&name).is_some_and(|digest| !kept.contains(&digest)) {
                file::remove(&folder.join(name))?;
            }
        }
        Ok(())
    }

    fn parts(&self) -> Result<Vec<PathBuf>, CacheError> {
        let folder = self.folder("incoming");
        let names = file::names(&folder)?.into_iter();
        Ok(names.filter(|name| name.ends_with(".part")).map(|name| folder.join(name)).collect())
    }

    /// Removes interrupted fetches; those that go on are locked and stay.
    fn prune_parts(&self, options: &PruneOptions, pruned: &mut Pruned) -> Result<(), CacheError> {
        for path in self.parts()? {
            let Some(part) = file::open_regular(&path)? else { continue };
            let meta = part.metadata().named("stat", &path)?;
            let age = meta.modified().ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
            if age < options.keep_parts || !Lock::try_exclusive_on(&part).named("lock", &path)? {
                continue;
            }
            if file::is_at(&part, &path).named("stat", &path)? {
                if !options.dry_run {
                    file::remove(&path)?;
                }
                pruned.parts += 1;
                pruned.bytes += meta.len();
            }
        }
        Ok(())
    }

    /// Marks of chunk tables that fit go with their images.
    fn retain_checked(
        &self,
        needed: &HashSet<Digest>,
        leased: &HashSet<Digest>,
    ) -> Result<(), CacheError> {
        let folder = self.folder("checked");
        for name in file::names(&folder)? {
            let kept = |(image, table): (Digest, Digest)| {
                leased.contains(&image) || (needed.contains(&image) && needed.contains(&table))
            };
            if parse_pair(&name).is_some_and(|pair| !kept(pair)) {
                file::remove(&folder.join(name))?;
            }
        }
        Ok(())
    }

    fn stored(&self) -> Result<Vec<Stored>, CacheError> {
        let folder = self.folder("blobs");
        let mut stored = Vec::new();
        for name in file::names(&folder)? {
            let Some(digest) = parse_hex(&name) else { continue };
            let Some(meta) = file::stat(&folder.join(&name))? else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let path = folder.join(name);
            stored.push(Stored { path, digest, size: meta.len(), used, entry: None });
        }
        for entry in self.entries()? {
            let Some(meta) = file::stat(&entry.path)? else { continue };
            let used = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let (path, digest, size) = (entry.path.clone(), entry.image, meta.len());
            stored.push(Stored { path, digest, size, used, entry: Some(entry) });
        }
        self.use_bases(&mut stored);
        Ok(stored)
    }

    /// The files of what is leased: of borrowed images by whatever table.
    fn in_use(&self, leased: &HashSet<Digest>, stored: &[Stored]) -> HashSet<PathBuf> {
        self.with_bases(stored, |stored| leased.contains(&stored.digest))
    }

    /// The files of these blobs, and of images that are borrowed by one of these tables.
    fn files_of(&self, digests: &HashSet<Digest>, stored: &[Stored]) -> HashSet<PathBuf> {
        self.with_bases(stored, |stored| {
            let table = stored.entry.as_ref().map(|entry| &entry.table);
            digests.contains(&stored.digest) && table.is_none_or(|table| digests.contains(table))
        })
    }

    /// The files of images that are kept, and all files that those lie in.
    fn with_bases(&self, stored: &[Stored], is_kept: impl Fn(&Stored) -> bool) -> HashSet<PathBuf> {
        let blobs = stored.iter().filter(|stored| stored.entry.is_none() && is_kept(stored));
        let mut kept: HashSet<PathBuf> = blobs.map(|blob| blob.path.clone()).collect();
        let borrowers = borrowers(stored);
        let images = borrowers.iter().filter(|(stored, _)| is_kept(stored));
        kept.extend(images.map(|(stored, _)| stored.path.clone()));
        loop {
            let before = kept.len();
            for (stored, entry) in &borrowers {
                if kept.contains(&stored.path) {
                    kept.extend(entry.bases().map(|base| self.base_path(base)));
                }
            }
            if kept.len() == before {
                return kept;
            }
        }
    }

    /// Lets what is borrowed from be used later than who borrows.
    fn use_bases(&self, stored: &mut [Stored]) {
        // Bases mostly are older than their borrowers, and then one round does, and one to see it.
        for _ in 0..stored.len() {
            let mut used: HashMap<PathBuf, SystemTime> = HashMap::new();
            for (borrower, entry) in borrowers(stored) {
                let after = borrower.used + Duration::from_nanos(1);
                for base in entry.bases() {
                    let last = used.entry(self.base_path(base)).or_insert(after);
                    *last = after.max(*last);
                }
            }
            let mut changed = false;
            for base in stored.iter_mut() {
                if let Some(last) = used.get(&base.path).filter(|last| **last > base.used) {
                    (base.used, changed) = (*last, true);
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn drop_oldest(
        &self,
        mut stored: Vec<Stored>,
        leased: &HashSet<PathBuf>,
        excess: u64,
        dry_run: bool,
        pruned: &mut Pruned,
    ) -> Result<(), CacheError> {
        stored.sort_by_key(|blob| blob.used);
        let mut freed = 0;
        for blob in stored.iter().filter(|blob| !leased.contains(&blob.path)) {
            if freed >= excess {
                break;
            }
            self.drop_blob(blob, dry_run, pruned)?;
            freed += blob.size;
        }
        Ok(())
    }

    fn drop_blob(
        &self,
        blob: &Stored,
        dry_run: bool,
        pruned: &mut Pruned,
    ) -> Result<(), CacheError> {
        if !dry_run {
            file::remove(&blob.path)?;
        }
        pruned.blobs.push((blob.digest, blob.size));
        pruned.bytes += blob.size;
        Ok(())
    }

    /// The lengths that the manifests known here give for their blobs.
    pub(super) fn known_sizes(&self) -> Result<HashMap<Digest, u64>, CacheError> {
        let mut sizes = HashMap::new();
        for name in file::names(&self.folder("manifests"))? {
            let Some(digest) = parse_hex(&name) else { continue };
            let Ok(Some(manifest)) = self.manifest(&digest) else { continue };
            for layer in manifest.layers {
                sizes.insert(layer.digest, layer.size);
                sizes.extend(layer.chunks.map(|table| (table.digest, table.size)));
            }
        }
        Ok(sizes)
    }
}

/// The borrowed images among these that are not here as files as well: of the others nobody needs the bases.
fn borrowers(stored: &[Stored]) -> Vec<(&Stored, &Entry)> {
    let whole = |blob: &&Stored| blob.entry.is_none();
    let whole: HashSet<Digest> = stored.iter().filter(whole).map(|blob| blob.digest).collect();
    let borrowed = stored.iter().filter(|stored| !whole.contains(&stored.digest));
    borrowed.filter_map(|stored| Some((stored, stored.entry.as_ref()?))).collect()
}

fn total(stored: &[Stored]) -> u64 {
    stored.iter().map(|blob| blob.size).sum()
}
