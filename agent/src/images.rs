//! Further stacks that a job sees, as `mica run --mount type=image` asks for them.
//!
//! ```text
//! images/<n>/tree/         where the n-th is mounted, inside the supervisor's own mount namespace
//!            upper/ work/  what the job writes there, if it may
//! ```
//!
//! The job's specification binds each tree where the job wants it. A part of a stack is looked up here, below the tree and
//! nowhere else: a symbolic link of an image leads to the image, never to the host.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use mica_fetcher::Lease;
use mica_launcher::{Mount as Bind, Spec};
use mica_mounter::Mount;
use rustix::fs::{Mode, OFlags, open};

use crate::config::{ImageMount, JobConfig};
use crate::files::create_private_dir;
use crate::state::JobDir;

/// A stack that a job should see and can't.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount image {image} at {}", target.display())]
pub struct ImageError {
    image: String,
    target: PathBuf,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// A part of a stack that is not there.
#[derive(Debug, thiserror::Error)]
#[error("cannot find {} in it", path.display())]
struct NoSubpath {
    path: PathBuf,
    source: std::io::Error,
}

/// A job's further stacks, mounted while this lives.
pub(crate) struct Images {
    mounted: Vec<(Mount, Option<Lease>)>,
    /// Which parts to show instead of whole trees.
    parts: Vec<(PathBuf, PathBuf)>,
}

impl Images {
    pub(crate) fn mount(job: &JobDir, config: &JobConfig) -> Result<Self, ImageError> {
        let mut images = Self { mounted: Vec::new(), parts: Vec::new() };
        for (index, image) in config.images.iter().enumerate() {
            images.add(job, config, job.image_tree(index), image).map_err(|source| ImageError {
                image: image.stack.source.clone(),
                target: image.target.clone(),
                source,
            })?;
        }
        Ok(images)
    }

    fn add(
        &mut self,
        job: &JobDir,
        config: &JobConfig,
        tree: PathBuf,
        image: &ImageMount,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        create_private_dir(&tree)?;
        let lease = image.stack.lease()?;
        let mount = image.stack.mount_for(job, config, &tree)?;
        self.mounted.push((mount, lease));
        if let Some(path) = &image.subpath {
            let found = within(&tree, path);
            let part = found.map_err(|source| NoSubpath { path: path.clone(), source })?;
            self.parts.push((tree, part));
        }
        Ok(())
    }

    /// Lets the job see the parts.
    pub(crate) fn show(&self, spec: &mut Spec) {
        for bind in &mut spec.mounts {
            if let Bind::Bind { source, .. } = bind
                && let Some((_, part)) = self.parts.iter().find(|(tree, _)| tree == source)
            {
                source.clone_from(part);
            }
        }
    }

    /// Where the job sees each of them, and where it is; what lies deeper comes first.
    pub(crate) fn places(&self, job: &JobDir, config: &JobConfig) -> Vec<(PathBuf, PathBuf)> {
        let place = |(index, image): (usize, &ImageMount)| {
            let tree = job.image_tree(index);
            let part = self.parts.iter().find(|(whole, _)| *whole == tree);
            (image.target.clone(), part.map_or(tree.clone(), |(_, part)| part.clone()))
        };
        let mut places: Vec<_> = config.images.iter().enumerate().map(place).collect();
        places.sort_by_key(|(target, _)| std::cmp::Reverse(target.components().count()));
        places
    }

    pub(crate) fn unmount(self) {
        for (mount, _lease) in self.mounted {
            if let Err(error) = mount.unmount() {
                // It is gone with this process and its namespace in any case.
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot unmount an image");
            }
        }
    }
}

/// Where a path of a tree really is.
fn within(tree: &Path, path: &Path) -> std::io::Result<PathBuf> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = open(tree, flags | OFlags::DIRECTORY, Mode::empty())?;
    let found = mica_launcher::open_in(root, path, flags, Mode::empty())?;
    fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd()))
}
