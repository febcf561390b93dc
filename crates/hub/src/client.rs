//! A connection to one Hub.

use std::time::Duration;

use crate::http::{Http, Request};
use crate::{HubError, HubSettings, RetryPolicy};

/// A connection to one Hub, and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    pub(crate) settings: HubSettings,
    pub(crate) http: Http,
}

impl Hub {
    /// A connection with these settings; nothing is read or sent yet.
    pub fn new(settings: HubSettings) -> Self {
        Self::with_retry_policy(settings, RetryPolicy::default())
    }

    /// As [`Hub::new`], with another patience.
    pub fn with_retry_policy(settings: HubSettings, retry_policy: RetryPolicy) -> Self {
        let http = Http::new(settings.endpoint.clone(), settings.token.clone(), retry_policy);
        Self { settings, http }
    }

    /// The same, where `told` hears every second of a long pause that a server asks for: of the host, of the time that is
    /// left, at last none, and of all of it.
    pub fn on_wait(self, told: impl Fn(&str, Duration, Duration) + Send + Sync + 'static) -> Self {
        Self { http: self.http.on_wait(Box::new(told)), ..self }
    }

    /// The settings.
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// The Hub's host.
    pub(crate) fn host(&self) -> String {
        Request::get(self.http.endpoint().as_str()).host()
    }

    /// Refuses what needs the network where the settings forbid it, or have a token that is none; `what` is a sentence's
    /// object.
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
