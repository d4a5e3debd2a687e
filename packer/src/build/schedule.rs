//! Runs actions in parallel, each when its inputs are made.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::num::NonZero;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use mica_durable::{Lock, remove_tree};
use mica_graph::actions::{Action, Place};

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

/// How long a build waits for another one in the same out folder.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs what is not current of `actions`.
pub(super) fn run(
    root: &Path,
    out: &Path,
    actions: &[Action],
    options: &BuildOptions,
) -> Result<Counts, BuildError> {
    // One build at a time in an out folder; the lock goes with the file descriptor, however the process ends.
    let _lock = Lock::exclusive(&out.join("lock"), PATIENCE)?;
    let tmp = sandbox::sweep(out)?;
    let runner = Runner {
        root,
        out,
        tmp: &tmp,
        toolchain: &options.toolchain,
        executor: &*options.executor,
        hashed: Mutex::new(HashMap::new()),
    };
    let queue = Queue::new(actions);
    let jobs = options.jobs.or(thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1);
    queue.work(jobs, &|number| runner.run(number, &actions[number]));
    remove_tree(&tmp)?;
    let state = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Of several failures the one of the earliest action is told, whichever came first.
    match state.failures.into_iter().next() {
        Some((_, Some(error))) => Err(error),
        Some((number, None)) => {
            let action = &actions[number];
            Err(BuildError::Panicked { verb: action.verb, label: action.label.clone() })
        }
        None => Ok(state.counts),
    }
}

/// Which of `actions` have to be run, or wait for one that has. Changes nothing.
pub(super) fn outdated(
    root: &Path,
    out: &Path,
    actions: &[Action],
    options: &BuildOptions,
) -> Result<BTreeSet<usize>, BuildError> {
    let runner = Runner {
        root,
        out,
        tmp: out,
        toolchain: &options.toolchain,
        executor: &*options.executor,
        hashed: Mutex::new(HashMap::new()),
    };
    let mut queue = Queue::new(actions);
    let mut current = BTreeSet::new();
    let state = queue.state.get_mut().unwrap_or_else(PoisonError::into_inner);
    while let Some(number) = state.ready.pop_first() {
        if !runner.is_current(&actions[number])? {
            continue;
        }
        for &dependent in &queue.dependents[number] {
            state.waiting[dependent] -= 1;
            if state.waiting[dependent] == 0 {
                state.ready.insert(dependent);
            }
        }
        current.insert(number);
    }
    Ok((0..actions.len()).filter(|number| !current.contains(number)).collect())
}

struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    /// For each action, those that wait for it.
    dependents: Vec<Vec<usize>>,
}

/// An action that is being done. Dropped only if that panics.
struct Unfinished<'q> {
    queue: &'q Queue,
    number: usize,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.running -= 1;
        state.failures.insert(self.number, None);
        drop(state);
        self.queue.changed.notify_all();
    }
}

struct State {
    /// For each action, how many others it waits for.
    waiting: Vec<usize>,
    ready: BTreeSet<usize>,
    running: usize,
    counts: Counts,
    /// By the number of the action; `None`: whoever did it panicked.
    failures: BTreeMap<usize, Option<BuildError>>,
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

    /// Does what is to be done, on so many threads. A thread that panics ends the work as a failure does: others wait for it.
    fn work(&self, threads: usize, act: &(dyn Fn(usize) -> Result<Outcome, BuildError> + Sync)) {
        let work = || {
            while let Some(number) = self.next() {
                let unfinished = Unfinished { queue: self, number };
                let result = act(number);
                std::mem::forget(unfinished);
                self.done(number, result);
            }
        };
        thread::scope(|scope| {
            let threads = threads.clamp(1, self.dependents.len().max(1));
            let further: Vec<_> = (1..threads)
                // Fewer threads than wanted are enough.
                .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
                .collect();
            let own = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            // What a panic was about has been printed; the failure is in the queue.
            let _failed = own.is_err();
            for thread in further {
                let _failed = thread.join().is_err();
            }
        });
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
            Err(error) => _ = state.failures.insert(number, Some(error)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_worker_leaves_nobody_waiting() {
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let action = |from: &[&str], to: &str| Action {
                label: "//:x".parse().unwrap(),
                verb: "generate",
                inputs: from.iter().map(|path| Place::Built((*path).to_owned())).collect(),
                also: Vec::new(),
                outputs: vec![mica_graph::actions::ActionOutput {
                    path: to.to_owned(),
                    executable: None,
                }],
                run: mica_graph::actions::Run::Copy,
            };
            // The second waits for the first.
            let queue = Queue::new(&[action(&[], "a"), action(&["a"], "b")]);
            queue.work(4, &|number| match number {
                0 => panic!("a test"),
                _ => Ok(Outcome::Reused),
            });
            let state = queue.state.into_inner().unwrap_or_else(PoisonError::into_inner);
            sender.send(matches!(state.failures.get(&0), Some(None))).unwrap();
        });
        assert!(receiver.recv_timeout(Duration::from_secs(30)).unwrap());
    }
}
