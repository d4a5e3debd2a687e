//! Starts a program in a tree, with the default confinement: `launch TREE|/ PROGRAM [ARGUMENT …]`.
//!
//! With `/` the program runs in a read-only view of the host. `MICA_MEMORY`, `MICA_PIDS` and `MICA_CPUS` set limits,
//! `MICA_NETWORK` is `none` or
//! `private`. This is what `bench/launch.sh` measures.
#![allow(clippy::print_stderr)]

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use mica_launcher::{HostView, LaunchError, Network, Root, Spec, Stdio, init_main, launch};

fn main() -> ExitCode {
    init_main();
    match run() {
        Ok(code) => ExitCode::from(code as u8),
        Err(error) => {
            eprint!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprint!(": {error}");
                cause = error.source();
            }
            let launch = error.downcast_ref::<LaunchError>();
            eprintln!(
                "{}",
                launch
                    .and_then(LaunchError::hint)
                    .map(|hint| format!("\nhint: {hint}"))
                    .unwrap_or_default()
            );
            ExitCode::from(launch.map_or(125, LaunchError::exit_code))
        }
    }
}

fn limit<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn run() -> Result<i32, Box<dyn Error>> {
    let mut arguments = std::env::args_os().skip(1);
    let tree = PathBuf::from(arguments.next().ok_or("usage: launch TREE|/ PROGRAM [ARGUMENT …]")?);
    let scratch = std::env::temp_dir();
    let root = if tree.as_os_str() == "/" {
        Root::Host { tree: scratch, at: "/packages/none".into(), view: HostView::default() }
    } else {
        Root::Tree(tree)
    };
    let mut spec = Spec::new(format!("example-{}", std::process::id()), root, arguments);
    spec.env.push(("PATH".into(), "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin".into()));
    spec.limits.memory = limit("MICA_MEMORY");
    spec.limits.pids = limit("MICA_PIDS");
    spec.limits.cpus = limit("MICA_CPUS");
    spec.namespaces.network = match std::env::var("MICA_NETWORK").as_deref() {
        Ok("none") => Network::None,
        Ok("private") => Network::Private,
        _ => Network::Host,
    };
    let mut job = launch(&spec, Stdio::inherit()?)?;
    for warning in job.warnings() {
        eprintln!("warning: {warning}");
    }
    Ok(job.wait()?.code())
}
