//! Names: of a registry and a place in it, of repositories and tags.
//!
//! A package is a repository below the registry's path. OCI names are lower case, so `A` is the repository `a`; what the package
//! is really called is in its manifests. A version is a tag; `+`, which tags may not have, becomes `_`, as with helm.

use std::fmt;

use mica_graph::{Digest, PackageName, Version};

use super::super::RegistryError;

/// A registry, and a path in it below which the packages' repositories lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Location {
    /// `host[:port]`.
    pub(super) host: String,
    /// Path of repositories, without slashes at its ends; may be empty.
    path: String,
    /// Plain HTTP and unknown certificates will do.
    pub(super) insecure: bool,
}

/// The repository of layers: where their bytes go first, to be mounted from there, and where it is noted what was packed
/// from what. Two words, so that no package can have its name.
pub(super) const LAYERS: &str = "mica/layers";

/// The tag, there, of the note of an image's patches.
pub(super) fn patches(image: &Digest) -> String {
    format!("patches-{}", image.hex())
}

impl Location {
    /// Reads `oci://host[:port][/path]`, `docker://…` or `host:port[/path]`; `None` if it is something else.
    pub(crate) fn parse(address: &str) -> Option<Result<Self, RegistryError>> {
        let rest = match address.split_once("://") {
            Some(("oci" | "docker", rest)) => rest,
            Some(_) => return None,
            None => {
                let (host, port) = address.split('/').next()?.split_once(':')?;
                let is_host = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
                let is_port = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
                if host.is_empty() || !host.chars().all(is_host) || !is_port {
                    return None;
                }
                address
            }
        };
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let path = path.trim_matches('/');
        let wrong =
            |reason: String| Err(RegistryError::Address { address: address.to_owned(), reason });
        if host.is_empty() || host.contains(['@', '?', '#', ' ']) {
            return Some(wrong("there is no host in it".to_owned()));
        }
        if !path.is_empty() && !path.split('/').all(is_component) {
            let reason = "the path of an OCI registry is of lower-case words and digits".to_owned();
            return Some(wrong(reason));
        }
        Some(Ok(Self { host: host.to_owned(), path: path.to_owned(), insecure: false }))
    }

    /// The same repositories elsewhere: `place` is `host[:port][/path]`, in the place of `prefix`.
    pub(super) fn moved(&self, prefix: &str, place: &str, insecure: bool) -> Option<Self> {
        let rest = match prefix.starts_with("*.") {
            true => self.path.clone(),
            false => self.place().strip_prefix(prefix)?.trim_matches('/').to_owned(),
        };
        let (host, path) = place.trim_matches('/').split_once('/').unwrap_or((place, ""));
        let path = format!("{path}/{rest}").trim_matches('/').to_owned();
        Some(Self { host: host.to_owned(), path, insecure })
    }

    pub(super) fn with_insecure(self, insecure: bool) -> Self {
        Self { insecure, ..self }
    }

    /// `host[:port][/path]`.
    pub(crate) fn place(&self) -> String {
        format!("{}/{}", self.host, self.path).trim_end_matches('/').to_owned()
    }

    /// Where Docker Hub really is.
    pub(super) fn api_host(&self) -> &str {
        match self.host.as_str() {
            "docker.io" | "index.docker.io" => "registry-1.docker.io",
            host => host,
        }
    }

    /// A repository below the path, by [`repository`] or [`LAYERS`].
    pub(super) fn repository(&self, below: &str) -> String {
        format!("{}/{below}", self.path).trim_start_matches('/').to_owned()
    }

    /// What of a repository's full name lies below the path, if it is one word.
    pub(super) fn below<'a>(&self, full: &'a str) -> Option<&'a str> {
        let below = full.strip_prefix(self.path.as_str())?;
        let below = if self.path.is_empty() { below } else { below.strip_prefix('/')? };
        (!below.contains('/')).then_some(below)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "oci://{}", self.place())
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`, of the OCI distribution specification.
fn is_component(word: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = word.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    if !ends.into_iter().all(|end| end.is_some_and(|b| alphanumeric(*b))) {
        return false;
    }
    word.split(|c: char| alphanumeric(c as u8) && c.is_ascii())
        .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.bytes().all(|b| b == b'-'))
}

/// What docker calls a version of a package, if it can call it anything.
pub(crate) fn reference(name: &PackageName, version: &Version) -> Option<String> {
    Some(format!("{}:{}", repository(name).ok()?, tag(version)))
}

/// The repository of a package.
pub(super) fn repository(name: &PackageName) -> Result<String, RegistryError> {
    let word = name.as_str().to_ascii_lowercase().replace('+', "-");
    if is_component(&word) {
        return Ok(word);
    }
    let reason = "an OCI repository's name has single separators, between letters and digits";
    Err(RegistryError::Address { address: name.to_string(), reason: reason.to_owned() })
}

/// The tag of a version, or of a tag.
pub(super) fn tag(version: &Version) -> String {
    version.as_str().replace('+', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let parse = |text: &str| Location::parse(text).map(|r| r.map(|l| l.place()).ok());
        assert_eq!(parse("oci://h:5000/a/b/"), Some(Some("h:5000/a/b".into())));
        assert_eq!(parse("oci://h"), Some(Some("h".into())));
        assert_eq!(parse("localhost:5055/x"), Some(Some("localhost:5055/x".into())));
        assert_eq!(parse("oci://h/UPPER"), Some(None));
        assert_eq!(parse("oci:///x"), Some(None));
        for folder in ["/a:5/b", "./x", "registry", "C:/x", "http://h:1", "a b:5"] {
            assert_eq!(parse(folder), None, "{folder}");
        }
    }

    #[test]
    fn repositories() {
        let name = |text: &str| repository(&text.parse().unwrap()).ok();
        assert_eq!(name("A"), Some("a".into()));
        assert_eq!(name("my_lib-2.1"), Some("my_lib-2.1".into()));
        assert_eq!(name("a--b__c"), Some("a--b__c".into()));
        for bad in ["a..b", "a-", "a._b"] {
            assert_eq!(name(bad), None, "{bad}");
        }
        let location = Location::parse("oci://h/team").unwrap().unwrap();
        assert_eq!(location.repository("a"), "team/a");
        assert_eq!(location.below("team/a"), Some("a"));
        assert_eq!(location.below("team/mica/layers"), None);
        assert_eq!(location.below("teamwork/a"), None);
        let moved = location.moved("h", "mirror:5/x", true).unwrap();
        assert_eq!(moved.place(), "mirror:5/x/team");
    }
}
