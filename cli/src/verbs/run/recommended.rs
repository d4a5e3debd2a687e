//! Flags that a package recommends: `mica run --recommended`.

use std::ffi::OsString;

use anyhow::{Context as _, bail};
use clap::parser::ValueSource;
use clap::{Args as _, FromArgMatches as _};
use mica_graph::PackageRef;
use mica_launcher::Mount;

use super::flags::Args;
use super::mounts::{Volume, parse_mount};
use super::spec::Source;
use crate::context::Context;
use crate::error::Advise as _;
use crate::output::note;

/// The label that holds them.
pub(crate) const LABEL: &str = "mica.run.flags";

/// Flags that leave a job as confined as it is without them, or more so, and take nothing of the host's: all others are for
/// the caller to accept.
const HARMLESS: [&str; 39] = [
    "rootfs",
    "dry_run",
    "detach",
    "interactive",
    "tty",
    "detach_keys",
    "rm",
    "restart",
    "init",
    "name",
    "stop_signal",
    "stop_timeout",
    "labels",
    "health_cmd",
    "health_interval",
    "health_timeout",
    "health_start_period",
    "health_retries",
    "no_healthcheck",
    "workdir",
    "user",
    "entrypoint",
    "hostname",
    "read_only",
    "lazy",
    "lazy_deadline",
    "tmpfs",
    "shm_size",
    "memory",
    "memory_swap",
    "memory_reservation",
    "cpu_weight",
    "cpus",
    "cpuset_cpus",
    "pids_limit",
    "best_effort_limits",
    "ulimits",
    "cap_drop",
    "umask",
];

/// Whether a value is harmless.
type Fits = fn(&str) -> bool;

/// Flags of which some values are harmless: a variable with a value of its own (without, it is the host's), a file system in
/// memory, a namespace of the job's own.
const HARMLESS_VALUES: [(&str, Fits); 9] = [
    ("env", |value| value.contains('=')),
    ("mounts", in_memory),
    ("network", |value| ["none", "private"].contains(&value)),
    ("pid", |value| value == "private"),
    ("ipc", |value| value == "private"),
    ("uts", |value| value == "private"),
    ("cgroupns", |value| value == "private"),
    ("timens", |value| value == "private"),
    ("userns", |value| value == "private"),
];

/// Whether a mount is a file system in memory, whatever else its words say before the last one counts.
fn in_memory(mount: &str) -> bool {
    matches!(parse_mount(mount), Ok(Volume::Mount(Mount::Tmpfs { .. })))
}

/// The flags that the package recommends, then those that were given.
pub(super) fn args(source: &Source, given: &Args, context: &Context) -> anyhow::Result<Args> {
    let name = &source.stack.source;
    let Some(flags) = source.labels.get(LABEL) else {
        bail!("{name} recommends no flags: it has no label {LABEL}");
    };
    check(flags).with_context(|| format!("cannot use the flags that {name} recommends"))?;
    let grave = grave(flags)?;
    if !grave.is_empty() && !given.yes && !is_accepted(source, context)? {
        return Err(anyhow::anyhow!(
            "{name} recommends flags that weaken the job's confinement or reach the host: {}",
            grave.join(" ")
        ))
        .hint(
            "--yes accepts them this time; a [[recommended]] rule in ~/.config/mica/config.toml does so for packages that \
             certain keys have signed; without --recommended it runs as any other",
        );
    }
    // Nobody is given more than was asked for in silence.
    if !given.quiet || !grave.is_empty() {
        note(format_args!("flags that {name} recommends: {}", visible(flags)));
    }
    let given = std::env::args_os().skip_while(|word| word != "run").skip(1);
    let mut args = parse(split(flags)?.into_iter().map(OsString::from).chain(given))?;
    args.recommended = false;
    Ok(args)
}

/// Whether a rule of the settings speaks for this package, and it bears the signatures that the rule asks for.
fn is_accepted(source: &Source, context: &Context) -> anyhow::Result<bool> {
    let rules = &context.places.accepted;
    let package: PackageRef = source.stack.source.parse()?;
    let (true, Some(digest)) = (rules.covers(&package.name), &source.stack.manifest) else {
        return Ok(false);
    };
    let cache = context.cache()?;
    match cache.manifest(digest)? {
        Some(manifest) => {
            cache.check_trust(rules, &manifest)?;
            Ok(true)
        }
        None => Ok(false),
    }
}

/// Whether these are flags of `mica run`, and nothing but flags.
pub(crate) fn check(flags: &str) -> anyhow::Result<()> {
    let words = split(flags)?;
    if words.iter().any(|word| word == "--") {
        bail!("-- is not a flag");
    }
    let args = parse(words.into_iter().map(OsString::from))?;
    match args.words.first() {
        Some(word) => bail!("{} is not a flag", word.display()),
        None => Ok(()),
    }
}

