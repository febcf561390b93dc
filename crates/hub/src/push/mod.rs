//! A folder as one commit of a repository.

mod batch;
mod beside;
mod commit;
mod content;
mod differences;
mod large;
mod mode;
mod parcel;
mod pattern;
mod place;
mod reason;
mod run;
mod secrets;
mod walk;

use crate::listing::is_hex;
use crate::{Hub, HubError, RepoName, Transfer};

pub(crate) use content::Content;
pub use differences::Differences;
pub use parcel::{Left, Parcel, ParcelFile, ParcelOptions};
pub use reason::Reason;
use run::Push;

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

impl Hub {
    /// Sends what a repository lacks of a parcel, and makes one commit of it: before it nothing is to be seen there. The
    /// repository is made where there is none, and its other files stay, but for weights of a model that this one
    /// replaces. What was sent before a push was cut is not sent again.
    ///
    /// # Errors
    /// If there is no token or it may not, the Hub cannot be asked, the repository holds the other of adapter and model,
    /// a file changes meanwhile, or others keep making commits. Nothing is published then.
    pub fn push(
        &self,
        parcel: &Parcel,
        repo: &RepoName,
        options: &PushOptions,
        progress: &mut dyn FnMut(Stage, Transfer),
    ) -> Result<Pushed, HubError> {
        self.asks_about(repo)?;
        if !self.http.has_token() {
            return Err(HubError::NoToken { what: format!("a push to `{}`", repo.id()) });
        }
        if parcel.files().is_empty() {
            return Err(HubError::NothingToSend { folder: parcel.folder().to_owned() });
        }
        if is_hex(repo.revision(), 40) {
            return Err(HubError::NoBranch { repo: repo.clone() });
        }
        let pushed = Push::new(self, parcel, repo, options).run(progress);
        pushed.map_err(|error| self.explained(error, repo))
    }

    /// Refuses what cannot come from the cache where the settings forbid to ask.
    fn asks_about(&self, repo: &RepoName) -> Result<(), HubError> {
        self.online(String::new).map(drop).map_err(|error| match error {
            HubError::Offline { .. } => HubError::OfflineRepo { repo: repo.clone() },
            error => error,
        })
    }
}
