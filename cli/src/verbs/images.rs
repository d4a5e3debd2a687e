//! `mica images`: the packages in the cache.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use mica_fetcher::CachedPackage;
use serde_json::json;

use crate::context::Context;
use crate::output;

/// List the packages in the cache
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Full references only
    #[arg(short, long)]
    quiet: bool,
    /// The manifests' digests too
    #[arg(long)]
    digests: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let packages = context.cache()?.packages()?;
    if args.json {
        let rows: Vec<_> = packages.iter().map(as_json).collect();
        output::json(&rows)?;
    } else if args.quiet {
        let rows: Vec<String> = packages.iter().map(reference).collect();
        output::lines(rows.iter().map(String::as_str))?;
    } else if args.digests {
        let rows: Vec<[String; 7]> = packages
            .iter()
            .map(|package| {
                let [name, version, tags, layers, size, added] = cells(package);
                [name, version, package.digest.to_string(), tags, layers, size, added]
            })
            .collect();
        output::table(["PACKAGE", "VERSION", "DIGEST", "TAGS", "LAYERS", "SIZE", "ADDED"], &rows)?;
    } else {
        let rows: Vec<_> = packages.iter().map(cells).collect();
        output::table(["PACKAGE", "VERSION", "TAGS", "LAYERS", "SIZE", "ADDED"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn reference(package: &CachedPackage) -> String {
    format!("{}@{}", package.manifest.name, package.manifest.version)
}

fn ms(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn cells(package: &CachedPackage) -> [String; 6] {
    let manifest = &package.manifest;
    let reference = output::short_source(&reference(package));
    let version = reference.split_once('@').map_or("", |(_, version)| version).to_owned();
    let all = manifest.layers.len();
    let tags: Vec<&str> = package.tags.iter().map(|tag| tag.as_str()).collect();
    [
        manifest.name.to_string(),
        version,
        if tags.is_empty() { "-".into() } else { tags.join(",") },
        if package.layers == all {
            all.to_string()
        } else {
            format!("{} of {all}", package.layers)
        },
        output::bytes(manifest.size()),
        output::ago(ms(package.added)),
    ]
}

fn as_json(package: &CachedPackage) -> serde_json::Value {
    json!({
        "reference": reference(package),
        "digest": package.digest,
        "tags": package.tags,
        "layers": package.manifest.layers,
        "size": package.manifest.size(),
        "local_layers": package.layers,
        "local_bytes": package.local,
        "added_ms": ms(package.added),
        "used_ms": ms(package.used),
        "in_use": package.leased,
    })
}
