//! The one commit of a push: everything in it, or nothing.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::mode::Mode;
use crate::http::Ask;
use crate::listing::{escaped, is_hex};
use crate::refusal::{About, message};
use crate::{Hub, HubError, ParcelFile, PushOptions, RepoName};

/// What a commit is called where nobody says.
const MESSAGE: &str = "Upload with danlu";

/// A commit that was made.
pub(super) struct Committed {
    pub commit: String,
    pub pull_request: Option<String>,
}

/// Why there is none, or none that is known of.
pub(super) enum Uncommitted {
    /// Another commit was faster.
    Race,
    /// No answer, or one that another try may better; whether it has been made is to be seen.
    Unknown(Box<HubError>, Option<Duration>),
    /// It was refused.
    Refused(Box<HubError>),
}

#[derive(Deserialize)]
struct Made {
    #[serde(rename = "commitOid")]
    commit: String,
    #[serde(rename = "pullRequestUrl")]
    pull_request: Option<String>,
}

impl Hub {
    /// Makes the commit on `parent`, once.
    pub(super) fn commit(
        &self,
        repo: &RepoName,
        options: &PushOptions,
        parent: &str,
        files: &[(&ParcelFile, Mode)],
    ) -> Result<Committed, Uncommitted> {
        let body = body(options, parent, files).map_err(|error| Uncommitted::Refused(error.into()))?;
        let proposes = if options.create_pr { "?create_pr=1" } else { "" };
        let endpoint = self.http.endpoint();
        let url =
            format!("{endpoint}/api/models/{}/commit/{}{proposes}", repo.id(), escaped(repo.revision()));
        let ask = Ask::post(url, "application/x-ndjson", &body);
        let mut answer = match self.http.once(&ask) {
            Ok(answer) => answer,
            Err(error @ HubError::Connect { .. }) => return Err(Uncommitted::Unknown(error.into(), None)),
            Err(error) => return Err(Uncommitted::Refused(error.into())),
        };
        let wait = answer.is_passing();
        match answer.status.as_u16() {
            409 | 412 => return Err(Uncommitted::Race),
            400 | 422 => {
                let refused = HubError::Refused { repo: repo.clone(), message: message(&mut answer) };
                return Err(Uncommitted::Refused(refused.into()));
            }
            _ => {}
        }
        let judged = self.http.judged(answer, &ask, About::Repo(repo), self.settings.token_is_variable);
        let mut answer = judged.map_err(|error| match wait {
            Some(wait) => Uncommitted::Unknown(error.into(), wait),
            None => Uncommitted::Refused(error.into()),
        })?;
        // It is made: an answer that cannot be read is one that was lost.
        let unread = |reason: String| Uncommitted::Unknown(ask.fault(reason).into(), None);
        let bytes = answer.bytes().map_err(|error| unread(error.to_string()))?;
        let made: Made = serde_json::from_slice(&bytes).map_err(|error| unread(error.to_string()))?;
        if !is_hex(&made.commit, 40) {
            return Err(unread("the commit is not 40 hexadecimal digits".to_owned()));
        }
        let number = made.pull_request.as_deref().and_then(|url| url.rsplit('/').next()?.parse().ok());
        match (options.create_pr, number) {
            (false, _) => Ok(Committed { commit: made.commit, pull_request: None }),
            (true, Some(number)) => {
                Ok(Committed { commit: made.commit, pull_request: Some(self.pull_request_url(repo, number)) })
            }
            (true, None) => Err(unread("no address of the pull request".to_owned())),
        }
    }

    /// The page of a pull request.
    pub(super) fn pull_request_url(&self, repo: &RepoName, number: u64) -> String {
        format!("{}/{}/discussions/{number}", self.http.endpoint(), repo.id())
    }
}

/// A JSON value a line: first what the commit says of itself, then its files.
fn body(options: &PushOptions, parent: &str, files: &[(&ParcelFile, Mode)]) -> Result<Vec<u8>, HubError> {
    let summary =
        options.message.as_deref().map(str::trim).filter(|text| !text.is_empty()).unwrap_or(MESSAGE);
    let description = options.description.as_deref().unwrap_or_default();
    let mut body = Vec::new();
    let mut line = |key: &str, value: Value| {
        body.extend_from_slice(json!({ "key": key, "value": value }).to_string().as_bytes());
        body.push(b'\n');
    };
    line("header", json!({ "summary": summary, "description": description, "parentCommit": parent }));
    for (file, mode) in files {
        match mode {
            Mode::Regular => {
                let content = STANDARD.encode(file.content()?);
                line("file", json!({ "path": file.path(), "encoding": "base64", "content": content }));
            }
            Mode::Large => {
                // What it was when it was sent, it has to be still.
                file.open()?;
                let oid = file.sha256(&mut |_| {})?;
                let value = json!({ "path": file.path(), "algo": "sha256", "oid": oid, "size": file.size() });
                line("lfsFile", value);
            }
            Mode::Ignored => {}
        }
    }
    Ok(body)
}
