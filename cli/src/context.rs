//! What every verb needs: the places, and the jobs after cleaning up behind killed processes.

use std::process::ExitCode;

use mica_agent::{JobDir, Mounts, StateDir};
use mica_durable::Scratch;
use mica_fetcher::Cache;
use mica_fetcher::registry::{OpenOptions, Source};

use crate::error;
use crate::places::Places;
use crate::registries::RegistryFlags;

/// The surroundings of a command.
#[derive(Debug)]
pub(crate) struct Context {
    /// The folders and the registry.
    pub(crate) places: Places,
    flags: RegistryFlags,
}

/// The working directory; the root where that is gone or can't be reached: there is no workspace then, and who names a file
/// relative to it hears of that.
pub(crate) fn here() -> std::path::PathBuf {
    std::env::current_dir().unwrap_or_else(|_| "/".into())
}

impl Context {
    /// The surroundings as the environment and the configuration files set them.
    pub(crate) fn new() -> anyhow::Result<Self> {
        Self::with(&RegistryFlags::default())
    }

    /// The same with flags about registries.
    pub(crate) fn with(flags: &RegistryFlags) -> anyhow::Result<Self> {
        let places = Places::find(&here(), flags.registry.as_deref())?;
        Ok(Self { places, flags: flags.clone() })
    }

    /// Surroundings without flags.
    pub(crate) fn at(places: Places) -> Self {
        Self { places, flags: RegistryFlags::default() }
    }

    /// How registries are reached.
    pub(crate) fn registries(&self) -> OpenOptions {
        self.flags.options(&self.places)
    }

    /// The registry, for another process to reach it.
    pub(crate) fn source(&self) -> anyhow::Result<Source> {
        let mut address = self.places.registry.clone();
        if mica_fetcher::registry::is_folder(&address) && !address.contains("://") {
            address = std::path::absolute(address)?.to_string_lossy().into_owned();
        }
        self.flags.source(&address, &self.places)
    }

    /// A folder for what a command makes for a time; the next command removes it if this one is killed.
    pub(crate) fn scratch(&self) -> anyhow::Result<Scratch> {
        Ok(Scratch::new(&self.places.state.join("tmp"))?)
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

    /// The mounts as they are.
    pub(crate) fn mounts_as_they_are(&self) -> anyhow::Result<Mounts> {
        Ok(Mounts::open(&self.places.runtime)?)
    }

    /// The mounts, after taking down those whose server was killed.
    pub(crate) fn mounts(&self) -> anyhow::Result<Mounts> {
        let mounts = self.mounts_as_they_are()?;
        mounts.reconcile()?;
        Ok(mounts)
    }

    /// The node's images.
    pub(crate) fn cache(&self) -> anyhow::Result<Cache> {
        let mut cache = Cache::open(&self.places.cache)?.with_quota(self.places.quota);
        if let Some(shared) = &self.places.shared_cache {
            cache = cache.with_shared(shared);
        }
        Ok(cache)
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
