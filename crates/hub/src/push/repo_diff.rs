//! Compares an upload set with a repository.

use std::collections::BTreeMap;

use super::repo_conflicts::{outdated, refuse_mixture};
use super::target_branch::may_be_branch;
use crate::checksum::is_hex;
use crate::http::Resource;
use crate::http::url::escaped;
use crate::http::{MAX_RESPONSE_BYTES, Request};
use crate::listing::{Listing, RemoteFile, file_url};
use crate::{Hub, HubError, RepoName, Transfer, UploadFile, UploadSet};

/// The changes that a push would make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoDiff {
    /// Whether the repository exists and the account can access it.
    pub exists: bool,
    /// Whether the branch exists.
    pub has_revision: bool,
    /// Whether the repository is private, or `None` if the Hub does not report it.
    pub private: Option<bool>,
    /// The commit that the upload set is compared with.
    pub commit: Option<String>,
    /// Path and size of files that the repository does not contain.
    pub new: Vec<(String, u64)>,
    /// Path and size of files whose content in the repository is different.
    pub changed: Vec<(String, u64)>,
    /// Path and size of files that the repository contains with the same content.
    pub unchanged: Vec<(String, u64)>,
    /// Path and size of the weights of a replaced model, which the commit deletes.
    pub removed: Vec<(String, u64)>,
    /// Paths of other files in the repository, which a push does not change.
    pub others: Vec<String>,
    /// Whether the repository is empty.
    pub is_empty: bool,
}

impl RepoDiff {
    /// Returns the size of the files to upload in bytes.
    pub fn size(&self) -> u64 {
        self.new.iter().chain(&self.changed).map(|(_, size)| size).sum()
    }
}

impl Hub {
    /// Compares an upload set with a repository by checksums. Changes nothing. A public repository needs no
    /// token.
    ///
    /// `progress` receives the number of bytes read.
    ///
    /// # Errors
    /// If the Hub cannot be reached or rejects a request, the revision cannot be a branch, or a file cannot
    /// be read. Also returns an error if one repository would contain both an adapter and a model.
    pub fn diff(
        &self,
        upload_set: &UploadSet,
        repo: &RepoName,
        progress: &mut dyn FnMut(Transfer),
    ) -> Result<RepoDiff, HubError> {
        self.require_online(repo)?;
        if is_hex(repo.revision(), 40) {
            return Err(HubError::NoBranch { repo: repo.clone() });
        }
        let (listing, exists) = match self.list(repo) {
            Ok(listing) => (Some(listing), true),
            Err(HubError::NoModel { .. }) => (None, false),
            Err(HubError::NoRevision { .. }) if may_be_branch(repo.revision()) => {
                // A new branch starts at `main`.
                let main = repo.at("main").expect("a revision's name");
                return Ok(RepoDiff { has_revision: false, ..self.diff(upload_set, &main, progress)? });
            }
            Err(error) => return Err(error),
        };
        if let Some(listing) = &listing {
            refuse_mixture(upload_set, listing, repo)?;
        }
        let compared = compare_files(upload_set, listing.as_ref(), progress)?;
        let is_other = |path: &&String| {
            !upload_set.files().iter().any(|file| file.path() == *path)
                && !compared.outdated.iter().any(|(old, _)| old == *path)
        };
        let others = listing.iter().flat_map(|listing| listing.files.keys()).filter(is_other);
        let others = others.cloned().collect();
        let sized = |files: Vec<&UploadFile>| files.iter().map(|f| (f.path().to_owned(), f.size())).collect();
        Ok(RepoDiff {
            exists,
            has_revision: exists,
            private: listing.as_ref().and_then(|listing| listing.private),
            is_empty: listing.as_ref().is_none_or(Listing::is_empty),
            commit: listing.map(|listing| listing.commit),
            new: sized(compared.new),
            changed: sized(compared.changed),
            unchanged: sized(compared.unchanged),
            removed: compared.outdated,
            others,
        })
    }
}

impl Hub {
    /// Reads a small file of a repository. Returns `None` if the repository or the file does not exist.
    ///
    /// If the branch does not exist, reads the file from `main`, because a new branch starts there.
    ///
    /// # Errors
    /// If the Hub cannot be reached or rejects a request, or the file has more than `most` bytes.
    pub fn read_small_file(
        &self,
        repo: &RepoName,
        path: &str,
        most: u64,
    ) -> Result<Option<Vec<u8>>, HubError> {
        self.require_online(repo)?;
        let request = Request::get(file_url(self, repo, &escaped(repo.revision()), path));
        let bytes = match self.whole(&request, Resource::File(repo, path), MAX_RESPONSE_BYTES) {
            Ok((_, bytes)) => bytes,
            Err(HubError::NoModel { .. } | HubError::NoFile { .. }) => return Ok(None),
            Err(HubError::NoRevision { .. }) if may_be_branch(repo.revision()) => {
                return self.read_small_file(&repo.at("main").expect("a revision's name"), path, most);
            }
            Err(error) => return Err(error),
        };
        let size = bytes.len() as u64;
        if size > most {
            return Err(HubError::TooLarge { repo: repo.clone(), file: path.to_owned(), size, most });
        }
        Ok(Some(bytes))
    }

    /// Returns whether a repository exists, or `None` if the Hub cannot be reached or returns a different
    /// error.
    pub fn repo_exists(&self, repo: &RepoName) -> Option<bool> {
        match self.list(&repo.at("main").ok()?) {
            Ok(_) | Err(HubError::Gated { .. } | HubError::NoRevision { .. }) => Some(true),
            Err(HubError::NoModel { .. }) => Some(false),
            Err(_) => None,
        }
    }
}

/// The files of an upload set, grouped by their state in a repository.
#[derive(Debug, Default)]
pub(crate) struct Comparison<'a> {
    pub new: Vec<&'a UploadFile>,
    pub changed: Vec<&'a UploadFile>,
    pub unchanged: Vec<&'a UploadFile>,
    /// Weights in the repository that belong to a replaced model.
    pub outdated: Vec<(String, u64)>,
}

/// Compares an upload set with a listing. Reads a local file only if the listing has a file of the same path
/// and size, and reads it at most once.
pub(crate) fn compare_files<'a>(
    upload_set: &'a UploadSet,
    listing: Option<&Listing>,
    progress: &mut dyn FnMut(Transfer),
) -> Result<Comparison<'a>, HubError> {
    let nothing = BTreeMap::new();
    let there = listing.map_or(&nothing, |listing| &listing.files);
    let twin = |file: &UploadFile| there.get(file.path()).filter(|there| there.size == file.size()).cloned();
    let twins: Vec<(&UploadFile, Option<RemoteFile>)> =
        upload_set.files().iter().map(|file| (file, twin(file))).collect();
    let both = || twins.iter().filter(|(_, twin)| twin.is_some());
    let total = both().map(|(file, _)| file.size()).sum();
    let mut transfer = Transfer { done: 0, total, before: 0, files: both().count() };
    let outdated = listing.map(|listing| outdated(upload_set, listing)).unwrap_or_default();
    let mut compared = Comparison { outdated, ..Comparison::default() };
    for (file, twin) in &twins {
        let is_same = match twin {
            Some(twin) => file.is(&twin.hash, &mut |n| {
                transfer.done += n;
                progress(transfer);
            })?,
            None => false,
        };
        match (is_same, there.contains_key(file.path())) {
            (true, _) => compared.unchanged.push(*file),
            (false, true) => compared.changed.push(*file),
            (false, false) => compared.new.push(*file),
        }
    }
    Ok(compared)
}
