//! Redirects, without what proves who we are.
//!
//! Another origin (scheme, host and port) gets none of the headers that a request had but those that say what is wanted: neither
//! `Authorization` nor a store's own, such as `X-Amz-Security-Token`. Only requests that change nothing are redirected: where a
//! change should go is for whoever configured the registry to say.

use reqwest::header::{
    ACCEPT, HeaderMap, IF_MATCH, IF_NONE_MATCH, IF_RANGE, LOCATION, RANGE, USER_AGENT,
};
use reqwest::{Client, Method, Request, Response, StatusCode, Url};

/// More redirects than this lead nowhere.
const MOST: usize = 10;

/// Sends a request, and again where the answer says so. `client` follows no redirects itself.
pub(crate) async fn follow(client: &Client, mut request: Request) -> reqwest::Result<Response> {
    for _ in 0..MOST {
        let again = again(&request);
        let response = client.execute(request).await?;
        let next = again.zip(target(&response)).and_then(|(again, url)| redirected(again, url));
        match next {
            Some(next) => request = next,
            None => return Ok(response),
        }
    }
    client.execute(request).await
}

/// The same request, if it may be sent to where it is redirected. It has no body then.
fn again(request: &Request) -> Option<Request> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return None;
    }
    let mut again = Request::new(request.method().clone(), request.url().clone());
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

fn target(response: &Response) -> Option<Url> {
    let redirects = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !redirects.contains(&response.status()) {
        return None;
    }
    let location = response.headers().get(LOCATION)?.to_str().ok()?;
    let url = response.url().join(location).ok()?;
    matches!(url.scheme(), "http" | "https").then_some(url)
}

/// The request to where it was sent on.
fn redirected(mut request: Request, url: Url) -> Option<Request> {
    if url.origin() != request.url().origin() {
        let old = std::mem::take(request.headers_mut());
        *request.headers_mut() = harmless(&old);
    }
    *request.url_mut() = url;
    Some(request)
}

fn harmless(headers: &HeaderMap) -> HeaderMap {
    let kept = [ACCEPT, RANGE, IF_RANGE, IF_MATCH, IF_NONE_MATCH, USER_AGENT];
    let kept = kept.into_iter().filter_map(|name| {
        let value = headers.get(&name)?.clone();
        Some((name, value))
    });
    kept.collect()
}
