//! Requests to one OCI registry: scheme, credentials, tokens.

use std::collections::HashMap;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use super::super::credentials::Login;
use super::super::http::{Sender, authorize, is_loopback, keeps_secrets};
use super::super::{Access, HttpOptions, RegistryError};
use super::auth::{self, Challenge, Token};
use super::names::Location;

pub(super) struct Client {
    pub(super) sender: Sender,
    /// Host and port to connect to.
    host: String,
    /// Schemes to try, best first.
    schemes: &'static [&'static str],
    /// The one that works.
    base: OnceLock<Url>,
    /// Sent as it is, where it was given expressly.
    access: Access,
    login: Option<Login>,
    /// What convinced the registry, by scope.
    granted: Mutex<HashMap<String, Access>>,
}

/// What a token must allow: `repository:NAME:pull`, several separated by spaces.
pub(super) type Scope<'a> = &'a str;

impl Client {
    pub(super) fn new(location: &Location, options: &HttpOptions) -> Result<Self, RegistryError> {
        let host = location.api_host().to_owned();
        let probe = Url::parse(&format!("https://{host}/")).map_err(|e| {
            RegistryError::Address { address: location.to_string(), reason: e.to_string() }
        })?;
        let loopback = is_loopback(&probe);
        let lax = !options.tls_verify || location.insecure;
        let options =
            HttpOptions { tls_verify: options.tls_verify && !location.insecure, ..options.clone() };
        let login = options.credentials.login(&location.place())?;
        Ok(Self {
            access: options.access.clone(),
            sender: Sender::new(location.to_string(), loopback, &options)?,
            // As docker does: what is on this very machine needs no certificate.
            schemes: match (loopback, lax) {
                (true, _) => &["http", "https"],
                (false, true) => &["https", "http"],
                (false, false) => &["https"],
            },
            base: OnceLock::new(),
            granted: Mutex::default(),
            host,
            login,
        })
    }

