//! Errors for people: the chain printed once, a hint, an exit code by kind.

use std::fmt;
use std::process::ExitCode;

use mica_agent::{ControlError, Failure, StartError};

use crate::output::note;
use crate::shown;

/// mica itself failed, where a job's own exit code was asked for.
pub(crate) const MICA_FAILED: u8 = 125;

/// An error with what to do about it and, if not the usual one, the exit code it deserves.
#[derive(Debug)]
pub(crate) struct Advised {
    error: anyhow::Error,
    hint: Option<String>,
    exit_code: Option<u8>,
}

impl fmt::Display for Advised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for Advised {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Adds advice to an error.
pub(crate) trait Advise<T> {
    /// Says what to do about it.
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> Advise<T> for Result<T, E> {
    fn hint(self, hint: impl Into<String>) -> anyhow::Result<T> {
        self.map_err(|error| advised(error.into(), Some(hint.into()), None))
    }
}

/// An error with advice.
pub(crate) fn advised(
    error: anyhow::Error,
    hint: Option<String>,
    exit_code: Option<u8>,
) -> anyhow::Error {
    Advised { error, hint, exit_code }.into()
}

/// An error of talking to a job's supervisor; what it refuses is told in its own words.
pub(crate) fn of_control(error: ControlError) -> anyhow::Error {
    match error {
        ControlError::Refused { failure, .. } => of_failure(failure),
        other => other.into(),
    }
}

/// Another process's failure as an error of this one.
pub(crate) fn of_failure(failure: Failure) -> anyhow::Error {
    let mut causes = failure.chain.into_iter().rev();
    let innermost = anyhow::anyhow!(causes.next().unwrap_or_else(|| "it failed".into()));
    let error = causes.fold(innermost, |error, cause| error.context(cause));
    // That mica itself failed is said by each verb in its own way.
    let exit_code = u8::try_from(failure.exit_code).ok().filter(|code| *code != MICA_FAILED);
    advised(error, failure.hint, exit_code)
}

/// Prints the error with its causes and hint; returns the exit code.
pub(crate) fn report(error: &anyhow::Error, usual: u8) -> ExitCode {
    if is_broken_pipe(error) {
        return ExitCode::SUCCESS; // `mica images | head` has seen enough
    }
    let (text, exit_code) = render(error);
    note(text.trim_end());
    ExitCode::from(exit_code.unwrap_or(usual))
}

/// Whether nobody reads what we print. Pipes and sockets to other processes of ours break as errors.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &(dyn std::error::Error + 'static)| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
    };
    error.chain().any(broken)
        && error.chain().all(|cause| !cause.is::<ControlError>() && !cause.is::<StartError>())
}

fn render(error: &anyhow::Error) -> (String, Option<u8>) {
    let mut text = String::new();
    let mut hint = None;
    let mut exit_code = None;
    let mut last = String::new();
    for cause in error.chain() {
        if let Some(advised) = cause.downcast_ref::<Advised>() {
            hint = hint.or_else(|| advised.hint.clone());
            exit_code = exit_code.or(advised.exit_code);
        }
        hint = hint.or_else(|| crate::hints::for_cause(cause));
        let line = cause.to_string();
        // A transparent wrapper says the same as what it wraps.
        if line != last {
            let lead = if text.is_empty() { "error: " } else { "  caused by: " };
            // Whatever has more than one line stays below its own first one.
            let line = shown::text(&line).replace('\n', "\n    ");
            text.push_str(&format!("{lead}{line}\n"));
        }
        last = line;
    }
    if let Some(hint) = hint {
        text.push_str(&format!("  hint: {}\n", shown::text(&hint).replace('\n', "\n    ")));
    }
    (text, exit_code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context as _, anyhow};

    #[test]
    fn the_shape_on_screen() {
        let error = Err::<(), _>(anyhow!("checksum mismatch"))
            .context("read block 17 of usr/lib/libF.so")
            .hint("fetch it again")
            .context("cannot mount layer //lib:F")
            .unwrap_err();
        let (text, code) = render(&error);
        assert_eq!(
            text,
            "error: cannot mount layer //lib:F\n  caused by: read block 17 of usr/lib/libF.so\n  \
             caused by: checksum mismatch\n  hint: fetch it again\n"
        );
        assert_eq!(code, None);
    }
}
