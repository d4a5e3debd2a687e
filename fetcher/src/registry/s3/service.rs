//! The requests of `object_store` through our HTTP client: one TLS, one proxy and one set of time limits for everything.
//!
//! `object_store` keeps of a refused request only text. Here refusals become [`Fault`]s, which are found again among an error's
//! causes; only those whose meaning `object_store` must know (404, 409, 412) pass as they are.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use http_body_util::{BodyExt, Full, Limited};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use reqwest::header::RETRY_AFTER;
use reqwest::{Response, StatusCode};

use super::super::RegistryError;
use super::super::http::{SHOWN, Sender, follow};

/// How much of an error's body is read.
const MESSAGE_LIMIT: usize = 64 << 10;

/// The longest answer that is no object: a list of a thousand names, or what became of an upload.
const ANSWER_LIMIT: usize = 4 << 20;

/// Why a request has no answer that could be used.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    /// None came.
    #[error("{0}")]
    Away(String, #[source] Option<Arc<dyn Error + Send + Sync>>),
    /// One that refuses.
    #[error("{url} answered {status}: {code}")]
    Refused {
        /// Without what signs it.
        url: String,
        status: StatusCode,
        /// The store's word for it, such as `NoSuchBucket`.
        code: String,
        message: String,
        retry_after: Option<Duration>,
    },
}

impl Fault {
    /// The fault among the causes of an error.
    pub(super) fn of<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Self> {
        let mut next = Some(error);
        while let Some(cause) = next {
            if let Some(fault) = cause.downcast_ref() {
                return Some(fault);
            }
            next = cause.source();
        }
        None
    }

    /// What it means for whoever wanted to `read` or to `write`.
    pub(super) fn error(self, sender: &Sender, what: &'static str) -> RegistryError {
        let registry = sender.address.clone();
        let (url, status, code, message, retry_after) = match self {
            Self::Away(reason, None) => return sender.unreachable(reason),
            Self::Away(_, Some(source)) => return sender.unreachable(source),
            Self::Refused { code, .. } if code == NO_BUCKET => {
                return RegistryError::NoBucket { registry };
            }
            Self::Refused { url, status, code, message, retry_after } => {
                (url, status, code, message, retry_after)
            }
        };
        let words = [code.as_str(), &message].into_iter().filter(|word| !word.is_empty());
        let message: String = words.collect::<Vec<_>>().join(": ").chars().take(SHOWN).collect();
        let denied = matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        // Keys for a while that are over are a bad request, says AWS.
        if denied || code == "ExpiredToken" {
            let reason = if message.is_empty() { status.to_string() } else { message };
            return RegistryError::Denied { registry, what, reason };
        }
        RegistryError::Status { url, status: status.as_u16(), message, retry_after }
    }

    fn into_error(self) -> HttpError {
        // Of a kind that `object_store` does not try again: its callers do.
        HttpError::new(HttpErrorKind::Unknown, self)
    }
}

/// A client with its time limits.
#[derive(Clone, Debug)]
pub(super) struct Service {
    client: reqwest::Client,
    idle: Duration,
    upload: Duration,
}

impl Service {
    pub(super) fn new(sender: &Sender) -> Self {
        let (idle, upload) = (sender.options.idle_timeout, sender.options.upload_timeout);
        Self { client: sender.client.clone(), idle, upload }
    }
}

impl HttpConnector for Service {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

#[async_trait::async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let limit = if request.body().content_length() == 0 { self.idle } else { self.upload };
        let away = |error: reqwest::Error| {
            let error: Arc<dyn Error + Send + Sync> = Arc::new(error.without_url());
            Fault::Away(error.to_string(), error.source().is_some().then(|| Arc::clone(&error)))
                .into_error()
        };
        let list = request.uri().query().is_some_and(|query| query.contains("list-type="));
        let is_object = request.method() == reqwest::Method::GET && !list;
        let request = request.map(reqwest::Body::wrap);
        let request = reqwest::Request::try_from(request).map_err(away)?;
        let answer = tokio::time::timeout(limit, follow(&self.client, request)).await;
        let answer = answer.map_err(|_| {
            Fault::Away(format!("no answer came for {} s", limit.as_secs_f32()), None).into_error()
        })?;
        let (parts, body) = checked(answer.map_err(away)?, self.idle).await?.into_parts();
        if !is_object {
            // The library keeps all of such a body.
            let whole =
                tokio::time::timeout(limit, Limited::new(body, ANSWER_LIMIT).collect()).await;
            let bytes = match whole {
                Ok(Ok(whole)) => whole.to_bytes(),
                Ok(Err(error)) => return Err(Fault::Away(error.to_string(), None).into_error()),
                Err(_) => {
                    let reason = format!("no whole answer came for {} s", limit.as_secs_f32());
                    return Err(Fault::Away(reason, None).into_error());
                }
            };
            let body = Full::new(bytes).map_err(|never| match never {});
            return Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)));
        }
        // Of an answer that breaks off, the connection is to blame.
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body.map_err(away))))
    }
}

/// The answer, if it is no refusal.
async fn checked(
    response: Response,
    idle: Duration,
) -> Result<http::Response<reqwest::Body>, HttpError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response.into());
    }
    let mut url = response.url().clone();
    url.set_query(None);
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let retry_after = retry_after.map(Duration::from_secs);
    let mut head = http::Response::new(());
    *head.status_mut() = status;
    *head.headers_mut() = response.headers().clone();
    let read = response.bytes_stream().try_fold(Vec::new(), async |mut all, piece| {
        let room = MESSAGE_LIMIT - all.len();
        all.extend_from_slice(&piece[..piece.len().min(room)]);
        Ok(all)
    });
    // A message that does not come is an empty one.
    let body = match tokio::time::timeout(idle, read).await {
        Ok(Ok(body)) => body,
        _ => Vec::new(),
    };
    let text = String::from_utf8_lossy(&body);
    let (code, message) = (element(&text, "Code"), element(&text, "Message"));
    let means = [StatusCode::NOT_FOUND, StatusCode::CONFLICT, StatusCode::PRECONDITION_FAILED];
    if means.contains(&status) && code != NO_BUCKET {
        let ((), body) = ((), reqwest::Body::from(body));
        return Ok(head.map(|()| body));
    }
    let url = url.to_string();
    Err(Fault::Refused { url, status, code, message, retry_after }.into_error())
}

/// What stores say of a bucket that is not there.
const NO_BUCKET: &str = "NoSuchBucket";

/// The text of an XML element that holds nothing else; empty if there is none.
fn element(text: &str, name: &str) -> String {
    let inside = text.split_once(&format!("<{name}>")).and_then(|(_, rest)| rest.split_once("</"));
    let text = inside.map_or("", |(text, _)| text).trim();
    let pairs = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    pairs.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements() {
        let text = "<?xml?><Error><Code>NoSuchBucket</Code><Message>a &amp;lt; b</Message></Error>";
        assert_eq!(element(text, "Code"), "NoSuchBucket");
        assert_eq!(element(text, "Message"), "a &lt; b");
        assert_eq!(element("<Code>cut", "Code"), "");
        assert_eq!(element("nothing", "Code"), "");
    }
}
