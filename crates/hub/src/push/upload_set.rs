use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use danlu_model::FileError;

use super::folder_walk::FolderWalk;
use super::options::{SkippedFile, UploadOptions};
use super::secrets;
use super::skip_reason::SkipReason;
use super::upload_file::UploadFile;
use crate::{HubError, Token};

/// A folder that contains one of these files is an adapter or a model.
const CONFIGS: [&str; 2] = ["adapter_config.json", "config.json"];

/// The files of a folder, divided into files to upload and files to skip.
#[derive(Debug)]
pub struct UploadSet {
    folder: PathBuf,
    files: Vec<UploadFile>,
    skipped: Vec<SkippedFile>,
    with_tokens: bool,
    token: Option<Token>,
}

impl UploadSet {
    /// Lists the files of a folder. Uploads nothing.
    ///
    /// # Errors
    /// If the folder is neither an adapter nor a model, the folder cannot be read, or an `include` pattern
    /// matches nothing.
    pub fn from_folder(folder: &Path, options: &UploadOptions) -> Result<Self, HubError> {
        let root = fs::canonicalize(folder).map_err(|e| FileError::new("read", folder, e))?;
        if !root.is_dir() {
            return Err(FileError::new("read", folder, io::ErrorKind::NotADirectory.into()).into());
        }
        if !CONFIGS.iter().any(|name| root.join(name).is_file()) {
            return Err(HubError::NotAModel { folder: folder.to_owned() });
        }
        let FolderWalk { mut files, mut skipped, used, .. } = FolderWalk::through(&root, options)?;
        if let Some(i) = (0..options.include.len()).find(|i| !used.contains(i)) {
            return Err(HubError::NoMatch { folder: folder.to_owned(), path: options.include[i].clone() });
        }
        files.sort_by(|a, b| a.path().cmp(b.path()));
        skipped.sort_by(|a, b| a.path.cmp(&b.path));
        let (with_tokens, token) = (options.with_tokens, options.token.clone());
        Ok(Self { folder: folder.to_owned(), files, skipped, with_tokens, token })
    }

    /// Returns the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Returns the files to upload, sorted by path.
    pub fn files(&self) -> &[UploadFile] {
        &self.files
    }

    /// Returns the skipped files, sorted by path.
    pub fn skipped(&self) -> &[SkippedFile] {
        &self.skipped
    }

    /// Adds `bytes` as the content of a file. If the path exists, the bytes replace its content.
    ///
    /// If the bytes look like a token, the file is skipped unless `with_tokens` is set. The same rule applies
    /// to files on disk. A path that was skipped before is still skipped.
    pub fn replace(&mut self, path: &str, bytes: Vec<u8>) {
        if self.skipped.iter().any(|left| left.path == path) {
            return;
        }
        self.files.retain(|file| file.path() != path);
        let found = secrets::find(&bytes[..], self.token.as_ref()).expect("memory can be read");
        match found.filter(|_| !self.with_tokens) {
            None => self.files.push(UploadFile::from_bytes(path.to_owned(), bytes)),
            Some(line) => {
                self.skipped.push(SkippedFile { path: path.to_owned(), reason: SkipReason::Token { line } })
            }
        }
        self.files.sort_by(|a, b| a.path().cmp(b.path()));
        self.skipped.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// Moves a file to the skipped files.
    pub fn skip(&mut self, path: &str, reason: SkipReason) {
        let before = self.files.len();
        self.files.retain(|file| file.path() != path);
        if self.files.len() < before {
            self.skipped.push(SkippedFile { path: path.to_owned(), reason });
            self.skipped.sort_by(|a, b| a.path.cmp(&b.path));
        }
    }

    /// Returns the size of the files to upload in bytes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(UploadFile::size).sum()
    }
}
