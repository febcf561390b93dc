//! Downloads a model into the cache.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use danlu_model::files::free_space;

use crate::cache::{Cache, is_abbreviation};
use crate::download::FileFetch;
use crate::file_selection;
use crate::listing::{Listing, RemoteFile};
use crate::transfer::ProgressThrottle;
use crate::{Hub, HubError, RepoName, RetryPolicy, Transfer};

const PARALLEL_DOWNLOADS: usize = 8;

/// Time limit of the request that lists the files of a cached model's commit.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// The files of a model to fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchScope {
    /// All files that danlu reads.
    Full,
    /// All files that danlu reads except the weights. These files are enough to plan a run or to tokenize
    /// text.
    ConfigOnly,
}

/// The result of the download of a model or data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// The snapshot folder, which contains links into the cache.
    pub folder: PathBuf,
    /// The commit.
    pub commit: String,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Number of bytes that were downloaded.
    pub fetched: u64,
}

impl Hub {
    /// Returns the folder of a model if the cache contains all files in `scope`. Sends no request.
    ///
    /// # Errors
    /// If the cache cannot be read.
    pub fn cached_folder(&self, repo: &RepoName, scope: FetchScope) -> Result<Option<PathBuf>, HubError> {
        let cache = Cache::of(&self.settings.cache, repo);
        let Some(commit) = cache.read_ref(repo.revision())? else { return Ok(None) };
        let (folder, is_absent) = (cache.snapshot_path(&commit), |file: &str| cache.is_absent(&commit, file));
        let is_there = match scope {
            FetchScope::Full => file_selection::is_whole(&folder, is_absent),
            FetchScope::ConfigOnly => file_selection::has_settings(&folder, is_absent),
        };
        Ok(is_there.then_some(folder))
    }

    /// Returns whether the cache has this revision at a different commit. Commands use the cached commit
    /// until the user pulls the model again.
    pub fn cache_is_stale(&self, repo: &RepoName, commit: &str) -> bool {
        let here = Cache::of(&self.settings.cache, repo).read_ref(repo.revision());
        here.is_ok_and(|here| here.is_some_and(|here| here != commit))
    }

