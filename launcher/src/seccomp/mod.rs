//! Filters of system calls.
//!
//! A [`Profile`] is a list of rules with one action each. The kernel takes the strictest answer of all installed filters,
//! so a profile becomes one program per action: one lets through whatever any rule mentions and answers the default
//! otherwise, the others answer their own action for their own calls. A last, handwritten program answers "not implemented"
//! for calls that are newer than the table of the usual profile, because programs take "not permitted" for the final word.

mod always;
mod numbers;
mod profile;
mod usual;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use profile::{Action, Comparison, Condition, Rule};
pub use profile::{Profile, ProfileError};

use crate::caps::CapabilitySet;
use crate::spec::Seccomp;

/// The programs for a job, to be installed in order. None if it is unconfined.
///
/// # Errors
/// The profile can't be expressed.
pub(crate) fn programs(
    wanted: &Seccomp,
    capabilities: CapabilitySet,
) -> Result<Vec<BpfProgram>, ProfileError> {
    match wanted {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::Default => {
            let mut programs = compile(&usual::profile(capabilities))?;
            programs.push(not_implemented(capabilities));
            Ok(programs)
        }
        Seccomp::Profile(text) => compile(&Profile::parse(text, capabilities)?),
    }
}

fn architecture() -> Result<TargetArch, ProfileError> {
    std::env::consts::ARCH
        .try_into()
        .map_err(|_| ProfileError::Architecture(std::env::consts::ARCH))
}

type Calls = BTreeMap<i64, Vec<SeccompRule>>;

fn compile(profile: &Profile) -> Result<Vec<BpfProgram>, ProfileError> {
    let mut mentioned = Calls::new();
    let mut by_action: Vec<(Action, Calls)> = Vec::new();
    for rule in &profile.rules {
        add(&mut mentioned, rule)?;
        if rule.action != Action::Allow {
            let at = match by_action.iter().position(|(action, _)| *action == rule.action) {
                Some(at) => at,
                None => {
                    by_action.push((rule.action, Calls::new()));
                    by_action.len() - 1
                }
            };
            add(&mut by_action[at].1, rule)?;
        }
    }
    let mut programs = Vec::new();
    for (action, calls) in by_action {
        programs.push(program(calls, Action::Allow, action)?);
    }
    // Last, because it may forbid installing another.
    if profile.default != Action::Allow {
        programs.push(base(mentioned, profile.default)?);
    }
    Ok(programs)
}

/// Lets through what is mentioned, and answers the default otherwise.
fn base(mentioned: Calls, default: Action) -> Result<BpfProgram, ProfileError> {
    let (always, conditional): (Calls, Calls) =
        mentioned.into_iter().partition(|(_, rules)| rules.is_empty());
    let conditional = program(conditional, default, Action::Allow)?;
    Ok(always::allow_first(always.into_keys(), conditional))
}

/// Adds a rule's calls. A call without conditions has an empty list, which stands for "always" and absorbs the others.
fn add(calls: &mut Calls, rule: &Rule) -> Result<(), ProfileError> {
    for name in &rule.names {
        // Profiles name the calls of every architecture.
        let Some(number) = numbers::number(name) else { continue };
        if rule.conditions.is_empty() {
            calls.insert(number, Vec::new());
        } else if calls.get(&number).is_none_or(|rules| !rules.is_empty()) {
            let conditions = rule.conditions.iter().map(condition).collect::<Result<_, _>>()?;
            calls
                .entry(number)
                .or_default()
                .push(SeccompRule::new(conditions).map_err(ProfileError::compile)?);
        }
    }
    Ok(())
}

fn condition(condition: &Condition) -> Result<SeccompCondition, ProfileError> {
    let operator = match condition.comparison {
        Comparison::Equal => SeccompCmpOp::Eq,
        Comparison::NotEqual => SeccompCmpOp::Ne,
        Comparison::Less => SeccompCmpOp::Lt,
        Comparison::LessOrEqual => SeccompCmpOp::Le,
        Comparison::Greater => SeccompCmpOp::Gt,
        Comparison::GreaterOrEqual => SeccompCmpOp::Ge,
        Comparison::Masked(mask) => SeccompCmpOp::MaskedEq(mask),
    };
    SeccompCondition::new(condition.argument, SeccompCmpArgLen::Qword, operator, condition.value)
        .map_err(ProfileError::compile)
}

fn program(calls: Calls, otherwise: Action, matching: Action) -> Result<BpfProgram, ProfileError> {
    let action = |action| match action {
        Action::Allow => SeccompAction::Allow,
        Action::Errno(errno) => SeccompAction::Errno(errno),
        Action::KillThread => SeccompAction::KillThread,
        Action::KillProcess => SeccompAction::KillProcess,
        Action::Trap => SeccompAction::Trap,
        Action::Log => SeccompAction::Log,
    };
    let filter = SeccompFilter::new(calls, action(otherwise), action(matching), architecture()?);
    filter.and_then(TryInto::try_into).map_err(ProfileError::compile)
}

/// Answers ENOSYS for calls newer than [`usual::NEWEST`], and for those that the kernel may well have but whose arguments
/// no filter can judge.
fn not_implemented(capabilities: CapabilitySet) -> BpfProgram {
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    const ALLOW: u32 = 0x7fff_0000;
    const ERRNO: u32 = 0x0005_0000;
    // The x32 calls have this bit; they are none of the newer ones and are refused by the main program.
    const X32: u32 = 0x4000_0000;
    let op = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    // Its flags lie in memory: programs fall back to clone. Who may do anything may do this as well.
    let clone3 = if capabilities.has("SYS_ADMIN") { u32::MAX } else { libc::SYS_clone3 as u32 };
    vec![
        op(LOAD, 0, 0, 0),
        op(GREATER, 2, 0, X32 - 1),
        op(EQUAL, 2, 0, clone3),
        op(GREATER, 1, 0, usual::NEWEST as u32),
        op(RETURN, 0, 0, ALLOW),
        op(RETURN, 0, 0, ERRNO | libc::ENOSYS as u32),
    ]
}
