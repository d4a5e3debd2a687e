//! Capabilities: names, the usual set of a container, and what a job gets.

use serde::{Deserialize, Serialize};

use crate::spec::Capabilities;

/// A set of capabilities, one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySet(pub u64);

/// A capability nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no capability {0}")]
pub struct UnknownCapability(pub String);

/// All names, in the order of their numbers.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What docker gives a container, but for NET_RAW: with that a job speaks in the name of its neighbours, and `ping` needs it
/// no longer (`net.ipv4.ping_group_range`).
const USUAL: [&str; 13] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

impl CapabilitySet {
    /// None.
    pub const NONE: Self = Self(0);
    /// Every capability there is.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// The set that a container usually gets.
    pub fn usual() -> Self {
        USUAL
            .iter()
            .filter_map(|name| number(name))
            .fold(Self::NONE, |set, bit| Self(set.0 | 1 << bit))
    }

    /// Is the capability of this name in the set?
    pub fn has(self, name: &str) -> bool {
        number(name).is_some_and(|bit| self.0 & (1 << bit) != 0)
    }

    /// The names in the set, without `CAP_`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES
            .into_iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 & (1 << bit) != 0)
            .map(|(_, name)| name)
    }

    /// What a job gets that asks for these changes.
    ///
    /// # Errors
    /// A name that isn't a capability.
    pub fn of(changes: &Capabilities, privileged: bool) -> Result<Self, UnknownCapability> {
        let mut set = if privileged { Self::ALL } else { Self::usual() };
        let (all_dropped, dropped): (Vec<_>, Vec<_>) =
            changes.drop.iter().partition(|name| is_all(name));
        if !all_dropped.is_empty() {
            set = Self::NONE;
        }
        for name in &changes.add {
            set = Self(set.0 | if is_all(name) { Self::ALL.0 } else { parse(name)?.0 });
        }
        for name in dropped {
            set = Self(set.0 & !parse(name)?.0);
        }
        Ok(set)
    }
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

fn number(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))
}

fn parse(name: &str) -> Result<CapabilitySet, UnknownCapability> {
    let short = match name.get(..4) {
        Some(prefix) if prefix.eq_ignore_ascii_case("CAP_") => &name[4..],
        _ => name,
    };
    number(short)
        .map(|bit| CapabilitySet(1 << bit))
        .ok_or_else(|| UnknownCapability(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(add: &[&str], drop: &[&str]) -> Result<CapabilitySet, UnknownCapability> {
        let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        CapabilitySet::of(&Capabilities { add: strings(add), drop: strings(drop) }, false)
    }

    #[test]
    fn the_usual_set_is_dockers_without_raw_sockets() {
        assert_eq!(of(&[], &[]).unwrap().0, 0xa804_25fb & !(1 << 13));
    }

    #[test]
    fn adding_and_dropping() {
        assert!(of(&["cap_sys_admin"], &[]).unwrap().has("SYS_ADMIN"));
        assert_eq!(
            of(&["NET_ADMIN"], &["ALL"]).unwrap().names().collect::<Vec<_>>(),
            ["NET_ADMIN"]
        );
        assert_eq!(of(&["ALL"], &["SYS_ADMIN"]).unwrap().0, CapabilitySet::ALL.0 & !(1 << 21));
        assert_eq!(of(&["FLY"], &[]), Err(UnknownCapability("FLY".into())));
    }
}
