//! The push loop: compare, upload, commit.
//!
//! The loop repeats if another commit was made first, or if the Hub did not confirm the commit.
//!
//! # Definitions
//! - *Listing*: the branch's commit and its files, as last read from the Hub.
//! - *Missing file*: a file of the upload set that the listing does not contain, or contains with other
//!   bytes.
//! - *Outdated file*: weights in the listing that the pushed model replaces, and that the commit deletes.
//! - *Unconfirmed commit*: a commit request that got no response, or an error response that may be temporary.
//!
//! # Invariants
//! 1. The commit makes all files visible in the repository at the same time.
//! 2. A commit names the listing's commit as its parent, so the Hub rejects it if the branch has moved.
//! 3. After an unconfirmed commit, the loop reads the listing again. If the new listing has no missing and no
//!    outdated file, the push has succeeded.
//! 4. A large file that was uploaded is not uploaded again, for any number of commit requests.
//! 5. A push ends after [`MAX_RACES`] commits that lost a race, or after `RetryPolicy::attempts` unconfirmed
//!    commits.
//!
//! # States
//! ```text
//! resolve ──► compare ──── no file missing ────────────────► done
//!              ▲   │
//!              │   ├────── missing, and out of attempts ───► error
//!              │   ▼
//!              │  upload ──► commit ── made ───────────────► done
//!              │               │
//!              │               ├────── refused ────────────► error
//!              │               ▼
//!              └──────────── wait      lost a race, or unconfirmed
//! ```
//!
//! In `crates/hub/tests/push_faults.rs`, each kind of request fails twice. In `push_killed.rs`, the process
//! is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::Duration;

use super::commit::{CommitError, NewCommit};
use super::lfs_batch::LfsObject;
use super::preupload::UploadMode;
use super::repo_conflicts::{is_needed, refuse_mixture};
use super::repo_diff::compare_files;
use super::target_branch::Created;
use crate::listing::Listing;
use crate::transfer::ProgressThrottle;
use crate::{
    Hub, HubError, PushOptions, PushStage, Pushed, RepoName, RetryPolicy, Transfer, UploadFile, UploadSet,
};

/// Maximum number of commits in one push that are rejected because another commit came first.
const MAX_RACES: u32 = 3;

/// Maximum number of lookups of the pull request after a lost response.
const MAX_PROPOSAL_CHECKS: u32 = 3;

pub(super) struct PushLoop<'a> {
    hub: &'a Hub,
    upload_set: &'a UploadSet,
    repo: &'a RepoName,
    options: &'a PushOptions,
    upload_modes: BTreeMap<String, UploadMode>,
    /// Checksums of the objects that were uploaded, or that are being uploaded.
    stored: BTreeSet<&'a str>,
    /// Progress of the large files.
    transfer: Transfer,
    /// Paths of the files in the last attempted commit.
    committed: Vec<String>,
    /// Paths that the last attempted commit deletes.
    removed: Vec<String>,
    /// Size in bytes of the regular files in the last attempted commit.
    regular_bytes: u64,
    /// Number of files that the repository already contained at the first comparison.
    unchanged: Option<usize>,
    /// Pull requests that existed before the push.
    known_proposals: BTreeMap<String, String>,
}

/// Missing files with their upload modes, and paths that the `.gitignore` of the repository excludes.
struct Selection<'a> {
    files: Vec<(&'a UploadFile, UploadMode)>,
    ignored: Vec<String>,
}

struct AttemptBudget {
    races: u32,
    unconfirmed: u32,
    /// The next wait, unless the server requests a different wait.
    pause: Duration,
    max_wait: Duration,
}

/// An attempt without a confirmed commit.
struct FailedAttempt {
    /// The error to return if files are still missing after this attempt, or `None` if another attempt is
    /// allowed.
    final_error: Option<HubError>,
    wait: Duration,
    /// Whether the pull request of this attempt may still appear.
    may_appear: bool,
}

type ProgressFn<'p> = &'p mut dyn FnMut(PushStage, Transfer);

impl<'a> PushLoop<'a> {
    pub fn new(
        hub: &'a Hub,
        upload_set: &'a UploadSet,
        repo: &'a RepoName,
        options: &'a PushOptions,
    ) -> Self {
        Self {
            hub,
            upload_set,
            repo,
            options,
            upload_modes: BTreeMap::new(),
            stored: BTreeSet::new(),
            transfer: Transfer { done: 0, total: 0, before: 0, files: 0 },
            committed: Vec::new(),
            removed: Vec::new(),
            regular_bytes: 0,
            unchanged: None,
            known_proposals: BTreeMap::new(),
        }
    }

