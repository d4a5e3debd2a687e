//! Addresses of registries.

use std::path::{Path, PathBuf};

use super::{
    Access, Address, DirRegistry, HttpOptions, HttpRegistry, MirroredRegistry, OpenOptions,
    Registry, RegistryError, WriteRegistry,
};

/// Opens a registry for reading: a folder, or the URL of any server of static files over one; with its mirrors.
pub fn open(address: &str, options: &OpenOptions) -> Result<Box<dyn Registry>, RegistryError> {
    let origin = open_one(address, &options.http)?;
    if options.mirrors.is_empty() {
        return Ok(origin);
    }
    let http = HttpOptions { access: Access::Anonymous, ..options.http.clone() };
    let mut mirrors = Vec::new();
    for mirror in &options.mirrors {
        match open_one(mirror, &http) {
            Ok(mirror) => mirrors.push(mirror),
            // A wrong address is the caller's mistake; a folder that is away is what the others are for.
            Err(error @ RegistryError::Address { .. }) => return Err(error),
            Err(error) => tracing::warn!(mirror, %error, "doing without a mirror"),
        }
    }
    Ok(Box::new(MirroredRegistry::new(origin, mirrors)))
}

fn open_one(address: &str, http: &HttpOptions) -> Result<Box<dyn Registry>, RegistryError> {
    Ok(match parse(address)? {
        Address::Folder(path) => Box::new(DirRegistry::open(&path)?),
        Address::Http(url) => Box::new(HttpRegistry::new(&url, http)?),
    })
}

/// Opens a registry for publishing: a folder (made if need be), or the URL of a `mica serve`.
pub fn open_writable(
    address: &str,
    options: &OpenOptions,
) -> Result<Box<dyn WriteRegistry>, RegistryError> {
    Ok(match parse(address)? {
        Address::Folder(path) => Box::new(DirRegistry::create(&path)?),
        Address::Http(url) => Box::new(HttpRegistry::new(&url, &options.http)?),
    })
}

fn parse(address: &str) -> Result<Address, RegistryError> {
    let error = |reason: String| RegistryError::Address { address: address.to_owned(), reason };
    if address.is_empty() {
        return Err(error("it is empty".to_owned()));
    }
    match address.split_once("://") {
        Some(("http" | "https", _)) => Ok(Address::Http(address.to_owned())),
        Some(("file", path)) if path.starts_with('/') => Ok(Address::Folder(PathBuf::from(path))),
        Some((scheme, _)) => Err(error(format!("`{scheme}://` is not supported"))),
        None => Ok(Address::Folder(Path::new(address).to_owned())),
    }
}