    /// Returns optional files that are missing in `folder`, would change results, and were never requested
    /// from the Hub. [`Hub::fetch_missing_files`] requests these files.
    pub fn missing_optional_files(&self, repo: &RepoName, folder: &Path) -> Vec<&'static str> {
        let cache = Cache::of(&self.settings.cache, repo);
        file_selection::missing_optional_files(folder, |file| cache.is_absent(commit_of(folder), file))
    }

    /// Downloads the missing files of a cached model except weights, and records the files that do not exist
    /// in the model's commit. The request that lists the files has a time limit of five seconds.
    ///
    /// # Errors
    /// If the Hub cannot be reached or rejects a request. The cached files remain usable.
    pub fn fetch_missing_files(&self, repo: &RepoName, folder: &Path) -> Result<(), HubError> {
        let commit = commit_of(folder);
        let hub = Self::with_retry_policy(
            self.settings.clone(),
            RetryPolicy { attempts: 1, ..self.http.retry_policy() },
        );
        let files = Self { http: hub.http.within(CHECK_TIMEOUT), ..hub }.tree(repo, commit)?;
        let listing = Listing { commit: commit.to_owned(), private: None, files };
        let cache = Cache::of(&self.settings.cache, repo);
        let (mut there, absent) = file_selection::settings(&listing, repo)?;
        there.retain(|file| std::fs::metadata(folder.join(file)).is_err());
        self.fetch_all(&cache, repo, &listing, &there, &mut |_| {})?;
        cache.note_absent(commit, &absent);
        Ok(())
    }

    /// Downloads the files of a model that danlu reads, at the latest commit of the revision.
    ///
    /// Skips cached files, and resumes an interrupted download. `progress` receives only the progress of the
    /// weights.
    ///
    /// # Errors
    /// If the Hub cannot be reached or rejects a request, a file has a wrong checksum twice, or the disk is
    /// too small. Bytes already downloaded are not deleted.
    pub fn pull(
        &self,
        repo: &RepoName,
        scope: FetchScope,
        progress: &mut dyn FnMut(Transfer),
    ) -> Result<Pulled, HubError> {
        let cache = Cache::of(&self.settings.cache, repo);
        let repo = &self.with_cached_commit(&cache, repo)?;
        let listing = self.list(repo)?;
        let folder = cache.snapshot_path(&listing.commit);
        let (settings, absent) = file_selection::settings(&listing, repo)?;
        let small = self.fetch_all(&cache, repo, &listing, &settings, &mut |_| {})?;
        let (mut bytes, mut fetched) = (small.total, small.fetched());
        if scope == FetchScope::Full {
            let weights = file_selection::weights(&listing, &folder, repo).map_err(|error| match error {
                HubError::Repo { repo, fault } => HubError::Repo { repo, fault: self.http.redacted(&fault) },
                error => error,
            })?;
            let large = self.fetch_all(&cache, repo, &listing, &weights, progress)?;
            (bytes, fetched) = (bytes + large.total, fetched + large.fetched());
        }
        cache.note_absent(&listing.commit, &absent);
        cache.write_ref(repo.revision(), &listing.commit)?;
        Ok(Pulled { folder, commit: listing.commit, bytes, fetched })
    }

    /// Replaces an abbreviated commit by the full commit that the cache contains, because the Hub does not
    /// accept abbreviated commits.
    pub(crate) fn with_cached_commit(&self, cache: &Cache, repo: &RepoName) -> Result<RepoName, HubError> {
        let commit = cache.read_ref(repo.revision())?.filter(|commit| commit.starts_with(repo.revision()));
        match commit.filter(|_| is_abbreviation(repo.revision())) {
            Some(commit) => repo.at(&commit),
            None => Ok(repo.clone()),
        }
    }

    /// Downloads files in parallel. The first error cancels the other downloads. Bytes already downloaded are
    /// not deleted.
    pub(crate) fn fetch_all(
        &self,
        cache: &Cache,
        repo: &RepoName,
        listing: &Listing,
        paths: &[impl AsRef<str>],
        progress: &mut dyn FnMut(Transfer),
    ) -> Result<Transfer, HubError> {
        let files: Vec<(&str, &RemoteFile)> =
            paths.iter().map(AsRef::as_ref).map(|path| (path, &listing.files[path])).collect();
        let total = files.iter().fold(0u64, |sum, (_, file)| sum.saturating_add(file.size));
        let before = files.iter().map(|(_, file)| here(cache, file)).sum();
        let needed = total.saturating_sub(before);
        let available = free_space(&self.settings.cache)?;
        if needed > available {
            let (repo, cache) = (repo.clone(), self.settings.cache.clone());
            return Err(HubError::Space { repo, cache, needed, available });
        }

        let queue = Mutex::new(files.iter());
        let stop = &AtomicBool::new(false);
        let next = || queue.lock().expect("nothing panics while it is held").next().copied();
        let (tell, told) = mpsc::channel::<Result<i64, HubError>>();
        let mut transfer = Transfer { done: 0, total, before, files: files.len() };
        thread::scope(|scope| {
            for _ in 0..PARALLEL_DOWNLOADS.min(files.len()) {
                let tell = tell.clone();
                scope.spawn(move || {
                    while let Some((path, file)) = next() {
                        let wanted = FileFetch { repo, commit: &listing.commit, path, file, stop };
                        // The send fails if the receiver was dropped after an error.
                        let mut advanced = |n| match tell.send(Ok(n)) {
                            Ok(()) => ControlFlow::Continue(()),
                            Err(_) => ControlFlow::Break(()),
                        };
                        if let Err(error) = self.fetch(cache, wanted, &mut advanced) {
                            let _ = tell.send(Err(error));
                            return;
                        }
                    }
                });
            }
            drop(tell);
            let mut throttle = ProgressThrottle::default();
            for message in told {
                // The flag cancels the downloads of all other threads.
                let bytes = message.inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                transfer.done = transfer.done.saturating_add_signed(bytes);
                if throttle.is_due() {
                    progress(transfer);
                }
            }
            Ok(transfer)
        })
    }
}

/// Returns the commit of a snapshot folder.
fn commit_of(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Returns how many bytes of a file are in the cache, complete or partial.
fn here(cache: &Cache, file: &RemoteFile) -> u64 {
    let len = |path: PathBuf| std::fs::metadata(path).map_or(0, |there| there.len());
    let (whole, part) = (len(cache.blob_path(&file.hash)), len(cache.partial_path(&file.hash)));
    if whole == file.size {
        file.size
    } else if part <= file.size {
        part
    } else {
        0
    }
}
