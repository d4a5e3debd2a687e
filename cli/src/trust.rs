//! Signatures, at the edge: `[[trust]]` of the configuration files, secret keys and their passwords.

use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use mica_agent::Verify;
use mica_fetcher::{KeyError, PublicKey, SecretKey, Signatures, Trust, TrustRule};
use mica_graph::{Manifest, PackageName};
use serde::Deserialize;

use crate::error::Advise as _;
use crate::folders;
use crate::verbs::login;

/// One `[[trust]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Setting {
    /// Names of packages; `*` stands for any characters.
    names: Vec<String>,
    /// Public keys, or files that hold them. None means that these packages need no signature.
    keys: Vec<String>,
    /// How many of the keys must have signed.
    #[serde(default = "one")]
    threshold: usize,
}

fn one() -> usize {
    1
}

/// The rules of a configuration file; names of key files start at its folder. Nobody else may be able to change a key, unless
/// the user has vouched for the folder.
pub(crate) fn rules(
    settings: Vec<Setting>,
    file: &Path,
    folder: &Path,
    vouched: bool,
) -> anyhow::Result<Trust> {
    read(settings, file, folder, vouched)
        .with_context(|| format!("cannot use [[trust]] of {}", file.display()))
}

/// Whose recommended flags are taken without asking: every rule names keys.
pub(crate) fn recommended(
    settings: Vec<Setting>,
    file: &Path,
    folder: &Path,
    vouched: bool,
) -> anyhow::Result<Trust> {
    let keyless = settings.iter().find(|setting| setting.keys.is_empty());
    match keyless {
        Some(setting) => Err(anyhow::anyhow!("{} has no keys", setting.names.join(" "))),
        None => read(settings, file, folder, vouched),
    }
    .with_context(|| format!("cannot use [[recommended]] of {}", file.display()))
}

fn read(
    settings: Vec<Setting>,
    file: &Path,
    folder: &Path,
    vouched: bool,
) -> anyhow::Result<Trust> {
    let rule = |setting: Setting| -> anyhow::Result<TrustRule> {
        let keys: Vec<PublicKey> = setting
            .keys
            .iter()
            .map(|key| public_key(key, folder, vouched))
            .collect::<Result<_, _>>()?;
        let Setting { names, threshold, .. } = setting;
        if !keys.is_empty() && !(1..=keys.len()).contains(&threshold) {
            bail!("a threshold of {threshold} is not from 1 to the number of keys, {}", keys.len());
        }
        Ok(TrustRule { names, keys, threshold })
    };
    let rules: anyhow::Result<Vec<_>> = settings.into_iter().map(rule).collect();
    Ok(Trust::default().with(file.display().to_string(), rules?))
}

fn public_key(text: &str, folder: &Path, vouched: bool) -> anyhow::Result<PublicKey> {
    if PublicKey::is_inline(text) {
        return Ok(PublicKey::parse(text)?);
    }
    let path = folder.join(text);
    if !vouched {
        folders::check(&path)?;
    }
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let text = folders::read(&path)?.ok_or_else(gone);
    let text = text.with_context(|| format!("cannot read the public key {}", path.display()))?;
    PublicKey::parse(&text).with_context(|| format!("cannot use {}", path.display()))
}

/// Flags of verbs that sign.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct SignFlags {
    /// Sign the package with this secret key, of `mica key new` or of minisign; may be given several times
    #[arg(long = "sign", value_name = "KEY")]
    pub(crate) keys: Vec<PathBuf>,
    /// Read the secret keys' passwords from standard input, one a line
    #[arg(long, requires = "keys")]
    password_stdin: bool,
}

impl SignFlags {
    /// The secret keys, unlocked before any work is done.
    pub(crate) fn unlock(&self) -> anyhow::Result<Vec<SecretKey>> {
        unlock(&self.keys, self.password_stdin)
    }
}

/// Reads secret keys, and asks for the passwords of those that have one.
pub(crate) fn unlock(files: &[PathBuf], from_stdin: bool) -> anyhow::Result<Vec<SecretKey>> {
    let unlock = |file: &PathBuf| -> anyhow::Result<SecretKey> {
        let text = fs::read_to_string(file)
            .with_context(|| format!("cannot read the secret key {}", file.display()))?;
        let unlocked = match SecretKey::parse(&text, None) {
            Err(KeyError::Locked) => {
                let question = format!("Password of {}: ", file.display());
                SecretKey::parse(&text, Some(password(from_stdin, &question)?))
            }
            other => other,
        };
        unlocked.with_context(|| format!("cannot use {}", file.display()))
    };
    files.iter().map(unlock).collect()
}

/// A password, from standard input or from whoever sits at the terminal.
pub(crate) fn password(from_stdin: bool, question: &str) -> anyhow::Result<String> {
    if !from_stdin && !std::io::stdin().is_terminal() {
        bail!("nobody is there to ask for the password; use --password-stdin");
    }
    match from_stdin {
        false => login::ask_secret(question),
        true => {
            let mut line = String::new();
            let read = std::io::stdin().lock().read_line(&mut line);
            if read.context("cannot read standard input")? == 0 {
                bail!("there is no password on standard input");
            }
            Ok(line.trim_end_matches(['\r', '\n']).to_owned())
        }
    }
}

/// Signs with each key.
pub(crate) fn sign(keys: &[SecretKey], manifest: &Manifest) -> anyhow::Result<Signatures> {
    let signatures: Result<Signatures, KeyError> =
        keys.iter().map(|key| key.sign(manifest)).collect();
    signatures.with_context(|| format!("cannot sign {}@{}", manifest.name, manifest.version))
}

/// The ids of the keys whose signatures a package bears: those of the policy that were verified, and others with a question mark,
/// which are what the signatures say of themselves.
pub(crate) fn signers(trust: &Trust, manifest: &Manifest, signatures: &Signatures) -> Vec<String> {
    let json = manifest.to_json();
    let verified = |signature: &mica_fetcher::Signature| {
        trust.keys().find(|key| signature.is_by(key, &json)).map(PublicKey::id)
    };
    let mut signers: Vec<String> = signatures
        .iter()
        .map(|signature| verified(signature).unwrap_or_else(|| signature.key_id() + "?"))
        .collect();
    signers.sort();
    signers.dedup();
    signers
}

/// Of a package that needs signatures nothing is read that was not compared with what was signed.
pub(crate) fn check_verify(
    trust: &Trust,
    name: &PackageName,
    verify: Verify,
) -> anyhow::Result<()> {
    if verify != Verify::Never || !trust.covers(name) {
        return Ok(());
    }
    Err(anyhow::anyhow!("{name} needs signatures, so what is read of it must be verified"))
        .hint("leave `--verify never` out")
}
