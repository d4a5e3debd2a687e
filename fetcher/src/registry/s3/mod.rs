//! A registry in a bucket of an S3-compatible store.
//!
//! The objects are the files of [the layout](super) below a prefix, so that a bucket that may be read by everybody is also a registry
//! of static files, and a folder can be copied into a bucket and back. `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`,
//! `AWS_SESSION_TOKEN`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_SKIP_SIGNATURE` and so on say what they say to others, also by way of
//! [profiles](profile); without keys, those of a role are used (web identity, task, instance).
//!
//! **Atomicity.** A store has no locks. A document is replaced by a put on the condition that it is still the one that was changed
//! (`If-Match` with its ETag, `If-None-Match: *` where there was none); who comes second reads and changes again. A store that says
//! it knows no conditions is written without them: there, of publishers of one package at one moment, the later wins.
//! A blob is put under its digest after it was found right; a large one in parts, of which nothing is seen before all are there.
//! Parts of a killed push stay in the store, unseen, until its lifecycle rule for incomplete uploads removes them.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use mica_graph::{Blob, Digest};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey as Key};
use object_store::path::Path as ObjectPath;
use object_store::{
    BackoffConfig, Error, GetOptions, GetResult, ObjectStore, ObjectStoreExt, PutMode, PutPayload,
    RetryConfig, UpdateVersion,
};
use reqwest::{StatusCode, Url};

use super::files::{self, Change, Documents, Files};
use super::http::{HttpOptions, Sender, is_loopback};
use super::layout::{self, Item};
use super::{BlobStream, Content, Registry, RegistryError};
use crate::file;

mod location;
mod parts;
mod profile;
mod service;

pub(crate) use location::Location;
use service::{Fault, Service};

/// Settings of S3 stores, by the names of the environment variables that hold them (`AWS_…`).
#[derive(Clone, Default)]
pub struct AwsSettings(Vec<(String, String)>);

impl fmt::Debug for AwsSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

impl AwsSettings {
    /// Those of this process's environment, and the files of profiles in the user's home if it names no others.
    pub fn from_env() -> Self {
        let text = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        let mut all: Vec<_> =
            text.filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty()).collect();
        for (name, file) in [
            ("AWS_SHARED_CREDENTIALS_FILE", ".aws/credentials"),
            ("AWS_CONFIG_FILE", ".aws/config"),
        ] {
            let usual = std::env::home_dir()
                .and_then(|home| home.join(file).into_os_string().into_string().ok());
            if let Some(usual) = usual.filter(|_| all.iter().all(|(have, _)| have != name)) {
                all.push((name.to_owned(), usual));
            }
        }
        Self(all)
    }

    /// The reason if the profile they name cannot be used.
    fn builder(&self) -> Result<AmazonS3Builder, String> {
        let of_profile = profile::settings(&self.0)?;
        let all = self.0.iter().chain(&of_profile);
        Ok(all.fold(AmazonS3Builder::new(), |builder, (name, value)| {
            match name.to_ascii_lowercase().parse() {
                Ok(key) => builder.with_config(key, value),
                // Of no interest to a store.
                Err(_) => builder,
            }
        }))
    }
}

impl FromIterator<(String, String)> for AwsSettings {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(settings: I) -> Self {
        Self(settings.into_iter().collect())
    }
}

/// A registry behind an `s3://` address. Its calls block and must not be made from async code.
pub struct S3Registry {
    sender: Sender,
    store: AmazonS3,
    prefix: String,
}

/// The longest look for something in a bucket.
const LISTING: Duration = Duration::from_secs(20);
/// Blobs above this size go in parts.
const WHOLE: u64 = 16 << 20;
/// How often a document is changed again because others were quicker.
const ATTEMPTS: u32 = 100;

