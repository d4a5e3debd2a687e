//! Runs actions in parallel, each when its inputs are made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{self, File};
use std::num::NonZero;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use mica_graph::actions::{Action, Place};
use rustix::fs::{FlockOperation, flock};

use super::BuildOptions;
use super::action::{Outcome, Runner};
use super::error::BuildError;
use super::sandbox;

/// How many actions were run and how many were not, and what was said meanwhile.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) run: usize,
    pub(super) reused: usize,
    /// By the number of the action.
    pub(super) said: BTreeMap<usize, String>,
}

/// Runs what is not current of `actions`.
pub(super) fn run(
    root: &Path,
    out: &Path,
    actions: &[Action],
    options: &BuildOptions,
) -> Result<Counts, BuildError> {
    fs::create_dir_all(out).map_err(BuildError::when("make the folder", out))?;
    // What is made is nothing to commit, nor a reason to call the commit's tree changed.
    let ignore = out.join(".gitignore");
    if !ignore.exists() {
        fs::write(&ignore, "*\n").map_err(BuildError::when("write", &ignore))?;
    }
    let _lock = lock(out)?;
    // What is built is not part of the workspace's content: its version must stay that of the commit.
    let ignore = out.join(".gitignore");
    fs::write(&ignore, "*\n").map_err(BuildError::when("write", &ignore))?;
    let tmp = sandbox::sweep(out)?;
    let runner = Runner {
        root,
        out,
        tmp: &tmp,
        toolchain: &options.toolchain,
        hashed: Mutex::new(HashMap::new()),
    };
    let queue = Queue::new(actions);
    let jobs = options.jobs.or(thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1);
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, actions.len().max(1)) {
            scope.spawn(|| {
                while let Some(number) = queue.next() {
                    queue.done(number, runner.run(number, &actions[number]));
                }
            });
        }
    });
    fs::remove_dir_all(&tmp).map_err(BuildError::when("remove", &tmp))?;
    let state = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Of several failures the one of the earliest action is told, whichever came first.
    match state.failures.into_iter().next() {
        Some((_, error)) => Err(error),
        None => Ok(state.counts),
    }
}

/// One build at a time in an out folder; the lock goes with the file descriptor, however the process ends.
fn lock(out: &Path) -> Result<File, BuildError> {
    let path = out.join("lock");
    let file = File::create(&path).map_err(BuildError::when("open", &path))?;
    flock(&file, FlockOperation::LockExclusive)
        .map_err(|errno| BuildError::io("lock", &path, errno.into()))?;
    Ok(file)
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// For each action, those that wait for it.
    dependents: Vec<Vec<usize>>,
}

struct State {
    /// For each action, how many others it waits for.
    waiting: Vec<usize>,
    ready: BTreeSet<usize>,
    running: usize,
    counts: Counts,
    failures: BTreeMap<usize, BuildError>,
}

impl Queue {
    fn new(actions: &[Action]) -> Self {
        let mut maker = HashMap::new();
        for (number, action) in actions.iter().enumerate() {
            maker.extend(action.outputs.iter().map(|output| (output.path.as_str(), number)));
        }
        let mut dependents = vec![Vec::new(); actions.len()];
        let mut waiting = vec![0; actions.len()];
        for (number, action) in actions.iter().enumerate() {
            let makers: BTreeSet<usize> = action
                .inputs
                .iter()
                .filter_map(|input| match input {
                    Place::Built(path) => maker.get(path.as_str()).copied(),
                    Place::Source(_) | Place::Host(_) => None,
                })
                .collect();
            waiting[number] = makers.len();
            for made_by in makers {
                dependents[made_by].push(number);
            }
        }
        let ready = (0..actions.len()).filter(|&number| waiting[number] == 0).collect();
        let state = State {
            waiting,
            ready,
            running: 0,
            counts: Counts::default(),
            failures: BTreeMap::new(),
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), dependents }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next action to run; `None` when there is none left, or one has failed.
    fn next(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            if !state.failures.is_empty() {
                return None;
            }
            if let Some(number) = state.ready.pop_first() {
                state.running += 1;
                return Some(number);
            }
            if state.running == 0 {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, number: usize, result: Result<Outcome, BuildError>) {
        let mut state = self.lock();
        state.running -= 1;
        match result {
            Err(error) => _ = state.failures.insert(number, error),
            Ok(outcome) => {
                match outcome {
                    Outcome::Reused => state.counts.reused += 1,
                    Outcome::Run { said } => {
                        state.counts.run += 1;
                        if !said.is_empty() {
                            state.counts.said.insert(number, said);
                        }
                    }
                }
                for &dependent in &self.dependents[number] {
                    state.waiting[dependent] -= 1;
                    if state.waiting[dependent] == 0 {
                        state.ready.insert(dependent);
                    }
                }
            }
        }
        drop(state);
        self.changed.notify_all();
    }
}
