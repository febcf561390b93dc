//! Options and results of a push.

use super::secrets::has_secret;
use super::skip_reason::SkipReason;
use crate::{HubError, Token};

/// Options of an [`UploadSet`](crate::UploadSet).
#[derive(Clone, Debug, Default)]
pub struct UploadOptions {
    /// Patterns of files to upload that would be skipped: `run.toml`, `*.jsonl`, `checkpoint-3`.
    ///
    /// A `*` does not match `/` or a leading dot. A pattern without a `/` matches in every folder. Files that
    /// contain a token are still skipped.
    pub include: Vec<String>,
    /// Whether to upload files that seem to contain a token.
    pub with_tokens: bool,
    /// The user's own token. Files are also scanned for it.
    pub token: Option<Token>,
}

/// A skipped file, or a skipped folder with its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedFile {
    /// Path relative to the folder, with `/` as separator. A folder ends with `/`.
    pub path: String,
    /// The reason.
    pub reason: SkipReason,
}

/// Options of a push. The branch is the revision of the name; a new branch starts at `main`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Whether to create a private repository. An existing public repository is refused. An empty one is made
    /// private first.
    pub private: bool,
    /// Whether to open a pull request instead of committing to the branch.
    pub create_pr: bool,
    /// First line of the commit message; `Upload with danlu` by default.
    pub message: Option<String>,
    /// Body of the commit message.
    pub description: Option<String>,
}

impl PushOptions {
    /// Checks that the commit message contains no secret, which a push would publish.
    ///
    /// # Errors
    /// If it contains a token, a private key, or the user's own token.
    pub fn check_message(&self, own: Option<&Token>) -> Result<(), HubError> {
        let mut texts = self.message.iter().chain(&self.description);
        match texts.any(|text| has_secret(text, own)) {
            true => Err(HubError::SecretMessage),
            false => Ok(()),
        }
    }
}

/// A stage of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushStage {
    /// Reading files to compute checksums: large files, and files with the size of a file in the repository.
    Reading,
    /// Uploading files.
    Sending,
    /// Committing. From here on the commit may exist.
    Committing,
}

/// A finished push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The commit on the branch or the pull request.
    pub commit: String,
    /// Page of the repository, or of the branch if it is not `main`.
    pub url: String,
    /// Page of the pull request.
    pub pull_request: Option<String>,
    /// Whether the push created the repository.
    pub created: bool,
    /// Whether the push created the branch.
    pub branched: bool,
    /// Paths in the commit. Empty if the repository had all files.
    pub files: Vec<String>,
    /// Deleted paths: weights of the replaced model. If `files` is empty too, no commit was made.
    pub removed: Vec<String>,
    /// Bytes uploaded. Storage may have had others from an interrupted push.
    pub sent: u64,
    /// Number of files that the repository already had.
    pub unchanged: usize,
    /// Paths that the repository's `.gitignore` excludes.
    pub ignored: Vec<String>,
}
