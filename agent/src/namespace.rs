//! The supervisor's own namespaces: where the stack is mounted.
//!
//! As root a private mount namespace, else a user namespace with one in it: the caller is root there, and the caller's
//! subordinate ids, if there are any, are the ids from 1 on. Either way the mount is seen by
//! the supervisor and its job only, and is gone with them: nothing can be left behind on the host.

use std::fs;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use crate::subids::{Helper, Mapped, SubIds};
use crate::sys;

/// Why the namespaces could not be had.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    /// The kernel, or its administrator, allows none.
    #[error("cannot create a user namespace")]
    User(#[source] Errno),
    /// Already several threads, or no mount namespaces.
    #[error("cannot create a mount namespace")]
    Mount(#[source] Errno),
    /// The identity could not be mapped.
    #[error("cannot write {file}")]
    Map {
        /// The file in `/proc`.
        file: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The host would see the mounts.
    #[error("cannot make the mounts of the new namespace private")]
    Propagation(#[source] Errno),
}

/// Moves this process, which must have one thread, into namespaces of its own.
pub(crate) fn enter() -> Result<(), NamespaceError> {
    match sys::unshare(UnshareFlags::NEWNS) {
        Ok(()) => {}
        Err(Errno::PERM) => enter_user_namespace()?,
        Err(error) => return Err(NamespaceError::Mount(error)),
    }
    // Slave, not private: what the host unmounts must go away here too, or a device stays busy.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(NamespaceError::Propagation)
}

fn enter_user_namespace() -> Result<(), NamespaceError> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let helper = SubIds::of_caller().and_then(|ids| ids.helper().ok());
    sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(NamespaceError::User)?;
    let granted = helper.is_some();
    let mapped = helper.map(Helper::map).unwrap_or_default();
    if granted && mapped != (Mapped { uids: true, gids: true }) {
        tracing::warn!(
            "/etc/subuid and /etc/subgid grant further ids, but newuidmap and newgidmap don't map them: is the package uidmap installed?"
        );
    }
    // user_namespaces(7): without privilege outside, setgroups(2) is given up before a group is mapped.
    let write = |file: &'static str, text: String| {
        fs::write(file, text).map_err(|source| NamespaceError::Map { file, source })
    };
    if !mapped.uids {
        write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    }
    if !mapped.gids {
        write("/proc/self/setgroups", "deny".to_owned())?;
        write("/proc/self/gid_map", format!("0 {gid} 1"))?;
    }
    Ok(())
}

/// Moves this process, which must have one thread, to where files that belong to the caller's subordinate ids are within
/// reach, with the owners a job sees. Nothing happens where there are no such ids, or to root.
///
/// # Errors
/// The kernel allows no user namespace.
pub fn see_owners() -> Result<(), NamespaceError> {
    if rustix::process::geteuid().is_root() || SubIds::of_caller().is_none() {
        return Ok(());
    }
    enter_user_namespace()
}

impl NamespaceError {
    /// What the administrator can do, by what this host says of itself.
    pub fn hint(&self) -> String {
        let setting = |path: &str| {
            fs::read_to_string(Path::new("/proc/sys").join(path)).map(|text| text.trim().to_owned())
        };
        if setting("kernel/unprivileged_userns_clone").is_ok_and(|value| value == "0") {
            return "this host forbids user namespaces to ordinary users; as root: sysctl kernel.unprivileged_userns_clone=1".into();
        }
        if setting("user/max_user_namespaces").is_ok_and(|value| value == "0") {
            return "this host allows no user namespaces; as root: sysctl user.max_user_namespaces=10000".into();
        }
        if setting("kernel/apparmor_restrict_unprivileged_userns").is_ok_and(|value| value == "1") {
            return "AppArmor restricts user namespaces on this host; as root: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or give mica a profile with `userns`".into();
        }
        "mica needs user and mount namespaces; inside a container, start that container with permission to create them".into()
    }
}
