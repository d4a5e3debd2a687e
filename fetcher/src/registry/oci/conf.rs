//! `registries.conf`: mirrors, other locations and insecure registries, as containers-registries.conf(5) has them (version 2).

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::super::RegistryError;
use super::names::Location;
use crate::file;

#[derive(Default, Deserialize)]
struct Conf {
    #[serde(default)]
    registry: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Entry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
}

#[derive(Deserialize)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
}

/// Where a registry really is, and its mirrors.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resolved {
    pub(super) origin: Location,
    pub(super) mirrors: Vec<Location>,
}

/// The file that podman and skopeo would read.
pub(crate) fn usual() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(path) = variable("CONTAINERS_REGISTRIES_CONF") {
        return Some(path.into());
    }
    let home = variable("HOME").map(PathBuf::from);
    let own = home.map(|home| home.join(".config/containers/registries.conf"));
    let host = PathBuf::from("/etc/containers/registries.conf");
    own.into_iter().chain([host]).find(|path| path.exists())
}

/// What a file says of a location.
pub(super) fn resolve(path: Option<&Path>, location: Location) -> Result<Resolved, RegistryError> {
    let text = match path {
        Some(path) => file::read_given(path, 1 << 20)?,
        None => None,
    };
    let text = text.unwrap_or_default();
    let conf: Conf = toml::from_slice(&text).map_err(|source| RegistryError::RegistriesConf {
        path: path.unwrap_or(Path::new("")).to_owned(),
        source: Box::new(source),
    })?;
    apply(conf, location)
}

/// For [`crate::fuzz`].
pub(crate) fn fuzz(data: &[u8]) {
    let Ok(conf) = toml::from_slice::<Conf>(data) else { return };
    if let Some(Ok(location)) = Location::parse("oci://example.com/team/app") {
        let _refused = apply(conf, location).is_err();
    }
}

fn apply(conf: Conf, location: Location) -> Result<Resolved, RegistryError> {
    let place = location.place();
    let matching = |entry: &&Entry| covers(entry.key(), &place);
    let best = conf.registry.iter().filter(matching).max_by_key(|entry| entry.key().len());
    let Some(entry) = best else { return Ok(Resolved { origin: location, mirrors: Vec::new() }) };
    if entry.blocked {
        let reason = "registries.conf blocks it".to_owned();
        return Err(RegistryError::Address { address: location.to_string(), reason });
    }
    let moved = |to: &str, insecure| location.moved(entry.key(), to, insecure);
    let origin = match entry.location.as_str() {
        "" => location.clone().with_insecure(entry.insecure),
        to => moved(to, entry.insecure).unwrap_or_else(|| location.clone()),
    };
    let mirrors = entry.mirror.iter().filter_map(|m| moved(&m.location, m.insecure)).collect();
    Ok(Resolved { origin, mirrors })
}

impl Entry {
    fn key(&self) -> &str {
        if self.prefix.is_empty() { &self.location } else { &self.prefix }
    }
}

/// Whether a place is, or lies below, a prefix; `*.example.com` is every host below it.
fn covers(prefix: &str, place: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = place.split('/').next().unwrap_or(place);
        return host.ends_with(domain);
    }
    let rest = place.strip_prefix(prefix);
    !prefix.is_empty() && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_says_where_to_go() {
        let text = r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            location = "hub.example:5000"
            insecure = true
            [[registry.mirror]]
            location = "near:5001/cache"
            insecure = true
            [[registry]]
            prefix = "hub.example:5000/team"
            location = "other.example/t"
            [[registry]]
            prefix = "*.blocked.org"
            blocked = true
        "#;
        let resolve = |address: &str| {
            let location = Location::parse(address).unwrap().unwrap();
            apply(toml::from_str(text).unwrap(), location)
        };
        let found = resolve("oci://hub.example:5000/x").unwrap();
        assert!(found.origin.insecure && found.mirrors[0].insecure);
        assert_eq!(found.mirrors[0].place(), "near:5001/cache/x");
        let found = resolve("oci://hub.example:5000/team/y").unwrap();
        assert_eq!((found.origin.place(), found.mirrors.len()), ("other.example/t/y".into(), 0));
        assert_eq!(resolve("oci://elsewhere").unwrap().origin.place(), "elsewhere");
        assert!(resolve("oci://a.blocked.org/x").is_err());
    }
}
