//! Reading everything again: was anything altered since it was verified?

use std::path::{Path, PathBuf};

use mica_graph::{Blob, Digest, Layer, Manifest, PackageName};

use super::{Cache, CacheError};
use crate::file;
use crate::registry::layout::parse_hex;
use crate::registry::{Entry, Index};

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Files read.
    pub files: usize,
    /// Their bytes.
    pub bytes: u64,
    /// What is wrong.
    pub damage: Vec<Damage>,
}

/// A file of the cache that is not what it was when it was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Damage {
    /// An image or chunk table.
    Blob {
        /// Its file.
        path: PathBuf,
        /// The blob to fetch again, if a known manifest says how long it is.
        blob: Option<Blob>,
    },
    /// An image that lies in others, or a part of it there.
    Borrowed {
        /// Its file.
        path: PathBuf,
        /// The layer to fetch again, and a package it is of, if the index knows.
        of: Option<Box<(PackageName, Layer)>>,
    },
    /// A manifest.
    Manifest {
        /// Its file.
        path: PathBuf,
        /// The package and version to pull again, if the index knows.
        of: Option<(PackageName, Entry)>,
    },
    /// The index of a package, rebuilt from the manifests on repair; tags are lost.
    Index {
        /// Its file.
        path: PathBuf,
    },
    /// The signatures of a manifest.
    Signatures {
        /// Their file.
        path: PathBuf,
        /// The package and version to ask for them, if the index knows.
        of: Option<(PackageName, Entry)>,
    },
    /// A note of what was touched of an image; a later run makes a new one.
    Trace {
        /// Its file.
        path: PathBuf,
    },
    /// A manifest that an index names is not there.
    NoManifest {
        /// Where it should be.
        path: PathBuf,
        /// The package and version to pull again.
        of: (PackageName, Entry),
    },
    /// A file that does not belong into a cache.
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

impl Damage {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Blob { path, .. }
            | Self::Borrowed { path, .. }
            | Self::Manifest { path, .. }
            | Self::Index { path }
            | Self::Signatures { path, .. }
            | Self::Trace { path }
            | Self::NoManifest { path, .. }
            | Self::Foreign { path } => path,
        }
    }
}

impl Cache {
    /// Hashes every blob and manifest and checks every index. With `repair`, what is damaged is taken out, so that it
    /// counts as missing, and indexes are rebuilt; [`heal`](crate::heal) fetches the rest again.
    pub fn verify(&self, repair: bool) -> Result<Verified, CacheError> {
        let mut verified = Verified::default();
        self.verify_blobs(repair, &mut verified)?;
        self.verify_borrowed(repair, &mut verified)?;
        let _gc = self.exclusive("gc")?;
        self.verify_manifests(repair, &mut verified)?;
        self.verify_indexes(repair, &mut verified)?;
        self.verify_traces(repair, &mut verified)?;
        self.verify_signatures(repair, &mut verified)?;
        Ok(verified)
    }

    fn verify_blobs(&self, repair: bool, verified: &mut Verified) -> Result<(), CacheError> {
        let sizes = self.known_sizes()?;
        self.verify_folder("blobs", repair, verified, |path, digest| {
            let blob = sizes.get(&digest).map(|size| Blob { digest, size: *size });
            Ok(Damage::Blob { path, blob })
        })
    }

    fn verify_manifests(&self, repair: bool, verified: &mut Verified) -> Result<(), CacheError> {
        self.verify_folder("manifests", repair, verified, |path, digest| {
            Ok(Damage::Manifest { path, of: self.entry_of(&digest)? })
        })
    }

