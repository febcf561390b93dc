//! Options and results of a push.

use super::secrets::has_secret;
use super::skip_reason::SkipReason;
use crate::{HubError, Token};

/// Options of an [`UploadSet`](crate::UploadSet).
#[derive(Clone, Debug, Default)]
pub struct UploadOptions {
    /// Patterns of files that are uploaded although they are skipped by default, such as `run.toml`,
    /// `*.jsonl` or `checkpoint-3`.
    ///
    /// A `*` does not match `/` or a leading dot. A pattern without a `/` matches in every folder. Links out
    /// of the folder are still skipped. Files that seem to contain a token are still skipped unless
    /// `with_tokens` is set.
    pub include: Vec<String>,
    /// Whether to upload files that seem to contain a token.
    pub with_tokens: bool,
    /// The user's own token. Files are also scanned for this token.
    pub token: Option<Token>,
}

/// A skipped file, or a skipped folder with all its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedFile {
    /// Path relative to the folder, with `/` as separator. The path of a folder ends with `/`.
    pub path: String,
    /// Reason to skip the file.
    pub reason: SkipReason,
}

/// Options of a push. The target branch is the revision in the repository name. A new branch starts at
/// `main`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Whether to create a private repository. If the repository is public and contains files, the push
    /// fails. If it is public and empty, it is made private first.
    pub private: bool,
    /// Whether to open a pull request instead of committing to the branch.
    pub create_pr: bool,
    /// First line of the commit message. The default is `Upload with danlu`.
    pub message: Option<String>,
    /// Body of the commit message.
    pub description: Option<String>,
}

impl PushOptions {
    /// Checks that the commit message contains no secret, because a push would publish the message.
    ///
    /// # Errors
    /// If the message contains a token, a private key, or the user's own token.
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
    /// Files are read to compute checksums: large files, and files that have the same size in the repository.
    Reading,
    /// Files are uploaded.
    Sending,
    /// The commit is requested. From here on, the commit may exist.
    Committing,
}

/// A finished push.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// Id of the commit on the branch or in the pull request.
    pub commit: String,
    /// URL of the repository's page, or of the branch's page if the branch is not `main`.
    pub url: String,
    /// URL of the pull request, if the push opened one.
    pub pull_request: Option<String>,
    /// Whether the push created the repository.
    pub created: bool,
    /// Whether the push created the branch.
    pub branched: bool,
    /// Paths of the files in the commit. The list is empty if the repository already contained all files.
    pub files: Vec<String>,
    /// Paths of deleted weights of the replaced model. If `files` is empty too, no commit was made.
    pub removed: Vec<String>,
    /// Number of bytes uploaded. Bytes that the storage already had from an interrupted push are not
    /// included.
    pub sent: u64,
    /// Number of files that the repository already contained.
    pub unchanged: usize,
    /// Paths that the repository's `.gitignore` excludes.
    pub ignored: Vec<String>,
}
