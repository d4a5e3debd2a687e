//! What a package that goes on running says of itself: where it listens, whether it is well, how it is asked to end.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Defaults of a job's life, kept in the manifest; what is `None` is left to `mica run`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Service {
    /// Ports on which the program listens.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub ports: BTreeSet<Port>,
    /// How to find out whether it works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthCheck>,
    /// Signal that asks it to end: a name such as `INT`, or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// Seconds it then has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u64>,
}

impl Service {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A command that is run in the job now and then: the job is healthy while it exits with 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// From the end of one check to the next, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// A check that takes longer has failed, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Failures don't count so soon after the start, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u64>,
    /// So many failures in a row make the job unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
}

impl HealthCheck {
    /// A check by a command of the shell, with the usual times.
    pub fn shell(command: &str) -> Self {
        Self {
            command: ["/bin/sh", "-c", command].map(str::to_owned).into(),
            interval_ms: None,
            timeout_ms: None,
            start_period_ms: None,
            retries: None,
        }
    }
}

/// A port of a program, written `80`, `80/tcp` or `53/udp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// Its number, never 0.
    pub number: u16,
    /// Of UDP, not TCP.
    pub udp: bool,
}

/// Not a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a port such as 80, 80/tcp or 53/udp")]
pub struct ParsePortError(String);

impl FromStr for Port {
    type Err = ParsePortError;

    fn from_str(text: &str) -> Result<Self, ParsePortError> {
        let wrong = || ParsePortError(text.to_owned());
        let (number, udp) = match text.split_once('/').unwrap_or((text, "tcp")) {
            (number, "tcp") => (number, false),
            (number, "udp") => (number, true),
            _ => return Err(wrong()),
        };
        let number = number.parse().ok().filter(|number| *number > 0).ok_or_else(wrong)?;
        Ok(Self { number, udp })
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, if self.udp { "udp" } else { "tcp" })
    }
}

impl TryFrom<String> for Port {
    type Error = ParsePortError;

    fn try_from(text: String) -> Result<Self, ParsePortError> {
        text.parse()
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for (text, canonical) in [("80", "80/tcp"), ("80/tcp", "80/tcp"), ("53/udp", "53/udp")] {
            assert_eq!(text.parse::<Port>().unwrap().to_string(), canonical);
        }
        for text in ["", "0", "65536", "80/sctp", "a", "-1", "80/"] {
            assert!(text.parse::<Port>().is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        assert_eq!(serde_json::to_string(&Service::default()).unwrap(), "{}");
        let health = serde_json::to_string(&HealthCheck::shell("true")).unwrap();
        assert_eq!(health, r#"{"command":["/bin/sh","-c","true"]}"#);
    }
}
