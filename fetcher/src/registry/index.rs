//! The index of one package: its versions and tags. Pure; whoever calls does the I/O and holds the lock.
//!
//! The same document is served by registries (`packages/<name>/index.json`) and kept in the cache. It is JSON,
//! `{"schema":1,"name":…,"versions":[{"version":…,"manifest":{"digest":…,"size":…},"time":…}],"tags":{tag:version}}`,
//! versions newest first. A reader refuses a schema it does not know; unknown fields are ignored.

use std::collections::BTreeMap;
use std::fmt::Display;

use mica_graph::{Blob, Digest, JsonBounds, PackageName, PackageRef, TooMuchJson, Version};

use serde::{Deserialize, Serialize};

use super::bounded;

/// The versions and tags of a package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Index {
    /// Version of this document's format.
    pub schema: u32,
    /// The package.
    pub name: PackageName,
    /// Its versions, newest first.
    #[serde(deserialize_with = "bounded::list")]
    pub versions: Vec<Entry>,
    /// Its tags, and the version each one means.
    #[serde(default, deserialize_with = "bounded::tags")]
    pub tags: BTreeMap<Version, Version>,
}

/// One version in an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The version.
    pub version: Version,
    /// Its manifest, a blob like any other.
    pub manifest: Blob,
    /// When it was published, in seconds since 1970.
    pub time: u64,
}

/// A package at a version, found by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The package.
    pub name: PackageName,
    /// The full version.
    pub version: Version,
    /// Where its manifest is.
    pub manifest: Blob,
    /// The tag by which it was found, if it was by a tag.
    pub tag: Option<Version>,
}

/// Bytes that are not an index this program can use.
#[derive(Debug, thiserror::Error)]
pub enum ParseIndexError {
    /// Not JSON, or not of an index's shape.
    #[error("not a package index")]
    Json(#[from] serde_json::Error),
    /// More than it may hold.
    #[error("it is far too large")]
    TooMuch(#[from] TooMuchJson),
    /// Written by a later mica.
    #[error("the package index has schema {0}; this mica reads schema {current}", current = Index::SCHEMA)]
    Schema(u32),
    /// A list of pages that each name a further one.
    #[error("the list is far too long")]
    Endless,
    /// Other bytes than its name says.
    #[error("it does not have the digest by which it was asked for")]
    Digest,
    /// Not signatures.
    #[error(transparent)]
    Signatures(#[from] crate::trust::BadSignatures),
    /// Lies under another package's name.
    #[error("the package index is that of {0}")]
    Name(PackageName),
}

/// A selector that does not name exactly one version.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// It names none.
    #[error("{package} has no version or tag `{selector}`")]
    Unknown {
        /// The package.
        package: PackageName,
        /// What was asked for.
        selector: Version,
        /// The versions that look most like it, then the newest ones; at most five.
        nearest: Vec<Version>,
    },
    /// It is the beginning of several.
    #[error("{package} has {} versions that start with `{prefix}`", candidates.len())]
    Ambiguous {
        /// The package.
        package: PackageName,
        /// What was asked for.
        prefix: Version,
        /// Those that start with it, newest first.
        candidates: Vec<Version>,
    },
    /// No version was ever published.
    #[error("{package} has no versions")]
    Empty {
        /// The package.
        package: PackageName,
    },
}

/// A version or tag that may not be added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AddError {
    /// A version never changes its content.
    #[error("{package}@{version} is already published with another manifest, {held}")]
    Taken {
        /// The package.
        package: PackageName,
        /// The version.
        version: Version,
        /// The manifest it has.
        held: Digest,
    },
    /// A word cannot be both.
    #[error("`{word}` cannot be a {wanted} of {package}: it is one of its {is}s")]
    Clash {
        /// The package.
        package: PackageName,
        /// The word.
        word: Version,
        /// What it should become.
        wanted: WordKind,
        /// The other one: what it is.
        is: WordKind,
    },
    /// A tag of nothing.
    #[error("{package} has no version `{version}`")]
    NoVersion {
        /// The package.
        package: PackageName,
        /// The version.
        version: Version,
    },
}

/// What a word is in a package.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WordKind {
    /// A version.
    Version,
    /// A tag.
    Tag,
}

