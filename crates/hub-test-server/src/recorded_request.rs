//! Records of requests and responses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::http::Head;

/// The listener of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The listener for names, trees and commits.
    Hub,
    /// The listener for large files.
    Storage,
}

/// One request and its response.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    /// `GET`, `PUT` and so on.
    pub method: String,
    /// The listener that received the request.
    pub host: Host,
    /// Path and query, as sent.
    pub target: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
    /// Status of the response; `None` before it is sent, or if the connection was cut first.
    pub status: Option<u16>,
    /// Bytes read of the request's body.
    pub received: u64,
    /// Bytes written of the response's body.
    pub sent: u64,
}

/// The record of a request in progress.
#[derive(Clone)]
pub(crate) struct Entry(Arc<Mutex<RecordedRequest>>);

impl Entry {
    pub fn change(&self, change: impl FnOnce(&mut RecordedRequest)) {
        change(&mut lock(&self.0));
    }
}

/// All records since the start or the last clear.
#[derive(Default)]
pub(crate) struct Records(Mutex<Vec<Entry>>);

impl Records {
    /// Adds a record. It is filled while the request is served.
    pub fn begin(&self, host: Host, head: &Head) -> Entry {
        let header = |name| head.header(name).map(str::to_owned);
        let entry = Entry(Arc::new(Mutex::new(RecordedRequest {
            method: head.method.clone(),
            host,
            target: head.target.raw.clone(),
            authorization: header("Authorization"),
            range: header("Range"),
            status: None,
            received: 0,
            sent: 0,
        })));
        lock(&self.0).push(entry.clone());
        entry
    }

    pub fn all(&self) -> Vec<RecordedRequest> {
        lock(&self.0).iter().map(|entry| lock(&entry.0).clone()).collect()
    }

    pub fn clear(&self) {
        lock(&self.0).clear();
    }
}

/// Locks `mutex`, even if another thread panicked: a failing test must show its own message.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