impl S3Registry {
    /// A registry at an address. Nothing is sent yet.
    pub(crate) fn new(location: &Location, options: &HttpOptions) -> Result<Self, RegistryError> {
        let address = location.to_string();
        let unusable = |reason| RegistryError::Address { address: location.to_string(), reason };
        let builder = options.aws.builder().map_err(unusable)?;
        let mut builder = builder.with_bucket_name(&location.bucket);
        if let Some(region) = &location.region {
            builder = builder.with_region(region);
        }
        let from_env = |key: Key| builder.get_config_value(&key);
        let endpoint = match &location.endpoint {
            Some(url) => Some(url.to_string()),
            None => from_env(Key::S3Endpoint).or_else(|| from_env(Key::Endpoint)),
        };
        let url = endpoint.as_deref().and_then(|endpoint| Url::parse(endpoint).ok());
        let sender = Sender::new(address, url.as_ref().is_some_and(is_loopback), options)?;
        if location.endpoint.is_some() && !options.named_by_user {
            // Keys are for where the user himself goes with them.
            builder = builder.with_skip_signature(true);
        }
        if let Some(endpoint) = endpoint {
            // Plain HTTP, if that is what was asked for.
            builder = builder.with_allow_http(endpoint.starts_with("http://"));
            builder = builder.with_config(Key::S3Endpoint, endpoint);
        }
        // Tried again by us, with our waits.
        let (max_retries, retry_timeout) = (0, Duration::ZERO);
        let retry = RetryConfig { backoff: BackoffConfig::default(), max_retries, retry_timeout };
        builder = builder.with_retry(retry).with_http_connector(Service::new(&sender));
        let store = builder.build().map_err(|error| unusable(error.to_string()))?;
        Ok(Self { sender, store, prefix: location.prefix.clone() })
    }

    /// Opens a registry for writing, making one where there is nothing.
    pub(crate) fn create(
        location: &Location,
        options: &HttpOptions,
    ) -> Result<Self, RegistryError> {
        let registry = Self::new(location, options)?;
        match registry.check_layout() {
            Err(RegistryError::NotARegistry { .. }) => {
                // Another process may just be making it: whoever finds something looks again for what says what it is.
                if !registry.holds_something()? {
                    registry.put(&Item::Version, layout::VERSION.into(), PutMode::Create)?;
                }
                registry.check_layout().map(|()| registry)
            }
            other => other.map(|()| registry),
        }
    }

    fn key(&self, item: &Item) -> ObjectPath {
        ObjectPath::from(format!("{}/{}", self.prefix, item.path()))
    }

    fn wait<F: Future>(&self, request: F) -> F::Output {
        self.sender.runtime().block_on(request)
    }

    fn holds_something(&self) -> Result<bool, RegistryError> {
        let prefix = (!self.prefix.is_empty()).then(|| ObjectPath::from(self.prefix.as_str()));
        // Pages of nothing, each with a further one, are not read for ever.
        let first =
            async { tokio::time::timeout(LISTING, self.store.list(prefix.as_ref()).next()).await };
        let endless = |_| self.sender.unreachable("the list of the bucket does not end");
        let first = self.wait(first).map_err(endless)?.transpose();
        Ok(first.map_err(|error| self.error("read", error))?.is_some())
    }

    /// `None` for what is not there.
    fn get(
        &self,
        item: &Item,
        range: Option<Range<u64>>,
    ) -> Result<Option<GetResult>, RegistryError> {
        let options = GetOptions { range: range.map(Into::into), ..GetOptions::default() };
        let answer = self.wait(self.store.get_opts(&self.key(item), options));
        found(answer).map_err(|error| self.error("read", error))
    }

    fn reader(&self, result: GetResult) -> impl Read + Send + use<> {
        self.sender.read(result.into_stream().map_err(std::io::Error::other).boxed())
    }

    fn document(&self, item: &Item, limit: u64) -> Result<Option<Tagged>, RegistryError> {
        self.sender.options.retry.run(|| {
            let Some(result) = self.get(item, None)? else { return Ok(None) };
            let tag = result.meta.e_tag.clone();
            let bytes =
                self.sender.small(self.reader(result), files::name_of(self, item), limit)?;
            Ok(Some((bytes, tag)))
        })
    }

    fn put(&self, item: &Item, payload: PutPayload, mode: PutMode) -> Result<Put, RegistryError> {
        self.sender.options.retry.run(|| {
            let (payload, mode) = (payload.clone(), mode.clone().into());
            match self.wait(self.store.put_opts(&self.key(item), payload, mode)) {
                Ok(_) => Ok(Put::Done),
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(Put::Changed),
                Err(error) if is_unknown(&error) => Ok(Put::NoConditions),
                Err(error) => Err(self.error("write", error)),
            }
        })
    }

    /// Our error for one of the store.
    fn error(&self, what: &'static str, error: Error) -> RegistryError {
        let registry = self.sender.address.clone();
        let Some(fault) = Fault::of(&error) else {
            return match error {
                // Of a put: only a bucket can be missing.
                Error::NotFound { .. } => RegistryError::NoBucket { registry },
                other => RegistryError::Client(Box::new(other)),
            };
        };
        fault.clone().error(&self.sender, what)
    }
}

/// A document and its ETag.
type Tagged = (Vec<u8>, Option<String>);

