//! A job's init that is started before there is anything to tell it: while it starts, its launcher mounts the job's root.
//!
//! ```text
//! launcher                                   child of clone3, in new namespaces but for that of mounts
//! --------                                   ---------------------------------------------------------
//! prepare: cgroup, sockets, id maps
//! clone3, sends a byte --------------------> execveat, as in crate::launch
//! mounts the job's root, starts threads      = init: waits
//! launch: facts, plan
//! sends plan and streams ------------------> starts a mount namespace, in which the job's root is now
//!                                            goes on as any init
//! ```

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use crate::cgroup::{Cgroup, LimitError};
use crate::error::LaunchError;
use crate::facts::HostFacts;
use crate::ids::{self, IdMaps};
use crate::init::{self, Inherited, Trouble};
use crate::job::Job;
use crate::launch::{self, OwnExecutable, Stdio};
use crate::plan;
use crate::spec::{Namespace, Spec};
use crate::sys::{self, ChildPlan};
use crate::wire;

/// The init of a job that is about to be launched. Dropping it ends it and removes the job's cgroup.
#[derive(Debug)]
pub struct Prepared {
    facts: HostFacts,
    unmet: Vec<LimitError>,
    maps: IdMaps,
    init: Option<Ahead>,
}

/// The process itself, and the job's cgroup that it is in.
#[derive(Debug)]
pub(crate) struct Ahead {
    pub(crate) pid: Pid,
    pub(crate) pidfd: OwnedFd,
    pub(crate) control: OwnedFd,
    pub(crate) report: OwnedFd,
    pub(crate) cgroup: Cgroup,
}

/// Starts the init of a job ahead of its launch, which is quicker then; `None` if this job has to be launched without, as
/// one that shares the host's users or processes, or where the caller may not mount.
///
/// Namespaces and limits of the job are those of this `spec`.
///
/// # Errors
/// The namespaces or the limits can't be had; nothing is left.
pub fn prepare(spec: &Spec) -> Result<Option<Prepared>, LaunchError> {
    launch::check_hooked()?;
    if spec.namespaces.user != Namespace::New || spec.namespaces.pid != Namespace::New {
        return Ok(None);
    }
    let executable = match OwnExecutable::sealed_off() {
        Ok(executable) => executable,
        Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => return Ok(None),
        Err(error) => return Err(LaunchError::Init(error)),
    };
    plan::check(spec)?;
    let facts = HostFacts::of_host()?;
    // A guess where the tree has a say in it: the launch compares.
    let named = spec.user.as_deref().and_then(|user| ids::resolve_user(user, "", "").ok());
    let user = named.map_or(facts.caller.default_user(&spec.ids), |user| (user.uid, user.gid));
    let maps = facts.caller.maps(&spec.ids, Some(user));
    let mut unmet = Vec::new();
    let cgroup = launch::make_cgroup(spec, &facts, &mut unmet)?;
    let init = start(spec, &executable, &maps, cgroup)?;
    Ok(Some(Prepared { facts, unmet, maps, init: Some(init) }))
}

fn start(
    spec: &Spec,
    executable: &OwnExecutable,
    maps: &IdMaps,
    cgroup: Cgroup,
) -> Result<Ahead, LaunchError> {
    let started = clone(spec, executable, maps, &cgroup);
    let (pid, pidfd, control, report) = match started {
        Ok(started) => started,
        Err(error) => {
            cgroup.remove();
            return Err(error);
        }
    };
    let init = Ahead { pid, pidfd, control, report, cgroup };
    if let Err(error) = launch::write_maps(pid, maps) {
        init.end();
        return Err(LaunchError::Ids(error));
    }
    // One that has died by now has said why.
    rustix::net::send(&init.control, b"g", SendFlags::NOSIGNAL).ok();
    // If it waits for our processor, it goes on to its exec now, where the kernel finds it another.
    rustix::thread::sched_yield();
    Ok(init)
}

fn clone(
    spec: &Spec,
    executable: &OwnExecutable,
    maps: &IdMaps,
    cgroup: &Cgroup,
) -> Result<(Pid, OwnedFd, OwnedFd, OwnedFd), LaunchError> {
    let (control, control_of_init) = wire::pair().map_err(LaunchError::Talk)?;
    let (report, report_of_init) = wire::report_pair().map_err(LaunchError::Talk)?;
    let entrances =
        cgroup.entrances().map_err(|(path, source)| LaunchError::EnterCgroup { path, source })?;
    let keep = vec![control_of_init.as_raw_fd(), report_of_init.as_raw_fd()];
    let child = ChildPlan {
        go: control_of_init.as_fd(),
        other_end: control.as_fd(),
        report: report_of_init.as_fd(),
        executable: executable.as_ref(),
        argv: launch::arguments(&keep),
        tasks: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
        keep,
        ids: launch::setup_ids(maps),
        ambient: true,
    };
    let birthplace = cgroup.birthplace();
    let flags = launch::clone_flags(&spec.namespaces, false);
    let (pid, pidfd) = sys::clone_init(&child, flags, birthplace.as_ref().map(AsFd::as_fd))
        .map_err(LaunchError::Namespaces)?;
    Ok((pid, pidfd, control, report))
}

impl Ahead {
    /// Kills it, and removes the cgroup. Nothing more can be done about a failure here; `cleanup` comes back to it.
    fn end(self) {
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
        waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED).ok();
        self.cgroup.remove();
    }
}

impl Prepared {
    /// As [`crate::launch()`], whose place this takes.
    ///
    /// # Errors
    /// The job could not be started; nothing of it is left.
    pub fn launch(mut self, spec: &Spec, stdio: Stdio) -> Result<Job, LaunchError> {
        let facts = std::mem::take(&mut self.facts).with_tree(spec)?;
        let plan = plan::plan(spec, &facts)?;
        if plan.ids.as_ref() != Some(&self.maps) {
            drop(self);
            return launch::launch(spec, stdio);
        }
        let unmet = std::mem::take(&mut self.unmet);
        let init = self.init.take().ok_or(LaunchError::InitDied)?;
        launch::start(spec, plan, stdio, init.cgroup.clone(), Some(init), unmet)
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        if let Some(init) = self.init.take() {
            init.end();
        }
    }
}

/// The init's side: waits to be told what to be, and returns its exit code.
pub(crate) fn run([control, report]: [OwnedFd; 2]) -> i32 {
    let Ok(Some(message)) = wire::receive(&control, RecvFlags::empty()) else { return 1 };
    let mut descriptors = message.descriptors.into_iter();
    let Some(plan) = descriptors.next() else { return 1 };
    let streams: Vec<OwnedFd> = descriptors.collect();
    if let Err(error) = sys::unshare(libc::CLONE_NEWNS) {
        return init::tell(&report, &Trouble::new("start a mount namespace", error));
    }
    init::run(Inherited { plan, control, report, stdio: streams.try_into().ok() })
}

/// What [`run`] takes, by the arguments after the init's name: not those of an init that was started with its plan.
pub(crate) fn adopt(arguments: &[i32]) -> Option<std::io::Result<[OwnedFd; 2]>> {
    let &[control, report] = arguments else { return None };
    Some(sys::adopt(control).and_then(|control| Ok([control, sys::adopt(report)?])))
}
