//! The signatures of one manifest.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::PublicKey;
use super::keys::id;

/// A signature, not verified yet: what it says of itself is a claim.
#[derive(Clone)]
pub struct Signature {
    parsed: minisign::SignatureBox,
    text: String,
}

impl std::fmt::Debug for Signature {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for Signature {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Signature {}

impl Signature {
    pub(super) fn new(parsed: minisign::SignatureBox) -> Self {
        let text = parsed.to_string();
        Self { parsed, text }
    }

    /// The id of the key that it claims.
    pub fn key_id(&self) -> String {
        id(self.parsed.keynum())
    }

    /// What the signer noted. Verified together with the signature.
    pub fn comment(&self) -> String {
        self.parsed.trusted_comment().unwrap_or_default()
    }

    /// The signature as minisign's file.
    pub fn to_text(&self) -> &str {
        &self.text
    }

    /// Whether the holder of this key signed these bytes.
    pub fn is_by(&self, key: &PublicKey, bytes: &[u8]) -> bool {
        key.verifies(&self.parsed, bytes)
    }
}

/// Text that is not a list of signatures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("they are not signatures of minisign's form")]
pub struct BadSignatures;

/// The signatures of one manifest; each once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Signatures(Vec<Signature>);

/// Lines of a signature: an untrusted comment, the signature, a trusted comment, the signature of both.
const LINES: usize = 4;

const ED25519_SIZE: usize = 64;
/// Algorithm, key id, signature.
const SIGNATURE_SIZE: usize = 2 + 8 + ED25519_SIZE;

impl Signatures {
    /// More than this is no document of ours.
    pub const MAX_SIZE: u64 = 64 << 10;
    /// So many are kept of one manifest.
    pub const MAX_COUNT: usize = 64;

    /// Reads a document: signatures one after the other.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadSignatures> {
        let text = std::str::from_utf8(bytes).map_err(|_| BadSignatures)?;
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let mut all = Self::default();
        for lines in lines.chunks(LINES) {
            if lines.len() < LINES {
                return Err(BadSignatures);
            }
            let text = lines.join("\n") + "\n";
            // The library takes a shorter second signature and then reads beyond its end.
            let whole =
                |line: &str, size| STANDARD.decode(line.trim()).is_ok_and(|b| b.len() == size);
            if !whole(lines[1], SIGNATURE_SIZE) || !whole(lines[3], ED25519_SIZE) {
                return Err(BadSignatures);
            }
            let parsed = minisign::SignatureBox::from_string(&text).map_err(|_| BadSignatures)?;
            all.add(Signature { parsed, text });
        }
        Ok(all)
    }

    /// The document.
    pub fn to_text(&self) -> String {
        self.0.iter().map(Signature::to_text).collect()
    }

    /// Adds one, if it is not there; whether it was added.
    pub fn add(&mut self, signature: Signature) -> bool {
        let is_new = !self.0.contains(&signature);
        if is_new {
            self.0.push(signature);
        }
        is_new
    }

    /// Adds those that are not there; whether any was added.
    pub fn merge(&mut self, others: &Self) -> bool {
        others.iter().fold(false, |any, other| self.add(other.clone()) | any)
    }

    /// Keeps as many as may be kept: first those that somebody of `keys` made of these bytes, so that whoever can add signatures
    /// cannot crowd those out that count.
    #[must_use]
    pub fn capped<'k>(self, keys: impl Iterator<Item = &'k PublicKey>, bytes: &[u8]) -> Self {
        if self.fits() {
            return self;
        }
        let keys: Vec<&PublicKey> = keys.collect();
        let counts = |signature: &Signature| keys.iter().any(|key| signature.is_by(key, bytes));
        let (mut kept, others): (Vec<_>, Vec<_>) = self.0.into_iter().partition(counts);
        kept.extend(others);
        let mut kept = Self(kept);
        while !kept.fits() {
            kept.0.pop();
        }
        kept
    }

    /// Whether so many may be kept.
    pub(crate) fn fits(&self) -> bool {
        let bytes: usize = self.iter().map(|signature| signature.text.len()).sum();
        self.len() <= Self::MAX_COUNT && bytes as u64 <= Self::MAX_SIZE
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Signature> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Signatures {
    type Item = &'a Signature;
    type IntoIter = std::slice::Iter<'a, Signature>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Signature> for Signatures {
    fn from_iter<I: IntoIterator<Item = Signature>>(signatures: I) -> Self {
        let mut all = Self::default();
        for signature in signatures {
            all.add(signature);
        }
        all
    }
}
