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

use std::path::{Path, PathBuf};
use std::sync::Arc;

use mica_durable::{FileError, Folder, Lock, Scratch, trusted};
use mica_graph::{Digest, Label};
use mica_packer::{PackOptions, Scan, ScanCache, index_path};
use rustix::fs::FileType;

use crate::places::find_workspace;
use crate::scratch;

/// The folder, for one `mica pack` at a time. Another one, one that may not write there, and one that is in no workspace
/// has a folder of its own that is empty at first and gone at the end.
pub(crate) struct Kept {
    dir: PathBuf,
    _lock: Option<Lock>,
    _scratch: Option<Scratch>,
}

impl Kept {
    pub(crate) fn open(workspace: &Path) -> anyhow::Result<Self> {
        let is_workspace = || find_workspace(workspace).as_deref() == Some(workspace);
        if (workspace.join(".mica/out").is_dir() || is_workspace())
            && let Some((dir, lock)) = lock(workspace)
        {
            return Ok(Self { dir, _lock: Some(lock), _scratch: None });
        }
        let scratch = scratch::folder()?;
        Ok(Self { dir: scratch.path().to_owned(), _lock: None, _scratch: Some(scratch) })
    }

    /// The folder of a layer, made if need be. It may have come with the workspace: what is no file of ours is removed.
    fn layer(&self, label: &Label) -> Result<PathBuf, FileError> {
        let name = &Digest::of(label.to_string().as_bytes()).hex()[..16];
        let folder = Folder::open(&self.dir)?.create_folder(name, 0o755)?;
        for name in folder.names()? {
            let kind = folder.stat(&name)?.map(|stat| FileType::from_raw_mode(stat.st_mode));
            if kind.is_some_and(|kind| kind != FileType::RegularFile) {
                folder.remove(&name)?;
            }
        }
        Ok(folder.path().to_owned())
    }

    /// What is known of the files of a layer.
    pub(crate) fn scan_cache(&self, label: &Label) -> Arc<ScanCache> {
        // Without it everything is read anew.
        let known = self.layer(label).map(|dir| ScanCache::load(&dir.join("scan")));
        Arc::new(known.unwrap_or_default())
    }

    /// Remembers what is known now. That is a matter of time only, so it may fail.
    pub(crate) fn remember(&self, label: &Label, scan: &Scan, known: &ScanCache) {
        let now = ScanCache::of(scan);
        if !now.is_same(known)
            && let Ok(dir) = self.layer(label)
        {
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
        let dir = self.layer(label)?;
        let image = dir.join("image.xar");
        let previous = index_path(&image).is_file().then(|| image.clone());
        // The registry has its own, durable copy.
        Ok((image, PackOptions { previous, index: true, durable: false, ..options.clone() }))
    }
}

/// Makes the folder and locks it; not if it may not be written to, another process has it, or a part of its path is a link,
/// which may have come with the workspace.
fn lock(workspace: &Path) -> Option<(PathBuf, Lock)> {
    let out = Folder::open(workspace)
        .and_then(|root| root.create_folder(".mica", 0o755))
        .and_then(|mica| mica.create_folder("out", 0o755))
        .ok()?;
    if out.stat(".gitignore").ok()?.is_none() {
        out.replace(".gitignore", b"*\n", 0o644).ok()?;
    }
    let dir = out.create_folder("pack", 0o755).ok()?;
    // Where another account can put something in, what is kept would be his to choose.
    trusted::check(dir.path(), rustix::process::geteuid().as_raw()).ok()?;
    let lock = Lock::try_exclusive(&dir.path().join("lock")).ok()??;
    Some((dir.path().to_owned(), lock))
}
