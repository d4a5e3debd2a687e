//! Whose packages may be used: signatures of manifests, and the policy that asks for them.
//!
//! A signature is one of [minisign](https://jedisct1.github.io/minisign/) over a manifest's bytes, in its pre-hashed form
//! (Ed25519 over BLAKE2b-512): keys and signatures are minisign's own, and `minisign -V` judges them. A manifest says itself which
//! package and version it is, and names every image by digest, so a signature of one package is worth nothing for another, and one
//! signature covers all that a job runs. The trusted comment repeats name, version and digest for people; nothing relies on it.
//!
//! Signatures lie beside the manifest, by its digest: in a registry as `signatures/<64 hex>.minisig` (in an OCI registry as a
//! referrer of the image), in the cache likewise. They travel along with push, pull, save and load. Several may be there, one after
//! the other in one document; the first alone is what minisign reads.
//!
//! **The policy** is a list of rules from each configuration file. Within a file the first rule that matches a package's name counts,
//! and every file's rule must be satisfied: a file of less authority can ask for more, and never for less than another one does.
//! What is checked is the manifest that is about to be used, at each use; whence it came makes no difference.
//!
//! Deliberately absent: freshness. A registry that holds back new versions, or moves a tag to an old signed one, is not found out.

mod keys;
mod signatures;

use std::collections::BTreeSet;
use std::sync::Arc;

use mica_graph::{Manifest, PackageName};

pub use keys::{KeyError, PublicKey, SecretKey};
pub use signatures::{BadSignatures, Signature, Signatures};

/// Which names need which signatures.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    files: Arc<Vec<(String, Vec<TrustRule>)>>,
}

/// What the packages of some names need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustRule {
    /// Names; `*` stands for any characters.
    pub names: Vec<String>,
    /// The keys that count. None means that nothing is asked for.
    pub keys: Vec<PublicKey>,
    /// How many of them must have signed.
    pub threshold: usize,
}

/// A package that may not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrustError {
    /// It bears no signature.
    #[error("{package} is not signed, and {policy} asks for it")]
    Unsigned {
        /// Name, version and digest.
        package: String,
        /// The file that has the rule.
        policy: String,
        /// The keys that count.
        keys: Vec<String>,
    },
    /// It bears others than those asked for, or too few.
    #[error("{package} has {found} of the {threshold} signatures that {policy} asks for")]
    TooFew {
        /// Name, version and digest.
        package: String,
        /// The file that has the rule.
        policy: String,
        /// Good signatures by keys that count.
        found: usize,
        /// How many it takes.
        threshold: usize,
        /// The keys that count.
        keys: Vec<String>,
    },
}

impl TrustError {
    /// What a person could do about it.
    pub fn hint(&self) -> String {
        let (Self::Unsigned { keys, .. } | Self::TooFew { keys, .. }) = self;
        format!("whoever has one of these keys can `mica sign` it: {}", keys.join(", "))
    }
}

impl Trust {
    /// Adds the rules of one more file.
    #[must_use]
    pub fn with(mut self, file: String, rules: Vec<TrustRule>) -> Self {
        if !rules.is_empty() {
            Arc::make_mut(&mut self.files).push((file, rules));
        }
        self
    }

