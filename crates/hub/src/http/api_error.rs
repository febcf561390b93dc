//! Converts error responses to errors, based on the Hub's headers and status codes.

use crate::http::{Http, Request, Response};
use crate::{HubError, RepoName};

/// Maximum length in characters of a server's message in an error.
const MAX_MESSAGE_CHARS: usize = 300;

/// The resource that a request accesses.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Resource<'a> {
    /// The account of the token.
    Account,
    /// A model or a data set.
    Repo(&'a RepoName),
    /// A file of a model or a data set.
    File(&'a RepoName, &'a str),
}

impl Http {
    /// Sends a request, and returns the response if its status is a success.
    ///
    /// # Errors
    /// As for [`Http::send`], and for every other status.
    pub fn send_checked(
        &self,
        request: &Request<'_>,
        resource: Resource<'_>,
        token_is_variable: bool,
    ) -> Result<Response, HubError> {
        self.check_status(self.send(request)?, request, resource, token_is_variable)
    }

    /// Returns the response if its status is a success.
    ///
    /// # Errors
    /// For every other status.
    pub fn check_status(
        &self,
        mut response: Response,
        request: &Request<'_>,
        resource: Resource<'_>,
        token_is_variable: bool,
    ) -> Result<Response, HubError> {
        if response.status.is_success() {
            return Ok(response);
        }
        let (host, refuser) = (request.host(), response.host.clone());
        // A storage host receives no token, so its status does not concern the token.
        let is_asked = refuser == host;
        let with_token = is_asked && self.has_token();
        let repo = match resource {
            Resource::Account => None,
            Resource::Repo(repo) | Resource::File(repo, _) => Some(repo.clone()),
        };
        let message = message(&mut response);
        let status = response.status.as_u16();
        Err(match (response.header("x-error-code"), repo, status) {
            (Some("RevisionNotFound"), Some(repo), _) => HubError::NoRevision { repo },
            (Some("EntryNotFound"), Some(repo), _) => {
                let file =
                    if let Resource::File(_, file) = resource { file.to_owned() } else { "/".to_owned() };
                HubError::NoFile { repo, file }
            }
            (Some("GatedRepo"), Some(repo), _) => {
                let page = format!("{}/{}", self.endpoint(), repo.page_path());
                HubError::Gated { repo, page, with_token }
            }
            (code, repo, 401) if is_asked => match repo {
                // For a hidden model, the Hub returns the error code of a missing model. For an invalid
                // token, the code is different.
                Some(repo) if code == Some("RepoNotFound") || !with_token => {
                    HubError::NoModel { repo, host, with_token }
                }
                _ if with_token => HubError::BadToken { host, is_variable: token_is_variable },
                _ => HubError::NoToken { what: request.words() },
            },
            (_, Some(repo), 404) if is_asked => HubError::NoModel { repo, host, with_token },
            (_, _, 403) => HubError::Forbidden { host: refuser, message },
            _ => HubError::Status { host: refuser, request: request.words(), status, message },
        })
    }
}

/// Returns the server's message as one short line.
pub(crate) fn message(response: &mut Response) -> String {
    let said = response.header("x-error-message").map(str::to_owned);
    let said = said.or_else(|| {
        let body: serde_json::Value = serde_json::from_slice(&response.bytes().ok()?).ok()?;
        Some(body.get("error")?.as_str()?.to_owned())
    });
    // The token is replaced before the text is truncated. In the reverse order, half of a token could remain.
    let said = response.redacted(&said.unwrap_or_default());
    let line: String =
        said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_MESSAGE_CHARS).collect();
    line.trim().to_owned()
}
