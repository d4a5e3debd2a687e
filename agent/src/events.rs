//! What happened to jobs, for `mica events`: `events.jsonl` in the state directory, appended to by whoever did it.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::JobConfig;
use crate::files::Lock;
use crate::lines::{JsonLines, current, previous};
use crate::logs::append;
use crate::state::JobDir;

/// Size at which the file is set aside, in bytes.
const ROTATE_AT: u64 = 4 << 20;

const STEM: &str = "events";

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When, RFC 3339.
    pub time: jiff::Timestamp,
    /// What, in docker's words: `create`, `start`, `die`, `oom`, `kill`, `stop`, `destroy`, ….
    pub action: String,
    /// The job.
    pub id: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it runs.
    pub source: String,
    /// What else there is to say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// A reader of the events in a state directory.
pub fn reader(root: &Path) -> JsonLines<Event> {
    JsonLines::new(root, STEM)
}

/// Writes down what happened to a job. That this fails is no reason to fail what happened.
pub(crate) fn record(
    job: &JobDir,
    config: &JobConfig,
    action: &str,
    attributes: &[(&str, String)],
) {
    let event = Event {
        time: jiff::Timestamp::now(),
        action: action.to_owned(),
        id: job.id().to_owned(),
        name: config.name.clone(),
        source: config.stack.source.clone(),
        attributes: attributes.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect(),
    };
    if let Err(error) = write(job.root(), &event) {
        tracing::warn!(%error, action, "cannot record an event");
    }
}

fn write(root: &Path, event: &Event) -> io::Result<()> {
    let mut text = serde_json::to_vec(event)?;
    text.push(b'\n');
    let path = current(root, STEM);
    if fs::metadata(&path).is_ok_and(|meta| meta.len() > ROTATE_AT)
        // One of those who see that it is full sets it aside.
        && let Ok(Some(_lock)) = Lock::try_exclusive(&root.join("events.lock"))
        && fs::metadata(&path).is_ok_and(|meta| meta.len() > ROTATE_AT)
    {
        fs::rename(&path, previous(root, STEM))?;
    }
    append(&path)?.write_all(&text)
}
