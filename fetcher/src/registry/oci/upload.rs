//! Blobs into a repository: mounted from another one if it has them, else sent in pieces, and gone on with where it broke off.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use reqwest::header::{CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::super::http::upload;
use super::super::{Content, RegistryError};
use super::OciRegistry;
use super::form::{Facts, named};
use crate::file::Named;
use crate::tar;

/// Bytes sent by one request: as much as may have to be sent again where a registry cannot say what it has.
const PIECE: u64 = 64 << 20;
/// What is read at a time.
const BUFFER: usize = 256 << 10;

/// What OCI registries call a file; of an image also what it is as a tar, which takes reading all of it.
pub(crate) fn facts(path: &Path, is_image: bool) -> Result<Facts, RegistryError> {
    use sha2::Digest as _;
    let mut file = File::open(path).named("open", path)?;
    let (mut hasher, mut size) = (sha2::Sha256::new(), 0);
    let mut buffer = vec![0; BUFFER];
    loop {
        match file.read(&mut buffer).named("read", path)? {
            0 => break,
            n => {
                hasher.update(&buffer[..n]);
                size += n as u64;
            }
        }
    }
    let diff_id = if is_image { Some(tar::diff_id(path)?) } else { None };
    Ok(Facts { sha256: named(hasher.finalize().as_slice()), size, diff_id })
}

impl OciRegistry {
    pub(super) fn has(&self, repository: &str, sha256: &str) -> Result<bool, RegistryError> {
        let path = format!("{repository}/blobs/{sha256}");
        let scope = pull_scope(repository);
        self.client.sender.options.retry.run(|| {
            let url = self.client.url(&path)?;
            let limit = self.client.sender.options.idle_timeout;
            let response = self.client.send(Method::HEAD, &url, &scope, limit, &|r| r)?;
            Ok(self.client.sender.check(response)?.is_some())
        })
    }

    /// Stores some bytes; whether they were not there before.
    pub(super) fn store(
        &self,
        repository: &str,
        facts: &Facts,
        content: Content<'_>,
    ) -> Result<bool, RegistryError> {
        if self.has(repository, &facts.sha256)? {
            return Ok(false);
        }
        let retry = self.client.sender.options.retry;
        let (mut failed, mut session) = (0, None);
        loop {
            let before = session.as_ref().map_or(0, |(_, offset)| *offset);
            let error = match self.send_pieces(repository, facts, content, &mut session) {
                Ok(()) => return Ok(true),
                Err(error) => error,
            };
            let after = session.as_ref().map_or(0, |(_, offset)| *offset);
            failed = if after > before { 1 } else { failed + 1 };
            let Some(wait) = retry.after(failed, &error) else { return Err(write_error(error)) };
            tracing::debug!(%error, ?wait, at = after, "sending on");
            std::thread::sleep(wait);
            session = session.and_then(|session| self.resumed(repository, session));
        }
    }

    /// Goes on with an upload, or begins one; `session` is where the next piece goes, and its offset.
    fn send_pieces(
        &self,
        repository: &str,
        facts: &Facts,
        content: Content<'_>,
        session: &mut Option<(Url, u64)>,
    ) -> Result<(), RegistryError> {
        let scope = push_scope(repository);
        if session.is_none() {
            let url = self.client.url(&format!("{repository}/blobs/uploads/"))?;
            let response = self.write(Method::POST, &url, &scope, &|r| r)?;
            *session = Some((self.next(&response)?, 0));
        }
        while let Some((url, offset)) = session.as_mut().filter(|(_, offset)| *offset < facts.size)
        {
            let end = facts.size.min(*offset + PIECE);
            let range = format!("{offset}-{}", end - 1);
            let head = |request: RequestBuilder| {
                request
                    .header("content-range", &range)
                    .header(CONTENT_TYPE, "application/octet-stream")
            };
            let response = match content {
                Content::Bytes(bytes) => {
                    let piece = bytes[*offset as usize..end as usize].to_vec();
                    self.write(Method::PATCH, url, &scope, &|r| head(r).body(piece.clone()))?
                }
                Content::File(path) => {
                    let response = self.client.authorized(url, &scope, &|access| {
                        let request = self.client.sender.client.patch(url.clone());
                        let request = head(super::super::http::authorize(request, access));
                        let file = File::open(path).named("open", path)?;
                        upload(&self.client.sender, request, file, *offset, end)
                    })?;
                    self.written(response)?
                }
            };
            // What it says it has counts, not what was sent.
            let has = held(&response).unwrap_or(end);
            *session = Some((self.next(&response)?, has));
        }
        let Some((url, _)) = session else { return Ok(()) };
        let mut url = url.clone();
        url.query_pairs_mut().append_pair("digest", &facts.sha256);
        self.write(Method::PUT, &url, &scope, &|r| r.header("content-length", "0"))?;
        Ok(())
    }

