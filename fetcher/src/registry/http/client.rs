//! One HTTP client: TLS, credentials, time limits, and answers turned into errors.

use std::io::Read;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, TryStreamExt};
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use tokio::runtime::Runtime;

use super::super::RegistryError;
use super::super::wire::Refusal;
use super::body::{BodyReader, Pieces};
use super::{Access, HttpOptions, follow, tls};

/// How much of an error's body is read.
const MESSAGE_LIMIT: usize = 64 << 10;

/// What of a document is read at a time, and how long all of it may take.
const PIECE: u64 = 16 << 10;
const DOCUMENT_TIME: Duration = Duration::from_secs(600);

/// How much of an error's message is shown.
pub(crate) const SHOWN: usize = 500;

/// Sends requests and waits for answers, with the time limits of its options.
pub(crate) struct Sender {
    /// What messages call the other side: a URL without credentials.
    pub(crate) address: String,
    pub(crate) client: Client,
    pub(crate) options: HttpOptions,
    /// `Some` until dropped.
    runtime: Option<Runtime>,
}

impl Drop for Sender {
    fn drop(&mut self) {
        // An ordinary drop of a runtime waits, and panics inside another one.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A sender with a base URL and credentials.
pub(super) struct HttpClient {
    pub(super) sender: Sender,
    base: Url,
    access: Access,
    /// Whether there are credentials that are not sent, since everybody on the way would see them.
    withheld: bool,
}

impl std::ops::Deref for HttpClient {
    type Target = Sender;

    fn deref(&self) -> &Sender {
        &self.sender
    }
}

impl HttpClient {
    pub(super) fn new(address: &str, options: &HttpOptions) -> Result<Self, RegistryError> {
        let error = |reason: String| RegistryError::Address { address: address.to_owned(), reason };
        let mut base = Url::parse(address).map_err(|e| error(e.to_string()))?;
        if base.cannot_be_a_base() || base.query().is_some() || base.fragment().is_some() {
            return Err(error("a registry's URL has a host and a path, nothing else".to_owned()));
        }
        let access = match take_user(&mut base) {
            Some(access) => access,
            None if options.access != Access::Anonymous => options.access.clone(),
            None => options.credentials.access(&place(&base))?,
        };
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let withheld = access != Access::Anonymous && !keeps_secrets(&base);
        if withheld {
            tracing::warn!(host = base.host_str(), "credentials are not sent over plain HTTP");
        }
        let access = if withheld { Access::Anonymous } else { access };
        let address = base.as_str().trim_end_matches('/').to_owned();
        let sender = Sender::new(address, is_loopback(&base), options)?;
        Ok(Self { sender, base, access, withheld })
    }

    pub(super) fn withholds(&self) -> bool {
        self.withheld
    }

    pub(super) fn request(
        &self,
        method: Method,
        path: &str,
    ) -> Result<RequestBuilder, RegistryError> {
        let url = self.base.join(path).map_err(|e| RegistryError::Address {
            address: format!("{}/{path}", self.address),
            reason: e.to_string(),
        })?;
        Ok(authorize(self.client.request(method, url), &self.access))
    }
}

/// `host[:port]/path`, as credential files name places.
fn place(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{host}{port}{}", url.path()).trim_end_matches('/').to_owned()
}

/// Adds credentials.
pub(crate) fn authorize(request: RequestBuilder, access: &Access) -> RequestBuilder {
    match access {
        Access::Anonymous => request,
        Access::Bearer(token) => request.bearer_auth(token),
        Access::Basic { user, password } => request.basic_auth(user, Some(password)),
    }
}

impl Sender {
    pub(crate) fn new(
        address: String,
        loopback: bool,
        options: &HttpOptions,
    ) -> Result<Self, RegistryError> {
        let failed = |e: Box<dyn std::error::Error + Send + Sync>| RegistryError::Client(e);
        let mut builder = Client::builder()
            .user_agent(concat!("mica/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(options.connect_timeout)
            // They are followed by `follow`, which leaves behind what proves who we are.
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .tls_backend_preconfigured(
                tls::config(!options.tls_verify).map_err(|e| failed(e.into()))?,
            );
        if loopback {
            builder = builder.no_proxy();
        }
        let client = builder.build().map_err(|e| failed(e.into()))?;
        let runtime = crate::runtime::build("mica-http").map_err(|e| failed(e.into()))?;
        Ok(Self { address, client, options: options.clone(), runtime: Some(runtime) })
    }

    pub(crate) fn reader(&self, response: Response) -> impl Read + Send + use<> {
        self.read(response.bytes_stream().map_err(std::io::Error::other).boxed())
    }

    pub(crate) fn read(&self, pieces: Pieces) -> impl Read + Send + use<> {
        BodyReader::new(self.runtime().handle().clone(), pieces, &self.options)
    }

    /// A small body in memory.
    pub(crate) fn bytes(&self, response: Response, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let url = response.url().to_string();
        self.small(self.reader(response), url, limit)
    }

    pub(crate) fn small(
        &self,
        reader: impl Read,
        url: String,
        limit: u64,
    ) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let (mut reader, begun) = (reader.take(limit + 1), Instant::now());
        // Piece by piece: what comes a little faster than a trickle takes hours else.
        while (&mut reader).take(PIECE).read_to_end(&mut bytes).map_err(|e| self.unreachable(e))?
            > 0
        {
            if begun.elapsed() > DOCUMENT_TIME {
                let seconds = DOCUMENT_TIME.as_secs();
                return Err(self.unreachable(format!("a document took longer than {seconds} s")));
            }
        }
        if bytes.len() as u64 > limit {
            let message = "the document is far too large".to_owned();
            return Err(RegistryError::Status { url, status: 200, message, retry_after: None });
        }
        Ok(bytes)
    }

    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("only `drop` takes the runtime")
    }

    /// Sends a request and waits, at most `limit`, for the head of the answer.
    pub(crate) fn send(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<Response, RegistryError> {
        let (client, request) = request.build_split();
        let request = request.map_err(|e| self.unreachable(e.without_url()))?;
        let answer = async { tokio::time::timeout(limit, follow(&client, request)).await };
        match self.runtime().block_on(answer) {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(source)) => Err(self.unreachable(source.without_url())),
            Err(_) => {
                Err(self.unreachable(format!("no answer came for {} s", limit.as_secs_f32())))
            }
        }
    }

    pub(crate) fn unreachable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> RegistryError {
        RegistryError::Unreachable { address: self.address.clone(), source: source.into() }
    }

    /// Passes on a success, `None` for "not found", and turns the rest into an error.
    pub(crate) fn check(&self, response: Response) -> Result<Option<Response>, RegistryError> {
        match response.status() {
            status if status.is_success() => Ok(Some(response)),
            StatusCode::NOT_FOUND | StatusCode::GONE => Ok(None),
            _ => Err(self.refusal(response)),
        }
    }

    /// The error that an answer means.
    pub(crate) fn refusal(&self, response: Response) -> RegistryError {
        let (status, url) = (response.status(), response.url().to_string());
        let what = "read";
        let retry_after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.trim().parse().ok())
            .map(Duration::from_secs);
        let is_json = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let body = self.message(response);
        let registry = self.address.clone();
        let refusal = is_json.then(|| serde_json::from_slice::<Refusal>(&body).ok()).flatten();
        let message = match refusal {
            Some(Refusal { cause: Some(cause), .. }) => return cause.into_error(registry),
            Some(Refusal { error, .. }) => error.chars().take(SHOWN).collect(),
            // A page for people says no more than its status.
            None => String::new(),
        };
        if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            let reason = if message.is_empty() { status.to_string() } else { message };
            return RegistryError::Denied { registry, what, reason };
        }
        RegistryError::Status { url, status: status.as_u16(), message, retry_after }
    }

    fn message(&self, mut response: Response) -> Vec<u8> {
        let mut message = Vec::new();
        let read = async {
            while let Ok(Some(piece)) = response.chunk().await {
                message.extend_from_slice(&piece);
                if message.len() > MESSAGE_LIMIT {
                    break;
                }
            }
        };
        let limit = self.options.idle_timeout;
        // A message that does not come is an empty one.
        drop(self.runtime().block_on(async { tokio::time::timeout(limit, read).await }));
        message
    }
}

/// Credentials written into the URL are taken out of it, so that no message shows them.
fn take_user(url: &mut Url) -> Option<Access> {
    let user = url.username().to_owned();
    let password = url.password().unwrap_or_default().to_owned();
    if user.is_empty() && password.is_empty() {
        return None;
    }
    // Both fail only for URLs without a host, which were refused.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    Some(Access::Basic { user, password })
}

/// Whether nobody on the way reads along.
pub(crate) fn keeps_secrets(url: &Url) -> bool {
    url.scheme() == "https" || is_loopback(url)
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback())
}
