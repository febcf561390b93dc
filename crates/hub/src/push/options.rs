//! What a push takes and returns.

use super::skip_reason::SkipReason;
use crate::Token;

/// What is otherwise than usual in a [`UploadSet`].
#[derive(Clone, Debug, Default)]
pub struct UploadOptions {
    /// Paths that come along though they would stay: `run.toml`, `*.jsonl`, `checkpoint-3`. A `*` stands for no `/`, and
    /// not for the dot that hides a file; a name without a `/` is meant in every folder. Files with a token in them still
    /// stay.
    pub include: Vec<String>,
    /// Whether files come along in which something looks like a token.
    pub with_tokens: bool,
    /// The user's own token, which is looked for as well.
    pub token: Option<Token>,
}

/// A file that stays, or a folder with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedFile {
    /// Its path within the folder, with `/`; a folder's ends in one.
    pub path: String,
    /// Why.
    pub reason: SkipReason,
}

/// What a push is to be like. The branch is the name's revision; one that is not there begins where `main` is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushOptions {
    /// Whether a new repository is its owner's alone. One that is there and public is then refused, unless it holds
    /// nothing yet: that becomes private first.
    pub private: bool,
    /// Whether the commit is offered to the repository's owner instead of made on the branch.
    pub create_pr: bool,
    /// The commit's first line; `Upload with danlu` where there is none.
    pub message: Option<String>,
    /// More about it.
    pub description: Option<String>,
}

/// What a push does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reads files of which the repository has one of equal size, and large ones, for their checksums.
    Reading,
    /// Sends them.
    Sending,
    /// Makes the commit: only from here on it may be there.
    Committing,
}

/// A push that is done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The commit that holds everything: of the branch, or of the pull request.
    pub commit: String,
    /// The repository's page; that of the branch, where it is not the main one.
    pub url: String,
    /// The pull request's page.
    pub pull_request: Option<String>,
    /// Whether the repository was made for it.
    pub created: bool,
    /// Whether the branch was, in a repository that was there or not.
    pub branched: bool,
    /// Paths in the commit; none where the repository had everything.
    pub files: Vec<String>,
    /// Paths that it takes away: weights of the model that was there before. Without these and those no commit was made.
    pub removed: Vec<String>,
    /// Bytes of these that went over the network; the Hub may have had others of a push that was cut.
    pub sent: u64,
    /// Files that it had already.
    pub unchanged: usize,
    /// Paths that the repository's `.gitignore` leaves out.
    pub ignored: Vec<String>,
}
