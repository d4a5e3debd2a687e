//! A file as the body of a request.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use reqwest::header::CONTENT_LENGTH;
use reqwest::{RequestBuilder, Response};

use super::super::RegistryError;
use super::Sender;

/// Sends the rest of a file from `start`, in pieces. Fails when nothing moves for the upload time-out, however long the
/// whole takes.
pub(crate) fn upload(
    sender: &Sender,
    request: RequestBuilder,
    mut file: File,
    start: u64,
    size: u64,
) -> Result<Response, RegistryError> {
    file.seek(SeekFrom::Start(start)).map_err(|source| sender.unreachable(source))?;
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let file = tokio::io::AsyncReadExt::take(tokio::fs::File::from_std(file), size - start);
    let rate = sender.options.rate.clone();
    let size_of_piece = rate.as_ref().map_or(1 << 18, |rate| rate.piece(1 << 18));
    let pieces = tokio_util::io::ReaderStream::with_capacity(file, size_of_piece);
    let pieces = pieces.then(move |piece| {
        let n = piece.as_ref().map_or(0, bytes::Bytes::len);
        counter.fetch_add(n as u64, Ordering::Relaxed);
        let wait = rate.as_ref().map(|rate| rate.take(n));
        async move {
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            piece
        }
    });
    let body = reqwest::Body::wrap_stream(pieces);
    let request = request.header(CONTENT_LENGTH, size - start).body(body);
    let limit = sender.options.upload_timeout;
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
    sender.runtime().block_on(async {
        tokio::select! {
            answer = request.send() => answer.map_err(|e| sender.unreachable(e.without_url())),
            reason = stalled => Err(sender.unreachable(reason)),
        }
    })
}
