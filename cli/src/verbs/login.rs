//! `mica login`, `mica logout`: credentials for registries.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use mica_fetcher::registry::{self, Access, Credentials, OpenOptions};

use crate::output::note;
use crate::scratch;

/// Keep a name and password for a registry
///
/// They are tried first, and kept where podman keeps them: in --authfile, $REGISTRY_AUTH_FILE, or containers/auth.json
/// below $XDG_RUNTIME_DIR or ~/.config. `mica serve` takes its token as the password, with any name.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The registry: HOST:PORT/PATH, oci://HOST/PATH, or the URL of a `mica serve`
    #[arg(value_name = "REGISTRY")]
    registry: String,
    /// The name
    #[arg(short, long, value_name = "NAME")]
    username: Option<String>,
    /// Read the password from standard input, up to the end of the first line
    #[arg(long)]
    password_stdin: bool,
    #[command(flatten)]
    file: File,
    /// With =false, accept any certificate, and plain HTTP of OCI registries
    #[arg(long, value_name = "BOOL", default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set)]
    tls_verify: bool,
}

/// Forget what `mica login` kept
#[derive(Debug, clap::Args)]
pub(crate) struct LogoutArgs {
    /// The registry, as it was given to `mica login`
    #[arg(value_name = "REGISTRY")]
    registry: String,
    #[command(flatten)]
    file: File,
}

#[derive(Debug, clap::Args)]
struct File {
    /// Where to keep credentials
    #[arg(long, value_name = "FILE")]
    authfile: Option<PathBuf>,
}

/// The registry's place as credential files name it, and its address.
fn place(registry: &str) -> (String, String) {
    let (scheme, rest) = registry.split_once("://").unwrap_or(("oci", registry));
    (rest.trim_end_matches('/').to_owned(), format!("{scheme}://{rest}"))
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    if args.registry.starts_with("s3://") {
        bail!("keys of S3 stores are not kept: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY");
    }
    let (place, address) = place(&args.registry);
    let user = match &args.username {
        Some(user) => user.clone(),
        None if args.password_stdin => bail!("--password-stdin takes --username as well"),
        None => ask("Username: ")?,
    };
    let password = match args.password_stdin {
        true => line()?,
        false => ask_secret("Password: ")?,
    };
    if password.is_empty() {
        bail!("the password is empty");
    }
    let mut options = OpenOptions::usual(args.file.authfile.clone());
    options.http.tls_verify = args.tls_verify;
    let credentials = Credentials::usual(args.file.authfile.clone());
    // Tried from a file of its own first: what was kept before stays if this is wrong.
    let tried = scratch::folder()?;
    options.http.credentials = Credentials::usual(Some(tried.path().join("auth.json")));
    options.http.access = Access::Anonymous;
    options.http.credentials.store(&place, &user, &password)?;
    registry::check_login(&address, &options)
        .with_context(|| format!("cannot log in to {place}"))?;
    let path = credentials.store(&place, &user, &password)?;
    note(format_args!("logged in to {place}; the password is in {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn logout(args: &LogoutArgs) -> anyhow::Result<ExitCode> {
    let (place, _) = place(&args.registry);
    if !Credentials::usual(args.file.authfile.clone()).forget(&place)? {
        bail!("nobody is logged in to {place}");
    }
    note(format_args!("forgot the password for {place}"));
    Ok(ExitCode::SUCCESS)
}

fn line() -> anyhow::Result<String> {
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).context("cannot read standard input")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn ask(question: &str) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody is there to ask; use --username and --password-stdin");
    }
    let mut err = std::io::stderr();
    write!(err, "{question}").and_then(|()| err.flush()).context("cannot ask")?;
    line()
}

/// The same without showing what is typed.
pub(crate) fn ask_secret(question: &str) -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let Ok(shown) = tcgetattr(&stdin) else { return ask(question) };
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &hidden).context("cannot hide the password")?;
    let answer = ask(question);
    tcsetattr(&stdin, OptionalActions::Flush, &shown).context("cannot show input again")?;
    note("");
    answer
}
