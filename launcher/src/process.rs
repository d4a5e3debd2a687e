//! A program about to be started in a job: everything resolved to numbers, ready to be sent to the job's init.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::caps::CapabilitySet;
use crate::facts::HostFacts;
use crate::ids::{self, IdMaps, User};
use crate::os;
use crate::plan::{PlanError, capabilities};
use crate::spec::{Namespace, Rlimit, Seccomp, Spec};
use crate::{rlimits, seccomp};

/// A program and the rights it starts with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// The program and its arguments.
    #[serde(with = "os::list")]
    pub argv: Vec<OsString>,
    /// The whole environment.
    #[serde(with = "os::pairs")]
    pub env: Vec<(OsString, OsString)>,
    /// Its `HOME` is the user's, as nobody said otherwise.
    #[serde(default)]
    pub own_home: bool,
    /// Working directory.
    #[serde(with = "os")]
    pub cwd: PathBuf,
    /// User.
    pub uid: u32,
    /// Main group.
    pub gid: u32,
    /// Further groups; not set where the user namespace has but one group.
    pub groups: Vec<u32>,
    /// Bounding set; as root also what is permitted and effective.
    pub capabilities: CapabilitySet,
    /// Filter of system calls.
    pub seccomp: Seccomp,
    /// Forbid gaining privileges by exec.
    pub no_new_privileges: bool,
    /// Per-process limits.
    pub rlimits: Vec<Rlimit>,
    /// Lower a limit that would have to be raised to the most that is possible, instead of failing.
    pub clamp_rlimits: bool,
    /// Mask of permission bits for new files.
    pub umask: u32,
    /// Added to the badness when memory runs out.
    pub oom_score_adj: Option<i32>,
}

/// A further program in a running job; what is `None` is as for the job's own program.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The program and its arguments.
    #[serde(with = "os::list")]
    pub argv: Vec<OsString>,
    /// Variables added to the job's environment, or replacing them.
    #[serde(with = "os::pairs", default)]
    pub env: Vec<(OsString, OsString)>,
    /// Working directory.
    #[serde(default)]
    pub cwd: Option<PathBuf>,
    /// `uid[:gid]`, or names.
    #[serde(default)]
    pub user: Option<String>,
}

impl Process {
    /// The job's own program.
    pub(crate) fn of_job(spec: &Spec, facts: &HostFacts) -> Result<Self, PlanError> {
        let user = match &spec.user {
            Some(wanted) => ids::resolve_user(wanted, &facts.passwd, &facts.group)?,
            None => {
                let (uid, gid) = facts.caller.default_user(&spec.ids);
                let User { home, groups, .. } =
                    ids::resolve_user(&uid.to_string(), &facts.passwd, &facts.group)?;
                User { uid, gid, groups, home }
            }
        };
        let maps = match spec.namespaces.user {
            Namespace::New => Some(facts.caller.maps(&spec.ids, Some((user.uid, user.gid)))),
            Namespace::Host => None,
        };
        let mut env = spec.env.clone();
        let own_home = set_home(&mut env, &user, false);
        let mut groups = reachable(user.groups, maps.as_ref());
        for name in &spec.groups {
            let gid = ids::resolve_group(name, &facts.group)?;
            if maps.as_ref().is_some_and(|maps| !maps.has_group(gid)) {
                return Err(PlanError::Unmapped { uid: user.uid, gid });
            }
            groups.push(gid);
        }
        for rlimit in &spec.rlimits {
            rlimits::resource(&rlimit.resource)?;
        }
        let seccomp = if spec.privileged { Seccomp::Unconfined } else { spec.seccomp.clone() };
        let capabilities = capabilities(spec)?;
        // Compiled in the init, where it is installed; a profile with mistakes should fail here.
        if let Seccomp::Profile(_) = seccomp {
            seccomp::programs(&seccomp, capabilities)?;
        }
        let process = Self {
            argv: spec.argv.clone(),
            env,
            own_home,
            cwd: spec.cwd.clone(),
            uid: user.uid,
            gid: user.gid,
            groups,
            capabilities,
            seccomp,
            no_new_privileges: spec.no_new_privileges && !spec.privileged,
            rlimits: spec.rlimits.clone(),
            clamp_rlimits: spec.best_effort_limits,
            umask: spec.umask,
            oom_score_adj: spec.oom_score_adj,
        };
        process.check()?;
        Ok(process)
    }

    /// A further program in the job of this one.
    pub(crate) fn further(
        &self,
        spec: &ExecSpec,
        passwd: &str,
        group: &str,
        maps: Option<&IdMaps>,
    ) -> Result<Self, PlanError> {
        let mut process = Self { argv: spec.argv.clone(), ..self.clone() };
        process.own_home &= spec.env.iter().all(|(name, _)| name != "HOME");
        for (name, value) in &spec.env {
            process.env.retain(|(known, _)| known != name);
            process.env.push((name.clone(), value.clone()));
        }
        if let Some(cwd) = &spec.cwd {
            process.cwd.clone_from(cwd);
        }
        if let Some(wanted) = &spec.user {
            let user = ids::resolve_user(wanted, passwd, group)?;
            if maps.is_some_and(|maps| !maps.covers(user.uid, user.gid)) {
                return Err(PlanError::Unmapped { uid: user.uid, gid: user.gid });
            }
            let own_home = process.own_home;
            process.own_home |= set_home(&mut process.env, &user, own_home);
            process.groups = reachable(user.groups, maps);
            (process.uid, process.gid) = (user.uid, user.gid);
        }
        process.check()?;
        Ok(process)
    }

    fn check(&self) -> Result<(), PlanError> {
        if self.argv.first().is_none_or(|program| program.is_empty()) {
            return Err(PlanError::NoProgram);
        }
        let nul = |text: &OsStr| text.as_bytes().contains(&0);
        for argument in &self.argv {
            if nul(argument) {
                return Err(PlanError::Nul(format!("the argument {}", argument.to_string_lossy())));
            }
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(PlanError::Variable(name.to_string_lossy().into_owned()));
            }
            if nul(name) || nul(value) {
                return Err(PlanError::Nul(format!("the variable {}", name.to_string_lossy())));
            }
        }
        if !self.cwd.is_absolute() {
            return Err(PlanError::Path(self.cwd.clone()));
        }
        Ok(())
    }
}

/// Tells the user's home where nothing is told yet, or in any case; says whether it did.
fn set_home(env: &mut Vec<(OsString, OsString)>, user: &User, replace: bool) -> bool {
    let told = env.iter().position(|(name, _)| name == "HOME");
    if told.is_some() && !replace {
        return false;
    }
    told.map(|index| env.remove(index));
    let usual = if user.uid == 0 { "/root" } else { "/" };
    env.push(("HOME".into(), user.home.as_deref().unwrap_or(usual).into()));
    true
}

/// The groups that the group file gives a user, as far as the job's user namespace has them.
fn reachable(groups: Vec<u32>, maps: Option<&IdMaps>) -> Vec<u32> {
    groups.into_iter().filter(|gid| maps.is_none_or(|maps| maps.has_group(*gid))).collect()
}
