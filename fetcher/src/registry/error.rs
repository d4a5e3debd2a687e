//! What a registry cannot do, or did wrong.

use std::path::PathBuf;
use std::time::Duration;

use mica_graph::{Digest, PackageName, ParseManifestError, TooMuchJson, Version};

use super::{AddError, ParseIndexError, SelectError};
use crate::file::FileError;

/// What a registry cannot do, or did wrong.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Neither a folder nor a URL of a kind we speak.
    #[error("{address} cannot be used as a registry: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The folder or server holds something else, or nothing.
    #[error("there is no mica registry at {address}")]
    NotARegistry {
        /// The folder or URL.
        address: String,
    },
    /// A store without the bucket.
    #[error("{registry} cannot be used: there is no such bucket")]
    NoBucket {
        /// The address.
        registry: String,
    },
    /// Others change a document all the time.
    #[error("{document} of {registry} was changed by others at every attempt")]
    Contended {
        /// Where.
        registry: String,
        /// The document.
        document: String,
    },
    /// Written by a later mica.
    #[error("the registry {address} has layout `{found}`; this mica knows layout 1")]
    Layout {
        /// The folder or URL.
        address: String,
        /// What its version file says.
        found: String,
    },
    /// No such package.
    #[error("{registry} has no package {name}")]
    UnknownPackage {
        /// Where.
        registry: String,
        /// What was asked for.
        name: PackageName,
        /// Packages with names like it.
        nearest: Vec<PackageName>,
    },
    /// No such version, or several.
    #[error("cannot choose a version in {registry}")]
    Select {
        /// Where.
        registry: String,
        /// The reason, with candidates.
        #[source]
        source: SelectError,
    },
    /// A version or tag that may not be added.
    #[error("cannot publish to {registry}")]
    Add {
        /// Where.
        registry: String,
        /// The reason.
        #[source]
        source: AddError,
    },
    /// No answer: refused, no such host, cut off, stalled.
    #[error("cannot reach the registry at {address}")]
    Unreachable {
        /// The URL's host and port.
        address: String,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// An answer that is not the one hoped for.
    #[error("{url} answered {status}{}", if message.is_empty() { String::new() } else { format!(": {message}") })]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server said, shortened.
        message: String,
        /// How long it asked to wait.
        retry_after: Option<Duration>,
    },
    /// Credentials are missing or not good enough.
    #[error("{registry} refuses to {what}: {reason}")]
    Denied {
        /// Where.
        registry: String,
        /// `read` or `write`.
        what: &'static str,
        /// The server's word.
        reason: String,
    },
    /// Credentials that everybody on the way would see.
    #[error("{registry} asks for credentials, which are not sent over plain HTTP")]
    Unencrypted {
        /// Where.
        registry: String,
    },
    /// A server of static files.
    #[error("{registry} cannot be written to")]
    ReadOnly {
        /// Where.
        registry: String,
    },
    /// It is of a kind that has no place for patches.
    #[error("{registry} takes no patches")]
    NoPatches {
        /// Where.
        registry: String,
    },
    /// Whoever may write put many there.
    #[error("{registry} takes no more signatures of {digest}")]
    TooManySignatures {
        /// Where.
        registry: String,
        /// The manifest.
        digest: Digest,
    },
    /// With one more it would be larger than what readers take.
    #[error("{document} takes no more")]
    Full {
        /// The file or URL.
        document: String,
        /// How much it may hold.
        #[source]
        source: TooMuchJson,
    },
    /// A manifest or layer names bytes that are not there.
    #[error("{registry} has no blob {digest}")]
    MissingBlob {
        /// Where.
        registry: String,
        /// Which.
        digest: Digest,
    },
    /// A blob shorter or longer than its manifest says.
    #[error("{registry} has {found} bytes of blob {digest}, not {expected}")]
    WrongSize {
        /// Where.
        registry: String,
        /// Which.
        digest: Digest,
        /// As the manifest says.
        expected: u64,
        /// As it is.
        found: u64,
    },
    /// A blob with other content.
    #[error("{registry} sent wrong bytes for blob {expected}: they are {found}")]
    WrongBytes {
        /// Where.
        registry: String,
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// The stream of a blob ended early.
    #[error("the transfer of {digest} from {registry} broke off")]
    Broken {
        /// Where.
        registry: String,
        /// Which.
        digest: Digest,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// A document of a size no honest one has.
    #[error("{registry} lists the document {digest} with {size} bytes, which is too large")]
    TooLarge {
        /// Where.
        registry: String,
        /// Which.
        digest: Digest,
        /// As listed.
        size: u64,
    },
    /// A manifest that cannot be used.
    #[error("cannot use the manifest {digest} of {registry}")]
    Manifest {
        /// Where.
        registry: String,
        /// Which.
        digest: Digest,
        /// The reason.
        #[source]
        source: ParseManifestError,
    },
    /// The index points to the manifest of something else.
    #[error("{registry} lists the manifest of {found} as that of {wanted}")]
    OtherPackage {
        /// Where.
        registry: String,
        /// What was asked for.
        wanted: String,
        /// What came.
        found: String,
    },
    /// An index, or another document, that cannot be used.
    #[error("cannot use {document}")]
    Document {
        /// The file or URL.
        document: String,
        /// The reason.
        #[source]
        source: ParseIndexError,
    },
    /// A file of a registry folder, or one to be sent.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file of credentials that cannot be used.
    #[error("cannot understand the credentials in {}", path.display())]
    AuthFile {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: serde_json::Error,
    },
    /// Nowhere to keep credentials.
    #[error("there is no place for credentials: neither HOME nor REGISTRY_AUTH_FILE is set")]
    NoAuthFile,
    /// A `registries.conf` that cannot be used.
    #[error("cannot understand {}", path.display())]
    RegistriesConf {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// An OCI image that no mica made.
    #[error("{image} is a container image, but no mica package")]
    ForeignImage {
        /// Registry, repository and tag.
        image: String,
    },
    /// A layer that is no squashfs has no form as a tar.
    #[error("cannot read {} as an image", path.display())]
    NotAnImage {
        /// The file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The HTTP client could not be set up.
    #[error("cannot set up an HTTP client")]
    Client(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RegistryError {
    /// Whether the same request may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502..=504),
            _ => false,
        }
    }

    /// How long the server asked us to wait.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// What a person could do about it.
    pub fn hint(&self) -> Option<String> {
        let list = |words: Vec<String>| words.join(", ");
        let words = |words: &[Version]| list(words.iter().map(Version::to_string).collect());
        Some(match self {
            Self::UnknownPackage { nearest, .. } if !nearest.is_empty() => {
                format!(
                    "similar names there: {}",
                    list(nearest.iter().map(PackageName::to_string).collect())
                )
            }
            Self::Select { source: SelectError::Unknown { nearest, .. }, .. } => {
                format!("versions there: {}", words(nearest))
            }
            Self::Select { source: SelectError::Ambiguous { candidates, .. }, .. } => {
                format!(
                    "give more of it; it may be {}",
                    words(&candidates[..candidates.len().min(10)])
                )
            }
            Self::Add { source: AddError::Taken { .. }, .. } => {
                "a version never changes its content: publish under another version".to_owned()
            }
            Self::Unreachable { address, .. } => {
                format!("is the registry running, and is {address} the right address?")
            }
            Self::Denied { registry, .. } if registry.starts_with("s3://") => {
                "keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_SKIP_SIGNATURE=true goes without"
                    .to_owned()
            }
            Self::NoBucket { .. } => {
                "make the bucket first; AWS_REGION and AWS_ENDPOINT_URL, or `?region=…&endpoint=…`, say where it is"
                    .to_owned()
            }
            Self::Denied { .. } => {
                "`mica login` keeps a name and password for a registry; MICA_TOKEN=HOST=TOKEN holds a token of it, and MICA_TOKEN=TOKEN one of \
                 the registry that you name yourself, not by a workspace's mica.toml"
                    .to_owned()
            }
            Self::Unencrypted { .. } => {
                "use its https:// address; `mica serve` speaks TLS with --tls-cert and --tls-key".to_owned()
            }
            Self::AuthFile { .. } | Self::RegistriesConf { .. } => {
                "mend the file, or name another one".to_owned()
            }
            Self::ReadOnly { .. } => {
                "publish to a folder, or to `mica serve` with a token".to_owned()
            }
            Self::NotARegistry { .. } => {
                "`mica pack --registry` or `mica push` makes a new one in an empty folder"
                    .to_owned()
            }
            Self::File(error) if error.is_full() => {
                "make room where the registry is; what was sent need not be sent again".to_owned()
            }
            Self::Status { status: 507, .. } => {
                "the registry's disk is full: whoever runs it can make room".to_owned()
            }
            Self::WrongSize { .. } | Self::WrongBytes { .. } => {
                "the registry's copy is damaged: publish it again, or use a mirror".to_owned()
            }
            _ => return None,
        })
    }
}