    pub fn run(mut self, progress: ProgressFn<'_>) -> Result<Pushed, HubError> {
        let Self { hub, repo, options, .. } = self;
        let (mut listing, created) = hub.resolve_target(repo, options)?;
        if options.create_pr {
            self.known_proposals = hub.pull_requests(repo)?;
        }
        let first = listing.commit.clone();
        let mut budget = AttemptBudget::new(hub.http.retry_policy());
        let mut final_error = None;
        loop {
            let (missing, outdated) = self.compare(&listing, progress)?;
            let Selection { files, ignored } = self.select(&missing)?;
            if files.is_empty() && outdated.is_empty() {
                if listing.commit == first {
                    self.committed.clear();
                    self.removed.clear();
                }
                let made = NewCommit { commit: listing.commit, pull_request: None };
                return Ok(self.pushed(made, created, ignored));
            }
            if let Some(error) = final_error {
                return Err(error);
            }
            self.upload(&files, progress)?;
            self.committed = files.iter().map(|(file, _)| file.path().to_owned()).collect();
            self.removed = outdated;
            progress(PushStage::Committing, self.transfer);
            let failed = match hub.commit(repo, options, &listing.commit, &files, &self.removed) {
                Ok(made) => return Ok(self.pushed(made, created, ignored)),
                Err(error) => budget.charge(error, hub, repo, options)?,
            };
            if let Some(made) = self.wait(&failed, &mut budget)? {
                return Ok(self.pushed(made, created, ignored));
            }
            final_error = failed.final_error;
            listing = hub.list(repo)?;
        }
    }

    /// Waits before the next attempt. Returns the commit of the last attempt if its pull request has
    /// appeared.
    fn wait(
        &self,
        failed: &FailedAttempt,
        budget: &mut AttemptBudget,
    ) -> Result<Option<NewCommit>, HubError> {
        thread::sleep(if failed.final_error.is_some() { budget.pause } else { failed.wait });
        budget.pause *= 2;
        for check in 1.. {
            let made = self.find_proposal()?;
            if made.is_some() || !failed.may_appear || check == MAX_PROPOSAL_CHECKS {
                return Ok(made);
            }
            thread::sleep(budget.pause);
        }
        unreachable!("the last check returns")
    }

    fn pushed(&self, made: NewCommit, created: Created, ignored: Vec<String>) -> Pushed {
        Pushed {
            commit: made.commit,
            url: self.hub.page_url(self.repo),
            pull_request: made.pull_request,
            created: created.repository,
            branched: created.branch,
            sent: self.transfer.fetched() + self.regular_bytes,
            files: self.committed.clone(),
            removed: self.removed.clone(),
            unchanged: self.unchanged.unwrap_or(0),
            ignored,
        }
    }

    /// Returns the files that the listing lacks, and the paths of old weights that the commit deletes.
    fn compare(
        &mut self,
        listing: &Listing,
        progress: ProgressFn<'_>,
    ) -> Result<(Vec<&'a UploadFile>, Vec<String>), HubError> {
        refuse_mixture(self.upload_set, listing, self.repo)?;
        let mut throttle = ProgressThrottle::default();
        let compared = compare_files(self.upload_set, Some(listing), &mut |transfer| {
            if throttle.is_due() {
                progress(PushStage::Reading, transfer);
            }
        })?;
        self.unchanged.get_or_insert(compared.unchanged.len());
        let missing = compared.new.into_iter().chain(compared.changed).collect();
        Ok((missing, compared.outdated.into_iter().map(|(path, _)| path).collect()))
    }