impl Display for WordKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Version => "version",
            Self::Tag => "tag",
        })
    }
}

impl Index {
    /// The schema this program writes.
    pub const SCHEMA: u32 = 1;
    /// The tag of a reference that names no version.
    pub const LATEST: &str = "latest";
    /// What an index may hold: some 80,000 versions.
    pub const BOUNDS: JsonBounds = JsonBounds::new(16 << 20, 800_000);
    /// The most tags of a package.
    pub const MAX_TAGS: usize = 20_000;
    /// The most versions.
    pub const MAX_VERSIONS: usize = 100_000;

    /// An index with no versions yet.
    pub fn new(name: PackageName) -> Self {
        Self { schema: Self::SCHEMA, name, versions: Vec::new(), tags: BTreeMap::new() }
    }

    /// Reads the index of package `name`.
    pub fn from_json(bytes: &[u8], name: &PackageName) -> Result<Self, ParseIndexError> {
        #[derive(Deserialize)]
        struct Probe {
            schema: u32,
        }
        Self::BOUNDS.check(bytes)?;
        let Probe { schema } = serde_json::from_slice(bytes)?;
        if schema != Self::SCHEMA {
            return Err(ParseIndexError::Schema(schema));
        }
        let index: Self = serde_json::from_slice(bytes)?;
        if index.name != *name {
            return Err(ParseIndexError::Name(index.name));
        }
        Ok(index)
    }

