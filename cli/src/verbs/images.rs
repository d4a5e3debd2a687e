//! `mica images`: the packages in the cache.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use mica_fetcher::CachedPackage;
use mica_fetcher::registry::{self, Entry, Index};
use mica_graph::{PackageName, PackageRef};
use serde_json::json;

use crate::context::Context;
use crate::registries::RegistryFlags;
use crate::{output, trust};

/// List the packages in the cache
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Full references only
    #[arg(short, long)]
    quiet: bool,
    /// The manifests' digests too, and who signed them
    #[arg(long)]
    digests: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
    /// Those in the registry instead
    #[arg(long)]
    remote: bool,
    /// Only this package
    #[arg(value_name = "NAME")]
    name: Option<PackageName>,
    #[command(flatten)]
    pub(crate) registry: RegistryFlags,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    if args.remote {
        return remote(args, context);
    }
    let cache = context.cache()?;
    let signers = |package: &CachedPackage| {
        // Damage of a note about a package is no reason not to list it.
        let signatures = cache.signatures(&package.digest).unwrap_or_default();
        trust::signers(&context.places.trust, &package.manifest, &signatures)
    };
    let mut packages = cache.packages()?;
    packages.retain(|package| args.name.as_ref().is_none_or(|name| package.manifest.name == *name));
    if args.json {
        let rows: Vec<_> =
            packages.iter().map(|package| as_json(package, &signers(package))).collect();
        output::json(&rows)?;
    } else if args.quiet {
        let rows: Vec<String> = packages.iter().map(reference).collect();
        output::lines(rows.iter().map(String::as_str))?;
    } else if args.digests {
        let rows: Vec<[String; 8]> = packages
            .iter()
            .map(|package| {
                let [name, version, tags, layers, size, added] = cells(package);
                let signers = signers(package).join(",");
                let signers = if signers.is_empty() { "-".to_owned() } else { signers };
                [name, version, package.digest.to_string(), signers, tags, layers, size, added]
            })
            .collect();
        output::table(
            ["PACKAGE", "VERSION", "DIGEST", "SIGNED BY", "TAGS", "LAYERS", "SIZE", "ADDED"],
            &rows,
        )?;
    } else {
        let rows: Vec<_> = packages.iter().map(cells).collect();
        output::table(["PACKAGE", "VERSION", "TAGS", "LAYERS", "SIZE", "ADDED"], &rows)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What the registry's indexes say.
fn remote(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let registry = registry::open(&context.places.registry, &context.registries())?;
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => registry.packages()?,
    };
    let mut indexes = Vec::new();
    for name in names {
        match registry.index(&name)? {
            Some(index) => indexes.push(index),
            // The same error, with its hint, as when it is pulled.
            None => drop(registry.resolve(&PackageRef { name, selector: None })?),
        }
    }
    let entries = indexes.iter().flat_map(|index| index.versions.iter().map(move |e| (index, e)));
    let reference = |index: &Index, entry: &Entry| format!("{}@{}", index.name, entry.version);
    let seconds = |entry: &Entry| i64::try_from(entry.time).unwrap_or(0).saturating_mul(1000);
    if args.json {
        let rows: Vec<_> = entries
            .map(|(index, entry)| {
                json!({
                    "reference": reference(index, entry),
                    "digest": entry.manifest.digest,
                    "tags": index.tags_of(&entry.version),
                    "published_ms": seconds(entry),
                })
            })
            .collect();
        output::json(&rows)?;
    } else if args.quiet {
        let rows: Vec<String> = entries.map(|(index, entry)| reference(index, entry)).collect();
        output::lines(rows.iter().map(String::as_str))?;
    } else {
        let rows: Vec<[String; 5]> = entries
            .map(|(index, entry)| {
                let source = output::short_source(&reference(index, entry));
                let (name, version) = source.split_once('@').unwrap_or((&source, ""));
                let tags = index.tags_of(&entry.version);
                let tags: Vec<&str> = tags.iter().map(|tag| tag.as_str()).collect();
                let digest = entry.manifest.digest;
                [
                    name.to_owned(),
                    version.to_owned(),
                    if args.digests { digest.to_string() } else { digest.short() },
                    if tags.is_empty() { "-".into() } else { tags.join(",") },
                    output::ago(seconds(entry)),
                ]
            })
            .collect();
        output::table(["PACKAGE", "VERSION", "DIGEST", "TAGS", "PUBLISHED"], &rows)?;
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

fn as_json(package: &CachedPackage, signers: &[String]) -> serde_json::Value {
    json!({
        "reference": reference(package),
        "digest": package.digest,
        "tags": package.tags,
        "signers": signers,
        "layers": package.manifest.layers,
        "size": package.manifest.size(),
        "local_layers": package.layers,
        "local_bytes": package.local,
        "added_ms": ms(package.added),
        "used_ms": ms(package.used),
        "in_use": package.leased,
    })
}
