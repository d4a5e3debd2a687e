//! What every verb needs: the places, and the jobs after cleaning up behind killed processes.

use std::process::ExitCode;

use mica_agent::{JobDir, Mounts, StateDir};
use mica_fetcher::Cache;

use crate::error;
use crate::places::Places;

/// The surroundings of a command.
#[derive(Debug)]
pub(crate) struct Context {
    /// The folders and the registry.
    pub(crate) places: Places,
}

impl Context {
    /// The surroundings as the flag `--registry`, the environment and the configuration files set them.
    pub(crate) fn new(registry: Option<&str>) -> anyhow::Result<Self> {
        Ok(Self { places: Places::find(&std::env::current_dir()?, registry)? })
    }

    /// The state directory as it is.
    pub(crate) fn state(&self) -> anyhow::Result<StateDir> {
        Ok(StateDir::open(&self.places.state)?)
    }

    /// The jobs, after ending those whose supervisor was killed; dead mounts are taken down too.
    pub(crate) fn jobs(&self) -> anyhow::Result<StateDir> {
        self.mounts()?;
        let state = self.state()?;
        mica_agent::reconcile(&state)?;
        Ok(state)
    }

    /// The mounts, after taking down those whose server was killed.
    pub(crate) fn mounts(&self) -> anyhow::Result<Mounts> {
        let mounts = Mounts::open(&self.places.runtime)?;
        mounts.reconcile()?;
        Ok(mounts)
    }

    /// The node's images.
    pub(crate) fn cache(&self) -> anyhow::Result<Cache> {
        Ok(Cache::open(&self.places.cache)?)
    }

    /// Acts on every job named; one that fails is reported and doesn't keep the rest from their turn.
    pub(crate) fn each_job(
        &self,
        words: &[String],
        mut act: impl FnMut(&JobDir) -> anyhow::Result<()>,
    ) -> anyhow::Result<ExitCode> {
        let state = self.jobs()?;
        let mut exit = ExitCode::SUCCESS;
        for word in words {
            let acted = state.find(word).map_err(anyhow::Error::from).and_then(|job| act(&job));
            if let Err(error) = acted {
                exit = error::report(&error, 1);
            }
        }
        Ok(exit)
    }
}