    /// Asks how much of an upload arrived; `None` to begin anew.
    fn resumed(&self, repository: &str, (url, _): (Url, u64)) -> Option<(Url, u64)> {
        let scope = push_scope(repository);
        let response = self.write(Method::GET, &url, &scope, &|r| r).ok()?;
        Some((self.next(&response).ok()?, held(&response)?))
    }

    /// Makes a blob of one repository visible in another; whether the registry did so.
    pub(super) fn mount(&self, from: &str, to: &str, sha256: &str) -> Result<bool, RegistryError> {
        let scope = format!("{} {}", push_scope(to), pull_scope(from));
        self.client.sender.options.retry.run(|| {
            let mut url = self.client.url(&format!("{to}/blobs/uploads/"))?;
            url.query_pairs_mut().append_pair("mount", sha256).append_pair("from", from);
            let response = self.write(Method::POST, &url, &scope, &|r| r)?;
            if response.status() == StatusCode::CREATED {
                return Ok(true);
            }
            // It opened an upload instead, which we don't need.
            if let Ok(upload) = self.next(&response) {
                drop(self.write(Method::DELETE, &upload, &scope, &|r| r));
            }
            Ok(false)
        })
    }

    pub(super) fn write(
        &self,
        method: Method,
        url: &Url,
        scope: &str,
        build: &dyn Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let limit = self.client.sender.options.upload_timeout;
        self.written(self.client.send(method, url, scope, limit, build)?)
    }

    fn written(&self, response: Response) -> Result<Response, RegistryError> {
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::METHOD_NOT_ALLOWED => {
                Err(RegistryError::ReadOnly { registry: self.client.sender.address.clone() })
            }
            _ => Err(write_error(self.client.sender.refusal(response))),
        }
    }

    /// Where the registry wants the next request of an upload.
    fn next(&self, response: &Response) -> Result<Url, RegistryError> {
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let url = location.and_then(|location| response.url().join(location).ok());
        url.ok_or_else(|| RegistryError::Status {
            url: response.url().to_string(),
            status: response.status().as_u16(),
            message: "the answer says not where to go on".to_owned(),
            retry_after: None,
        })
    }
}

fn write_error(error: RegistryError) -> RegistryError {
    match error {
        RegistryError::Denied { registry, reason, .. } => {
            RegistryError::Denied { registry, what: "write", reason }
        }
        other => other,
    }
}

/// How much of an upload is there, by `Range: 0-99`. An empty one is said to be `0-0`, as is one of one byte: then nothing
/// counts, and the byte is sent again in the place where it belongs.
fn held(response: &Response) -> Option<u64> {
    let range = response.headers().get(RANGE)?.to_str().ok()?;
    let (_, last) = range.trim_start_matches("bytes=").split_once('-')?;
    let last: u64 = last.trim().parse().ok()?;
    Some(if last == 0 { 0 } else { last + 1 })
}

pub(super) fn pull_scope(repository: &str) -> String {
    format!("repository:{repository}:pull")
}

pub(super) fn push_scope(repository: &str) -> String {
    format!("repository:{repository}:pull,push")
}
