//! `mica inspect`: the manifest of a package, or the record of a job.

use std::process::ExitCode;

use mica_agent::FindError;
use mica_fetcher::LookupError;
use mica_graph::PackageRef;
use serde_json::json;

use crate::context::Context;
use crate::error::Advise;
use crate::{output, trust};

/// Show the manifest of a package, or the record of a job
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A package in the cache, or the id or name of a job
    #[arg(value_name = "REF|JOB")]
    word: String,
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    // A job's name or id has no `@`; without one the job is meant first, as with docker.
    match context.jobs()?.find(&args.word) {
        Ok(job) => {
            output::json(
                &json!({ "id": job.id(), "config": job.config()?, "status": job.status()? }),
            )?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(FindError::Unknown(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let reference: PackageRef = args.word.parse()?;
    let cache = context.cache()?;
    let manifest = match cache.lookup(&reference) {
        Err(error @ LookupError::UnknownPackage(_)) => {
            Err(error).hint("`mica images` lists what is in the cache, `mica ps -a` the jobs")?
        }
        other => other?,
    };
    let signatures = cache.signatures(&manifest.digest())?;
    let signers = trust::signers(&context.places.trust, &manifest, &signatures);
    let comments: Vec<_> = signatures
        .iter()
        .map(|signature| json!({ "key": signature.key_id(), "comment": signature.comment() }))
        .collect();
    output::json(&json!({
        "digest": manifest.digest(),
        "signers": signers,
        "signatures": comments,
        "manifest": manifest,
    }))?;
    Ok(ExitCode::SUCCESS)
}
