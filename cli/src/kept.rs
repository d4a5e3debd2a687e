//! What `mica pack` keeps of each layer, so that the next time it reads only the files that have changed and compresses
//! only what is new in them.
//!
//! ```text
//! .mica/out/pack/lock                       held by whoever packs
//!                LABEL/scan                 what the files were, see [`ScanCache`]
//!                LABEL/image.xar[.index]    the last image, see [`PackOptions::previous`]
//! ```
//!
//! `LABEL` is the start of the label's BLAKE3. All of it may be removed at any time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use mica_graph::{Digest, Label};
use mica_packer::{PackOptions, Scan, ScanCache, index_path};
use rustix::fs::{FlockOperation, flock};

use crate::places::find_workspace;

/// The folder, for one `mica pack` at a time. Another one, one that may not write there, and one that is in no workspace
/// has a folder of its own that is empty at first and gone at the end.
pub(crate) struct Kept {
    dir: PathBuf,
    _lock: Option<File>,
    _scratch: Option<tempfile::TempDir>,
}

impl Kept {
    pub(crate) fn open(workspace: &Path) -> anyhow::Result<Self> {
        let out = workspace.join(".mica/out");
        let is_workspace = || find_workspace(workspace).as_deref() == Some(workspace);
        let dir = out.join("pack");
        if (out.is_dir() || is_workspace())
            && let Some(lock) = lock(&dir)
        {
            return Ok(Self { dir, _lock: Some(lock), _scratch: None });
        }
        let scratch = tempfile::tempdir().context("cannot make a scratch folder")?;
        Ok(Self { dir: scratch.path().to_owned(), _lock: None, _scratch: Some(scratch) })
    }

    fn layer(&self, label: &Label) -> PathBuf {
        self.dir.join(&Digest::of(label.to_string().as_bytes()).hex()[..16])
    }

    /// What is known of the files of a layer.
    pub(crate) fn scan_cache(&self, label: &Label) -> Arc<ScanCache> {
        Arc::new(ScanCache::load(&self.layer(label).join("scan")))
    }

    /// Remembers what is known now. That is a matter of time only, so it may fail.
    pub(crate) fn remember(&self, label: &Label, scan: &Scan, known: &ScanCache) {
        let (dir, now) = (self.layer(label), ScanCache::of(scan));
        if !now.is_same(known) && fs::create_dir_all(&dir).is_ok() {
            let saved = now.save(&dir.join("scan"));
            saved.unwrap_or_else(|error| tracing::info!(%label, %error, "the scan is not kept"));
        }
    }

    /// Where the image of a layer goes, and how it is packed with the help of the one that is there.
    pub(crate) fn image(
        &self,
        label: &Label,
        options: &PackOptions,
    ) -> anyhow::Result<(PathBuf, PackOptions)> {
        let dir = self.layer(label);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let image = dir.join("image.xar");
        let previous = index_path(&image).is_file().then(|| image.clone());
        // The registry has its own, durable copy.
        Ok((image, PackOptions { previous, index: true, durable: false, ..options.clone() }))
    }
}

/// Makes the folder and locks it; not if it may not be written to, or another process has it.
fn lock(dir: &Path) -> Option<File> {
    fs::create_dir_all(dir).ok()?;
    let ignore = dir.join("../.gitignore");
    if !ignore.exists() {
        fs::write(ignore, "*\n").ok()?;
    }
    let lock = File::create(dir.join("lock")).ok()?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive).ok()?;
    Some(lock)
}
