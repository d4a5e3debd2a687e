//! A large file as an upload of parts.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use bytes::Bytes;
use futures_util::future::try_join_all;
use mica_graph::Blob;
use object_store::ObjectStoreExt as _;
use object_store::multipart::{MultipartStore, PartId};
use object_store::path::Path as ObjectPath;

use super::super::RegistryError;
use super::super::layout::Item;
use super::{S3Registry, wrong};
use crate::file::Named;

/// The size of a part, but of blobs that would have more than [`PARTS`] of them.
const PART: u64 = 8 << 20;
/// A store takes 10,000.
const PARTS: u64 = 9000;
/// Parts on their way at a time.
const PARALLEL: usize = 2;

impl S3Registry {
    /// Uploads a file in parts, which become a blob if they were what they should be.
    pub(super) async fn put_parts(&self, blob: &Blob, path: &Path) -> Result<(), RegistryError> {
        let key = self.key(&Item::Blob(blob.digest));
        let id = self.again(async || self.store.create_multipart(&key).await).await?;
        let done = match self.send_parts(blob, path, &key, &id).await {
            Ok(parts) => self.complete(blob, &key, &id, parts).await,
            Err(error) => Err(error),
        };
        if done.is_err()
            && let Err(error) = self.store.abort_multipart(&key, &id).await
        {
            tracing::warn!(%error, "parts of an upload stay in the store");
        }
        done
    }

    async fn complete(
        &self,
        blob: &Blob,
        key: &ObjectPath,
        id: &String,
        parts: Vec<PartId>,
    ) -> Result<(), RegistryError> {
        self.again(async || {
            let Err(error) = self.store.complete_multipart(key, id, parts.clone()).await else {
                return Ok(());
            };
            // An answer that was lost: then there is no such upload any more, but the blob.
            let meta = self.store.head(key).await;
            if meta.is_ok_and(|meta| meta.size == blob.size) { Ok(()) } else { Err(error) }
        })
        .await
    }

    /// A request, tried again as often as it may be.
    async fn again<T>(
        &self,
        mut request: impl AsyncFnMut() -> object_store::Result<T>,
    ) -> Result<T, RegistryError> {
        let mut failed = 0;
        loop {
            let error = match request().await {
                Ok(answer) => return Ok(answer),
                Err(error) => self.error("write", error),
            };
            failed += 1;
            let Some(wait) = self.sender.options.retry.after(failed, &error) else {
                return Err(error);
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn send_parts(
        &self,
        blob: &Blob,
        path: &Path,
        key: &ObjectPath,
        id: &String,
    ) -> Result<Vec<PartId>, RegistryError> {
        let mut file = File::open(path).named("open", path)?;
        let mut hasher = blake3::Hasher::new();
        let size = PART.max(blob.size.div_ceil(PARTS)) as usize;
        let mut parts = Vec::new();
        loop {
            let mut pieces = Vec::new();
            while pieces.len() < PARALLEL {
                let mut piece = Vec::with_capacity(size);
                (&mut file).take(size as u64).read_to_end(&mut piece).named("read", path)?;
                if piece.is_empty() {
                    break;
                }
                hasher.update(&piece);
                pieces.push((parts.len() + pieces.len(), Bytes::from(piece)));
            }
            if pieces.is_empty() {
                break;
            }
            let send = pieces.into_iter().map(|(n, piece)| self.send_part(key, id, n, piece));
            parts.extend(try_join_all(send).await?);
        }
        wrong(blob, hasher.finalize().into(), path).map_or(Ok(parts), Err)
    }

    async fn send_part(
        &self,
        key: &ObjectPath,
        id: &String,
        number: usize,
        piece: Bytes,
    ) -> Result<PartId, RegistryError> {
        self.again(async || {
            if let Some(rate) = &self.sender.options.rate {
                tokio::time::sleep(rate.take(piece.len())).await;
            }
            self.store.put_part(key, id, number, piece.clone().into()).await
        })
        .await
    }
}