    /// The document's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an index holds only strings, numbers and maps of strings")
    }

    /// The document's bytes, if readers take that much.
    pub(crate) fn to_bounded_json(&self) -> Result<Vec<u8>, TooMuchJson> {
        let bytes = self.to_json();
        Self::BOUNDS.check(&bytes)?;
        let fits = self.tags.len() <= Self::MAX_TAGS && self.versions.len() <= Self::MAX_VERSIONS;
        if fits { Ok(bytes) } else { Err(TooMuchJson(Self::BOUNDS)) }
    }

    /// The entry of exactly this version.
    pub fn entry(&self, version: &Version) -> Option<&Entry> {
        self.versions.iter().find(|entry| entry.version == *version)
    }

    /// The tags of a version.
    pub fn tags_of(&self, version: &Version) -> Vec<Version> {
        self.tags.iter().filter(|(_, v)| *v == version).map(|(tag, _)| tag.clone()).collect()
    }

    /// What `package` names: a tag, else a version, else the only version that starts so. Without a selector, the
    /// tag `latest`, else the newest version.
    pub fn resolve(&self, package: &PackageRef) -> Result<Resolved, SelectError> {
        let Some(selector) = &package.selector else {
            return self.latest();
        };
        if let Some(entry) = self.tags.get(selector).and_then(|version| self.entry(version)) {
            return Ok(self.resolved(entry, Some(selector.clone())));
        }
        if let Some(entry) = self.entry(selector) {
            return Ok(self.resolved(entry, None));
        }
        let with_prefix = |entry: &&Entry| entry.version.as_str().starts_with(selector.as_str());
        let candidates: Vec<&Entry> = self.versions.iter().filter(with_prefix).collect();
        match candidates[..] {
            [] => Err(self.unknown(selector)),
            [entry] => Ok(self.resolved(entry, None)),
            _ => Err(SelectError::Ambiguous {
                package: self.name.clone(),
                prefix: selector.clone(),
                candidates: candidates.iter().map(|entry| entry.version.clone()).collect(),
            }),
        }
    }

    fn latest(&self) -> Result<Resolved, SelectError> {
        let tagged = self.tags.iter().find(|(tag, _)| tag.as_str() == Self::LATEST);
        if let Some((tag, version)) = tagged
            && let Some(entry) = self.entry(version)
        {
            return Ok(self.resolved(entry, Some(tag.clone())));
        }
        let newest = self.versions.first().map(|entry| self.resolved(entry, None));
        newest.ok_or_else(|| SelectError::Empty { package: self.name.clone() })
    }

    fn resolved(&self, entry: &Entry, tag: Option<Version>) -> Resolved {
        Resolved {
            name: self.name.clone(),
            version: entry.version.clone(),
            manifest: entry.manifest.clone(),
            tag,
        }
    }

    fn unknown(&self, selector: &Version) -> SelectError {
        if self.versions.is_empty() {
            return SelectError::Empty { package: self.name.clone() };
        }
        let words = self.tags.keys().chain(self.versions.iter().map(|entry| &entry.version));
        let mut nearest = nearest(selector.as_str(), words);
        for entry in &self.versions {
            if !nearest.contains(&entry.version) {
                nearest.push(entry.version.clone());
            }
        }
        nearest.truncate(5);
        SelectError::Unknown { package: self.name.clone(), selector: selector.clone(), nearest }
    }

    /// Adds a version as the newest, moves `tags` to it, and the tag `latest` if the version is new. Whether the
    /// version is new; the same one with the same manifest is not an error.
    pub fn publish(&mut self, entry: Entry, tags: &[Version]) -> Result<bool, AddError> {
        let version = entry.version.clone();
        if self.tags.contains_key(&version) || version.as_str() == Self::LATEST {
            return Err(self.clash(&version, WordKind::Version, WordKind::Tag));
        }
        let is_new = match self.entry(&version) {
            Some(held) if held.manifest.digest != entry.manifest.digest => {
                let held = held.manifest.digest;
                return Err(AddError::Taken { package: self.name.clone(), version, held });
            }
            Some(_) => false,
            None => true,
        };
        if let Some(tag) = tags.iter().find(|tag| **tag == version || self.entry(tag).is_some()) {
            return Err(self.clash(tag, WordKind::Tag, WordKind::Version));
        }
        if is_new {
            self.versions.insert(0, entry);
            let latest = Self::LATEST.parse().expect("`latest` is a word");
            self.tags.insert(latest, version.clone());
        }
        self.tags.extend(tags.iter().map(|tag| (tag.clone(), version.clone())));
        Ok(is_new)
    }

    /// Makes `tag` mean `version`.
    pub fn tag(&mut self, tag: &Version, version: &Version) -> Result<(), AddError> {
        if self.entry(version).is_none() {
            let (package, version) = (self.name.clone(), version.clone());
            return Err(AddError::NoVersion { package, version });
        }
        if self.entry(tag).is_some() {
            return Err(self.clash(tag, WordKind::Tag, WordKind::Version));
        }
        self.tags.insert(tag.clone(), version.clone());
        Ok(())
    }

    fn clash(&self, word: &Version, wanted: WordKind, is: WordKind) -> AddError {
        AddError::Clash { package: self.name.clone(), word: word.clone(), wanted, is }
    }

    /// Records what a pull found, whatever was there before: the cache follows its registries.
    pub(crate) fn follow(&mut self, entry: Entry, tags: &[Version]) {
        let version = entry.version.clone();
        self.versions.retain(|old| old.version != version);
        self.versions.insert(0, entry);
        self.tags.extend(tags.iter().map(|tag| (tag.clone(), version.clone())));
    }

    /// Removes a version and its tags; whether it was there.
    pub(crate) fn forget(&mut self, version: &Version) -> bool {
        let before = self.versions.len();
        self.versions.retain(|entry| entry.version != *version);
        self.tags.retain(|_, tagged| tagged != version);
        self.versions.len() < before
    }
}

