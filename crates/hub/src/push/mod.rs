//! Uploads a folder as one commit.

mod commit;
mod file_part;
mod file_source;
mod folder_walk;
mod lfs_batch;
mod lfs_upload;
mod options;
mod pattern;
mod preupload;
mod push_loop;
mod repo_conflicts;
mod repo_diff;
mod secrets;
mod skip_reason;
mod target_branch;
mod upload_file;
mod upload_set;

use crate::checksum::is_hex;
use crate::{Hub, HubError, RepoName, Transfer};

pub(crate) use file_part::FilePart;
pub use options::{PushOptions, PushStage, Pushed, SkippedFile, UploadOptions};
pub use preupload::MAX_COMMIT_BYTES;
use push_loop::PushLoop;
pub use repo_diff::RepoDiff;
pub use secrets::has_secret;
pub use skip_reason::SkipReason;
pub use upload_file::UploadFile;
pub use upload_set::UploadSet;

impl Hub {
    /// Uploads the files that a repository does not contain, in one commit. No file is visible before the
    /// commit.
    ///
    /// - Creates the repository if necessary.
    /// - Deletes the weights of a model that the pushed model replaces. Other files do not change.
    /// - After an interrupted push, uploads only the files that the Hub has not received.
    ///
    /// # Errors
    /// If the token has no write access, the Hub cannot be reached, a file changes, or other commits are made
    /// first on every attempt. Also returns an error if one repository would contain both an adapter and a
    /// model. After an error, nothing is published unless the response to the commit was lost.
    pub fn push(
        &self,
        upload_set: &UploadSet,
        repo: &RepoName,
        options: &PushOptions,
        progress: &mut dyn FnMut(PushStage, Transfer),
    ) -> Result<Pushed, HubError> {
        self.require_online(repo)?;
        if !self.http.has_token() {
            return Err(HubError::NoToken { what: format!("a push to `{}`", repo.id()) });
        }
        options.check_message(self.settings.token.as_ref())?;
        if upload_set.files().is_empty() {
            return Err(HubError::NothingToSend { folder: upload_set.folder().to_owned() });
        }
        if is_hex(repo.revision(), 40) {
            return Err(HubError::NoBranch { repo: repo.clone() });
        }
        let pushed = PushLoop::new(self, upload_set, repo, options).run(progress);
        pushed.map_err(|error| self.explained(error, repo))
    }

    /// Returns an error if the settings forbid requests.
    fn require_online(&self, repo: &RepoName) -> Result<(), HubError> {
        self.online(String::new).map(drop).map_err(|error| match error {
            HubError::Offline { .. } => HubError::OfflineRepo { repo: repo.clone() },
            error => error,
        })
    }
}
