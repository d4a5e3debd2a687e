//! Per-process limits by name.

use rustix::process::Resource;

/// A resource nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no ulimit {0}")]
pub struct UnknownResource(pub String);

/// The resource of this name, as in docker's `--ulimit`.
pub(crate) fn resource(name: &str) -> Result<Resource, UnknownResource> {
    Ok(match name.to_ascii_lowercase().trim_start_matches("rlimit_") {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return Err(UnknownResource(name.to_owned())),
    })
}
