//! `mica info`: what this host gives to jobs, and what mica keeps here.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

use mica_launcher::{HostFacts, Root, Spec};
use serde_json::{Value, json};

use crate::context::Context;
use crate::output;

/// Show what this host gives to jobs, and what mica keeps here
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let facts = facts(context)?;
    if args.json {
        output::json(&facts)?;
        return Ok(ExitCode::SUCCESS);
    }
    let shown = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Null => "-".to_owned(),
        Value::Array(all) => {
            all.iter().map(|v| v.as_str().unwrap_or_default()).collect::<Vec<_>>().join(" ")
        }
        other => other.to_string(),
    };
    let rows: Vec<[String; 2]> =
        facts.iter().map(|(name, value)| [name.replace('_', " "), shown(value)]).collect();
    output::table(["", ""], &rows)?;
    Ok(ExitCode::SUCCESS)
}

fn facts(context: &Context) -> anyhow::Result<BTreeMap<&'static str, Value>> {
    let places = &context.places;
    let jobs = context.jobs()?.jobs()?;
    let running = jobs.iter().filter(|job| job.is_owned()).count();
    let cache = context.cache()?;
    let used = cache.disk_use()?;
    let host = HostFacts::read(&Spec::new("info", Root::Tree("/".into()), ["true"]))?;
    let v1 = host.cgroups.v1.iter().flat_map(|hierarchy| hierarchy.controllers.iter().cloned());
    let cgroups = match (host.cgroups.v1.is_empty(), host.cgroups.v2.is_some()) {
        (true, true) => "2",
        (false, true) => "1 and 2",
        (false, false) => "1",
        (true, false) => "none",
    };
    Ok(BTreeMap::from([
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("kernel", json!(rustix::system::uname().release().to_string_lossy())),
        ("arch", json!(std::env::consts::ARCH)),
        ("processors", json!(std::thread::available_parallelism().map_or(1, usize::from))),
        ("rootless", json!(!rustix::process::geteuid().is_root())),
        ("cgroups", json!(cgroups)),
        ("cgroup_v1_controllers", json!(v1.collect::<Vec<_>>())),
        ("fuse", json!(std::fs::File::options().read(true).write(true).open("/dev/fuse").is_ok())),
        ("fusermount", json!(program("fusermount3"))),
        ("private_networks", json!(program("pasta"))),
        ("bridge_networks", json!(rustix::process::geteuid().is_root() && program("nft"))),
        ("subordinate_ids", json!(program("newuidmap") && program("newgidmap"))),
        ("registry", json!(places.registry)),
        ("cache", json!(places.cache)),
        ("cache_bytes", json!(used.bytes)),
        ("cache_quota", json!(places.quota)),
        ("images", json!(used.blobs)),
        ("packages", json!(cache.packages()?.len())),
        ("state", json!(places.state)),
        ("jobs", json!(jobs.len())),
        ("jobs_running", json!(running)),
        ("mounts", json!(context.mounts()?.list()?.len())),
    ]))
}

/// Whether a program is in the search path.
fn program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // As the launcher looks for its helpers: they may be where only root's path leads.
    let usual = ["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).to_owned());
    std::env::split_paths(&path).chain(usual).any(|dir| dir.join(name).is_file())
}
