//! Error responses of the Hub.

use serde_json::json;

use crate::http::Response;

pub(crate) struct ApiError(pub Response);

impl ApiError {
    /// Creates an error with `message` in a header and in the body, as the Hub does.
    pub fn new(status: u16, message: impl Into<String>) -> Self {
        let message = message.into();
        // A header may contain only one line of ASCII, so only the body contains the whole message.
        let line: String =
            message.chars().map(|c| if c.is_ascii() && !c.is_control() { c } else { '?' }).collect();
        Self(Response::json(status, &json!({ "error": message })).with("X-Error-Message", line))
    }

    /// Adds the header `X-Error-Code`. Clients use the code to choose an exception.
    pub fn code(self, code: &str) -> Self {
        Self(self.0.with("X-Error-Code", code))
    }

    pub fn repository(signed_in: bool) -> Self {
        if signed_in {
            Self::new(404, "Repository not found").code("RepoNotFound")
        } else {
            Self::new(401, "Invalid username or password.").code("RepoNotFound")
        }
    }

    pub fn revision(name: &str) -> Self {
        Self::new(404, format!("Invalid rev id: {name}")).code("RevisionNotFound")
    }

    pub fn entry(path: &str, commit: &str) -> Self {
        let error = Self::new(404, format!("Entry not found: \"{path}\"")).code("EntryNotFound");
        Self(error.0.with("X-Repo-Commit", commit))
    }
}
