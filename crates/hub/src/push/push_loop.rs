//! The course of a push: compare, send, commit; and again where another commit came first, or an answer was lost.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;

use super::commit::{CommitError, NewCommit};
use super::lfs_batch::LfsObject;
use super::preupload::UploadMode;
use super::repo_conflicts::{is_needed, refuse_mixture};
use super::repo_diff::compare_files;
use crate::listing::Listing;
use crate::transfer::ProgressThrottle;
use crate::{Hub, HubError, PushOptions, Pushed, RepoName, Stage, Transfer, UploadFile, UploadSet};

/// How often another commit may come first.
const MAX_RACES: u32 = 3;

/// How often a pull request is looked for whose answer was lost.
const MAX_PROPOSAL_CHECKS: u32 = 3;

/// A push on its way.
pub(super) struct PushLoop<'a> {
    hub: &'a Hub,
    upload_set: &'a UploadSet,
    repo: &'a RepoName,
    options: &'a PushOptions,
    upload_modes: BTreeMap<String, UploadMode>,
    /// Checksums of the objects that are in storage.
    stored: BTreeSet<&'a str>,
    /// Of the large files.
    transfer: Transfer,
    /// The files of the commit that was tried last, and what it took away.
    tried: Vec<String>,
    removed: Vec<String>,
    /// Bytes of those within it.
    regular: u64,
    /// Pull requests that were there before.
    known: BTreeMap<String, String>,
}

/// What a commit lacks, and what it takes away.
type Lacking<'a> = (Vec<&'a UploadFile>, Vec<String>);

/// Files that go, each by its way, and paths that the Hub leaves out.
type FileFetch<'a> = (Vec<(&'a UploadFile, UploadMode)>, Vec<String>);

type Progress<'p> = &'p mut dyn FnMut(Stage, Transfer);

impl<'a> PushLoop<'a> {
    pub fn new(
        hub: &'a Hub,
        upload_set: &'a UploadSet,
        repo: &'a RepoName,
        options: &'a PushOptions,
    ) -> Self {
        let transfer = Transfer { done: 0, total: 0, before: 0, files: 0 };
        let (upload_modes, stored, tried, removed, regular, known) = Default::default();
        Self {
            hub,
            upload_set,
            repo,
            options,
            upload_modes,
            stored,
            transfer,
            tried,
            removed,
            regular,
            known,
        }
    }

    /// Goes through with it.
    pub fn run(mut self, progress: Progress<'_>) -> Result<Pushed, HubError> {
        let Self { hub, repo, options, .. } = self;
        let (mut listing, created) = hub.place(repo, options)?;
        if options.create_pr {
            self.known = hub.pull_requests(repo)?;
        }
        let first = listing.commit.clone();
        let retry_policy = hub.http.retry_policy();
        let (mut races, mut tries, mut pause) = (MAX_RACES, retry_policy.tries, retry_policy.pause);
        let mut unchanged = None;
        // Why the last try was in vain, where there will be no other.
        let mut in_vain = None;
        loop {
            let (lacking, outdated) = self.lacking(&listing, &mut unchanged, progress)?;
            let (files, ignored) = self.wanted(&lacking)?;
            let done = |push: &Self, made: NewCommit| Pushed {
                commit: made.commit,
                url: hub.page_url(repo),
                pull_request: made.pull_request,
                created: created.repository,
                branched: created.branch,
                sent: push.transfer.fetched() + push.regular,
                files: push.tried.clone(),
                removed: push.removed.clone(),
                unchanged: unchanged.unwrap_or(0),
                ignored,
            };
            if files.is_empty() && outdated.is_empty() {
                if listing.commit == first {
                    self.tried.clear();
                    self.removed.clear();
                }
                return Ok(done(&self, NewCommit { commit: listing.commit, pull_request: None }));
            }
            if let Some(error) = in_vain {
                return Err(error);
            }
            self.send(&files, progress)?;
            self.tried = files.iter().map(|(file, _)| file.path().to_owned()).collect();
            self.removed = outdated;
            progress(Stage::Committing, self.transfer);
            let made = hub.commit(repo, options, &listing.commit, &files, &self.removed);
            let (error, is_last, wait) = match made {
                Ok(made) => return Ok(done(&self, made)),
                Err(CommitError::Refused(error)) => return Err(*error),
                Err(CommitError::Race) => {
                    races -= 1;
                    (HubError::Race { repo: repo.clone() }, races == 0, pause)
                }
                Err(CommitError::Unknown(error, wait)) => {
                    tries -= 1;
                    (*error, tries == 0, wait.unwrap_or(pause))
                }
            };
            let is_lost = options.create_pr && matches!(error, HubError::Connect { is_lost: true, .. });
            tracing::info!("{error}; looking whether the commit was made");
            in_vain = match wait > retry_policy.longest {
                true => Some(HubError::Busy { host: hub.host(), wait }),
                false => is_last.then_some(error),
            };
            thread::sleep(if in_vain.is_some() { pause } else { wait });
            pause *= 2;
            for look in 1.. {
                if let Some(made) = self.proposed()? {
                    return Ok(done(&self, made));
                }
                // A proposal may still be in the making.
                if !is_lost || look == MAX_PROPOSAL_CHECKS {
                    break;
                }
                thread::sleep(pause);
            }
            listing = hub.list(repo)?;
        }
    }

