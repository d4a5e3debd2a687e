//! Requests to answers: routing, permission, the access log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::{
    ALLOW, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, ORIGIN, WWW_AUTHENTICATE,
};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{State, Writers, read, write};
use crate::registry::RegistryError;
use crate::registry::layout::{self, Item};
use crate::registry::wire::{Cause, Refusal};

pub(super) async fn answer(state: &Arc<State>, peer: SocketAddr, request: Request) -> Response {
    let since = Instant::now();
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = match of_browser(state, &request) {
        Some(reason) => refuse(StatusCode::FORBIDDEN, reason),
        None => route(state, request).await,
    };
    let length = response.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    tracing::info!(
        target: "mica_fetcher::access",
        %peer, %method, path, status = response.status().as_u16(),
        bytes = length.unwrap_or("-"), ms = since.elapsed().as_millis(),
    );
    response
}

async fn route(state: &Arc<State>, request: Request) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().trim_start_matches('/').to_owned();
    if method == Method::GET || method == Method::HEAD {
        return match layout::parse(&path) {
            Some(item) => read::item(state, &item, &request.into_parts().0).await,
            None => refuse(StatusCode::NOT_FOUND, "there is nothing here"),
        };
    }
    let parts: Vec<&str> = path.split('/').collect();
    let target = match (method.as_str(), layout::parse(&path), &parts[..]) {
        ("PUT", Some(Item::Blob(digest)), _) => write::Target::Blob(digest),
        ("PUT", Some(Item::Layer(inputs)), _) => write::Target::Layer(inputs),
        ("PUT", Some(Item::Patches(image)), _) => write::Target::Patches(image),
        ("POST", Some(Item::Signatures(manifest)), _) => write::Target::Signatures(manifest),
        ("POST", None, ["packages", name]) => match name.parse() {
            Ok(name) => write::Target::Package(name),
            Err(_) => return refuse(StatusCode::NOT_FOUND, "this is not a package's name"),
        },
        ("POST", None, ["packages", name, "tags"]) => match name.parse() {
            Ok(name) => write::Target::Tags(name),
            Err(_) => return refuse(StatusCode::NOT_FOUND, "this is not a package's name"),
        },
        _ => {
            let mut response = refuse(StatusCode::METHOD_NOT_ALLOWED, "this cannot be done here");
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
    };
    match may_write(&state.options.writers, request.headers()) {
        Ok(()) => write::write(state, target, request).await,
        Err(refusal) => *refusal,
    }
}

/// Why a request is not answered that a browser may have made for somebody's web page.
fn of_browser(state: &State, request: &Request) -> Option<&'static str> {
    let headers = request.headers();
    if headers.contains_key(ORIGIN) {
        return Some("requests of web pages are not answered here");
    }
    let host = headers.get(HOST).filter(|_| state.loopback)?;
    let host = host.to_str().unwrap_or_default();
    let name = name_of(host);
    // A name without a dot is none that a stranger can have; for changes it has to be one of ours all the same.
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = is_this_machine(host)
        || (reads && !name.contains(['.', ':']))
        || state.options.hosts.iter().any(|own| own == name);
    (!known).then_some("this is not a name of this server; --host NAME makes it one")
}

/// `host[:port]` without the port.
fn name_of(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether it is a name that leads nowhere but to this machine, whoever is asked.
fn is_this_machine(host: &str) -> bool {
    let name = name_of(host);
    let number = name.trim_start_matches('[').trim_end_matches(']');
    let loopback = number.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    loopback || name.eq_ignore_ascii_case("localhost") || name.ends_with(".localhost")
}

fn may_write(writers: &Writers, headers: &HeaderMap) -> Result<(), Box<Response>> {
    let token = match writers {
        Writers::Everybody => return Ok(()),
        Writers::Nobody => {
            let reason = "this registry is served for reading only";
            return Err(Box::new(refuse(StatusCode::FORBIDDEN, reason)));
        }
        Writers::Token(token) => token,
    };
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given.and_then(token_of);
    // Hashes compare in constant time.
    let good = given
        .as_ref()
        .is_some_and(|given| blake3::hash(given.as_bytes()) == blake3::hash(token.as_bytes()));
    if good {
        return Ok(());
    }
    let reason = if given.is_some() { "the token is wrong" } else { "writing needs a token" };
    let mut response = refuse(StatusCode::UNAUTHORIZED, reason);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Err(Box::new(response))
}

/// A token, or what stands for one: the password of whatever name, which is all that credential files and helpers can hold.
fn token_of(header: &str) -> Option<String> {
    let (scheme, value) = header.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().to_owned());
    }
    let decoded =
        STANDARD.decode(value.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let pair = String::from_utf8(decoded).ok()?;
    Some(pair.split_once(':')?.1.to_owned())
}

/// A refusal with a reason for people.
pub(super) fn refuse(status: StatusCode, reason: &str) -> Response {
    json(status, &Refusal { error: reason.to_owned(), cause: None })
}

/// A refusal that the client can turn into the same error again.
pub(super) fn refuse_error(error: &RegistryError) -> Response {
    let cause = Cause::of(error);
    let status = match error {
        RegistryError::Add { .. } => StatusCode::CONFLICT,
        RegistryError::UnknownPackage { .. } => StatusCode::NOT_FOUND,
        RegistryError::File(error) if error.is_full() => StatusCode::INSUFFICIENT_STORAGE,
        RegistryError::File(_) | RegistryError::Document { .. } => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    };
    if status.is_server_error() {
        let reason = std::error::Error::source(error).map(ToString::to_string);
        tracing::error!(%error, reason, "cannot serve");
    }
    let error = match (error, std::error::Error::source(error)) {
        (RegistryError::File(_), Some(reason)) => format!("{error}: {reason}"),
        _ => error.to_string(),
    };
    json(status, &Refusal { error, cause })
}

fn json(status: StatusCode, refusal: &Refusal) -> Response {
    let body = serde_json::to_vec(refusal).expect("a refusal holds strings and numbers");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
