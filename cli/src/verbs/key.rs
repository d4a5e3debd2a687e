//! `mica key`: keys to sign packages with.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_fetcher::SecretKey;

use crate::output::{self, note};
use crate::trust;

/// Make keys to sign packages with
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Make a new key pair
    New(New),
}

/// Make a new key pair
///
/// Writes the secret key to NAME.key, readable for its owner alone, and the public one to NAME.pub, and prints the public key. Both
/// are minisign's: `minisign -S -s NAME.key` and `minisign -V -p NAME.pub` take them.
#[derive(Debug, clap::Args)]
struct New {
    /// The files' name, without an ending
    name: PathBuf,
    /// Read the password that protects the secret key from standard input, up to the end of the first line
    #[arg(long)]
    password_stdin: bool,
    /// Do not protect the secret key by a password
    #[arg(long, conflicts_with = "password_stdin")]
    no_password: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let Verb::New(args) = &args.verb;
    let file = |ending: &str| {
        let mut name = args.name.clone().into_os_string();
        name.push(ending);
        PathBuf::from(name)
    };
    let (secret, public) = (file(".key"), file(".pub"));
    for file in [&secret, &public] {
        if fs::symlink_metadata(file).is_ok() {
            bail!("{} exists; a key that is lost cannot be made again", file.display());
        }
    }
    let password = match args.no_password {
        true => None,
        false => Some(new_password(args.password_stdin)?),
    };
    let (text, key) = SecretKey::generate(password)?;
    write(&secret, &text, 0o600)?;
    write(&public, &key.to_file(), 0o644)?;
    note(format_args!("the secret key is in {}; keep it secret", secret.display()));
    output::lines([key.to_base64().as_str()])?;
    Ok(ExitCode::SUCCESS)
}

fn new_password(from_stdin: bool) -> anyhow::Result<String> {
    let password = trust::password(from_stdin, "Password: ")?;
    if !from_stdin && trust::password(false, "The same again: ")? != password {
        bail!("the passwords differ");
    }
    if password.is_empty() {
        bail!("the password is empty; --no-password makes a key without one");
    }
    Ok(password)
}

fn write(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    file.and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    })
    .with_context(|| format!("cannot write {}", path.display()))
}
