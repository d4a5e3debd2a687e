//! What the launcher has to mount itself, as the init may not: volumes whose files have other owners in the job than on
//! their file system (mount_setattr(2), `MOUNT_ATTR_IDMAP`), as the file system is the host's; and everything, if the job's
//! root is nobody outside.
//!
//! Only in the job's init can it be attached. So the launcher makes it, detached, once the job's user namespace is there,
//! and hands it over before the init goes on.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::Pid;

use crate::error::LaunchError;
use crate::ids::IdMaps;
use crate::spec::IdMapping;
use crate::step::Step;
use crate::sys;

/// The mounts for these steps, or for `all`, in their order. `namespace` makes a process in a new user namespace with these maps, which
/// lives as long as what it returns.
pub(crate) fn open<P>(
    steps: &[Step],
    all: bool,
    job: Pid,
    namespace: impl Fn(IdMaps) -> Result<(Pid, P), LaunchError>,
) -> Result<Vec<OwnedFd>, LaunchError> {
    let mut mounts = Vec::new();
    for step in steps {
        let (source, recursive, exact, ids) = match step {
            Step::Root { tree, .. } => (tree, true, false, &None),
            Step::Bind { source, recursive, exact, ids, .. } => (source, *recursive, *exact, ids),
            _ => continue,
        };
        if !all && ids.is_none() {
            continue;
        }
        let Some(ids) = ids else {
            let mount = clone(source, recursive, exact);
            let error = |source| LaunchError::Setup { what: step.to_string(), source };
            mounts.push(mount.map_err(error)?);
            continue;
        };
        let error = |reason| LaunchError::MapVolume { path: source.clone(), source: reason };
        let mount = clone(source, recursive, exact).map_err(error)?;
        let users = match ids {
            IdMapping::Auto | IdMapping::Single => users_of(job).map_err(error)?,
            IdMapping::Ranges { uids, gids } => {
                let maps = IdMaps { uids: uids.clone(), gids: gids.clone(), deny_setgroups: false };
                let (pid, _process) = namespace(maps.turned())?;
                users_of(pid).map_err(error)?
            }
        };
        sys::map_mount(mount.as_fd(), users.as_fd()).map_err(error)?;
        mounts.push(mount);
    }
    Ok(mounts)
}

fn users_of(pid: Pid) -> io::Result<File> {
    File::open(format!("/proc/{}/ns/user", pid.as_raw_nonzero()))
}

/// A detached copy of what is mounted at a path; `exact` if there is no link in it.
pub(crate) fn clone(source: &Path, recursive: bool, exact: bool) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    if !exact {
        return Ok(open_tree(CWD, source, flags)?);
    }
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let at = openat2(CWD, source, path, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    Ok(open_tree(&at, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?)
}