    /// The files that a commit lacks, and those that it has and should not; `unchanged` is told how many the first had.
    fn lacking(
        &self,
        listing: &Listing,
        unchanged: &mut Option<usize>,
        progress: Progress<'_>,
    ) -> Result<Lacking<'a>, HubError> {
        refuse_mixture(self.upload_set, listing, self.repo)?;
        let mut throttle = ProgressThrottle::default();
        let heard = &mut |transfer| {
            if throttle.is_due() {
                progress(Stage::Reading, transfer);
            }
        };
        let compared = compare_files(self.upload_set, Some(listing), heard)?;
        unchanged.get_or_insert(compared.unchanged.len());
        let lacking = compared.new.into_iter().chain(compared.changed).collect();
        Ok((lacking, compared.outdated.into_iter().map(|(path, _)| path).collect()))
    }

    /// The files that the Hub wants, and how; and those that it leaves out, unless nothing could be loaded without them.
    fn wanted(&mut self, lacking: &[&'a UploadFile]) -> Result<FileFetch<'a>, HubError> {
        self.hub.upload_modes(self.repo, self.options, lacking, &mut self.upload_modes)?;
        let (mut files, mut ignored) = (Vec::new(), Vec::new());
        for &file in lacking {
            match self.upload_modes[file.path()] {
                UploadMode::Ignored if is_needed(file.path()) => {
                    return Err(HubError::Ignored { repo: self.repo.clone(), file: file.path().to_owned() });
                }
                UploadMode::Ignored => ignored.push(file.path().to_owned()),
                mode => files.push((file, mode)),
            }
        }
        Ok((files, ignored))
    }

    /// Sends the large ones of `files` that are not in storage.
    fn send(
        &mut self,
        files: &[(&'a UploadFile, UploadMode)],
        progress: Progress<'_>,
    ) -> Result<(), HubError> {
        let of = |mode: UploadMode| files.iter().filter(move |(_, is)| *is == mode).map(|&(file, _)| file);
        self.regular = of(UploadMode::Regular).map(UploadFile::size).sum();
        let mut throttle = ProgressThrottle::default();
        let total = of(UploadMode::Large).map(UploadFile::size).sum();
        let mut read = Transfer { done: 0, total, before: 0, files: of(UploadMode::Large).count() };
        let mut objects: Vec<LfsObject<'a>> = Vec::new();
        for file in of(UploadMode::Large) {
            let oid = file.sha256(&mut |bytes| {
                read.done += bytes;
                if throttle.is_due() {
                    progress(Stage::Reading, read);
                }
            })?;
            // Two files of the same bytes are one object.
            if self.stored.insert(oid) {
                objects.push(LfsObject::new(file, oid));
                self.transfer.total += file.size();
                self.transfer.files += 1;
            }
        }
        let mut throttle = ProgressThrottle::default();
        let transfer = &mut self.transfer;
        self.hub.send_large(self.repo, self.options, &objects, &mut |bytes, was_there| {
            transfer.done = transfer.done.saturating_add_signed(bytes);
            if was_there {
                transfer.before = transfer.before.saturating_add_signed(bytes);
            }
            if throttle.is_due() {
                progress(Stage::Sending, *transfer);
            }
        })?;
        progress(Stage::Sending, self.transfer);
        Ok(())
    }

    /// The pull request that was made without an answer that arrived.
    fn proposed(&self) -> Result<Option<NewCommit>, HubError> {
        if !self.options.create_pr {
            return Ok(None);
        }
        for (name, commit) in self.hub.pull_requests(self.repo)? {
            let number = name.strip_prefix("refs/pr/").and_then(|number| number.parse().ok());
            let Some(number) = number.filter(|_| !self.known.contains_key(&name)) else { continue };
            let listing = self.hub.list(&self.repo.at(&name)?)?;
            let compared = compare_files(self.upload_set, Some(&listing), &mut |_| {})?;
            let is_lacking = |file: &&UploadFile| self.tried.iter().any(|path| path == file.path());
            if !compared.new.iter().chain(&compared.changed).any(is_lacking) && compared.outdated.is_empty() {
                let pull_request = Some(self.hub.pull_request_url(self.repo, number));
                return Ok(Some(NewCommit { commit, pull_request }));
            }
        }
        Ok(None)
    }
}
