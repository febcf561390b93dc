//! The download cache, in the layout of `huggingface_hub`.
//!
//! `blobs` contains the content of each file. The name of a blob is its checksum. `refs` contains a file for
//! each branch or tag with its commit. `snapshots` contains a folder for each commit, with links to blobs.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use danlu_model::FileError;
use danlu_model::files::{TEMPORARY_PREFIX, read_bounded, write_atomic};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::checksum::{Checksum, is_hex};
use crate::http::retry_after;
use crate::{HubError, RepoName};

const MAX_REF_BYTES: u64 = 256;

const MAX_FILE_LIST_BYTES: u64 = 64 << 20;

/// The folder for the lists of files that danlu stores. Python ignores this folder.
const FILE_LISTS: &str = ".danlu_files";

/// The cache of one repository.
#[derive(Clone, Debug)]
pub(crate) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

/// An exclusive lock on one blob. danlu and Python both respect the lock. Dropping this value releases the
/// lock.
#[derive(Debug)]
pub(crate) struct BlobLock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

impl Cache {
    /// Opens the cache of a repository below `root`.
    pub fn of(root: &Path, repo: &RepoName) -> Self {
        Self { folder: root.join(repo.folder()), locks: root.join(".locks").join(repo.folder()) }
    }

    /// Resolves a branch, a tag or a commit to a full commit. The commit may be abbreviated. Returns `None`
    /// if the cache does not contain the revision.
    pub fn read_ref(&self, revision: &str) -> Result<Option<String>, HubError> {
        if self.snapshot_path(revision).is_dir() {
            return Ok(Some(revision.to_owned()));
        }
        let path = self.folder.join("refs").join(revision);
        if !path.is_file() {
            return Ok(self.abbreviated(revision));
        }
        let bytes = read_bounded(&path, MAX_REF_BYTES)?;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        // The commit is used as part of a path, so other text is rejected.
        Ok(is_hex(&text, 40).then_some(text))
    }

    /// Returns the only cached commit that starts with `digits`. Returns `None` if no commit or several
    /// commits do.
    fn abbreviated(&self, digits: &str) -> Option<String> {
        if !is_abbreviation(digits) {
            return None;
        }
        let entries = fs::read_dir(self.folder.join("snapshots")).ok()?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut commits = names.filter(|name| is_hex(name, 40) && name.starts_with(digits));
        commits.next().filter(|_| commits.next().is_none())
    }

    pub fn snapshot_path(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob_path(&self, hash: &Checksum) -> PathBuf {
        self.folder.join("blobs").join(hash.digits())
    }

    pub fn partial_path(&self, hash: &Checksum) -> PathBuf {
        self.folder.join("blobs").join(format!("{}.incomplete", hash.digits()))
    }

    /// Waits for the lock of a blob. Returns an error if `stop` is set first.
    pub fn lock(&self, hash: &Checksum, stop: &AtomicBool) -> Result<BlobLock, HubError> {
        create_folder(&self.locks)?;
        create_folder(&self.folder.join("blobs"))?;
        let path = self.locks.join(format!("{}.lock", hash.digits()));
        let error = |e: io::Error| FileError::new("lock", &path, e);
        let mut waits = false;
        loop {
            let file =
                OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(error)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    if !std::mem::replace(&mut waits, true) {
                        tracing::info!("another process fetches the same file: waiting for it");
                    }
                    retry_after::pause(retry_after::STOP_POLL_INTERVAL, Some(stop))?;
                    continue;
                }
                Err(e) => return Err(error(e.into()).into()),
            }
            // The previous owner may have removed the lock file, and a third process may have created a new
            // one. The lock counts only if the path still leads to the file that is locked.
            let ours = file.metadata().map_err(error)?.ino();
            if fs::metadata(&path).is_ok_and(|there| there.ino() == ours) {
                return Ok(BlobLock(file));
            }
        }
    }

    /// Links a file of a snapshot to its blob.
    pub fn link_snapshot(&self, commit: &str, path: &str, hash: &Checksum) -> Result<(), HubError> {
        let link = self.snapshot_path(commit).join(path);
        let depth = 2 + path.matches('/').count();
        let target = PathBuf::from("../".repeat(depth)).join("blobs").join(hash.digits());
        if fs::read_link(&link).is_ok_and(|there| there == target) {
            return Ok(());
        }
        let folder = link.parent().expect("a file of a snapshot has its folder");
        create_folder(folder)?;
        let error = |e: io::Error| FileError::new("write", &link, e);
        let temporary = folder.join(format!("{TEMPORARY_PREFIX}{}-{}", std::process::id(), hash.digits()));
        // A killed process with the same process id may have left a temporary file.
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(error(e).into()),
            _ => {}
        }
        // If the file system has no symbolic links, the snapshot contains a copy, as in Python.
        let made =
            symlink(&target, &temporary).or_else(|_| fs::copy(self.blob_path(hash), &temporary).map(drop));
        made.and_then(|()| fs::rename(&temporary, &link)).map_err(error)?;
        Ok(())
    }

    /// Stores the commit of a revision.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        create_folder(path.parent().expect("a revision's file has its folder"))?;
        Ok(write_atomic(&path, commit.as_bytes())?)
    }

    /// Stores the list of all files of a commit. The files of a data set are later chosen from this list,
    /// without a request.
    pub fn write_file_list(&self, commit: &str, paths: &[String]) -> Result<(), HubError> {
        let path = self.file_list_path(commit);
        create_folder(path.parent().expect("a list is in its folder"))?;
        let text = serde_json::to_vec(paths).expect("a list of texts is JSON");
        Ok(write_atomic(&path, &text)?)
    }

    /// Reads the list of all files of a commit, if it is stored.
    pub fn read_file_list(&self, commit: &str) -> Option<Vec<String>> {
        let bytes = read_bounded(&self.file_list_path(commit), MAX_FILE_LIST_BYTES).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    fn file_list_path(&self, commit: &str) -> PathBuf {
        self.folder.join(FILE_LISTS).join(format!("{commit}.json"))
    }

    /// Records files that do not exist in a commit, so that later lookups do not request them.
    pub fn note_absent(&self, commit: &str, files: &[&str]) {
        let folder = self.folder.join(".no_exist").join(commit);
        let note = |file: &&str| File::create(folder.join(file)).map(drop);
        if let Err(error) = fs::create_dir_all(&folder).and_then(|()| files.iter().try_for_each(note)) {
            // The error is not returned: without the record, the next lookup only sends the request again.
            tracing::info!("`{}`: {error}", folder.display());
        }
    }

    /// Returns whether a file is recorded as absent.
    pub fn is_absent(&self, commit: &str, file: &str) -> bool {
        self.folder.join(".no_exist").join(commit).join(file).is_file()
    }
}