    /// The rules of both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        Arc::make_mut(&mut self.files).extend(other.files.iter().cloned());
        self
    }

    fn rules_for(&self, name: &PackageName) -> impl Iterator<Item = (&str, &TrustRule)> {
        self.files.iter().filter_map(|(file, rules)| {
            let fits = |rule: &&TrustRule| rule.names.iter().any(|p| matches(p, name.as_str()));
            Some((file.as_str(), rules.iter().find(fits).filter(|rule| !rule.keys.is_empty())?))
        })
    }

    /// All rules, those of the first file first.
    pub fn rules(&self) -> impl Iterator<Item = &TrustRule> {
        self.files.iter().flat_map(|(_, rules)| rules)
    }

    /// Whether packages of this name need signatures.
    pub fn covers(&self, name: &PackageName) -> bool {
        self.rules_for(name).next().is_some()
    }

    /// All keys that any rule names.
    pub fn keys(&self) -> impl Iterator<Item = &PublicKey> {
        self.files.iter().flat_map(|(_, rules)| rules).flat_map(|rule| &rule.keys)
    }

    /// Whether a package may be used.
    pub fn check(&self, manifest: &Manifest, signatures: &Signatures) -> Result<(), TrustError> {
        let mut rules = self.rules_for(&manifest.name).peekable();
        if rules.peek().is_none() {
            return Ok(());
        }
        let json = manifest.to_json();
        for (file, rule) in rules {
            let signed = |key: &&PublicKey| signatures.iter().any(|s| s.is_by(key, &json));
            // A key that is listed twice counts once.
            let found: BTreeSet<String> =
                rule.keys.iter().filter(signed).map(PublicKey::to_base64).collect();
            if found.len() >= rule.threshold.max(1) {
                continue;
            }
            let package = describe(manifest);
            let (policy, keys) = (file.to_owned(), rule.keys.iter().map(PublicKey::id).collect());
            if signatures.is_empty() {
                return Err(TrustError::Unsigned { package, policy, keys });
            }
            let (found, threshold) = (found.len(), rule.threshold);
            return Err(TrustError::TooFew { package, policy, found, threshold, keys });
        }
        Ok(())
    }
}

/// Name, version and digest, as they stand in messages and in trusted comments.
fn describe(manifest: &Manifest) -> String {
    format!("{}@{} ({})", manifest.name, manifest.version, manifest.digest())
}

/// Whether a name is of a pattern, in which `*` stands for any characters, also none.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(name) = name.strip_prefix(start) else { return false };
    // Each piece where it first fits leaves most to those after it; the last one stands at the end.
    let mut pieces: Vec<&str> = rest.split('*').collect();
    let end = pieces.pop().unwrap_or_default();
    let mut name = name;
    for piece in pieces {
        let Some(place) = name.find(piece) else { return false };
        name = &name[place + piece.len()..];
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("A", "A", true),
            ("A", "AB", false),
            ("*", "anything", true),
            ("*", "", true),
            ("a*", "abc", true),
            ("a*", "ba", false),
            ("*c", "abc", true),
            ("a*c", "abc", true),
            ("a*c", "a", false),
            ("ab*ba", "aba", false),
            ("a**c", "abc", true),
            ("*b*b*", "abb", true),
            ("*b*b*", "ab", false),
            ("a*b*ab", "a-b-ab", true),
            ("a*b*ab", "a-ab", false),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
    }

    /// All ways to fill the stars.
    fn slowly(pattern: &[u8], name: &[u8]) -> bool {
        match pattern.split_first() {
            None => name.is_empty(),
            Some((b'*', rest)) => (0..=name.len()).any(|n| slowly(rest, &name[n..])),
            Some((byte, rest)) => name.first() == Some(byte) && slowly(rest, &name[1..]),
        }
    }

    #[test]
    fn patterns_agree_with_the_slow_way() {
        let words = |letters: &[u8], longest| {
            let mut all = vec![vec![]];
            for i in 0..longest {
                let more: Vec<Vec<u8>> = all
                    .iter()
                    .filter(|word: &&Vec<u8>| word.len() == i)
                    .flat_map(|word| letters.iter().map(move |c| [&word[..], &[*c]].concat()))
                    .collect();
                all.extend(more);
            }
            all
        };
        for pattern in words(b"ab*", 5) {
            for name in words(b"ab", 5) {
                let text = |bytes| std::str::from_utf8(bytes).unwrap();
                let (fast, slow) = (matches(text(&pattern), text(&name)), slowly(&pattern, &name));
                assert_eq!(fast, slow, "{} {}", text(&pattern), text(&name));
            }
        }
    }
}
