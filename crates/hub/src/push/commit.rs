//! The commit request of a push.

use std::io::{self, Read};
use std::time::Duration;

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use serde::Deserialize;
use serde_json::{Value, json};

use super::preupload::UploadMode;
use crate::checksum::is_hex;
use crate::http::Request;
use crate::http::url::escaped;
use crate::http::{Resource, message};
use crate::{Hub, HubError, PushOptions, RepoName, UploadFile};

/// The default first line of a commit message.
const MESSAGE: &str = "Upload with danlu";

pub(super) struct NewCommit {
    pub commit: String,
    pub pull_request: Option<String>,
}

/// Reason why a commit is not confirmed.
pub(super) enum CommitError {
    /// Another commit was made first.
    Race,
    /// It is unknown whether the Hub made the commit: the response was lost, or reports a temporary error.
    /// The duration is the wait that the server requests before a retry.
    Unknown(Box<HubError>, Option<Duration>),
    /// The Hub rejected the commit.
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
    /// Commits `files` with the parent `parent`, and deletes the paths in `removed`. Sends one request.
    pub(super) fn commit(
        &self,
        repo: &RepoName,
        options: &PushOptions,
        parent: &str,
        files: &[(&UploadFile, UploadMode)],
        removed: &[String],
    ) -> Result<NewCommit, CommitError> {
        let body =
            body(options, parent, files, removed).map_err(|error| CommitError::Refused(error.into()))?;
        let proposes = if options.create_pr { "?create_pr=1" } else { "" };
        let endpoint = self.http.endpoint();
        let url =
            format!("{endpoint}/api/models/{}/commit/{}{proposes}", repo.id(), escaped(repo.revision()));
        let request = Request { is_slow: true, ..Request::post(url, "application/x-ndjson", &body) };
        let mut response = match self.http.send_once(&request) {
            Ok(response) => response,
            Err(error @ HubError::Connect { .. }) => return Err(CommitError::Unknown(error.into(), None)),
            Err(error) => return Err(CommitError::Refused(error.into())),
        };
        let wait = response.is_passing();
        match response.status.as_u16() {
            409 | 412 => return Err(CommitError::Race),
            // The path to delete no longer exists, so another commit was made first.
            404 if !removed.is_empty() && response.header("x-error-code") == Some("EntryNotFound") => {
                return Err(CommitError::Race);
            }
            400 | 422 => {
                let refused = HubError::Refused { repo: repo.clone(), message: message(&mut response) };
                return Err(CommitError::Refused(refused.into()));
            }
            _ => {}
        }
        let check_status =
            self.http.check_status(response, &request, Resource::Repo(repo), self.settings.token_is_variable);
        let mut response = check_status.map_err(|error| match wait {
            Some(wait) => CommitError::Unknown(error.into(), wait),
            None => CommitError::Refused(error.into()),
        })?;
        // The Hub has made the commit, so an unreadable response is handled like a lost response.
        let unread =
            |reason: String| CommitError::Unknown(request.fault(self.http.redacted(&reason)).into(), None);
        let bytes = response.bytes().map_err(|error| unread(error.to_string()))?;
        let made: Made = serde_json::from_slice(&bytes).map_err(|error| unread(error.to_string()))?;
        if !is_hex(&made.commit, 40) {
            return Err(unread("the commit is not 40 hexadecimal digits".to_owned()));
        }
        let number = made.pull_request.as_deref().and_then(|url| url.rsplit('/').next()?.parse().ok());
        match (options.create_pr, number) {
            (false, _) => Ok(NewCommit { commit: made.commit, pull_request: None }),
            (true, Some(number)) => {
                Ok(NewCommit { commit: made.commit, pull_request: Some(self.pull_request_url(repo, number)) })
            }
            (true, None) => Err(unread("no URL of the pull request".to_owned())),
        }
    }

    /// Returns the URL of a repository's page, or of a branch's page.
    pub(super) fn page_url(&self, repo: &RepoName) -> String {
        let page = format!("{}/{}", self.http.endpoint(), repo.id());
        match repo.revision() {
            "main" => page,
            // In URLs of pages, the Hub does not escape the `/` of a branch.
            revision => {
                format!("{page}/tree/{}", revision.split('/').map(escaped).collect::<Vec<_>>().join("/"))
            }
        }
    }

    pub(super) fn pull_request_url(&self, repo: &RepoName, number: u64) -> String {
        format!("{}/{}/discussions/{number}", self.http.endpoint(), repo.id())
    }
}

/// Builds the body: one JSON value per line, first the header and then the files.
///
/// Regular files are encoded directly into the body, so memory contains each file only once.
fn body(
    options: &PushOptions,
    parent: &str,
    files: &[(&UploadFile, UploadMode)],
    removed: &[String],
) -> Result<Vec<u8>, HubError> {
    let summary =
        options.message.as_deref().map(str::trim).filter(|text| !text.is_empty()).unwrap_or(MESSAGE);
    let description = options.description.as_deref().unwrap_or_default();
    let is_regular = |(_, mode): &&(&UploadFile, UploadMode)| *mode == UploadMode::Regular;
    let regular: u64 = files.iter().filter(is_regular).map(|(file, _)| file.size().div_ceil(3) * 4).sum();
    let lines = 1024 * (files.len() + removed.len() + 1);
    let mut body = Vec::with_capacity(usize::try_from(regular).unwrap_or(0) + lines);
    let header = json!({ "summary": summary, "description": description, "parentCommit": parent });
    line(&mut body, "header", &header);
    for (file, mode) in files {
        match mode {
            UploadMode::Regular => within(&mut body, file)?,
            UploadMode::Large => {
                // `open` returns an error if the file has changed after its upload.
                file.open()?;
                let oid = file.sha256(&mut |_| {})?;
                let value = json!({ "path": file.path(), "algo": "sha256", "oid": oid, "size": file.size() });
                line(&mut body, "lfsFile", &value);
            }
            UploadMode::Ignored => {}
        }
    }
    for path in removed {
        line(&mut body, "deletedFile", &json!({ "path": path }));
    }
    Ok(body)
}

fn line(body: &mut Vec<u8>, key: &str, value: &Value) {
    body.extend_from_slice(json!({ "key": key, "value": value }).to_string().as_bytes());
    body.push(b'\n');
}

/// Writes the line of a regular file with its content.
fn within(body: &mut Vec<u8>, file: &UploadFile) -> Result<(), HubError> {
    let path = Value::from(file.path());
    let begin = format!(r#"{{"key":"file","value":{{"path":{path},"encoding":"base64","content":""#);
    body.extend_from_slice(begin.as_bytes());
    let content = file.open()?;
    let mut encoder = EncoderWriter::new(&mut *body, &STANDARD);
    let copied = io::copy(&mut content.reader().take(file.size() + 1), &mut encoder);
    let copied = copied.map_err(|error| file.unread(error))?;
    // Writing to memory cannot fail.
    let _ = encoder.finish();
    drop(encoder);
    file.check(&content)?;
    if copied != file.size() {
        return Err(file.changed());
    }
    body.extend_from_slice(b"\"}}\n");
    Ok(())
}
