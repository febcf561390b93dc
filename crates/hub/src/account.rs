//! Whose token it is.

use serde::Deserialize;

use crate::http::Request;
use crate::http::Resource;
use crate::{Hub, HubError};

/// An account of the Hub, as its token sees it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Organisations it belongs to.
    #[serde(default)]
    pub orgs: Vec<Organisation>,
    /// What the token may do.
    #[serde(default)]
    auth: Auth,
}

/// An organisation of an account.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Organisation {
    /// Its name.
    pub name: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Auth {
    #[serde(rename = "accessToken")]
    access_token: Option<AccessToken>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
struct AccessToken {
    #[serde(rename = "displayName")]
    display_name: Option<String>,
    role: Option<String>,
}

impl Account {
    /// `read`, `write` or `fineGrained`, where the Hub tells.
    pub fn role(&self) -> Option<&str> {
        self.auth.access_token.as_ref()?.role.as_deref()
    }

    /// The name that the token was given.
    pub fn token_name(&self) -> Option<&str> {
        self.auth.access_token.as_ref()?.display_name.as_deref()
    }
}

impl Hub {
    /// Asks whose token it is.
    ///
    /// # Errors
    /// If there is none, or the Hub does not accept it.
    pub fn whoami(&self) -> Result<Account, HubError> {
        let http = self.online(String::new).map_err(|error| match error {
            HubError::Offline { .. } => HubError::OfflineAccount,
            error => error,
        })?;
        if !http.has_token() {
            return Err(HubError::NoToken { what: "finding out whose account this is".to_owned() });
        }
        let request = Request::get(format!("{}/api/whoami-v2", http.endpoint()));
        self.json(&request, Resource::Account)
    }
}
