//! Flags that a package recommends: `mica run --recommended`.

use std::ffi::OsString;

use anyhow::{Context as _, bail};
use clap::{Args as _, FromArgMatches as _};

use super::flags::Args;
use super::spec::Source;
use crate::output::note;

/// The label that holds them.
pub(crate) const LABEL: &str = "mica.run.flags";

/// The flags that the package recommends, then those that were given.
pub(super) fn args(source: &Source, quiet: bool) -> anyhow::Result<Args> {
    let name = &source.stack.source;
    let Some(flags) = source.labels.get(LABEL) else {
        bail!("{name} recommends no flags: it has no label {LABEL}");
    };
    check(flags).with_context(|| format!("cannot use the flags that {name} recommends"))?;
    if !quiet {
        note(format_args!("flags that {name} recommends: {flags}"));
    }
    let given = std::env::args_os().skip_while(|word| word != "run").skip(1);
    let mut args = parse(split(flags)?.into_iter().map(OsString::from).chain(given))?;
    args.recommended = false;
    Ok(args)
}

/// Whether these are flags of `mica run`, and nothing but flags.
pub(crate) fn check(flags: &str) -> anyhow::Result<()> {
    let args = parse(split(flags)?.into_iter().map(OsString::from))?;
    match args.words.first() {
        Some(word) => bail!("{} is not a flag", word.display()),
        None => Ok(()),
    }
}

fn split(flags: &str) -> anyhow::Result<Vec<String>> {
    shlex::split(flags).with_context(|| format!("a quotation mark of {flags} is not closed"))
}

/// What is given twice counts the second time.
pub(super) fn parse(words: impl Iterator<Item = OsString>) -> anyhow::Result<Args> {
    let command = Args::augment_args(clap::Command::new("run").args_override_self(true));
    let line = std::iter::once("run".into()).chain(words);
    let refused = |error: clap::Error| {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        anyhow::anyhow!("{}", first.strip_prefix("error: ").unwrap_or(first))
    };
    let matches = command.try_get_matches_from(line).map_err(refused)?;
    Args::from_arg_matches(&matches).map_err(refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_and_nothing_else() {
        for good in ["", "-m 64m --health-cmd 'test -e /x y'", "-e A=1 -e B=2 --rm"] {
            check(good).unwrap();
        }
        for (bad, why) in [
            ("-m 64m app", "app is not a flag"),
            ("--no-such-flag", "unexpected argument '--no-such-flag' found"),
            ("--health-cmd 'x", "a quotation mark of --health-cmd 'x is not closed"),
        ] {
            assert_eq!(check(bad).unwrap_err().to_string(), why);
        }
    }
}
