//! Downloads the files of a data set into the cache.

use std::fs;
use std::path::{Path, PathBuf};

use danlu_model::files::read_bounded;

use super::choice::{ChosenFiles, choose, shard};
use crate::cache::Cache;
use crate::file_selection::{CARD, MAX_SMALL_FILE_BYTES};
use crate::listing::Listing;
use crate::{DatasetRef, Hub, HubError, Pulled, Transfer};

/// Maximum depth of the folders that are searched in a snapshot.
const MAX_DEPTH: usize = 16;

/// Maximum number of files that a search in a snapshot returns.
const MAX_CACHED_FILES: usize = 100_000;

/// The cached files of one part of a data set: a split, a subset or one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatasetFiles {
    /// The commit and the snapshot folder. The byte counts are zero if all files were found in the cache
    /// without a request.
    pub pulled: Pulled,
    /// Name of the part: a split, `subset/split` or the path of a file.
    pub part: String,
    /// The files with records, in the order of their names.
    pub files: Vec<PathBuf>,
}

impl Hub {
    /// Returns the files of a data set if the cache contains all of them. Sends no request.
    ///
    /// # Errors
    /// If the cache cannot be read, or if network access is forbidden and the data set has no such part.
    pub fn cached_dataset(&self, dataset: &DatasetRef) -> Result<Option<DatasetFiles>, HubError> {
        let offline = self.settings.offline;
        let cache = Cache::of(&self.settings.cache, dataset.repo());
        let Some(commit) = cache.read_ref(dataset.repo().revision())? else { return Ok(None) };
        let folder = cache.snapshot_path(&commit);
        // A download by Python stores no list of files. If requests are forbidden, the files in the cache
        // serve as the list.
        let (paths, is_complete) = match cache.read_file_list(&commit) {
            Some(paths) => (paths, true),
            None if offline => (files_below(&folder), false),
            None => return Ok(None),
        };
        let chosen = match self.choose_files(dataset, &paths, &folder) {
            Ok(chosen) => chosen,
            Err(error) if offline => return Err(error),
            // The cached commit lacks the subset or split. A newer commit may have it, so the caller sends a
            // request.
            Err(_) => return Ok(None),
        };
        let is_there = |file: &String| fs::metadata(folder.join(file)).is_ok();
        let is_whole = chosen.files.iter().all(is_there) && (is_complete || has_all_shards(&chosen.files));
        let pulled = Pulled { folder, commit, bytes: 0, fetched: 0 };
        Ok(is_whole.then(|| DatasetFiles::new(pulled, chosen)))
    }

    /// Downloads the files of a part of a data set, at the latest commit of the revision. Skips cached files,
    /// and resumes an interrupted download.
    ///
    /// # Errors
    /// If there is no such part, or none of its files contains records. Also returns the errors of
    /// [`Hub::pull`].
    pub fn pull_dataset(
        &self,
        dataset: &DatasetRef,
        progress: &mut dyn FnMut(Transfer),
    ) -> Result<DatasetFiles, HubError> {
        let repo = dataset.repo();
        let cache = Cache::of(&self.settings.cache, repo);
        let repo = &self.with_cached_commit(&cache, repo)?;
        let listing = self.list(repo)?;
        let folder = cache.snapshot_path(&listing.commit);
        let paths: Vec<String> = listing.files.keys().cloned().collect();
        if let Some(path) = paths.iter().find(|path| !is_relative_inside(path)) {
            let fault = format!(
                "it lists the path {:?}, which leads out of the repository",
                self.http.redacted(path)
            );
            return Err(HubError::Repo { repo: repo.clone(), fault });
        }
        self.fetch_card(&cache, repo, &listing)?;
        let chosen = self.choose_files(dataset, &paths, &folder)?;
        let transfer = self.fetch_all(&cache, repo, &listing, &chosen.files, progress)?;
        cache.write_file_list(&listing.commit, &paths)?;
        cache.write_ref(repo.revision(), &listing.commit)?;
        let (bytes, fetched) = (transfer.total, transfer.fetched());
        let pulled = Pulled { folder, commit: listing.commit, bytes, fetched };
        Ok(DatasetFiles::new(pulled, chosen))
    }

