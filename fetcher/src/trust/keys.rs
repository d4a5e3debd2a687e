//! Keys, as minisign writes them.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mica_graph::Manifest;

use super::{Signature, describe};

/// Text that is not a key, or not one that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not a public key.
    #[error("it is not a public key of minisign's form")]
    NotPublic,
    /// Not a secret key.
    #[error("it is not a secret key of minisign's form")]
    NotSecret,
    /// It needs its password.
    #[error("the secret key is protected by a password")]
    Locked,
    /// Its checksum says so.
    #[error("the secret key is damaged")]
    Damaged,
    /// Another password.
    #[error("the password is wrong, or the secret key is damaged")]
    WrongPassword,
    /// The system gives no randomness, or the library fails.
    #[error("cannot use the key: {0}")]
    Failed(String),
}

/// A key that tells who signed.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(minisign::PublicKey);

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.to_base64())
    }
}

const COMMENT: &str = "untrusted comment:";
/// The first bytes of a key: Ed25519.
const ED25519: &[u8] = b"Ed";
/// Algorithms, the salt and limits of the password's derivation, key id, both halves of the key, checksum.
const SECRET_SIZE: usize = 6 + 32 + 8 + 8 + 8 + 64 + CHECKSUM_SIZE;
const CHECKSUM_SIZE: usize = 32;

impl PublicKey {
    /// Reads a key: the one line of it, or a whole file with a comment before it.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let line = lines.find(|line| !line.starts_with(COMMENT)).ok_or(KeyError::NotPublic)?;
        let key = minisign::PublicKey::from_base64(line).map_err(|_| KeyError::NotPublic)?;
        if lines.next().is_some() || !key.to_bytes().starts_with(ED25519) {
            return Err(KeyError::NotPublic);
        }
        Ok(Self(key))
    }

    /// Whether some text is a key itself, and not the name of a file that holds one.
    pub fn is_inline(text: &str) -> bool {
        Self::parse(text).is_ok()
    }

    /// The id that minisign shows.
    pub fn id(&self) -> String {
        id(self.0.keynum())
    }

    /// The key as one line.
    pub fn to_base64(&self) -> String {
        self.0.to_base64()
    }

    /// The key as a file.
    pub fn to_file(&self) -> String {
        format!("{COMMENT} minisign public key {}\n{}\n", self.id(), self.to_base64())
    }

    pub(super) fn verifies(&self, signature: &minisign::SignatureBox, bytes: &[u8]) -> bool {
        let bytes = std::io::Cursor::new(bytes);
        minisign::verify(&self.0, signature, bytes, true, false, false).is_ok()
    }
}

/// A key id as minisign shows it: a number, lowest byte first.
pub(super) fn id(keynum: &[u8]) -> String {
    keynum.iter().rev().map(|byte| format!("{byte:02X}")).collect()
}

/// A key to sign with. It is not printed by anything.
pub struct SecretKey(minisign::SecretKey);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(…)")
    }
}

impl SecretKey {
    /// A new pair: the secret key as a file, protected by the password if there is one, and the public one.
    pub fn generate(password: Option<String>) -> Result<(String, PublicKey), KeyError> {
        let failed = |error: minisign::PError| KeyError::Failed(error.to_string());
        let pair = match password {
            Some(password) => minisign::KeyPair::generate_encrypted_keypair(Some(password)),
            None => minisign::KeyPair::generate_unencrypted_keypair(),
        };
        let pair = pair.map_err(failed)?;
        let comment = format!("minisign secret key {}", id(pair.pk.keynum()));
        let file = pair.sk.to_box(Some(&comment)).map_err(failed)?.into_string();
        Ok((file, PublicKey(pair.pk)))
    }

    /// Reads a secret key's file.
    pub fn parse(text: &str, password: Option<String>) -> Result<Self, KeyError> {
        let line = text.lines().nth(1).unwrap_or_default().trim();
        let bytes = STANDARD.decode(line).map_err(|_| KeyError::NotSecret)?;
        let is_key = bytes.len() == SECRET_SIZE && bytes.starts_with(ED25519);
        let file = minisign::SecretKeyBox::from(text.to_owned());
        match bytes.get(2..4).filter(|_| is_key) {
            Some(b"Sc") => {
                let password = password.ok_or(KeyError::Locked)?;
                file.into_secret_key(Some(password)).map_err(|_| KeyError::WrongPassword)
            }
            // minisign puts no checksum into a key without a password.
            Some([0, 0]) if bytes.ends_with(&[0; CHECKSUM_SIZE]) => {
                minisign::SecretKey::from_bytes(&bytes).map_err(|_| KeyError::NotSecret)
            }
            Some([0, 0]) => file.into_unencrypted_secret_key().map_err(|_| KeyError::Damaged),
            _ => Err(KeyError::NotSecret),
        }
        .map(Self)
    }

    /// Its public half.
    pub fn public(&self) -> Result<PublicKey, KeyError> {
        let public = minisign::PublicKey::from_secret_key(&self.0);
        public.map(PublicKey).map_err(|error| KeyError::Failed(error.to_string()))
    }

    /// Signs a package.
    pub fn sign(&self, manifest: &Manifest) -> Result<Signature, KeyError> {
        let (json, comment) = (manifest.to_json(), format!("mica {}", describe(manifest)));
        let untrusted = format!("signature by mica with key {}", id(self.0.keynum()));
        // Checked at once: a damaged key would sign, and nobody could verify it.
        let public = self.public()?;
        minisign::sign(Some(&public.0), &self.0, &json[..], Some(&comment), Some(&untrusted))
            .map(Signature::new)
            .map_err(|error| KeyError::Failed(error.to_string()))
    }
}
