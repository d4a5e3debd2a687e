//! `mica serve`: a registry folder over HTTP.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use mica_fetcher::{ServeError, ServeOptions, TlsIdentity, Writers};

use crate::context::Context;
use crate::output;

/// Serve a registry folder over HTTP
///
/// Prints the URL when connections are accepted, and serves until SIGINT or SIGTERM. Everybody who reaches the
/// port may read. Publishing needs the token if there is one; without one it is open on a loopback address, and
/// elsewhere only with --writable.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The registry's folder, made if need be [default: the configured registry]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Address to listen on; port 0 means any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5080")]
    listen: String,
    /// File with the token that publishers must send (they set MICA_TOKEN)
    #[arg(long, value_name = "FILE", conflicts_with = "writable")]
    token_file: Option<PathBuf>,
    /// Speak TLS: the certificate, and those that signed it, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// Let everybody who reaches the port publish, whatever the address
    #[arg(long)]
    writable: bool,
    /// Let nobody publish
    #[arg(long, conflicts_with_all = ["token_file", "writable"])]
    read_only: bool,
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
    let writers = match &args.token_file {
        Some(file) => {
            let token = std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {}", file.display()))?;
            match token.trim() {
                "" => anyhow::bail!("{} holds no token", file.display()),
                token => Writers::Token(token.to_owned()),
            }
        }
        None if args.writable || (loopback && !args.read_only) => Writers::Everybody,
        None => Writers::Nobody,
    };
    let options = ServeOptions { writers, tls, ..ServeOptions::default() };
    let scheme = options.scheme();
    mica_fetcher::serve_until_signal(listener, &root, options, |address| {
        // Whoever started us may have gone; that is no reason not to serve.
        let _ = output::lines([format!("{scheme}://{address}").as_str()]);
    })?;
    Ok(ExitCode::SUCCESS)
}
