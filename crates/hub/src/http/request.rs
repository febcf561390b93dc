//! A request, before anybody has it.

use std::borrow::Cow;
use std::sync::atomic::AtomicBool;

use ureq::http::Method;

use crate::HubError;
use crate::http::url::origin;
use crate::push::FilePart;

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    pub method: Method,
    /// An address of the Hub, or one that it gave.
    pub url: String,
    pub headers: Vec<(Cow<'static, str>, String)>,
    pub load: Body<'a>,
    /// Says when nobody waits for the answer any more.
    pub stop: Option<&'a AtomicBool>,
    /// Whether its answer may take long, and must not be asked for again before.
    pub is_slow: bool,
}

/// What a request brings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    Nothing,
    Bytes(&'a [u8]),
    FilePart(&'a FilePart<'a>),
}

impl<'a> Request<'a> {
    /// Reads what is at `url`.
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

    /// Brings `bytes` of a kind such as `application/json`.
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

    /// Puts a part of a file there.
    pub fn put(url: impl Into<String>, slice: &'a FilePart<'a>) -> Self {
        let (headers, load, stop) = (Vec::new(), Body::FilePart(slice), Some(slice.stop));
        Self { method: Method::PUT, url: url.into(), headers, load, stop, is_slow: false }
    }

    /// The request in words: the address without its query, which may be signed.
    pub fn words(&self) -> String {
        format!("{} {}", self.method, self.url.split(['?', '#']).next().unwrap_or_default())
    }

    /// An answer that the Hub does not give.
    pub fn fault(&self, fault: impl Into<String>) -> HubError {
        HubError::Response { host: self.host(), request: self.words(), fault: fault.into() }
    }

    /// The host asked.
    pub fn host(&self) -> String {
        origin(&self.url).map_or_else(|| self.url.clone(), |(_, host)| host)
    }
}