/// Those of the flags that somebody has to accept, in full words.
fn grave(flags: &str) -> anyhow::Result<Vec<String>> {
    let command = command();
    let matches = matches(command.clone(), split(flags)?.into_iter().map(OsString::from))?;
    let mut grave = Vec::new();
    for argument in command.get_arguments() {
        let id = argument.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine) || HARMLESS.contains(&id) {
            continue;
        }
        let values: Vec<String> = matches
            .get_raw(id)
            .into_iter()
            .flatten()
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        let flag = argument.get_long().map_or_else(|| id.to_owned(), |long| format!("--{long}"));
        if argument.get_num_args().is_some_and(|range| !range.takes_values()) {
            grave.push(flag);
            continue;
        }
        let harmless = HARMLESS_VALUES.iter().find(|(known, _)| *known == id);
        let is_grave = |value: &&String| !harmless.is_some_and(|(_, fits)| fits(value));
        grave.extend(values.iter().filter(is_grave).map(|v| format!("{flag} {}", visible(v))));
    }
    Ok(grave)
}

/// As it can be shown to a person: what a package says may hold anything.
fn visible(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            let plain = (!c.is_control()).then_some(c);
            plain.into_iter().chain(c.escape_default().take(if c.is_control() { 16 } else { 0 }))
        })
        .collect()
}

fn split(flags: &str) -> anyhow::Result<Vec<String>> {
    shlex::split(flags).with_context(|| format!("a quotation mark of {flags} is not closed"))
}

fn command() -> clap::Command {
    let mut command = Args::augment_args(clap::Command::new("run").args_override_self(true));
    command.build();
    command
}

fn matches(
    command: clap::Command,
    words: impl Iterator<Item = OsString>,
) -> anyhow::Result<clap::ArgMatches> {
    let line = std::iter::once("run".into()).chain(words);
    command.try_get_matches_from(line).map_err(refused)
}

fn refused(error: clap::Error) -> anyhow::Error {
    let text = error.render().to_string();
    let first = text.lines().next().unwrap_or_default();
    anyhow::anyhow!("{}", first.strip_prefix("error: ").unwrap_or(first))
}

/// What is given twice counts the second time.
pub(super) fn parse(words: impl Iterator<Item = OsString>) -> anyhow::Result<Args> {
    Args::from_arg_matches(&matches(command(), words)?).map_err(refused)
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

    #[test]
    fn what_somebody_has_to_accept() {
        let harmless = "-d -m 64m --tmpfs /x --mount type=tmpfs,target=/y -e A=1 --network none --cap-drop ALL \
            --health-cmd 'true' --pid private --ulimit nofile=10 --restart always -u 0";
        assert_eq!(grave(harmless).unwrap(), [""; 0]);
        for (flags, expected) in [
            ("--privileged -v /:/h", vec!["--privileged", "--volume /:/h"]),
            ("-vdata:/x", vec!["--volume data:/x"]),
            ("--mount=type=bind,src=/,dst=/h,ro", vec!["--mount type=bind,src=/,dst=/h,ro"]),
            ("--mount type=image,src=B,dst=/h", vec!["--mount type=image,src=B,dst=/h"]),
            // Of a key that is given twice the last counts.
            (
                "--mount type=tmpfs,type=bind,src=/,dst=/h",
                vec!["--mount type=tmpfs,type=bind,src=/,dst=/h"],
            ),
            ("-e HOME -e B=1", vec!["--env HOME"]),
            ("--cap-add SYS_ADMIN", vec!["--cap-add SYS_ADMIN"]),
            ("--seccomp=unconfined", vec!["--seccomp unconfined"]),
            ("--net host --pid host", vec!["--network host", "--pid host"]),
            ("--ipc host --uts host", vec!["--ipc host", "--uts host"]),
            ("--userns host --cgroupns host", vec!["--cgroupns host", "--userns host"]),
            ("--device /dev/sda --gpus all", vec!["--device /dev/sda", "--gpus all"]),
            ("-p 80:80 -P", vec!["--publish 80:80", "--publish-all"]),
            ("--group-add docker", vec!["--group-add docker"]),
            ("--host-root", vec!["--host-root"]),
            ("--env-host --env-file /x", vec!["--env-file /x", "--env-host"]),
            ("--verify never", vec!["--verify never"]),
            ("--registry http://x", vec!["--registry http://x"]),
            ("-q -y", vec!["--quiet", "--yes"]),
            ("--image /x", vec!["--image /x"]),
        ] {
            let mut found = grave(flags).unwrap();
            found.sort();
            assert_eq!(found, expected, "{flags}");
        }
        assert!(check("--rm --").is_err());
    }

    #[test]
    fn every_flag_named_here_is_there() {
        let command = command();
        let known: Vec<_> = command.get_arguments().map(|a| a.get_id().to_string()).collect();
        for id in HARMLESS.iter().copied().chain(HARMLESS_VALUES.iter().map(|(id, _)| *id)) {
            assert!(known.iter().any(|known| known == id), "{id}");
        }
    }
}