    /// Downloads the card, which may list the files of each split.
    fn fetch_card(&self, cache: &Cache, repo: &crate::RepoName, listing: &Listing) -> Result<(), HubError> {
        let Some(card) = listing.files.get(CARD) else { return Ok(()) };
        if card.size > MAX_SMALL_FILE_BYTES {
            let (size, most) = (card.size, MAX_SMALL_FILE_BYTES);
            return Err(HubError::TooLarge { repo: repo.clone(), file: CARD.to_owned(), size, most });
        }
        self.fetch_all(cache, repo, listing, &[CARD], &mut |_| {}).map(drop)
    }

    /// Chooses the files of a part. `folder` is the snapshot, which contains the card.
    fn choose_files(
        &self,
        dataset: &DatasetRef,
        paths: &[String],
        folder: &Path,
    ) -> Result<ChosenFiles, HubError> {
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        let card = match paths.contains(&CARD) {
            true => read_bounded(&folder.join(CARD), MAX_SMALL_FILE_BYTES)?,
            false => Vec::new(),
        };
        choose(dataset, &paths, &String::from_utf8_lossy(&card)).map_err(|error| match error {
            HubError::Repo { repo, fault } => HubError::Repo { repo, fault: self.http.redacted(&fault) },
            error => error,
        })
    }
}

impl DatasetFiles {
    fn new(pulled: Pulled, chosen: ChosenFiles) -> Self {
        let files = chosen.files.iter().map(|file| pulled.folder.join(file)).collect();
        Self { files, part: chosen.part, pulled }
    }
}

/// Returns whether a path of a repository stays inside the folder to which it is appended.
fn is_relative_inside(path: &str) -> bool {
    let is_name = |part: &str| !part.is_empty() && part != "." && part != "..";
    path.split('/').all(is_name) && !path.contains(['\\', '\0'])
}

/// Returns whether all numbered files of a sequence such as `train-00000-of-00002.parquet` are present.
fn has_all_shards(files: &[String]) -> bool {
    let name = |file: &String| file.rsplit('/').next().unwrap_or(file).to_owned();
    let names: Vec<String> = files.iter().map(name).collect();
    let counts: Vec<usize> = names.iter().filter_map(|name| Some(shard(name)?.1)).collect();
    counts.first().is_none_or(|count| *count == counts.len())
}

/// Returns the paths of all files below a snapshot folder, in the order of their names.
fn files_below(folder: &Path) -> Vec<String> {
    let (mut found, mut folders) = (Vec::new(), vec![(folder.to_owned(), String::new(), 0)]);
    while let Some((folder, prefix, depth)) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let path = format!("{prefix}{name}");
            // The files of a snapshot are links. A link to a folder is not followed.
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => {
                    folders.push((entry.path(), format!("{path}/"), depth + 1));
                }
                Ok(kind) if !kind.is_dir() && found.len() < MAX_CACHED_FILES => found.push(path),
                _ => {}
            }
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_out_of_the_folder_are_recognized() {
        for path in ["a.json", "data/甄嬛 1.json", "a/..b", "...json"] {
            assert!(is_relative_inside(path), "{path}");
        }
        for path in ["../a", "a/../b", "/a", "a//b", "a/", ".", "a\\b", "a\0", ""] {
            assert!(!is_relative_inside(path), "{path:?}");
        }
    }

    #[test]
    fn a_missing_shard_is_noticed() {
        let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        let both = names(&["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]);
        assert!(has_all_shards(&both) && has_all_shards(&names(&["a.json"])));
        assert!(!has_all_shards(&both[..1]));
    }
}
