//! Addresses of registries.

use std::path::{Path, PathBuf};

use super::{
    Address, DirRegistry, HttpRegistry, OpenOptions, Registry, RegistryError, WriteRegistry,
};

/// Opens a registry for reading: a folder, or the URL of any server of static files over one.
pub fn open(address: &str, options: &OpenOptions) -> Result<Box<dyn Registry>, RegistryError> {
    Ok(match parse(address)? {
        Address::Folder(path) => Box::new(DirRegistry::open(&path)?),
        Address::Http(url) => Box::new(HttpRegistry::new(&url, &options.http)?),
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
