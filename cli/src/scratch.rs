//! Folders for a time, where the caller has its temporary files.

use std::env;

use anyhow::Context as _;
use mica_durable::{Folder, Scratch};

/// A folder that goes when it is dropped, or with the next one of the same user's if this process is killed.
///
/// They are in `$TMPDIR/mica-UID`, which nobody else may write to.
pub(crate) fn folder() -> anyhow::Result<Scratch> {
    let own = env::temp_dir().join(format!("mica-{}", rustix::process::geteuid()));
    let own = Folder::create(&own, 0o700).and_then(|own| own.refuse_foreign().map(|()| own));
    let below = match own {
        Ok(own) => own.path().join("tmp"),
        // Somebody else has taken the name: then one that nobody could know.
        Err(_) => tempfile::tempdir().context("cannot make a scratch folder")?.keep(),
    };
    Ok(Scratch::new(&below)?)
}
