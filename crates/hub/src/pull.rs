//! A model by name: out of the cache, or into it.

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

/// Files fetched at a time.
const PARALLEL_DOWNLOADS: usize = 8;

/// How long an answer may take where the question is only whether a model that is there lacks something.
const CHECK_TIMEOUT: Duration = Duration::from_secs(5);

/// How much of a model is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchScope {
    /// All that danlu reads.
    Full,
    /// The small files: enough to plan a run, or to turn text into tokens.
    ConfigOnly,
}

/// A model that is in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its files, links into the cache.
    pub folder: PathBuf,
    /// Its commit.
    pub commit: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// Of these, what came over the network.
    pub fetched: u64,
}

impl Hub {
    /// The folder of a model that is in the cache with all that is asked of it; nobody is asked.
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

    /// Whether the cache knows a model's revision, and as something else than `commit`: a start by name is then an older one,
    /// until it is pulled.
    pub fn cache_is_stale(&self, repo: &RepoName, commit: &str) -> bool {
        let here = Cache::of(&self.settings.cache, repo).read_ref(repo.revision());
        here.is_ok_and(|here| here.is_some_and(|here| here != commit))
    }

    /// Of a model that [`Hub::cached`] found in `folder`, the files that would change results and of which nobody knows
    /// whether the repository has them: [`Hub::complete`] finds out.
    pub fn missing_optional_files(&self, repo: &RepoName, folder: &Path) -> Vec<&'static str> {
        let cache = Cache::of(&self.settings.cache, repo);
        file_selection::missing_optional_files(folder, |file| cache.is_absent(commit_of(folder), file))
    }

    /// Fetches the small files that such a model lacks, and notes those that its commit does not have. What it has is asked
    /// once, and not for long.
    ///
    /// # Errors
    /// If the Hub cannot be asked or refuses; what is there can be used all the same.
    pub fn fetch_missing_files(&self, repo: &RepoName, folder: &Path) -> Result<(), HubError> {
        let commit = commit_of(folder);
        let hub = Self::with_retry_policy(
            self.settings.clone(),
            RetryPolicy { tries: 1, ..self.http.retry_policy() },
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

    /// Fetches what danlu reads of a model, as it is on the Hub now. What is in the cache is not fetched again, and a
    /// transfer that was cut goes on where it stopped.
    ///
    /// # Errors
    /// If the Hub cannot be asked or refuses, a file stays damaged, or the disk is too small. What has arrived stays.
    pub fn pull(
        &self,
        repo: &RepoName,
        scope: FetchScope,
        progress: &mut dyn FnMut(Transfer),
    ) -> Result<Pulled, HubError> {
        let cache = Cache::of(&self.settings.cache, repo);
        let commit = cache.read_ref(repo.revision())?.filter(|commit| commit.starts_with(repo.revision()));
        let repo = &match commit.filter(|_| is_abbreviation(repo.revision())) {
            // The Hub knows a commit by all of its digits.
            Some(commit) => repo.at(&commit)?,
            None => repo.clone(),
        };
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

    /// Fetches files, some at a time; the first error ends it, and what arrived stays.
    fn fetch_all(
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
                        // After an error nobody listens, and the rest need not come.
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
                // Whoever sleeps or waits for a lock does it in vain.
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

/// The commit whose snapshot `folder` is.
fn commit_of(folder: &Path) -> &str {
    folder.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Bytes of a file that are in the cache already, whole or in part.
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
