use serde::Deserialize;

use crate::http::Request;
use crate::http::Resource;
use crate::{Hub, HubError};

/// An account, as the Hub returns it for a token.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Account {
    /// The user's name.
    pub name: String,
    /// Organisations of the account.
    #[serde(default)]
    pub orgs: Vec<Organisation>,
    /// Permissions of the token.
    #[serde(default)]
    auth: Auth,
}

/// An organisation that an account belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Organisation {
    /// The organisation's name.
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
    /// Returns `read`, `write` or `fineGrained`, if the Hub reports the role.
    pub fn role(&self) -> Option<&str> {
        self.auth.access_token.as_ref()?.role.as_deref()
    }

    /// Replaces the token in all texts from the server, so that these texts can be displayed.
    fn redacted(self, redact: impl Fn(String) -> String) -> Self {
        let orgs = self.orgs.into_iter().map(|org| Organisation { name: redact(org.name) }).collect();
        let token = self.auth.access_token.map(|token| AccessToken {
            display_name: token.display_name.map(&redact),
            role: token.role.map(&redact),
        });
        Self { name: redact(self.name), orgs, auth: Auth { access_token: token } }
    }

    /// Returns the name of the token.
    pub fn token_name(&self) -> Option<&str> {
        self.auth.access_token.as_ref()?.display_name.as_deref()
    }
}

impl Hub {
    /// Requests the account that the token belongs to.
    ///
    /// # Errors
    /// If there is no token, or the Hub rejects the token.
    pub fn whoami(&self) -> Result<Account, HubError> {
        let http = self.online(String::new).map_err(|error| match error {
            HubError::Offline { .. } => HubError::OfflineAccount,
            error => error,
        })?;
        if !http.has_token() {
            return Err(HubError::NoToken { what: "looking up the account".to_owned() });
        }
        let request = Request::get(format!("{}/api/whoami-v2", http.endpoint()));
        let account: Account = self.json(&request, Resource::Account)?;
        Ok(account.redacted(|text| http.redacted(&text)))
    }
}
