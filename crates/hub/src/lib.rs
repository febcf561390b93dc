//! The Hugging Face Hub: models by name, in the cache that Python's tools share.
//!
//! A [`RepoName`] such as `org/name@revision` becomes a folder: from the cache without a byte of traffic, or by
//! [`Hub::pull`], which fetches what danlu reads, several files at a time, and verifies every one. The layout, the
//! locks and the variables are those of `huggingface_hub`, so that either side finds what the other fetched.
//!
//! The other way a [`Parcel`] says what of a folder goes and what stays, [`Hub::differences`] what a repository lacks of
//! it, and [`Hub::push`] sends that as one commit.

mod account;
mod address;
mod blob;
mod cache;
mod error;
mod hint;
mod http;
mod listing;
mod machine;
mod name;
mod pull;
mod push;
mod refusal;
mod settings;
mod slice;
mod sum;
mod token;
mod wait;
mod wanted;

pub use account::Account;
pub use error::HubError;
pub use http::Pace;
pub use name::RepoName;
pub use pull::{Extent, Pulled, Transfer};
pub use push::{Differences, Left, Parcel, ParcelFile, ParcelOptions, PushOptions, Pushed, Reason, Stage};
pub use settings::{Endpoint, HubSettings};
pub use token::{Token, TokenFault};

use std::time::Duration;

use crate::http::{Ask, Http};

/// A connection to one Hub, and the cache of what came from it.
#[derive(Debug)]
pub struct Hub {
    settings: HubSettings,
    http: Http,
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
    fn host(&self) -> String {
        Ask::get(self.http.endpoint().as_str()).host()
    }

    /// Refuses what needs the network where the settings forbid it, or have a token that is none; `what` is a sentence's
    /// object.
    fn online(&self, what: impl FnOnce() -> String) -> Result<&Http, HubError> {
        if self.settings.offline {
            return Err(HubError::Offline { what: what() });
        }
        match &self.settings.token_fault {
            Some(fault) => Err(fault.clone().into()),
            None => Ok(&self.http),
        }
    }
}
