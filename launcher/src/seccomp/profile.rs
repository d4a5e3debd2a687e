//! Profiles in docker's JSON form.

use serde::Deserialize;

use crate::caps::CapabilitySet;

/// Rules for system calls, and what happens to the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    pub(super) default: Action,
    pub(super) rules: Vec<Rule>,
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Allow,
    Errno(u32),
    KillThread,
    KillProcess,
    Trap,
    Log,
}

/// One action for some calls. All conditions must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) names: Vec<String>,
    pub(super) action: Action,
    pub(super) conditions: Vec<Condition>,
}

/// A condition on an argument of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// How an argument is compared; `Masked` looks at the bits of the mask only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Masked(u64),
}

/// A profile that can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not JSON, or not of a profile's shape.
    #[error("not a profile: {0}")]
    Json(String),
    /// An action that we can't express.
    #[error("the action {0} is not supported")]
    Action(String),
    /// A comparison that we can't express.
    #[error("the comparison {0} is not supported")]
    Comparison(String),
    /// The filter could not be built.
    #[error("the filter cannot be built: {0}")]
    Compile(String),
    /// No filters on this machine.
    #[error("system call filters are not supported on {0}")]
    Architecture(&'static str),
}

impl ProfileError {
    pub(super) fn compile(error: seccompiler::BackendError) -> Self {
        Self::Compile(error.to_string())
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    name: Option<String>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Filter>,
    #[serde(default)]
    excludes: Option<Filter>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

/// Every field that is given must hold.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Filter {
    caps: Vec<String>,
    arches: Vec<String>,
    #[serde(rename = "minKernel")]
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads docker's form; entries that depend on capabilities are taken if the job has them.
    ///
    /// # Errors
    /// Not a profile, or something in it that can't be expressed.
    pub fn parse(text: &str, capabilities: CapabilitySet) -> Result<Self, ProfileError> {
        let document: Document =
            serde_json::from_str(text).map_err(|error| ProfileError::Json(error.to_string()))?;
        let default = action(&document.default_action, document.default_errno_ret)?;
        let mut rules = Vec::new();
        for entry in document.syscalls {
            let included = entry.includes.as_ref().is_none_or(|filter| filter.all(capabilities));
            let excluded = entry.excludes.as_ref().is_some_and(|filter| filter.any(capabilities));
            if !included || excluded {
                continue;
            }
            let conditions =
                entry.args.iter().flatten().map(condition).collect::<Result<_, _>>()?;
            let names = entry.names.into_iter().chain(entry.name).collect();
            rules.push(Rule { names, action: action(&entry.action, entry.errno_ret)?, conditions });
        }
        Ok(Self { default, rules })
    }
}

impl Filter {
    fn all(&self, capabilities: CapabilitySet) -> bool {
        // Any kernel that has the mount calls we need is later than the versions that profiles ask for.
        let _ = &self.min_kernel;
        self.caps.iter().all(|name| held(capabilities, name))
            && (self.arches.is_empty() || self.here())
    }

    fn any(&self, capabilities: CapabilitySet) -> bool {
        self.caps.iter().any(|name| held(capabilities, name)) || self.here()
    }

    fn here(&self) -> bool {
        let names: &[&str] = match std::env::consts::ARCH {
            "x86_64" => &["amd64", "x86_64"],
            "aarch64" => &["arm64", "aarch64"],
            other => &[other],
        };
        self.arches.iter().any(|arch| names.contains(&arch.as_str()))
    }
}

fn held(capabilities: CapabilitySet, name: &str) -> bool {
    capabilities.has(name.strip_prefix("CAP_").unwrap_or(name))
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, ProfileError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(libc::EPERM as u32)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_LOG" => Action::Log,
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

fn condition(argument: &Argument) -> Result<Condition, ProfileError> {
    let mut value = argument.value;
    let comparison = match argument.op.as_str() {
        "SCMP_CMP_EQ" => Comparison::Equal,
        "SCMP_CMP_NE" => Comparison::NotEqual,
        "SCMP_CMP_LT" => Comparison::Less,
        "SCMP_CMP_LE" => Comparison::LessOrEqual,
        "SCMP_CMP_GT" => Comparison::Greater,
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
        "SCMP_CMP_MASKED_EQ" => {
            value = argument.value_two;
            Comparison::Masked(argument.value)
        }
        other => return Err(ProfileError::Comparison(other.to_owned())),
    };
    Ok(Condition { argument: argument.index, comparison, value })
}
