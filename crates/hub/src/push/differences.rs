//! What a repository lacks of a parcel.

use std::collections::BTreeMap;

use super::beside::{outdated, refuse_mixture};
use crate::listing::{Listing, RemoteFile};
use crate::{Hub, HubError, Parcel, ParcelFile, RepoName, Transfer};

/// What a push would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differences {
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
    /// Whether it holds nothing yet.
    pub is_empty: bool,
}

impl Differences {
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
    /// If the Hub cannot be asked or refuses, the repository holds the other of adapter and model, or a file cannot be
    /// read.
    pub fn differences(
        &self,
        parcel: &Parcel,
        repo: &RepoName,
        progress: &mut dyn FnMut(Transfer),
    ) -> Result<Differences, HubError> {
        self.asks_about(repo)?;
        let (listing, exists) = match self.list(repo) {
            Ok(listing) => (Some(listing), true),
            Err(HubError::NoModel { .. }) => (None, false),
            Err(HubError::NoRevision { .. }) if repo.revision() != "main" => {
                // A new branch begins where the main one is.
                let main = repo.at("main").expect("a revision's name");
                return Ok(Differences { has_revision: false, ..self.differences(parcel, &main, progress)? });
            }
            Err(error) => return Err(error),
        };
        if let Some(listing) = &listing {
            refuse_mixture(parcel, listing, repo)?;
        }
        let compared = compare(parcel, listing.as_ref(), progress)?;
        let sized = |files: Vec<&ParcelFile>| files.iter().map(|f| (f.path().to_owned(), f.size())).collect();
        Ok(Differences {
            exists,
            has_revision: exists,
            private: listing.as_ref().and_then(|listing| listing.private),
            is_empty: listing.as_ref().is_none_or(Listing::is_empty),
            commit: listing.map(|listing| listing.commit),
            new: sized(compared.new),
            changed: sized(compared.changed),
            unchanged: sized(compared.unchanged),
            removed: compared.outdated,
        })
    }
}

/// The files of a parcel by what a repository has of them.
#[derive(Debug, Default)]
pub(crate) struct Compared<'a> {
    pub new: Vec<&'a ParcelFile>,
    pub changed: Vec<&'a ParcelFile>,
    pub unchanged: Vec<&'a ParcelFile>,
    /// What is there of a model that this one replaces.
    pub outdated: Vec<(String, u64)>,
}

/// Compares a parcel with what is listed. Only files of equal size are read for it, and those once.
pub(crate) fn compare<'a>(
    parcel: &'a Parcel,
    listing: Option<&Listing>,
    progress: &mut dyn FnMut(Transfer),
) -> Result<Compared<'a>, HubError> {
    let nothing = BTreeMap::new();
    let there = listing.map_or(&nothing, |listing| &listing.files);
    let twin = |file: &ParcelFile| there.get(file.path()).filter(|there| there.size == file.size()).cloned();
    let twins: Vec<(&ParcelFile, Option<RemoteFile>)> =
        parcel.files().iter().map(|file| (file, twin(file))).collect();
    let both = || twins.iter().filter(|(_, twin)| twin.is_some());
    let total = both().map(|(file, _)| file.size()).sum();
    let mut transfer = Transfer { done: 0, total, before: 0, files: both().count() };
    let outdated = listing.map(|listing| outdated(parcel, listing)).unwrap_or_default();
    let mut compared = Compared { outdated, ..Compared::default() };
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
