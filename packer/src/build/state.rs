//! What is remembered of an action: the digest of what it was made from, and what its outputs looked like then.
//!
//! Outputs are not synced to disk: they can be made again. So after a crash of the machine a file may be there with the right size and other
//! bytes; outputs from before the last boot are therefore trusted only if their content is still the same.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use mica_graph::Digest;
use mica_graph::actions::Action;
use serde::{Deserialize, Serialize};

use super::error::BuildError;
use super::place::digest_of_output;

/// The folder of the outputs, in the out folder.
pub(super) const BIN: &str = "bin";
pub(super) const STATE: &str = "state";

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Record {
    key: Digest,
    /// The kernel's name for the time since the machine was started.
    boot: String,
    outputs: Vec<Seen>,
    /// The outputs' content.
    content: Vec<Digest>,
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

/// More than any record has.
const LONGEST: u64 = 16 << 20;

fn read(path: &Path) -> Result<Vec<u8>, BuildError> {
    let mut text = Vec::new();
    let (file, _) = super::place::open(path)?;
    file.take(LONGEST).read_to_end(&mut text).map_err(BuildError::when("read", path))?;
    Ok(text)
}

/// Whether the outputs of `action` are there, made from what `key` stands for.
pub(super) fn is_current(out: &Path, action: &Action, key: Digest) -> bool {
    // A record that cannot be read is as good as none: the action runs again.
    let Ok(text) = read(&file(out, action)) else { return false };
    let Ok(record) = serde_json::from_slice::<Record>(&text) else { return false };
    record.key == key
        && look(out, action).is_ok_and(|seen| seen == record.outputs)
        && ((record.boot == boot() && record.boot != UNKNOWN)
            || contents(out, action).is_ok_and(|now| now == record.content))
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
    let content = contents(out, action)?;
    let text = serde_json::to_vec(&Record { key, boot: boot(), outputs, content })
        .map_err(|error| BuildError::io("write", &path, error.into()))?;
    let temporary = path.with_extension("new");
    fs::create_dir_all(out.join(STATE)).map_err(BuildError::when("make the folder of", &path))?;
    // What a killed build left, or a link that came with the workspace.
    mica_durable::found(fs::remove_file(&temporary))
        .and_then(|_| fs::File::create_new(&temporary)?.write_all(&text))
        .map_err(BuildError::when("write", &temporary))?;
    fs::rename(&temporary, &path).map_err(BuildError::when("write", &path))
}

/// What stands for a boot where the kernel does not tell.
const UNKNOWN: &str = "unknown";

/// Where the kernel does not tell, every record is of another boot.
fn boot() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    text.map_or_else(|_| UNKNOWN.to_owned(), |text| text.trim().to_owned())
}

fn contents(out: &Path, action: &Action) -> Result<Vec<Digest>, BuildError> {
    let path = |path: &String| out.join(BIN).join(path);
    action.outputs.iter().map(|output| digest_of_output(&path(&output.path))).collect()
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
