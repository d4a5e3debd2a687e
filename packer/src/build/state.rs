//! What is remembered of an action: the digest of what it was made from, and what its outputs looked like then.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mica_graph::Digest;
use mica_graph::actions::Action;
use serde::{Deserialize, Serialize};

use super::error::BuildError;

/// The folder of the outputs, in the out folder.
pub(super) const BIN: &str = "bin";
const STATE: &str = "state";

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Record {
    key: Digest,
    outputs: Vec<Seen>,
}

/// What tells that a file was changed behind our back.
#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Seen {
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    mode: u32,
}

fn file(out: &Path, action: &Action) -> PathBuf {
    let name = action.outputs.first().map_or("", |output| &output.path);
    out.join(STATE).join(Digest::of(name.as_bytes()).hex())
}

/// Whether the outputs of `action` are there, made from what `key` stands for.
pub(super) fn is_current(out: &Path, action: &Action, key: Digest) -> bool {
    // A record that cannot be read is as good as none: the action runs again.
    let Ok(text) = fs::read(file(out, action)) else { return false };
    let Ok(record) = serde_json::from_slice::<Record>(&text) else { return false };
    record.key == key && look(out, action).is_ok_and(|seen| seen == record.outputs)
}

/// Forgets an action, before its outputs are replaced.
pub(super) fn forget(out: &Path, action: &Action) -> Result<(), BuildError> {
    let path = file(out, action);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BuildError::io("remove", &path, error))
        }
        _ => Ok(()),
    }
}

/// Remembers an action, after its outputs are in place.
pub(super) fn remember(out: &Path, action: &Action, key: Digest) -> Result<(), BuildError> {
    let path = file(out, action);
    let outputs = look(out, action).map_err(BuildError::when("read the outputs for", &path))?;
    let text = serde_json::to_vec(&Record { key, outputs })
        .map_err(|error| BuildError::io("write", &path, error.into()))?;
    let temporary = path.with_extension("new");
    fs::create_dir_all(out.join(STATE)).map_err(BuildError::when("make the folder of", &path))?;
    fs::write(&temporary, text).map_err(BuildError::when("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(BuildError::when("write", &path))
}

fn look(out: &Path, action: &Action) -> io::Result<Vec<Seen>> {
    let look = |path: &String| {
        let meta = fs::symlink_metadata(out.join(BIN).join(path))?;
        Ok(Seen {
            inode: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            mode: meta.mode(),
        })
    };
    action.outputs.iter().map(|output| look(&output.path)).collect()
}
