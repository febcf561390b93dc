//! A connection to one Hub.

use std::time::Duration;

use crate::http::{Ask, Http};
use crate::{HubError, HubSettings, Pace};

/// A connection to one Hub, and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    pub(crate) settings: HubSettings,
    pub(crate) http: Http,
}

impl Hub {
    /// A connection with these settings; nothing is read or sent yet.
    pub fn new(settings: HubSettings) -> Self {
        Self::with_pace(settings, Pace::default())
    }

    /// As [`Hub::new`], with another patience.
    pub fn with_pace(settings: HubSettings, pace: Pace) -> Self {
        let http = Http::new(settings.endpoint.clone(), settings.token.clone(), pace);
        Self { settings, http }
    }

    /// The same, where `told` hears every second of a long pause that a server asks for: of the host, of the time that is
    /// left, at last none, and of all of it.
    pub fn telling(self, told: impl Fn(&str, Duration, Duration) + Send + Sync + 'static) -> Self {
        Self { http: self.http.telling(Box::new(told)), ..self }
    }

    /// The settings.
    pub fn settings(&self) -> &HubSettings {
        &self.settings
    }

    /// The Hub's host.
    pub(crate) fn host(&self) -> String {
        Ask::get(self.http.endpoint().as_str()).host()
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
