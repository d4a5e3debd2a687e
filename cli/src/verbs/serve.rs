//! `mica serve`: a registry folder over HTTP.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use mica_fetcher::{ServeError, ServeOptions, TlsIdentity, Writers};

use crate::context::Context;
use crate::output;
use crate::verbs::run::parse_size;

/// Serve a registry folder over HTTP
///
/// Prints the URL when connections are accepted, and serves until SIGINT or SIGTERM. Everybody who reaches the
/// port may read. Publishing needs a token: that of --token-file or MICA_SERVE_TOKEN, else one that is made and shown
/// where nobody can read along, on a loopback address or over TLS. Elsewhere nobody may publish without one.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The registry's folder, made if need be [default: the configured registry]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Address to listen on; port 0 means any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5080")]
    listen: String,
    /// File with the token that publishers must send (they set MICA_TOKEN)
    #[arg(long, value_name = "FILE", conflicts_with = "allow_anonymous")]
    token_file: Option<PathBuf>,
    /// Speak TLS: the certificate, and those that signed it, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let everybody who reaches the port publish: on a loopback address every account of this machine
    #[arg(long, alias = "writable")]
    allow_anonymous: bool,
    /// Let nobody publish
    #[arg(long, conflicts_with_all = ["token_file", "allow_anonymous"])]
    read_only: bool,
    /// A name by which a proxy on this machine asks for it; may be repeated
    #[arg(long, value_name = "NAME")]
    host: Vec<String>,
    /// Bytes that the registry may take, as in 100g; uploads beyond them are refused
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    quota: Option<u64>,
}

/// The token that publishers must send, and whether it was just made.
fn writers(args: &Args, safe: bool) -> anyhow::Result<(Writers, Option<String>)> {
    let given = match &args.token_file {
        Some(file) => {
            let token = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            if token.trim().is_empty() {
                anyhow::bail!("{} holds no token", file.display());
            }
            Some(token.trim().to_owned())
        }
        None => std::env::var("MICA_SERVE_TOKEN").ok().filter(|token| !token.is_empty()),
    };
    Ok(match given {
        _ if args.read_only => (Writers::Nobody, None),
        _ if args.allow_anonymous => (Writers::Everybody, None),
        Some(token) => (Writers::Token(token), None),
        None if safe => {
            let token = random_token()?;
            (Writers::Token(token.clone()), Some(token))
        }
        None => (Writers::Nobody, None),
    })
}

fn random_token() -> anyhow::Result<String> {
    use std::fmt::Write as _;
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .context("cannot make a token")?;
    let mut token = String::new();
    for byte in bytes {
        write!(token, "{byte:02x}")?;
    }
    Ok(token)
}

pub(crate) fn run(args: &Args, context: &Context) -> anyhow::Result<ExitCode> {
    let root = match &args.root {
        Some(root) => root.clone(),
        None if !mica_fetcher::registry::is_folder(&context.places.registry) => {
            anyhow::bail!(
                "the configured registry {} is not a folder; name one with --root",
                context.places.registry
            )
        }
        None => PathBuf::from(&context.places.registry),
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(cert), Some(key)) => Some(TlsIdentity::load(cert, key).map_err(ServeError::from)?),
        _ => None,
    };
    let listener = mica_fetcher::listen(&args.listen)?;
    let loopback = listener.local_addr()?.ip().is_loopback();
    let (writers, made) = writers(args, loopback || tls.is_some())?;
    let (hosts, quota) = (args.host.clone(), args.quota);
    let options = ServeOptions { writers, tls, hosts, quota, ..ServeOptions::default() };
    let scheme = options.scheme();
    mica_fetcher::serve_until_signal(listener, &root, options, |address| {
        // Whoever started us may have gone; that is no reason not to serve.
        let _ = output::lines([format!("{scheme}://{address}").as_str()]);
        if let Some(token) = &made {
            output::note(format_args!(
                "publishing needs a token, made for this run: MICA_TOKEN={address}={token}"
            ));
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
