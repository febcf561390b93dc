use std::time::Duration;

use crate::http::{Http, Request};
use crate::{HubError, HubSettings, RetryPolicy};

/// A client of one Hub, with a local cache.
#[derive(Debug)]
pub struct Hub {
    pub(crate) settings: HubSettings,
    pub(crate) http: Http,
}

impl Hub {
    /// Creates a client. Reads no files and sends no requests.
    pub fn new(settings: HubSettings) -> Self {
        Self::with_retry_policy(settings, RetryPolicy::default())
    }

    /// Creates a client with this retry policy.
    pub fn with_retry_policy(settings: HubSettings, retry_policy: RetryPolicy) -> Self {
        let http = Http::new(settings.endpoint.clone(), settings.token.clone(), retry_policy);
        Self { settings, http }
    }

    /// Sets a callback for long waits. If a server requests a wait of more than two seconds with
    /// `Retry-After`, the client calls `on_wait(host, remaining, total)` once per second. The last call has a
    /// `remaining` of zero.
    pub fn on_wait(self, on_wait: impl Fn(&str, Duration, Duration) + Send + Sync + 'static) -> Self {
        Self { http: self.http.on_wait(Box::new(on_wait)), ..self }
    }

    /// Returns the settings.
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    pub(crate) fn host(&self) -> String {
        Request::get(self.http.endpoint().as_str()).host()
    }

    /// Returns the HTTP client. If network access is forbidden, the error contains the text `what()`, such as
    /// the name of a repository.
    ///
    /// # Errors
    /// If the settings forbid network access, or the token is invalid.
    pub(crate) fn online(&self, what: impl FnOnce() -> String) -> Result<&Http, HubError> {
        if self.settings.offline {
            return Err(HubError::Offline { what: what() });
        }
        match &self.settings.token_fault {
            Some(fault) => Err(fault.clone().into()),
            None => Ok(&self.http),
        }
    }
}
