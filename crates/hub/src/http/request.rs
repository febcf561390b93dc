use std::borrow::Cow;
use std::sync::atomic::AtomicBool;

use ureq::http::Method;

use crate::HubError;
use crate::http::url::origin;
use crate::push::FilePart;

#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    pub method: Method,
    /// A URL of the Hub, or a URL from a response of the Hub.
    pub url: String,
    pub headers: Vec<(Cow<'static, str>, String)>,
    pub load: Body<'a>,
    /// Flag that cancels the request when set.
    pub stop: Option<&'a AtomicBool>,
    /// Whether the server may need a long time to respond. The request then has a longer time limit.
    pub is_slow: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    Nothing,
    Bytes(&'a [u8]),
    FilePart(&'a FilePart<'a>),
}

impl<'a> Request<'a> {
    /// Creates a GET request without headers and body.
    pub fn get(url: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            url: url.into(),
            headers: Vec::new(),
            load: Body::Nothing,
            stop: None,
            is_slow: false,
        }
    }

    /// Creates a POST request with a content type such as `application/json`.
    pub fn post(url: impl Into<String>, kind: &str, bytes: &'a [u8]) -> Self {
        let headers = vec![(Cow::Borrowed("content-type"), kind.to_owned())];
        Self {
            method: Method::POST,
            url: url.into(),
            headers,
            load: Body::Bytes(bytes),
            stop: None,
            is_slow: false,
        }
    }

    /// Creates a PUT request with a part of a file.
    pub fn put(url: impl Into<String>, slice: &'a FilePart<'a>) -> Self {
        let (headers, load, stop) = (Vec::new(), Body::FilePart(slice), Some(slice.stop));
        Self { method: Method::PUT, url: url.into(), headers, load, stop, is_slow: false }
    }

    /// Returns the method and the URL without its query. The query may contain a signature.
    pub fn words(&self) -> String {
        format!("{} {}", self.method, self.url.split(['?', '#']).next().unwrap_or_default())
    }

    /// Returns the error of an unexpected response.
    pub fn fault(&self, fault: impl Into<String>) -> HubError {
        HubError::Response { host: self.host(), request: self.words(), fault: fault.into() }
    }

    /// Returns the host of the URL.
    pub fn host(&self) -> String {
        origin(&self.url).map_or_else(|| self.url.clone(), |(_, host)| host)
    }
}
