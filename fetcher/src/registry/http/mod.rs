//! A registry behind HTTP: any server of static files for reading, `mica serve` also for publishing.
//!
//! Every call blocks; the small runtime inside is nobody else's business. Do not call from async code.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use mica_graph::{Blob, Digest, Layer, PackageName, Version};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;

use super::credentials::Credentials;
use super::files::Files;
use super::layout::{self, Item};
use super::wire::Tagging;
use super::{
    AwsSettings, BlobStream, Content, Publication, Published, RegistryError, WriteRegistry,
};
use crate::file::Named;
use crate::patch::{PatchNote, PatchNotes};
use crate::retry::Retry;
use crate::trust::Signatures;

mod body;
mod client;
mod rate;
mod redirect;
mod tls;
mod upload;

use client::HttpClient;
pub(crate) use client::{SHOWN, Sender, authorize, is_loopback, keeps_secrets};
pub use rate::RateLimit;
pub(crate) use redirect::follow;
pub(crate) use upload::upload;

/// Credentials for a registry. Never sent to another origin, also when redirected there, and never over plain HTTP but to this machine.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Access {
    /// None.
    #[default]
    Anonymous,
    /// `Authorization: Bearer …`.
    Bearer(String),
    /// `Authorization: Basic …`.
    Basic {
        /// The user's name.
        user: String,
        /// The password.
        password: String,
    },
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Bearer(_) => "Bearer(…)",
            Self::Basic { .. } => "Basic(…)",
        })
    }
}

/// Limits and credentials of an HTTP registry.
#[derive(Clone, Debug)]
pub struct HttpOptions {
    /// Who we are. Where this is nobody, `credentials` are asked.
    pub access: Access,
    /// Where to look for credentials of a host.
    pub credentials: Credentials,
    /// Whether the user named the registry, rather than a workspace: an endpoint that a workspace chose sees no signatures.
    pub named_by_user: bool,
    /// What S3 stores are reached with.
    pub aws: AwsSettings,
    /// Whether a server must show a certificate that is signed for its name; without, OCI registries may also speak plain HTTP.
    pub tls_verify: bool,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the next bytes.
    pub idle_timeout: Duration,
    /// Longest time an upload may make no progress; covers the server's fsync of a large image.
    pub upload_timeout: Duration,
    /// How much may come and go.
    pub rate: Option<RateLimit>,
    /// For documents; blobs are resumed by whoever reads them.
    pub retry: Retry,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            access: Access::Anonymous,
            credentials: Credentials::default(),
            named_by_user: true,
            aws: AwsSettings::default(),
            tls_verify: true,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            upload_timeout: Duration::from_secs(120),
            rate: None,
            retry: Retry::default(),
        }
    }
}

/// A registry behind an `http://` or `https://` URL. Its calls block and must not be made from async code.
pub struct HttpRegistry {
    http: HttpClient,
}

impl HttpRegistry {
    /// A registry at an `http://` or `https://` URL. Nothing is sent yet.
    pub fn new(url: &str, options: &HttpOptions) -> Result<Self, RegistryError> {
        Ok(Self { http: HttpClient::new(url, options)? })
    }

    fn get(&self, path: &str) -> Result<Option<Response>, RegistryError> {
        let request = self.http.request(Method::GET, path)?;
        self.http.check(self.http.send(request, self.http.options.idle_timeout)?)
    }

    /// Sends a change. A server of static files refuses the method.
    fn change(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<StatusCode, RegistryError> {
        self.changed(self.http.send(request, limit)?)
    }

    fn changed(&self, response: Response) -> Result<StatusCode, RegistryError> {
        let status = response.status();
        let registry = self.http.address.clone();
        match status {
            status if status.is_success() => Ok(status),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
                Err(RegistryError::ReadOnly { registry })
            }
            _ => match self.http.refusal(response) {
                RegistryError::Denied { registry, .. } if self.http.withholds() => {
                    Err(RegistryError::Unencrypted { registry })
                }
                RegistryError::Denied { registry, reason, .. } => {
                    Err(RegistryError::Denied { registry, what: "write", reason })
                }
                other => Err(other),
            },
        }
    }

    fn post<T: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: &T,
    ) -> Result<StatusCode, RegistryError> {
        let json = serde_json::to_vec(body).expect("our own documents hold strings and numbers");
        self.http.options.retry.run(|| {
            let request = self.http.request(method.clone(), path)?;
            let request = request.header(CONTENT_TYPE, "application/json").body(json.clone());
            self.change(request, self.http.options.upload_timeout)
        })
    }
}

impl Files for HttpRegistry {
    fn place(&self) -> &str {
        &self.http.address
    }

    fn file(&self, item: &Item, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        self.http.options.retry.run(|| {
            let Some(response) = self.get(&item.path())? else { return Ok(None) };
            Ok(Some(self.http.bytes(response, limit)?))
        })
    }

    fn part(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        let path = layout::blob(&blob.digest);
        let send = |range: Ranged<'_>| {
            let request = range.add_to(self.http.request(Method::GET, &path)?);
            self.http.send(request, self.http.options.idle_timeout)
        };
        ranged(&self.http, blob, range, &send)
    }
}

/// The part of a blob that a request asks for, if not all.
#[derive(Clone, Copy)]
pub(crate) struct Ranged<'a>(Option<&'a Range<u64>>);

