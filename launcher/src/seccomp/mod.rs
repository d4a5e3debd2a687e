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
mod widths;

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, sock_filter,
};

use profile::{Action, Comparison, Condition, Rule};
pub use profile::{Profile, ProfileError};

use crate::caps::CapabilitySet;
use crate::spec::Seccomp;
use widths::{Width, width};

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
        Seccomp::Profile(text) => {
            let mut programs = compile(&Profile::parse(text, capabilities)?)?;
            if !programs.is_empty() && cfg!(target_arch = "x86_64") {
                // Before the others, of which the last may forbid installing another.
                programs.insert(0, without_x32());
            }
            Ok(programs)
        }
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
            let conditions =
                rule.conditions.iter().map(|c| condition(name, c)).collect::<Result<_, _>>()?;
            calls
                .entry(number)
                .or_default()
                .push(SeccompRule::new(conditions).map_err(ProfileError::compile)?);
        }
    }
    Ok(())
}

/// Compares what the kernel reads of the argument, no more: a bit that it throws away decides nothing.
fn condition(name: &str, condition: &Condition) -> Result<SeccompCondition, ProfileError> {
    let Condition { argument, comparison, mut value } = *condition;
    let mut operator = match comparison {
        Comparison::Equal => SeccompCmpOp::Eq,
        Comparison::NotEqual => SeccompCmpOp::Ne,
        Comparison::Less => SeccompCmpOp::Lt,
        Comparison::LessOrEqual => SeccompCmpOp::Le,
        Comparison::Greater => SeccompCmpOp::Gt,
        Comparison::GreaterOrEqual => SeccompCmpOp::Ge,
        Comparison::Masked(mask) => SeccompCmpOp::MaskedEq(mask),
    };
    let length = match width(name, argument) {
        Width::Long => SeccompCmpArgLen::Qword,
        Width::Word => SeccompCmpArgLen::Dword,
        Width::Half => {
            operator = match operator {
                SeccompCmpOp::Eq => SeccompCmpOp::MaskedEq(MODE),
                SeccompCmpOp::MaskedEq(mask) => SeccompCmpOp::MaskedEq(mask & MODE),
                other => other,
            };
            value &= MODE;
            SeccompCmpArgLen::Dword
        }
    };
    if matches!(length, SeccompCmpArgLen::Dword) {
        // What is meant by -1, for example.
        value &= u64::from(u32::MAX);
    }
    SeccompCondition::new(argument, length, operator, value).map_err(ProfileError::compile)
}

/// The bits of a mode.
const MODE: u64 = 0xffff;

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
    // Its flags lie in memory: programs fall back to clone. Who may do anything may do this as well.
    let clone3 = if capabilities.has("SYS_ADMIN") { u32::MAX } else { libc::SYS_clone3 as u32 };
    vec![
        op(LOAD, 0, 0, 0),
        // The x32 calls are none of the newer ones, and are refused by the main program.
        op(GREATER, 2, 0, X32 - 1),
        op(EQUAL, 2, 0, clone3),
        op(GREATER, 1, 0, usual::NEWEST as u32),
        op(RETURN, 0, 0, ALLOW),
        op(RETURN, 0, 0, ERRNO | libc::ENOSYS as u32),
    ]
}

/// Answers ENOSYS for the x32 calls: the same calls under other numbers, which a profile that names what is forbidden
/// would let through. (Calls of 32-bit programs end the process, as every program of ours sees another architecture.)
fn without_x32() -> BpfProgram {
    vec![
        op(LOAD, 0, 0, 0),
        op(GREATER, 1, 0, X32 - 1),
        op(RETURN, 0, 0, ALLOW),
        op(RETURN, 0, 0, ERRNO | libc::ENOSYS as u32),
    ]
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const GREATER: u16 = 0x25; // BPF_JMP | BPF_JGT | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K
const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
/// The bit that marks the number of an x32 call.
const X32: u32 = 0x4000_0000;

fn op(code: u16, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code, jt, jf, k }
}
