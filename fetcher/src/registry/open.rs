//! Addresses of registries.

use std::path::{Path, PathBuf};

use super::{
    Access, Address, DirRegistry, HttpOptions, HttpRegistry, MirroredRegistry, OciRegistry,
    OpenOptions, Registry, RegistryError, S3Registry, WriteRegistry, oci, s3,
};

/// Opens a registry for reading, with its mirrors: a folder, the URL of any server of static files over one,
/// `s3://bucket/prefix` for a bucket, or `oci://host/path` (also `host:port/path`) for an OCI registry.
pub fn open(address: &str, options: &OpenOptions) -> Result<Box<dyn Registry>, RegistryError> {
    let http = HttpOptions { access: Access::Anonymous, ..options.http.clone() };
    let mut mirrors: Vec<Box<dyn Registry>> = Vec::new();
    let origin: Box<dyn Registry> = match parse(address)? {
        Address::Oci(location) => {
            let conf = options.registries_conf.as_deref();
            let (origin, near) = OciRegistry::open(location, conf, &options.http)?;
            mirrors.extend(near.into_iter().map(|mirror| Box::new(mirror) as Box<dyn Registry>));
            Box::new(origin)
        }
        _ => open_one(address, &options.http)?,
    };
    for mirror in &options.mirrors {
        match open_one(mirror, &http) {
            Ok(mirror) => mirrors.push(mirror),
            // A wrong address is the caller's mistake; a folder that is away is what the others are for.
            Err(error @ RegistryError::Address { .. }) => return Err(error),
            Err(error) => tracing::warn!(mirror, %error, "doing without a mirror"),
        }
    }
    Ok(match mirrors.is_empty() {
        true => origin,
        false => Box::new(MirroredRegistry::new(origin, mirrors)),
    })
}

/// Whether an address is a path.
pub fn is_folder(address: &str) -> bool {
    matches!(parse(address), Ok(Address::Folder(_)))
}

/// Asks a registry for something that only whoever may use it gets.
pub fn check_login(address: &str, options: &OpenOptions) -> Result<(), RegistryError> {
    match parse(address)? {
        Address::Oci(location) => {
            let conf = options.registries_conf.as_deref();
            OciRegistry::open(location, conf, &options.http)?.0.ping()
        }
        _ => open_writable(address, options)?.check_writable(),
    }
}

fn open_one(address: &str, http: &HttpOptions) -> Result<Box<dyn Registry>, RegistryError> {
    Ok(match parse(address)? {
        Address::Folder(path) => Box::new(DirRegistry::open(&path)?),
        Address::Http(url) => Box::new(HttpRegistry::new(&url, http)?),
        Address::S3(location) => Box::new(S3Registry::new(&location, http)?),
        Address::Oci(location) => Box::new(OciRegistry::open(location, None, http)?.0),
    })
}

/// Opens a registry for publishing: a folder or a place in a bucket (made if need be), the URL of a `mica serve`, or an OCI
/// registry.
pub fn open_writable(
    address: &str,
    options: &OpenOptions,
) -> Result<Box<dyn WriteRegistry>, RegistryError> {
    Ok(match parse(address)? {
        Address::Folder(path) => Box::new(DirRegistry::create(&path)?),
        Address::Http(url) => Box::new(HttpRegistry::new(&url, &options.http)?),
        Address::S3(location) => Box::new(S3Registry::create(&location, &options.http)?),
        Address::Oci(location) => {
            let conf = options.registries_conf.as_deref();
            Box::new(OciRegistry::open(location, conf, &options.http)?.0)
        }
    })
}

/// The host, with its port if one is named, of a registry that takes tokens.
pub(super) fn host(address: &str) -> Option<String> {
    match parse(address).ok()? {
        Address::Http(url) => {
            let url = reqwest::Url::parse(&url).ok()?;
            let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
            Some(format!("{}{port}", url.host_str()?))
        }
        Address::Oci(location) => location.place().split('/').next().map(str::to_owned),
        Address::Folder(_) | Address::S3(_) => None,
    }
}

fn parse(address: &str) -> Result<Address, RegistryError> {
    let error = |reason: String| RegistryError::Address { address: address.to_owned(), reason };
    if address.is_empty() {
        return Err(error("it is empty".to_owned()));
    }
    if let Some(location) = oci::Location::parse(address) {
        return Ok(Address::Oci(location?));
    }
    match address.split_once("://") {
        Some(("http" | "https", _)) => Ok(Address::Http(address.to_owned())),
        Some(("s3", _)) => s3::Location::parse(address).map(Address::S3).map_err(error),
        Some(("file", path)) if path.starts_with('/') => Ok(Address::Folder(PathBuf::from(path))),
        Some((scheme, _)) => Err(error(format!("`{scheme}://` is not supported"))),
        None => Ok(Address::Folder(Path::new(address).to_owned())),
    }
}