impl Ranged<'_> {
    pub(crate) fn add_to(self, request: RequestBuilder) -> RequestBuilder {
        match self.0 {
            Some(range) => {
                request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1))
            }
            None => request,
        }
    }
}

/// Asks for a part of a blob, and for all of it where parts cannot be had.
pub(crate) fn ranged(
    sender: &Sender,
    blob: &Blob,
    range: Range<u64>,
    send: &dyn Fn(Ranged<'_>) -> Result<Response, RegistryError>,
) -> Result<BlobStream, RegistryError> {
    let is_part = range.start > 0 || range.end < blob.size;
    let wanted = Ranged((is_part && range.start < range.end).then_some(&range));
    let registry = sender.address.clone();
    let missing = || RegistryError::MissingBlob { registry: registry.clone(), digest: blob.digest };
    let get = |range| sender.check(send(range)?)?.ok_or_else(missing);
    let mut response = send(wanted)?;
    let mut start = 0;
    if wanted.0.is_some() && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
        response = get(Ranged(None))?;
    } else {
        response = sender.check(response)?.ok_or_else(missing)?;
    }
    if response.status() == StatusCode::PARTIAL_CONTENT {
        if content_range(&response) == Some((range.start, blob.size)) {
            start = range.start;
        } else {
            // It sends some other part: ask such a server for the whole.
            response = get(Ranged(None))?;
        }
    }
    let whole = response.content_length().filter(|_| response.status() == StatusCode::OK);
    if let Some(found) = whole
        && found != blob.size
    {
        let (digest, expected) = (blob.digest, blob.size);
        return Err(RegistryError::WrongSize { registry, digest, expected, found });
    }
    Ok(BlobStream { start, reader: Box::new(sender.reader(response)) })
}

/// Start and total of a `Content-Range: bytes 5-9/10`.
fn content_range(response: &Response) -> Option<(u64, u64)> {
    let value = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()?))
}

impl WriteRegistry for HttpRegistry {
    fn check_writable(&self) -> Result<(), RegistryError> {
        // The empty blob is harmless to write, and to write again.
        let blob = Blob { digest: Digest::of(b""), size: 0 };
        self.http.options.retry.run(|| self.put(&blob, Content::Bytes(b"")))?;
        Ok(())
    }

    fn has_blob(&self, blob: &Blob) -> Result<bool, RegistryError> {
        self.http.options.retry.run(|| {
            let request = self.http.request(Method::HEAD, &layout::blob(&blob.digest))?;
            let response = self.http.send(request, self.http.options.idle_timeout)?;
            let Some(response) = self.http.check(response)? else { return Ok(false) };
            let length = response.headers().get(CONTENT_LENGTH);
            let length = length.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
            Ok(length == Some(blob.size))
        })
    }

    fn put_blob(&self, blob: &Blob, content: Content<'_>) -> Result<bool, RegistryError> {
        if self.has_blob(blob)? {
            return Ok(false);
        }
        self.http.options.retry.run(|| self.put(blob, content))
    }

    fn add_signatures(
        &self,
        manifest: &Digest,
        signatures: &Signatures,
    ) -> Result<(), RegistryError> {
        let (path, text) = (layout::signatures(manifest), signatures.to_text());
        self.http.options.retry.run(|| {
            let request = self.http.request(Method::POST, &path)?.body(text.clone());
            self.change(request, self.http.options.upload_timeout).map(drop)
        })
    }

    fn publish(&self, publication: &Publication) -> Result<Published, RegistryError> {
        let path = format!("packages/{}", publication.name);
        let status = self.post(Method::POST, &path, publication)?;
        Ok(if status == StatusCode::CREATED { Published::New } else { Published::Unchanged })
    }

    fn tag(
        &self,
        name: &PackageName,
        tag: &Version,
        version: &Version,
    ) -> Result<(), RegistryError> {
        let tagging = Tagging { tag: tag.clone(), version: version.clone() };
        match self.post(Method::POST, &format!("packages/{name}/tags"), &tagging) {
            Err(RegistryError::Status { status: 404, .. }) => {
                Err(super::unknown_package(self, name))
            }
            other => other.map(drop),
        }
    }

    fn remember(&self, layer: &Layer) -> Result<(), RegistryError> {
        self.post(Method::PUT, &layout::layer(&layer.inputs), layer).map(drop)
    }

    fn add_patches(&self, image: &Digest, patches: &[PatchNote]) -> Result<(), RegistryError> {
        let notes = PatchNotes::new(*image, patches.to_vec());
        self.post(Method::PUT, &layout::patches(image), &notes).map(drop)
    }
}

impl HttpRegistry {
    fn put(&self, blob: &Blob, content: Content<'_>) -> Result<bool, RegistryError> {
        let request = self.http.request(Method::PUT, &layout::blob(&blob.digest))?;
        let status = match content {
            Content::Bytes(bytes) => {
                self.change(request.body(bytes.to_vec()), self.http.options.upload_timeout)?
            }
            Content::File(path) => {
                let file = std::fs::File::open(path).named("open", path)?;
                let size = file.metadata().named("stat", path)?.len();
                self.changed(upload(&self.http, request, file, 0, size)?)?
            }
        };
        Ok(status == StatusCode::CREATED)
    }
}
