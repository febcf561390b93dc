//! What of a folder goes to the Hub, and what stays.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use danlu_model::FileError;

use super::folder_walk::Walk;
use super::options::{Left, ParcelOptions};
use super::secrets;
use super::skip_reason::Reason;
use super::upload_file::ParcelFile;
use crate::{HubError, Token};

/// One of these makes a folder an adapter or a model.
const CONFIGS: [&str; 2] = ["adapter_config.json", "config.json"];

/// What of a folder goes to the Hub, and what stays.
#[derive(Debug)]
pub struct Parcel {
    folder: PathBuf,
    files: Vec<ParcelFile>,
    left: Vec<Left>,
    with_tokens: bool,
    token: Option<Token>,
}

impl Parcel {
    /// Looks through a folder: nothing is sent.
    ///
    /// # Errors
    /// If it holds neither an adapter nor a model, cannot be read, or nothing has a name that is to come along.
    pub fn of(folder: &Path, options: &ParcelOptions) -> Result<Self, HubError> {
        let root = fs::canonicalize(folder).map_err(|e| FileError::new("read", folder, e))?;
        if !root.is_dir() {
            return Err(FileError::new("read", folder, io::ErrorKind::NotADirectory.into()).into());
        }
        if !CONFIGS.iter().any(|name| root.join(name).is_file()) {
            return Err(HubError::NotAModel { folder: folder.to_owned() });
        }
        let Walk { mut files, mut left, used, .. } = Walk::through(&root, options)?;
        if let Some(i) = (0..options.include.len()).find(|i| !used.contains(i)) {
            return Err(HubError::NotThere { folder: folder.to_owned(), path: options.include[i].clone() });
        }
        files.sort_by(|a, b| a.path().cmp(b.path()));
        left.sort_by(|a, b| a.path.cmp(&b.path));
        let (with_tokens, token) = (options.with_tokens, options.token.clone());
        Ok(Self { folder: folder.to_owned(), files, left, with_tokens, token })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What goes, by path.
    pub fn files(&self) -> &[ParcelFile] {
        &self.files
    }

    /// What stays, by path.
    pub fn left(&self) -> &[Left] {
        &self.left
    }

    /// Sends `bytes` in place of those of a file that goes, or as a file that the folder lacks. Where something in them
    /// looks like a token they stay, as a file of the folder would; one that stays for another reason goes on staying.
    pub fn substitute(&mut self, path: &str, bytes: Vec<u8>) {
        if self.left.iter().any(|left| left.path == path) {
            return;
        }
        self.files.retain(|file| file.path() != path);
        let found = secrets::find(&bytes[..], self.token.as_ref()).expect("memory can be read");
        match found.filter(|_| !self.with_tokens) {
            None => self.files.push(ParcelFile::from_bytes(path.to_owned(), bytes)),
            Some(line) => self.left.push(Left { path: path.to_owned(), reason: Reason::Token { line } }),
        }
        self.files.sort_by(|a, b| a.path().cmp(b.path()));
        self.left.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// Lets a file that would go stay.
    pub fn keep(&mut self, path: &str, reason: Reason) {
        let before = self.files.len();
        self.files.retain(|file| file.path() != path);
        if self.files.len() < before {
            self.left.push(Left { path: path.to_owned(), reason });
            self.left.sort_by(|a, b| a.path.cmp(&b.path));
        }
    }

    /// Bytes of what goes.
    pub fn size(&self) -> u64 {
        self.files.iter().map(ParcelFile::size).sum()
    }
}
