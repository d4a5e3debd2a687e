//! Reading: files with ranges and conditions.

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::Response;
use mica_graph::Digest;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio_util::io::ReaderStream;

use super::State;
use super::answer::{refuse, refuse_error};
use super::conditional::{Wanted, matches, range};
use crate::file::Named;
use crate::registry::Files as _;
use crate::registry::layout::Item;
use crate::registry::{Index, RegistryError};

/// What is read from disk at a time.
const PIECE: usize = 512 << 10;

pub(super) async fn item(state: &Arc<State>, item: &Item, request: &Parts) -> Response {
    let answered = match item {
        Item::Blob(digest) => blob(state, digest, request).await,
        _ => document(state, item, request).await,
    };
    match answered {
        Ok(Some(response)) => response,
        Ok(None) => refuse(StatusCode::NOT_FOUND, "there is nothing here"),
        Err(error) => refuse_error(&error),
    }
}

async fn blob(
    state: &Arc<State>,
    digest: &Digest,
    request: &Parts,
) -> Result<Option<Response>, RegistryError> {
    let item = Item::Blob(*digest);
    let path = state.registry.root().join(item.path());
    let opened = {
        let state = Arc::clone(state);
        tokio::task::spawn_blocking(move || state.registry.opened(&item)).await
    };
    let Some(file) = opened.map_err(std::io::Error::other).named("open", &path)?? else {
        return Ok(None);
    };
    let mut file = tokio::fs::File::from_std(file);
    let meta = file.metadata().await.named("stat", &path)?;
    if request.method == Method::HEAD {
        // Whoever asks so is about to push.
        use std::os::unix::fs::MetadataExt as _;
        state.registry.want(digest, meta.mtime());
    }
    let etag = format!("\"{}\"", digest.hex());
    let (mut response, wanted) = head(request, &etag, meta.len());
    let for_ever = HeaderValue::from_static("public, max-age=31536000, immutable");
    response.headers_mut().insert(CACHE_CONTROL, for_ever);
    if let Some(wanted) = wanted
        && request.method != Method::HEAD
    {
        file.seek(SeekFrom::Start(wanted.start)).await.named("read", &path)?;
        file.set_max_buf_size(PIECE);
        let part = file.take(wanted.end - wanted.start);
        *response.body_mut() = Body::from_stream(ReaderStream::with_capacity(part, PIECE));
    }
    Ok(Some(response))
}

async fn document(
    state: &Arc<State>,
    item: &Item,
    request: &Parts,
) -> Result<Option<Response>, RegistryError> {
    let read = {
        let (state, item) = (Arc::clone(state), item.clone());
        tokio::task::spawn_blocking(move || state.registry.file(&item, Index::BOUNDS.bytes)).await
    };
    let read = read.map_err(std::io::Error::other).named("read", state.registry.root())?;
    let Some(bytes) = read? else { return Ok(None) };
    let etag = format!("\"{}\"", Digest::of(&bytes).hex());
    let (mut response, wanted) = head(request, &etag, bytes.len() as u64);
    set(&mut response, CONTENT_TYPE, "application/json");
    set(&mut response, CACHE_CONTROL, "no-cache");
    if let Some(wanted) = wanted
        && request.method != Method::HEAD
    {
        let fits = |n: u64| usize::try_from(n).unwrap_or(bytes.len()).min(bytes.len());
        let part = bytes[fits(wanted.start)..fits(wanted.end)].to_vec();
        *response.body_mut() = Body::from(part);
    }
    Ok(Some(response))
}

/// The head of the answer, and the bytes it promises.
fn head(request: &Parts, etag: &str, size: u64) -> (Response, Option<std::ops::Range<u64>>) {
    let mut response = Response::new(Body::empty());
    set(&mut response, ETAG, etag);
    set(&mut response, ACCEPT_RANGES, "bytes");
    set(&mut response, CONTENT_TYPE, "application/octet-stream");
    let header = |name: HeaderName| request.headers.get(name).and_then(|v| v.to_str().ok());
    if header(IF_NONE_MATCH).is_some_and(|list| matches(list, etag)) {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return (response, None);
    }
    // A part of something else than the client already has a part of would be useless.
    let fresh = header(IF_RANGE).is_none_or(|tag| tag.trim() == etag);
    let part = match range(header(RANGE).filter(|_| fresh), size) {
        Wanted::Whole => 0..size,
        Wanted::Part(part) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let value = format!("bytes {}-{}/{size}", part.start, part.end - 1);
            set(&mut response, CONTENT_RANGE, &value);
            part
        }
        Wanted::Beyond => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            set(&mut response, CONTENT_RANGE, &format!("bytes */{size}"));
            return (response, None);
        }
    };
    set(&mut response, CONTENT_LENGTH, &(part.end - part.start).to_string());
    (response, Some(part))
}

fn set(response: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}
