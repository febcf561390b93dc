//! What was asked and answered.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::http::Head;

/// Which of the two listeners a request came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// The Hub itself.
    Hub,
    /// The host that large files are sent to and fetched from.
    Storage,
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub struct Record {
    /// `GET`, `PUT` and so on.
    pub method: String,
    /// The listener it came to.
    pub host: Host,
    /// Path and query, as they were sent.
    pub target: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
    /// The `Range` header.
    pub range: Option<String>,
    /// The status it was answered with; none as long as there is no answer, or if the connection was cut before.
    pub status: Option<u16>,
    /// Bytes of its body that were read.
    pub received: u64,
    /// Bytes of the answer's body that were written.
    pub sent: u64,
}

/// The record of a request that is being answered.
#[derive(Clone)]
pub(crate) struct Entry(Arc<Mutex<Record>>);

impl Entry {
    pub fn change(&self, change: impl FnOnce(&mut Record)) {
        change(&mut lock(&self.0));
    }
}

/// All records since the start, or since they were cleared.
#[derive(Default)]
pub(crate) struct Records(Mutex<Vec<Entry>>);

impl Records {
    /// A request has come: its record is there from now on and fills as it is answered.
    pub fn begin(&self, host: Host, head: &Head) -> Entry {
        let header = |name| head.header(name).map(str::to_owned);
        let entry = Entry(Arc::new(Mutex::new(Record {
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

    pub fn all(&self) -> Vec<Record> {
        lock(&self.0).iter().map(|entry| lock(&entry.0).clone()).collect()
    }

    pub fn clear(&self) {
        lock(&self.0).clear();
    }
}

/// The guard of `mutex`, also after a thread that held it has panicked: a failing test is to show its own message.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