    /// `https://host/v2/`, or with `http` where that is what is spoken there.
    fn base(&self) -> Result<&Url, RegistryError> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let mut failed = None;
        for scheme in self.schemes {
            let base = Url::parse(&format!("{scheme}://{}/v2/", self.host)).map_err(|e| {
                RegistryError::Address { address: self.host.clone(), reason: e.to_string() }
            })?;
            let request = self.sender.client.get(base.clone());
            match self.sender.send(request, self.sender.options.idle_timeout) {
                // Go's servers answer plain HTTP with 400 where they speak TLS.
                Ok(answer) if *scheme == "http" && answer.status() == StatusCode::BAD_REQUEST => {}
                // Whatever else it says: somebody speaks HTTP.
                Ok(_) => return Ok(self.base.get_or_init(|| base)),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        Err(failed.unwrap_or_else(|| self.sender.unreachable("no scheme to try")))
    }

    /// The URL of a path below `/v2/`, or of a `Location` that the registry gave.
    pub(super) fn url(&self, path: &str) -> Result<Url, RegistryError> {
        let base = self.base()?;
        base.join(path).map_err(|e| RegistryError::Address {
            address: format!("{base}{path}"),
            reason: e.to_string(),
        })
    }

    /// Sends a request; on a 401 asks for a token and sends it once more. Statuses are the caller's business.
    pub(super) fn send(
        &self,
        method: Method,
        url: &Url,
        scope: Scope<'_>,
        limit: Duration,
        build: &dyn Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        self.authorized(url, scope, &|access| {
            let request =
                build(authorize(self.sender.client.request(method.clone(), url.clone()), access));
            self.sender.send(request, limit)
        })
    }

    /// Calls `send` with what the registry takes as a proof.
    pub(super) fn authorized(
        &self,
        url: &Url,
        scope: Scope<'_>,
        send: &dyn Fn(&Access) -> Result<Response, RegistryError>,
    ) -> Result<Response, RegistryError> {
        let ours = self.base()?.origin() == url.origin();
        if !ours {
            // An upload's or a redirect's other host: it has its own proof in the URL.
            return send(&Access::Anonymous);
        }
        let none = Access::Anonymous;
        let (safe, given) = (keeps_secrets(url), &self.access);
        let known = self.granted.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned();
        let response = send(known.as_ref().unwrap_or(if safe { given } else { &none }))?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenge = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .find_map(|header| auth::parse(header.to_str().ok()?));
        let access = match challenge {
            Some(Challenge::Basic) if !safe && self.login.is_some() => {
                let registry = self.sender.address.clone();
                return Err(RegistryError::Unencrypted { registry });
            }
            Some(Challenge::Basic) => match &self.login {
                Some(Login::Password { user, password }) => {
                    Access::Basic { user: user.clone(), password: password.clone() }
                }
                _ => return Ok(response),
            },
            Some(Challenge::Bearer { realm, service, scope: asked }) => {
                let scope =
                    if scope.is_empty() { asked.unwrap_or_default() } else { scope.to_owned() };
                Access::Bearer(self.token(&realm, service.as_deref(), &scope)?)
            }
            None => return Ok(response),
        };
        if known.as_ref() == Some(&access) {
            return Ok(response);
        }
        let again = send(&access)?;
        if again.status() != StatusCode::UNAUTHORIZED {
            let mut granted = self.granted.lock().unwrap_or_else(PoisonError::into_inner);
            granted.insert(scope.to_owned(), access);
        }
        Ok(again)
    }

    fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: &str,
    ) -> Result<String, RegistryError> {
        let denied = |reason: String| RegistryError::Denied {
            registry: self.sender.address.clone(),
            what: "give a token",
            reason,
        };
        let mut realm = Url::parse(realm).map_err(|e| denied(format!("realm {realm}: {e}")))?;
        let login = self.login.as_ref();
        if login.is_some() && !keeps_secrets(&realm) {
            return Err(denied(format!("{realm} would see the password unencrypted")));
        }
        let scopes = scope.split(' ').filter(|scope| !scope.is_empty());
        let request = if let Some(Login::IdentityToken(token)) = login {
            let mut form = Url::parse("form:").expect("a constant");
            form.query_pairs_mut()
                .append_pair("grant_type", "refresh_token")
                .append_pair("client_id", "mica")
                .append_pair("service", service.unwrap_or_default())
                .append_pair("scope", scope)
                .append_pair("refresh_token", token);
            let body = form.query().unwrap_or_default().to_owned();
            let kind = "application/x-www-form-urlencoded";
            self.sender.client.post(realm).header("content-type", kind).body(body)
        } else {
            let pairs = service.map(|service| ("service", service));
            realm
                .query_pairs_mut()
                .extend_pairs(pairs.into_iter().chain(scopes.map(|scope| ("scope", scope))));
            let request = self.sender.client.get(realm);
            match login {
                Some(Login::Password { user, password }) => {
                    request.basic_auth(user, Some(password))
                }
                _ => request,
            }
        };
        let response = self.sender.send(request, self.sender.options.idle_timeout)?;
        if !response.status().is_success() {
            return Err(match self.sender.refusal(response) {
                RegistryError::Denied { reason, .. } => denied(reason),
                other => other,
            });
        }
        let bytes = self.sender.bytes(response, 1 << 20)?;
        let token = serde_json::from_slice::<Token>(&bytes).ok().and_then(Token::into_string);
        token.ok_or_else(|| denied("the token server sent no token".to_owned()))
    }

    /// Sends a request for a small document and waits for all of it; `None` if it is not there.
    pub(super) fn get(
        &self,
        path: &str,
        scope: Scope<'_>,
        accept: &str,
        limit: u64,
    ) -> Result<Option<(Head, Vec<u8>)>, RegistryError> {
        self.sender.options.retry.run(|| {
            let url = self.url(path)?;
            let time = self.sender.options.idle_timeout;
            let accept = |request: RequestBuilder| request.header("accept", accept);
            let response = self.send(Method::GET, &url, scope, time, &accept)?;
            let Some(response) = self.sender.check(response)? else { return Ok(None) };
            let head = Head { url: response.url().clone(), headers: response.headers().clone() };
            Ok(Some((head, self.sender.bytes(response, limit)?)))
        })
    }
}

/// The head of an answer whose body was read.
pub(super) struct Head {
    pub(super) url: Url,
    pub(super) headers: reqwest::header::HeaderMap,
}
