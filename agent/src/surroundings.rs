//! What a job's program is started in, and started again in: mounts, network, leases.

use mica_fetcher::Lease;
use mica_launcher::{Prepared, Rlimit, Spec};
use mica_mounter::Mount;

use crate::config::JobConfig;
use crate::images::Images;
use crate::job::JobDir;
use crate::networks::Attached;
use crate::state::StateDir;
use crate::supervisor::SuperviseError;

/// All of it, made by a thread that may hang.
pub(crate) struct Surroundings {
    /// As the program is to be started.
    pub(crate) config: JobConfig,
    /// For the first start.
    pub(crate) prepared: Option<Prepared>,
    pub(crate) attached: Option<Attached>,
    images: Images,
    mount: Mount,
    _lease: Option<Lease>,
}

impl Surroundings {
    /// Mounts and connects.
    pub(crate) fn make(job: &JobDir, mut config: JobConfig) -> Result<Self, SuperviseError> {
        let lease = config.stack.lease()?;
        let attached = attach(job, &config)?;
        own_descriptors(&mut config.spec);
        let mut spec = config.spec.clone();
        if let Some(attached) = &attached {
            attached.connect(&mut spec);
        }
        let prepared = mica_launcher::prepare(&spec)?;
        let mount = config.stack.mount_for(job, &config, &job.tree())?;
        let images = Images::mount(job, &config)?;
        images.show(&mut config.spec);
        Ok(Self { config, prepared, attached, images, mount, _lease: lease })
    }

    /// Takes it down.
    pub(crate) fn leave(self) {
        drop(self.attached);
        self.images.unmount();
        if let Some(trace) = &self.config.stack.trace {
            trace.save(self.mount.trace());
        }
        if let Err(error) = self.mount.unmount() {
            // The mount is gone with this process and its namespace in any case.
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot unmount the stack");
        }
    }
}

/// The mount's server takes as many descriptors as there are; the job has the limits of who starts it.
fn own_descriptors(spec: &mut Spec) {
    let before = mica_mounter::raise_descriptor_limit();
    if !spec.rlimits.iter().any(|limit| limit.resource.eq_ignore_ascii_case("nofile")) {
        let (resource, soft, hard) = ("nofile".to_owned(), before.soft, before.hard);
        spec.rlimits.push(Rlimit { resource, soft, hard });
    }
}

/// Puts the job on its network, for as long as what is returned lives.
fn attach(job: &JobDir, config: &JobConfig) -> Result<Option<Attached>, SuperviseError> {
    let Some(wanted) = &config.network else { return Ok(None) };
    let state = StateDir::open(job.root())?;
    Ok(Some(state.networks().attach(job, wanted, &config.spec.ports)?))
}