    /// Hashes every file of a folder whose files are named by digest.
    fn verify_folder(
        &self,
        folder: &str,
        repair: bool,
        verified: &mut Verified,
        damage: impl Fn(PathBuf, Digest) -> Result<Damage, CacheError>,
    ) -> Result<(), CacheError> {
        let folder = self.folder(folder);
        for name in file::names(&folder)? {
            let path = folder.join(&name);
            let Some(digest) = parse_hex(&name) else {
                verified.damage.push(Damage::Foreign { path });
                continue;
            };
            let (found, size) = match file::open(&path).and_then(|file| file::hash(&file, &path)) {
                Ok((found, size)) => (Some(found), size),
                Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => continue,
                // A part that cannot be read is damage, not the end.
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "cannot read");
                    (None, 0)
                }
            };
            verified.files += 1;
            verified.bytes += size;
            if found == Some(digest) {
                continue;
            }
            if repair {
                file::remove(&path)?;
            }
            verified.damage.push(damage(path, digest)?);
        }
        Ok(())
    }

    fn verify_traces(&self, repair: bool, verified: &mut Verified) -> Result<(), CacheError> {
        self.verify_notes("touched", repair, verified, |path, digest| {
            Ok(self.trace(&digest).is_empty().then_some(Damage::Trace { path }))
        })
    }

    fn verify_signatures(&self, repair: bool, verified: &mut Verified) -> Result<(), CacheError> {
        self.verify_notes("signatures", repair, verified, |path, digest| {
            Ok(match self.signatures(&digest) {
                Ok(_) => None,
                Err(_) => Some(Damage::Signatures { path, of: self.entry_of(&digest)? }),
            })
        })
    }

    /// Looks at the files of a folder that are named by the digest of what they are about.
    fn verify_notes(
        &self,
        folder: &str,
        repair: bool,
        verified: &mut Verified,
        damage: impl Fn(PathBuf, Digest) -> Result<Option<Damage>, CacheError>,
    ) -> Result<(), CacheError> {
        let folder = self.folder(folder);
        for name in file::names(&folder)? {
            let path = folder.join(&name);
            let Some(digest) = parse_hex(&name) else {
                verified.damage.push(Damage::Foreign { path });
                continue;
            };
            verified.files += 1;
            verified.bytes += file::stat(&path)?.map_or(0, |meta| meta.len());
            if let Some(damage) = damage(path, digest)? {
                if repair {
                    file::remove(damage.path())?;
                }
                verified.damage.push(damage);
            }
        }
        Ok(())
    }

    fn entry_of(&self, digest: &Digest) -> Result<Option<(PackageName, Entry)>, CacheError> {
        for name in self.names()? {
            let Ok(Some(index)) = self.index(&name) else { continue };
            let entry = index.versions.into_iter().find(|e| e.manifest.digest == *digest);
            if let Some(entry) = entry {
                return Ok(Some((name, entry)));
            }
        }
        Ok(None)
    }

    fn verify_indexes(&self, repair: bool, verified: &mut Verified) -> Result<(), CacheError> {
        for name in self.names()? {
            let path = self.index_path(&name);
            verified.files += 1;
            verified.bytes += file::stat(&path)?.map_or(0, |meta| meta.len());
            match self.index(&name) {
                Ok(Some(index)) => self.verify_entries(index, verified)?,
                Ok(None) => {}
                Err(CacheError::Document { path }) => {
                    if repair {
                        self.rebuild_index(&name)?;
                    }
                    verified.damage.push(Damage::Index { path });
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn verify_entries(&self, index: Index, verified: &mut Verified) -> Result<(), CacheError> {
        for entry in index.versions {
            let path = self.manifest_path(&entry.manifest.digest);
            let reported = verified.damage.iter().any(|damage| damage.path() == path);
            if !reported && file::stat(&path)?.is_none() {
                let of = (index.name.clone(), entry);
                verified.damage.push(Damage::NoManifest { path, of });
            }
        }
        Ok(())
    }

    /// Makes the index of a package anew from its manifests, in the order in which they came.
    fn rebuild_index(&self, name: &PackageName) -> Result<(), CacheError> {
        let _lock = self.exclusive(&format!("package-{name}"))?;
        let mut entries: Vec<(u64, Digest, Manifest)> = Vec::new();
        for file in file::names(&self.folder("manifests"))? {
            let Some(digest) = parse_hex(&file) else { continue };
            let Ok(Some(manifest)) = self.manifest(&digest) else { continue };
            if manifest.name == *name {
                let time = file::stat(&self.manifest_path(&digest))?.and_then(|meta| {
                    let age = meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
                    Some(age.as_secs())
                });
                entries.push((time.unwrap_or(0), digest, manifest));
            }
        }
        entries.sort_by_key(|(time, ..)| *time);
        let mut index = Index::new(name.clone());
        for (time, digest, manifest) in entries {
            let size = manifest.to_json().len() as u64;
            let manifest_blob = Blob { digest, size };
            index.follow(Entry { version: manifest.version, manifest: manifest_blob, time }, &[]);
        }
        if index.versions.is_empty() {
            file::remove(&self.index_path(name))?;
            return Ok(());
        }
        self.write_index(&index)
    }
}
