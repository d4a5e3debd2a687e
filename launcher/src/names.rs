//! Names of machines, and the files that tell a job about them.

use crate::plan::PlanError;
use crate::spec::Spec;

/// The longest name of a machine (`__NEW_UTS_LEN`, uname(2)).
const LONGEST_OF_MACHINE: usize = 64;

/// What all files together that are written for a job may hold, in bytes.
pub(crate) const LONGEST_FILES: u64 = 4 << 20;

/// Can a machine be called so? Names by RFC 1123: parts of letters, digits and `-`, which neither begin nor end with `-`,
/// of at most 63 characters, 253 in all. Nothing that means something to a shell, a terminal or a file of lines.
pub fn is_host_name(text: &str) -> bool {
    let good = |part: &str| {
        (1..=63).contains(&part.len())
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(good)
}

/// What a job is told about names, whoever wrote it down.
pub(crate) fn check(spec: &Spec) -> Result<(), PlanError> {
    if let Some(name) = &spec.hostname
        && (!is_host_name(name) || name.len() > LONGEST_OF_MACHINE)
    {
        return Err(PlanError::HostName(name.clone()));
    }
    let length: u64 = spec.files.iter().map(|file| file.content.len() as u64).sum();
    if length > LONGEST_FILES {
        return Err(PlanError::Files(length));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_machines() {
        for good in ["a", "db-1", "DB", "7", "db.example.org", &"x".repeat(63)] {
            assert!(is_host_name(good), "{good}");
        }
        let long = ["x".repeat(63).as_str(); 4].join(".");
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "-a",
            "a-",
            "a_b",
            "a b",
            "a\n10.0.0.1 bank",
            "a\r",
            "a\tb",
            "a\0",
            "a#",
            "\u{1b}[2J",
            "ä",
            "a.-b",
            &"x".repeat(64),
            &long,
        ] {
            assert!(!is_host_name(bad), "{bad:?}");
        }
    }
}