/// What became of a put.
enum Put {
    Done,
    /// Somebody else was quicker.
    Changed,
    /// The store does not know conditions.
    NoConditions,
}

/// `None` for what is not there.
fn found<T>(result: object_store::Result<T>) -> object_store::Result<Option<T>> {
    match result {
        Err(Error::NotFound { .. }) => Ok(None),
        other => other.map(Some),
    }
}

fn is_unknown(error: &Error) -> bool {
    matches!(Fault::of(error), Some(Fault::Refused { status: StatusCode::NOT_IMPLEMENTED, .. }))
}

/// The error of bytes that are not the blob.
fn wrong(blob: &Blob, found: Digest, path: &Path) -> Option<RegistryError> {
    let (registry, expected) = (path.display().to_string(), blob.digest);
    (found != expected).then_some(RegistryError::WrongBytes { registry, expected, found })
}

impl Files for S3Registry {
    fn place(&self) -> &str {
        &self.sender.address
    }

    fn file(&self, item: &Item, limit: u64) -> Result<Option<Vec<u8>>, RegistryError> {
        Ok(self.document(item, limit)?.map(|(bytes, _)| bytes))
    }

    fn part(&self, blob: &Blob, range: Range<u64>) -> Result<BlobStream, RegistryError> {
        let is_part = range.start < range.end && (range.start > 0 || range.end < blob.size);
        let start = if is_part { range.start } else { 0 };
        let (registry, digest) = (self.sender.address.clone(), blob.digest);
        match self.get(&Item::Blob(digest), is_part.then_some(range))? {
            Some(result) if result.meta.size == blob.size => {
                Ok(BlobStream { start, reader: Box::new(self.reader(result)) })
            }
            Some(result) => {
                let (expected, found) = (blob.size, result.meta.size);
                Err(RegistryError::WrongSize { registry, digest, expected, found })
            }
            None => Err(RegistryError::MissingBlob { registry, digest }),
        }
    }
}

impl Documents for S3Registry {
    fn try_writing(&self) -> Result<(), RegistryError> {
        // The empty blob is harmless to write, and to write again.
        let item = Item::Blob(Digest::of(b""));
        self.put(&item, PutPayload::new(), PutMode::Overwrite).map(drop)
    }

    fn update(
        &self,
        item: &Item,
        limit: u64,
        change: &mut Change<'_>,
    ) -> Result<(), RegistryError> {
        for attempt in 0..ATTEMPTS {
            let (old, tag) = self.document(item, limit)?.unzip();
            let mode = match (&old, tag.flatten()) {
                (None, _) => PutMode::Create,
                (Some(_), None) => PutMode::Overwrite,
                (Some(_), e_tag) => PutMode::Update(UpdateVersion { e_tag, version: None }),
            };
            let Some(new) = change(old)? else { return Ok(()) };
            let payload = PutPayload::from(new);
            match self.put(item, payload.clone(), mode)? {
                Put::Done => return Ok(()),
                Put::Changed => std::thread::sleep(pause(attempt)),
                Put::NoConditions => {
                    tracing::warn!(registry = self.address(), "the store knows no conditions");
                    return self.put(item, payload, PutMode::Overwrite).map(drop);
                }
            }
        }
        let registry = self.sender.address.clone();
        Err(RegistryError::Contended { registry, document: item.path() })
    }

    fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, RegistryError> {
        self.sender.options.retry.run(|| {
            let meta = found(self.wait(self.store.head(&self.key(&Item::Blob(*digest)))));
            Ok(meta.map_err(|error| self.error("read", error))?.map(|meta| meta.size))
        })
    }

    fn store(&self, blob: &Blob, content: Content<'_>) -> Result<(), RegistryError> {
        let (bytes, name) = match content {
            Content::File(path) if blob.size > WHOLE => {
                return self.wait(self.put_parts(blob, path));
            }
            Content::File(path) => (file::read_given(path, WHOLE)?.unwrap_or_default(), path),
            Content::Bytes(bytes) => (bytes.to_vec(), Path::new("the caller")),
        };
        if let Some(error) = wrong(blob, Digest::of(&bytes), name) {
            return Err(error);
        }
        self.put(&Item::Blob(blob.digest), bytes.into(), PutMode::Overwrite).map(drop)
    }
}

/// Longer the more there are who want the same, and of different length for each.
fn pause(attempt: u32) -> Duration {
    let chance = std::time::UNIX_EPOCH.elapsed().map_or(0, |age| age.subsec_nanos());
    Duration::from_millis(u64::from(chance / 1000 % (10 * (attempt.min(20) + 1))))
}
