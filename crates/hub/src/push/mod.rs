//! A folder as one commit of a repository.

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
pub use options::{PushOptions, Pushed, SkippedFile, Stage, UploadOptions};
use push_loop::PushLoop;
pub use repo_diff::RepoDiff;
pub use skip_reason::SkipReason;
pub use upload_file::UploadFile;
pub use upload_set::UploadSet;

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
        upload_set: &UploadSet,
        repo: &RepoName,
        options: &PushOptions,
        progress: &mut dyn FnMut(Stage, Transfer),
    ) -> Result<Pushed, HubError> {
        self.asks_about(repo)?;
        if !self.http.has_token() {
            return Err(HubError::NoToken { what: format!("a push to `{}`", repo.id()) });
        }
        if upload_set.files().is_empty() {
            return Err(HubError::NothingToSend { folder: upload_set.folder().to_owned() });
        }
        if is_hex(repo.revision(), 40) {
            return Err(HubError::NoBranch { repo: repo.clone() });
        }
        let pushed = PushLoop::new(self, upload_set, repo, options).run(progress);
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