/// Returns whether `revision` may be an abbreviated commit.
pub(crate) fn is_abbreviation(revision: &str) -> bool {
    (7..40).contains(&revision.len()) && is_hex(revision, revision.len())
}

fn create_folder(path: &Path) -> Result<(), HubError> {
    Ok(fs::create_dir_all(path).map_err(|e| FileError::new("create", path, e))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn snapshots_are_links_and_revisions_are_notes() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::of(root.path(), &"a/b".parse().unwrap());
        let (commit, hash) = ("c".repeat(40), Checksum::Git("1".repeat(40)));
        assert_eq!(cache.read_ref("main").unwrap(), None);
        let lock = cache.lock(&hash, &AtomicBool::new(false)).unwrap();
        fs::write(cache.blob_path(&hash), "x").unwrap();
        drop(lock);
        for path in ["config.json", "deep/er/x.json"] {
            cache.link_snapshot(&commit, path, &hash).unwrap();
            cache.link_snapshot(&commit, path, &hash).unwrap();
            assert_eq!(fs::read(cache.snapshot_path(&commit).join(path)).unwrap(), b"x");
        }
        let left = format!("{TEMPORARY_PREFIX}{}-{}", std::process::id(), hash.digits());
        fs::write(cache.snapshot_path(&commit).join(left), "half").unwrap();
        cache.link_snapshot(&commit, "y.json", &hash).unwrap();
        assert_eq!(fs::read(cache.snapshot_path(&commit).join("y.json")).unwrap(), b"x");
        cache.write_ref("refs/pr/1", &commit).unwrap();
        assert_eq!(cache.read_ref("refs/pr/1").unwrap().as_ref(), Some(&commit));
        assert_eq!(cache.read_ref(&commit).unwrap().as_ref(), Some(&commit));
        assert_eq!(cache.read_ref("ccccccc").unwrap().as_ref(), Some(&commit));
        assert_eq!(cache.read_ref("cccccc").unwrap(), None);
        fs::create_dir(cache.snapshot_path(&format!("ccccccc{}", "d".repeat(33)))).unwrap();
        assert_eq!(cache.read_ref("ccccccc").unwrap(), None, "two begin so");
        assert_eq!(cache.read_ref("cccccccc").unwrap().as_ref(), Some(&commit));
        fs::write(root.path().join("models--a--b/refs/evil"), "../../../etc").unwrap();
        assert_eq!(cache.read_ref("evil").unwrap(), None);
        assert!(!cache.is_absent(&commit, "y"));
        cache.note_absent(&commit, &["y", "z"]);
        assert!(cache.is_absent(&commit, "y") && cache.is_absent(&commit, "z"));
    }
}