    /// Looks up the upload mode of each missing file.
    ///
    /// # Errors
    /// If the repository's `.gitignore` excludes a file that loading needs.
    fn select(&mut self, missing: &[&'a UploadFile]) -> Result<Selection<'a>, HubError> {
        self.hub.fetch_upload_modes(self.repo, self.options, missing, &mut self.upload_modes)?;
        let (mut files, mut ignored) = (Vec::new(), Vec::new());
        for &file in missing {
            match self.upload_modes[file.path()] {
                UploadMode::Ignored if is_needed(file.path()) => {
                    return Err(HubError::Ignored { repo: self.repo.clone(), file: file.path().to_owned() });
                }
                UploadMode::Ignored => ignored.push(file.path().to_owned()),
                mode => files.push((file, mode)),
            }
        }
        Ok(Selection { files, ignored })
    }

    /// Uploads the large files that the storage does not contain.
    fn upload(
        &mut self,
        files: &[(&'a UploadFile, UploadMode)],
        progress: ProgressFn<'_>,
    ) -> Result<(), HubError> {
        let of = |mode: UploadMode| files.iter().filter(move |(_, is)| *is == mode).map(|&(file, _)| file);
        self.regular_bytes = of(UploadMode::Regular).map(UploadFile::size).sum();
        let objects = self.unstored_objects(of(UploadMode::Large).collect(), progress)?;
        let mut throttle = ProgressThrottle::default();
        let transfer = &mut self.transfer;
        self.hub.upload_objects(self.repo, self.options, &objects, &mut |bytes, was_there| {
            transfer.done = transfer.done.saturating_add_signed(bytes);
            if was_there {
                transfer.before = transfer.before.saturating_add_signed(bytes);
            }
            if throttle.is_due() {
                progress(PushStage::Sending, *transfer);
            }
        })?;
        progress(PushStage::Sending, self.transfer);
        Ok(())
    }

    /// Returns the objects in `large` that no earlier attempt uploaded. An object is the content of a file,
    /// so files with the same content are one object.
    fn unstored_objects(
        &mut self,
        large: Vec<&'a UploadFile>,
        progress: ProgressFn<'_>,
    ) -> Result<Vec<LfsObject<'a>>, HubError> {
        let total = large.iter().map(|file| file.size()).sum();
        let mut read = Transfer { done: 0, total, before: 0, files: large.len() };
        let (mut throttle, mut objects) = (ProgressThrottle::default(), Vec::new());
        for file in large {
            let oid = file.sha256(&mut |bytes| {
                read.done += bytes;
                if throttle.is_due() {
                    progress(PushStage::Reading, read);
                }
            })?;
            if self.stored.insert(oid) {
                objects.push(LfsObject::new(file, oid));
                self.transfer.total += file.size();
                self.transfer.files += 1;
            }
        }
        Ok(objects)
    }

    /// After a lost response, searches for the pull request of the last commit. Returns the commit if a pull
    /// request contains it.
    fn find_proposal(&self) -> Result<Option<NewCommit>, HubError> {
        if !self.options.create_pr {
            return Ok(None);
        }
        for (name, commit) in self.hub.pull_requests(self.repo)? {
            let number = name.strip_prefix("refs/pr/").and_then(|number| number.parse().ok());
            let Some(number) = number.filter(|_| !self.known_proposals.contains_key(&name)) else { continue };
            let listing = self.hub.list(&self.repo.at(&name)?)?;
            let compared = compare_files(self.upload_set, Some(&listing), &mut |_| {})?;
            let is_missing = |file: &&UploadFile| self.committed.iter().any(|path| path == file.path());
            if !compared.new.iter().chain(&compared.changed).any(is_missing) && compared.outdated.is_empty() {
                let pull_request = Some(self.hub.pull_request_url(self.repo, number));
                return Ok(Some(NewCommit { commit, pull_request }));
            }
        }
        Ok(None)
    }
}

impl AttemptBudget {
    fn new(policy: RetryPolicy) -> Self {
        let RetryPolicy { attempts, pause, max_wait, .. } = policy;
        Self { races: MAX_RACES, unconfirmed: attempts, pause, max_wait }
    }

    /// Counts one failed attempt.
    ///
    /// # Errors
    /// If the Hub rejected the commit, because it would also reject a retry.
    fn charge(
        &mut self,
        error: CommitError,
        hub: &Hub,
        repo: &RepoName,
        options: &PushOptions,
    ) -> Result<FailedAttempt, HubError> {
        let (error, is_last, wait) = match error {
            CommitError::Race => {
                self.races -= 1;
                let error = HubError::Race { repo: repo.clone(), attempts: MAX_RACES };
                (error, self.races == 0, self.pause)
            }
            CommitError::Unknown(error, wait) => {
                self.unconfirmed -= 1;
                (*error, self.unconfirmed == 0, wait.unwrap_or(self.pause))
            }
            CommitError::Refused(error) => return Err(*error),
        };
        tracing::info!("{error}; checking whether the commit was made");
        let may_appear = options.create_pr && matches!(error, HubError::Connect { is_lost: true, .. });
        let final_error = match wait > self.max_wait {
            true => Some(HubError::Busy { host: hub.host(), wait }),
            false => is_last.then_some(error),
        };
        Ok(FailedAttempt { final_error, wait, may_appear })
    }
}
