//! Signals: by name or number, and which of them are passed on.

use rustix::process::Signal;
use signal_hook::consts::signal::{SIGHUP, SIGINT, SIGQUIT};

/// All of signal(7) but the real-time ones.
const NAMES: [(&str, Signal); 35] = [
    ("HUP", Signal::HUP),
    ("INT", Signal::INT),
    ("QUIT", Signal::QUIT),
    ("ILL", Signal::ILL),
    ("TRAP", Signal::TRAP),
    ("ABRT", Signal::ABORT),
    ("IOT", Signal::ABORT),
    ("BUS", Signal::BUS),
    ("FPE", Signal::FPE),
    ("KILL", Signal::KILL),
    ("USR1", Signal::USR1),
    ("SEGV", Signal::SEGV),
    ("USR2", Signal::USR2),
    ("PIPE", Signal::PIPE),
    ("ALRM", Signal::ALARM),
    ("TERM", Signal::TERM),
    ("STKFLT", Signal::STKFLT),
    ("CHLD", Signal::CHILD),
    ("CLD", Signal::CHILD),
    ("CONT", Signal::CONT),
    ("STOP", Signal::STOP),
    ("TSTP", Signal::TSTP),
    ("TTIN", Signal::TTIN),
    ("TTOU", Signal::TTOU),
    ("URG", Signal::URG),
    ("XCPU", Signal::XCPU),
    ("XFSZ", Signal::XFSZ),
    ("VTALRM", Signal::VTALARM),
    ("PROF", Signal::PROF),
    ("WINCH", Signal::WINCH),
    ("IO", Signal::IO),
    ("POLL", Signal::IO),
    ("PWR", Signal::POWER),
    ("SYS", Signal::SYS),
    ("UNUSED", Signal::SYS),
];

/// The real-time signals that programs have; the C library keeps the two before to itself.
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// `TERM`, `SIGTERM`, `sigterm`, `15`, `RTMIN+3` or `SIGRTMAX-1`.
pub(crate) fn parse(text: &str) -> Result<i32, String> {
    if let Ok(number) = text.parse::<i32>() {
        return match number {
            1..=RTMAX => Ok(number),
            _ => Err(format!("{number} is not a signal's number")),
        };
    }
    let upper = text.to_ascii_uppercase();
    let word = upper.strip_prefix("SIG").unwrap_or(&upper);
    let named = NAMES.iter().find(|(name, _)| *name == word).map(|(_, signal)| signal.as_raw());
    named.or_else(|| real_time(word)).ok_or_else(|| {
        format!("`{text}` is not a signal; use a name such as TERM or RTMIN+3, or a number")
    })
}

fn real_time(word: &str) -> Option<i32> {
    let number = if let Some(rest) = word.strip_prefix("RTMIN") {
        if rest.is_empty() {
            RTMIN
        } else {
            RTMIN + rest.strip_prefix('+')?.parse::<u8>().ok()? as i32
        }
    } else {
        let rest = word.strip_prefix("RTMAX")?;
        if rest.is_empty() {
            RTMAX
        } else {
            RTMAX - rest.strip_prefix('-')?.parse::<u8>().ok()? as i32
        }
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

/// What this command passes on to a program that it runs: all that would end the command and can be caught, and changes of
/// the terminal's size.
///
/// Not: what the kernel sends for a fault of this command's own (SEGV and the like), what stops and continues it, and what it
/// was told to ignore when it was started, as by nohup(1) or by a shell's `&`.
pub(crate) fn forwarded() -> Vec<i32> {
    let not = [
        Signal::ILL,
        Signal::TRAP,
        Signal::BUS,
        Signal::FPE,
        Signal::KILL,
        Signal::SEGV,
        Signal::PIPE,
        Signal::CHILD,
        Signal::CONT,
        Signal::STOP,
        Signal::TSTP,
        Signal::TTIN,
        Signal::TTOU,
        Signal::URG,
        Signal::SYS,
    ]
    .map(Signal::as_raw);
    let ignored =
        |signal| [SIGHUP, SIGINT, SIGQUIT].contains(&signal) && mica_agent::is_ignored(signal);
    (1..32)
        .chain(RTMIN..=RTMAX)
        .filter(|signal| !not.contains(signal) && !ignored(*signal))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for text in ["TERM", "SIGTERM", "sigterm", "15"] {
            assert_eq!(parse(text), Ok(15), "{text}");
        }
        for (text, number) in [
            ("RTMIN", 34),
            ("SIGRTMIN+3", 37),
            ("rtmax-1", 63),
            ("RTMAX", 64),
            ("PWR", 30),
            ("XCPU", 24),
            ("SIGIO", 29),
            ("POLL", 29),
            ("STKFLT", 16),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for text in ["", "0", "65", "-1", "TERMINATE", "RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMIN+"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn every_number_below_the_real_time_ones_has_a_name() {
        for number in 1..32 {
            assert!(NAMES.iter().any(|(_, signal)| signal.as_raw() == number), "{number}");
        }
    }
}