/// The words most like `word`, best first, at most three.
pub(crate) fn nearest<'a, T>(word: &str, words: impl IntoIterator<Item = &'a T>) -> Vec<T>
where
    T: Display + Clone + PartialEq + 'a,
{
    let word = word.to_lowercase();
    let mut scored: Vec<(f64, &T)> = words
        .into_iter()
        .map(|other| (strsim::jaro_winkler(&word, &other.to_string().to_lowercase()), other))
        .filter(|(score, _)| *score > 0.75)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut nearest: Vec<T> = scored.into_iter().map(|(_, word)| word.clone()).collect();
    nearest.dedup();
    nearest.truncate(3);
    nearest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        text.parse().unwrap()
    }

    fn entry(text: &str, content: &str) -> Entry {
        let manifest = Blob { digest: Digest::of(content.as_bytes()), size: 1 };
        Entry { version: version(text), manifest, time: 0 }
    }

    fn index(versions: &[&str]) -> Index {
        let mut index = Index::new("A".parse().unwrap());
        for text in versions {
            assert!(index.publish(entry(text, text), &[]).unwrap());
        }
        index
    }

    fn found(index: &Index, reference: &str) -> Result<String, SelectError> {
        index.resolve(&reference.parse().unwrap()).map(|found| found.version.to_string())
    }

    #[test]
    fn tags_versions_and_prefixes_resolve_in_this_order() {
        let mut index = index(&["953bc1", "953ff0", "95", "abc"]);
        assert_eq!(found(&index, "A").unwrap(), "abc");
        assert_eq!(found(&index, "A@latest").unwrap(), "abc");
        assert_eq!(found(&index, "A@95").unwrap(), "95", "exact before prefix");
        assert_eq!(found(&index, "A@953b").unwrap(), "953bc1");
        index.tag(&version("953b"), &version("abc")).unwrap();
        assert_eq!(found(&index, "A@953b").unwrap(), "abc", "tag before prefix");
        let SelectError::Ambiguous { candidates, .. } = found(&index, "A@953").unwrap_err() else {
            panic!("not ambiguous");
        };
        assert_eq!(candidates, [version("953ff0"), version("953bc1")]);
    }

    #[test]
    fn an_unknown_version_names_the_nearest() {
        let index = index(&["953bc1", "release-1.0", "abc"]);
        let error = found(&index, "A@relaese").unwrap_err();
        assert_eq!(error.to_string(), "A has no version or tag `relaese`");
        let SelectError::Unknown { nearest, .. } = error else { panic!("found") };
        assert_eq!(nearest[0], version("release-1.0"));
        assert_eq!(nearest.len(), 3);
        let empty = Index::new("A".parse().unwrap());
        assert_eq!(found(&empty, "A@x").unwrap_err().to_string(), "A has no versions");
    }

    #[test]
    fn versions_never_change_and_tags_move() {
        let mut index = index(&["1", "2"]);
        assert!(!index.publish(entry("1", "1"), &[version("stable")]).unwrap());
        assert_eq!(found(&index, "A@stable").unwrap(), "1");
        assert_eq!(found(&index, "A").unwrap(), "2", "publishing again does not move `latest`");
        let error = index.publish(entry("1", "other"), &[]).unwrap_err();
        assert!(error.to_string().contains(&Digest::of(b"1").to_string()));
        assert!(index.publish(entry("stable", "x"), &[]).is_err(), "a tag");
        assert!(index.publish(entry("3", "x"), &[version("2")]).is_err(), "a version");
        assert!(index.publish(entry("latest", "x"), &[]).is_err());
        assert!(index.tag(&version("1"), &version("2")).is_err());
        assert!(index.tag(&version("t"), &version("9")).is_err());
        let json = index.to_json();
        assert_eq!(Index::from_json(&json, &index.name).unwrap(), index);
        assert!(Index::from_json(&json, &"B".parse().unwrap()).is_err());
    }
}
