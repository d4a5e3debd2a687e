//! `mica top`: the processes of a job.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

use crate::context::Context;
use crate::output;

/// Show the processes of a job
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Id, beginning of an id, or name of the job
    job: String,
    /// Options of the host's ps(1), whose lines about the job's processes are shown instead
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PS OPTIONS")]
    options: Vec<OsString>,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let job = context.jobs()?.find(&args.job)?;
    let processes = mica_agent::processes(&job);
    if processes.is_empty() {
        bail!("job {} is not running", job.id());
    }
    if !args.options.is_empty() {
        let text = ps(&args.options)?;
        let pids: Vec<i32> = processes.iter().map(|process| process.pid).collect();
        let lines =
            about(&text, &pids).context("ps shows no column PID, by which to choose lines")?;
        output::lines(lines)?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<[String; 7]> = processes
        .into_iter()
        .map(|process| {
            [
                process.uid.to_string(),
                process.pid.to_string(),
                process.parent.to_string(),
                process.state.to_string(),
                output::bytes(process.resident),
                output::duration(process.cpu),
                process.command,
            ]
        })
        .collect();
    output::table(["UID", "PID", "PPID", "STATE", "MEMORY", "CPU TIME", "COMMAND"], &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn ps(options: &[OsString]) -> anyhow::Result<String> {
    let output = Command::new("ps").args(options).output().context("cannot run ps")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ps refuses: {}", said.lines().find(|line| !line.is_empty()).unwrap_or("no reason"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The heading and the lines about these processes.
fn about<'a>(text: &'a str, pids: &[i32]) -> Option<Vec<&'a str>> {
    let mut lines = text.lines();
    let heading = lines.next()?;
    let column = heading.split_whitespace().position(|word| word == "PID")?;
    let pid = |line: &str| line.split_whitespace().nth(column)?.parse::<i32>().ok();
    let ours = |line: &&str| pid(line).is_some_and(|pid| pids.contains(&pid));
    Some(std::iter::once(heading).chain(lines.filter(ours)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_ps_are_chosen_by_their_pid() {
        let text = "USER  PID COMMAND\nroot    1 init 42\nroot   42 job\n";
        assert_eq!(about(text, &[42, 7]).unwrap(), ["USER  PID COMMAND", "root   42 job"]);
        assert_eq!(about("COMMAND\njob\n", &[42]), None);
    }
}
