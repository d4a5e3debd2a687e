//! What happened to jobs, for `mica events`: `events.jsonl` in the state directory, appended to by whoever did it.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use mica_durable::Folder;
use serde::{Deserialize, Serialize};

use crate::config::JobConfig;
use crate::files::Lock;
use crate::job::JobDir;
use crate::lines::JsonLines;

/// Size at which the file is set aside, in bytes.
const ROTATE_AT: i64 = 4 << 20;

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
    let (folder, name) = (open(root)?, format!("{STEM}.jsonl"));
    let size = || folder.stat(&name).ok().flatten().map_or(0, |stat| stat.st_size);
    if size() > ROTATE_AT
        // One of those who see that it is full sets it aside.
        && let Ok(Some(_lock)) = Lock::try_exclusive(&root.join("events.lock"))
        && size() > ROTATE_AT
    {
        rustix::fs::renameat(&folder, &name, &folder, format!("{STEM}.1.jsonl"))?;
    }
    folder.append_file(&name, 0o600).map_err(|error| error.source)?.write_all(&text)
}

fn open(root: &Path) -> io::Result<Folder> {
    Folder::open(root).map_err(|error| error.source)
}
