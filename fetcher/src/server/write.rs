//! Writing: blobs are verified while they come in, the rest goes through the registry's own rules.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::CONTENT_LENGTH;
use axum::response::Response;
use futures_util::StreamExt;
use mica_graph::{Blob, Digest, Layer, PackageName};
use tokio::sync::mpsc;

use super::State;
use super::answer::{refuse, refuse_error};
use super::connections::TRICKLE;
use super::uploads;
use crate::file::{Named, Temporary};
use crate::patch::PatchNotes;
use crate::registry::layout::Item;
use crate::registry::on_disk;
use crate::registry::wire::Tagging;
use crate::registry::{Publication, Published, Registry, RegistryError, WriteRegistry};
use crate::trust::Signatures;

/// More is not one of our documents.
const DOCUMENT_LIMIT: usize = 256 << 10;

pub(super) enum Target {
    Blob(Digest),
    Layer(Digest),
    Patches(Digest),
    Package(PackageName),
    Tags(PackageName),
    Signatures(Digest),
}

pub(super) async fn write(state: &Arc<State>, target: Target, request: Request) -> Response {
    if let Target::Blob(digest) = target {
        return blob(state, digest, request).await;
    }
    let read = axum::body::to_bytes(request.into_body(), DOCUMENT_LIMIT);
    let Ok(Ok(body)) = tokio::time::timeout(state.options.idle_timeout, read).await else {
        return refuse(StatusCode::BAD_REQUEST, "the document did not come, or is too large");
    };
    let state = Arc::clone(state);
    let changed = tokio::task::spawn_blocking(move || document(&state, target, &body)).await;
    changed.unwrap_or_else(|_| refuse(StatusCode::INTERNAL_SERVER_ERROR, "the change failed"))
}

/// A change of a document, which takes room as a blob does.
fn document(state: &State, target: Target, body: &[u8]) -> Response {
    let item = match &target {
        Target::Blob(digest) => Item::Blob(*digest),
        Target::Layer(inputs) => Item::Layer(*inputs),
        Target::Patches(image) => Item::Patches(*image),
        Target::Package(name) | Target::Tags(name) => Item::Index(name.clone()),
        Target::Signatures(manifest) => Item::Signatures(*manifest),
    };
    // A tag may be moved back also when there is no room: a package has so many tags at most.
    let is_tag = matches!(target, Target::Tags(_));
    if !is_tag && !uploads::has_room(state, on_disk(body.len() as u64)) {
        return refuse(StatusCode::INSUFFICIENT_STORAGE, uploads::FULL);
    }
    let size = || state.registry.size_on_disk(&item).unwrap_or(0);
    let before = size();
    let response = change(state, target, body);
    state.used.fetch_add(size().saturating_sub(before), Ordering::Relaxed);
    response
}

fn change(state: &State, target: Target, body: &[u8]) -> Response {
    let bad = |what: &str| refuse(StatusCode::BAD_REQUEST, what);
    let registry = &state.registry;
    let changed = match target {
        Target::Package(name) => match serde_json::from_slice::<Publication>(body) {
            Ok(publication) if publication.name == name => {
                registry.publish(&publication).map(|published| match published {
                    Published::New => StatusCode::CREATED,
                    Published::Unchanged => StatusCode::OK,
                })
            }
            _ => return bad("this is not a publication of that package"),
        },
        Target::Tags(name) => match serde_json::from_slice::<Tagging>(body) {
            Ok(Tagging { tag, version }) => {
                registry.tag(&name, &tag, &version).map(|()| StatusCode::OK)
            }
            Err(_) => return bad("this does not name a tag and a version"),
        },
        Target::Layer(inputs) => match serde_json::from_slice::<Layer>(body) {
            Ok(layer) if layer.inputs == inputs => {
                registry.remember(&layer).map(|()| StatusCode::OK)
            }
            _ => return bad("this is not a layer with those inputs"),
        },
        Target::Patches(image) => match PatchNotes::read(body, &image) {
            notes if notes.is_empty() => return bad("these are no patches of that image"),
            notes => registry.add_patches(&image, &notes).map(|()| StatusCode::OK),
        },
        Target::Signatures(manifest) => match Signatures::parse(body) {
            Ok(more) => registry.add_signatures(&manifest, &more).map(|()| StatusCode::OK),
            Err(error) => return bad(&error.to_string()),
        },
        Target::Blob(_) => return bad("a blob is not a document"),
    };
    match changed {
        Ok(status) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            response
        }
        Err(error) => refuse_error(&error),
    }
}

async fn blob(state: &Arc<State>, digest: Digest, request: Request) -> Response {
    let length = request.headers().get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
    if let Some(size) = length
        && state.registry.has_blob(&Blob { digest, size }).unwrap_or(false)
    {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::OK;
        return response;
    }
    if !uploads::has_room(state, length.unwrap_or(0)) {
        return refuse(StatusCode::INSUFFICIENT_STORAGE, uploads::FULL);
    }
    // The disk is written by a thread of its own; a few pieces may wait for it.
    let (pieces, incoming) = mpsc::channel::<Bytes>(4);
    let writer = {
        let state = Arc::clone(state);
        tokio::task::spawn_blocking(move || store(&state, digest, incoming))
    };
    let mut body = request.into_body().into_data_stream();
    let idle = state.options.idle_timeout;
    let (mut waited, mut came) = (Duration::ZERO, 0);
    let whole = loop {
        let since = Instant::now();
        match tokio::time::timeout(idle, body.next()).await {
            Ok(None) => break true,
            Ok(Some(Ok(piece))) => {
                (waited, came) = (waited + since.elapsed(), came + piece.len() as u64);
                if waited > idle {
                    if came < TRICKLE * waited.as_secs() {
                        break false;
                    }
                    (waited, came) = (Duration::ZERO, 0);
                }
                if pieces.send(piece).await.is_err() {
                    // The writer gave up, and says why below.
                    break true;
                }
            }
            Ok(Some(Err(_))) | Err(_) => break false,
        }
    };
    drop(pieces);
    match writer.await {
        Ok(Ok(())) => {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::CREATED;
            response
        }
        // Half a body has the wrong digest, but that is not what went wrong.
        _ if !whole => refuse(StatusCode::REQUEST_TIMEOUT, "the upload broke off"),
        Ok(Err(error)) => refuse_error(&error),
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the upload failed"),
    }
}

fn store(
    state: &State,
    digest: Digest,
    mut incoming: mpsc::Receiver<Bytes>,
) -> Result<(), RegistryError> {
    let mut staged = state.registry.staging()?.create()?;
    let mut hasher = blake3::Hasher::new();
    let mut taken = uploads::Taken::new(state);
    while let Some(piece) = incoming.blocking_recv() {
        if !taken.more(piece.len() as u64) {
            let full = std::io::Error::new(std::io::ErrorKind::QuotaExceeded, uploads::FULL);
            return Err(full).named("store", state.registry.root())?;
        }
        hasher.update(&piece);
        let Temporary { file, path, .. } = &mut staged;
        file.write_all(&piece).named("write", path)?;
    }
    let found: Digest = hasher.finalize().into();
    if found != digest {
        let registry = state.registry.address().to_owned();
        return Err(RegistryError::WrongBytes { registry, expected: digest, found });
    }
    state.registry.adopt(staged, &digest)?;
    taken.keep();
    Ok(())
}
