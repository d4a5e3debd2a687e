//! A registry behind HTTP: any server of static files for reading, `mica serve` also for publishing.
//!
//! Every call blocks; the small runtime inside is nobody else's business. Do not call from async code.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use mica_graph::{Blob, Digest, Layer, PackageName, Version};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Serialize;

use super::dir::document;
use super::wire::Tagging;
use super::{
    BlobStream, Content, Index, Publication, Published, Registry, RegistryError, WriteRegistry,
    layout,
};
use crate::file::Named;
use crate::retry::Retry;

mod body;
mod client;

use body::BodyReader;
use client::HttpClient;

/// Credentials for a registry. Never sent to another host, also when redirected there.
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
    /// Who we are.
    pub access: Access,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for the next bytes.
    pub idle_timeout: Duration,
    /// Longest time an upload may make no progress; covers the server's fsync of a large image.
    pub upload_timeout: Duration,
    /// For documents; blobs are resumed by whoever reads them.
    pub retry: Retry,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            access: Access::Anonymous,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
            upload_timeout: Duration::from_secs(120),
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

    fn get(
        &self,
        path: &str,
        range: Option<&Range<u64>>,
    ) -> Result<Option<Response>, RegistryError> {
        let mut request = self.http.request(Method::GET, path)?;
        if let Some(range) = range {
            request = request.header(RANGE, format!("bytes={}-{}", range.start, range.end - 1));
        }
        let response = self.http.send(request, self.http.options.idle_timeout)?;
        if range.is_some() && response.status() == StatusCode::RANGE_NOT_SATISFIABLE {
            return self.get(path, None);
        }
        self.http.check(response)
    }

    /// A small file of the layout; `None` if it is not there.
    fn file(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        self.http.options.retry.run(|| {
            let Some(response) = self.get(path, None)? else { return Ok(None) };
            let mut reader = self.reader(response);
            let mut bytes = Vec::new();
            let read = std::io::Read::take(&mut reader, limit + 1);
            std::io::Read::read_to_end(&mut { read }, &mut bytes)
                .map_err(|source| self.http.unreachable(source))?;
            if bytes.len() as u64 > limit {
                let url = format!("{}/{path}", self.http.address);
                let message = "the document is far too large".to_owned();
                return Err(RegistryError::Status { url, status: 200, message, retry_after: None });
            }
            Ok(Some(bytes))
        })
    }

    fn reader(&self, response: Response) -> BodyReader {
        let runtime = self.http.runtime().handle().clone();
        BodyReader::new(runtime, response, self.http.options.idle_timeout)
    }

    /// Tells "no such package" from "no such registry".
    fn check_layout(&self) -> Result<(), RegistryError> {
        let address = self.http.address.clone();
        match self.file(layout::VERSION_FILE, 4096)? {
            Some(found) if found == layout::VERSION => Ok(()),
            Some(found) => {
                let found = String::from_utf8_lossy(&found).trim().chars().take(80).collect();
                Err(RegistryError::Layout { address, found })
            }
            None => Err(RegistryError::NotARegistry { address }),
        }
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

    /// Sends a file in pieces. Fails when nothing moves for the upload time-out, however long the whole takes.
    fn upload(
        &self,
        request: RequestBuilder,
        file: std::fs::File,
        size: u64,
    ) -> Result<StatusCode, RegistryError> {
        let sent = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&sent);
        let pieces =
            tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::from_std(file), 1 << 18);
        let pieces = pieces.inspect(move |piece| {
            let n = piece.as_ref().map_or(0, bytes::Bytes::len);
            counter.fetch_add(n as u64, Ordering::Relaxed);
        });
        let body = reqwest::Body::wrap_stream(pieces);
        let request = request.header(CONTENT_LENGTH, size).body(body);
        let limit = self.http.options.upload_timeout;
        let stalled = async {
            let mut before = u64::MAX;
            loop {
                tokio::time::sleep(limit).await;
                let now = sent.load(Ordering::Relaxed);
                if now == before {
                    return format!("the upload made no progress for {} s", limit.as_secs());
                }
                before = now;
            }
        };
        let response = self.http.runtime().block_on(async {
            tokio::select! {
                answer = request.send() => answer.map_err(|e| self.http.unreachable(e.without_url())),
                reason = stalled => Err(self.http.unreachable(reason)),
            }
        })?;
        self.changed(response)
    }
}

impl Registry for HttpRegistry {
    fn address(&self) -> &str {
        &self.http.address
    }

    fn packages(&self) -> Result<Vec<PackageName>, RegistryError> {
        let Some(bytes) = self.file(layout::PACKAGES, Index::MAX_SIZE)? else {
            self.check_layout()?;
            return Ok(vec![]);
        };
        let name = format!("{}/{}", self.http.address, layout::PACKAGES);
        serde_json::from_slice(&bytes).map_err(|source| document(name, source.into()))
    }

    fn index(&self, name: &PackageName) -> Result<Option<Index>, RegistryError> {
        let path = layout::index(name);
        let Some(bytes) = self.file(&path, Index::MAX_SIZE)? else {
            self.check_layout()?;
            return Ok(None);
        };
        let url = format!("{}/{path}", self.http.address);
        Ok(Some(Index::from_json(&bytes, name).map_err(|source| document(url, source))?))
    }

    fn blob(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        let path = layout::blob(&blob.digest);
        let is_part = range.start > 0 || range.end < blob.size;
        let wanted = (is_part && range.start < range.end).then_some(&range);
        let registry = self.http.address.clone();
        let missing =
            || RegistryError::MissingBlob { registry: registry.clone(), digest: blob.digest };
        let mut response = self.get(&path, wanted)?.ok_or_else(missing)?;
        let mut start = 0;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            if content_range(&response) == Some((range.start, blob.size)) {
                start = range.start;
            } else {
                // It sends some other part: ask such a server for the whole.
                response = self.get(&path, None)?.ok_or_else(missing)?;
            }
        }
        let whole = response.content_length().filter(|_| response.status() == StatusCode::OK);
        if let Some(found) = whole
            && found != blob.size
        {
            let (digest, expected) = (blob.digest, blob.size);
            return Err(RegistryError::WrongSize { registry, digest, expected, found });
        }
        Ok(BlobStream { start, reader: Box::new(self.reader(response)) })
    }

    fn layer_by_inputs(&self, inputs: &Digest) -> Result<Option<Layer>, RegistryError> {
        let Some(bytes) = self.file(&layout::layer(inputs), super::MAX_DOCUMENT)? else {
            return Ok(None);
        };
        // A memo is only a memo: one that cannot be used means packing again.
        let layer = serde_json::from_slice::<Layer>(&bytes).ok();
        let Some(layer) = layer.filter(|layer| layer.inputs == *inputs) else { return Ok(None) };
        let there = self.has_blob(&Blob { digest: layer.digest, size: layer.size })?;
        Ok(there.then_some(layer))
    }
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
                self.upload(request, file, size)?
            }
        };
        Ok(status == StatusCode::CREATED)
    }
}
