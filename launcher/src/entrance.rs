//! Starting further programs in a running job.

use std::os::fd::{AsFd, OwnedFd};

use rustix::process::Pid;

use crate::cgroup::Cgroup;
use crate::error::LaunchError;
use crate::facts::{FactsError, read_in};
use crate::ids::IdMaps;
use crate::job::Program;
use crate::launch::Stdio;
use crate::process::{ExecSpec, Process};
use crate::view::Root;
use crate::wire::{self, Command};

/// The way into a running job.
#[derive(Debug)]
pub struct Entrance {
    pub(crate) number: u64,
    pub(crate) init: Pid,
    pub(crate) control: OwnedFd,
    pub(crate) cgroup: Cgroup,
    pub(crate) process: Process,
    pub(crate) root: Root,
    pub(crate) ids: Option<IdMaps>,
}

impl Entrance {
    /// Starts a program in the job, as [`crate::Job::exec`].
    ///
    /// # Errors
    /// It could not be started.
    pub fn exec(self, spec: &ExecSpec, stdio: Stdio) -> Result<Program, LaunchError> {
        let (passwd, group) = match spec.user {
            Some(_) => (self.account_file("etc/passwd")?, self.account_file("etc/group")?),
            None => Default::default(),
        };
        let process = self.process.further(spec, &passwd, &group, self.ids.as_ref())?;
        stdio.give_pipes(process.uid, self.ids.as_ref());
        let talk = LaunchError::Talk;
        let memory = wire::to_memory("mica-exec", &process).map_err(talk)?;
        let (report, report_of_init) = wire::report_pair().map_err(talk)?;
        let (streams, given) = stdio.parts();
        let mut descriptors = vec![memory.as_fd(), report_of_init.as_fd()];
        descriptors.extend(given);
        wire::send(&self.control, &Command::Exec(streams, self.number), &descriptors)
            .map_err(talk)?;
        drop((report_of_init, stdio));
        let mut program = Program::new(report);
        program.started(&self.cgroup)?;
        Ok(program)
    }

    /// As the job sees it, with whatever is mounted there. A host that doesn't let us look shows us what the root was made of.
    fn account_file(&self, file: &str) -> Result<String, FactsError> {
        let seen = format!("/proc/{}/root", self.init.as_raw_nonzero());
        read_in(seen.as_ref(), file).or_else(|_| match &self.root {
            Root::Tree(tree) => read_in(tree, file),
            Root::Host { .. } => read_in("/".as_ref(), file),
        })
    }
}
