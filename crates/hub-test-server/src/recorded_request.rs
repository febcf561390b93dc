//! Records of requests and responses.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::http::Head;

/// The listener that received a request.
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
    /// HTTP method, such as `GET` or `PUT`.
    pub method: String,
    /// The listener that received the request.
    pub host: Host,
    /// Path and query as sent.
    pub target: String,
    /// Value of the `Authorization` header.
    pub authorization: Option<String>,
    /// Value of the `Range` header.
    pub range: Option<String>,
    /// Status of the response. `None` until the response is sent. If the connection is closed first, the
    /// status remains `None`.
    pub status: Option<u16>,
    /// Number of bytes of the request body that were read.
    pub received: u64,
    /// Number of bytes of the response body that were written.
    pub sent: u64,
}

/// A shared record of one request. The server updates the record while it serves the request.
#[derive(Clone)]
pub(crate) struct Entry(Arc<Mutex<RecordedRequest>>);

impl Entry {
    pub fn change(&self, change: impl FnOnce(&mut RecordedRequest)) {
        change(&mut lock(&self.0));
    }
}

/// All records since the server started, or since the records were last cleared.
#[derive(Default)]
pub(crate) struct Records(Mutex<Vec<Entry>>);

impl Records {
    /// Adds a record. The server updates the record while it serves the request.
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

/// Locks `mutex`, even if another thread panicked while it held the lock. A failing test then shows its own
/// message.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
