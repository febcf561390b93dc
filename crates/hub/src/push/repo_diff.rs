//! What a repository lacks of a parcel.

use std::collections::BTreeMap;

use super::repo_conflicts::{outdated, refuse_mixture};
use super::target_branch::may_be_branch;
use crate::checksum::is_hex;
use crate::http::Resource;
use crate::http::url::escaped;
use crate::http::{MAX_RESPONSE_BYTES, Request};
use crate::listing::{Listing, RemoteFile, file_url};
use crate::{Hub, HubError, RepoName, Transfer, UploadFile, UploadSet};

/// What a push would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepoDiff {
    /// Whether the repository is there, as far as this account may see.
    pub exists: bool,
    /// Whether its branch is.
    pub has_revision: bool,
    /// Whether only its owner sees it, where the Hub tells.
    pub private: Option<bool>,
    /// The commit that it was compared with.
    pub commit: Option<String>,
    /// Files that it lacks, by path, with their bytes.
    pub new: Vec<(String, u64)>,
    /// Files that it has with other bytes.
    pub changed: Vec<(String, u64)>,
    /// Files that it has.
    pub unchanged: Vec<(String, u64)>,
    /// Files that the commit takes away: weights of the model that was there before.
    pub removed: Vec<(String, u64)>,
    /// Paths that it has and the parcel does not, and that stay.
    pub others: Vec<String>,
    /// Whether it holds nothing yet.
    pub is_empty: bool,
}

impl RepoDiff {
    /// Bytes of the files that would be sent.
    pub fn size(&self) -> u64 {
        self.new.iter().chain(&self.changed).map(|(_, size)| size).sum()
    }
}

impl Hub {
    /// Compares a parcel with a repository by checksums. Nothing is changed there, and no token is needed where everyone
    /// may look. `progress` hears of the files' bytes as they are read.
    ///
    /// # Errors
    /// If the Hub cannot be asked or refuses, the revision can be no branch, the repository holds the other of adapter and model, or a file cannot be
    /// read.
    pub fn diff(
        &self,
        upload_set: &UploadSet,
        repo: &RepoName,
        progress: &mut dyn FnMut(Transfer),
    ) -> Result<RepoDiff, HubError> {
        self.asks_about(repo)?;
        if is_hex(repo.revision(), 40) {
            return Err(HubError::NoBranch { repo: repo.clone() });
        }
        let (listing, exists) = match self.list(repo) {
            Ok(listing) => (Some(listing), true),
            Err(HubError::NoModel { .. }) => (None, false),
            Err(HubError::NoRevision { .. }) if may_be_branch(repo.revision()) => {
                // A new branch begins where the main one is.
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
    /// The bytes of a small file as the repository has it now; none where it, its branch or the file is not there, and a
    /// branch that is not there is read as the main one, where it would begin.
    ///
    /// # Errors
    /// If the Hub cannot be asked or refuses, or the file is longer than `most` bytes.
    pub fn read_small_file(
        &self,
        repo: &RepoName,
        path: &str,
        most: u64,
    ) -> Result<Option<Vec<u8>>, HubError> {
        self.asks_about(repo)?;
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

    /// Whether the Hub has a repository of this name, as far as it tells; none where it cannot be asked.
    pub fn repo_exists(&self, repo: &RepoName) -> Option<bool> {
        match self.list(&repo.at("main").ok()?) {
            Ok(_) | Err(HubError::Gated { .. } | HubError::NoRevision { .. }) => Some(true),
            Err(HubError::NoModel { .. }) => Some(false),
            Err(_) => None,
        }
    }
}

/// The files of a parcel by what a repository has of them.
#[derive(Debug, Default)]
pub(crate) struct Comparison<'a> {
    pub new: Vec<&'a UploadFile>,
    pub changed: Vec<&'a UploadFile>,
    pub unchanged: Vec<&'a UploadFile>,
    /// What is there of a model that this one replaces.
    pub outdated: Vec<(String, u64)>,
}

/// Compares a parcel with what is listed. Only files of equal size are read for it, and those once.
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
