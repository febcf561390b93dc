//! What of a folder goes to the Hub, and what stays.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use danlu_model::FileError;

use super::content::Content;
use super::reason::Reason;
use super::secrets;
use super::walk::Walk;
use crate::listing::Hash;
use crate::sum::{PIECE, Sum};
use crate::{HubError, Token};

/// One of these makes a folder an adapter or a model.
const CONFIGS: [&str; 2] = ["adapter_config.json", "config.json"];

/// What is otherwise than usual in a [`Parcel`].
#[derive(Clone, Debug, Default)]
pub struct ParcelOptions {
    /// Paths that come along though they would stay: `run.toml`, `*.jsonl`, `checkpoint-3`. A `*` stands for no `/`, and
    /// not for the dot that hides a file; a name without a `/` is meant in every folder. Files with a token in them still
    /// stay.
    pub include: Vec<String>,
    /// Whether files come along in which something looks like a token.
    pub with_tokens: bool,
    /// The user's own token, which is looked for as well.
    pub token: Option<Token>,
}

/// What of a folder goes to the Hub, and what stays.
#[derive(Debug)]
pub struct Parcel {
    folder: PathBuf,
    files: Vec<ParcelFile>,
    left: Vec<Left>,
    with_tokens: bool,
    token: Option<Token>,
}

/// A file that goes.
#[derive(Debug)]
pub struct ParcelFile {
    path: String,
    source: Source,
    git: OnceLock<String>,
    sha256: OnceLock<String>,
}

/// Where a file's bytes come from.
#[derive(Debug)]
enum Source {
    /// A file, as it was when it was looked at.
    File { place: PathBuf, stamp: Stamp },
    /// Memory: they go in place of those in the folder.
    Bytes(Vec<u8>),
}

/// A file that stays, or a folder with all that is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Its path within the folder, with `/`; a folder's ends in one.
    pub path: String,
    /// Why.
    pub reason: Reason,
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
        files.sort_by(|a, b| a.path.cmp(&b.path));
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
        self.files.retain(|file| file.path != path);
        let found = secrets::find(&bytes[..], self.token.as_ref()).expect("memory can be read");
        match found.filter(|_| !self.with_tokens) {
            None => self.files.push(ParcelFile::new(path.to_owned(), Source::Bytes(bytes))),
            Some(line) => self.left.push(Left { path: path.to_owned(), reason: Reason::Token { line } }),
        }
        self.files.sort_by(|a, b| a.path.cmp(&b.path));
        self.left.sort_by(|a, b| a.path.cmp(&b.path));
    }

    /// Lets a file that would go stay.
    pub fn keep(&mut self, path: &str, reason: Reason) {
        let before = self.files.len();
        self.files.retain(|file| file.path != path);
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

impl ParcelFile {
    /// The file that was opened at `place`, as it is now.
    pub(super) fn of(path: String, place: PathBuf, file: &File) -> io::Result<Self> {
        let stamp = Stamp::of(&file.metadata()?);
        Ok(Self::new(path, Source::File { place, stamp }))
    }

    fn new(path: String, source: Source) -> Self {
        let (git, sha256) = Default::default();
        Self { path, source, git, sha256 }
    }

    /// Its path within the folder, with `/`.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its bytes.
    pub fn size(&self) -> u64 {
        match &self.source {
            Source::File { stamp, .. } => stamp.size,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Its place on the disk; its path, where its bytes come from elsewhere.
    fn place(&self) -> &Path {
        match &self.source {
            Source::File { place, .. } => place,
            Source::Bytes(_) => self.path.as_ref(),
        }
    }

    /// Opens it as it was when it was looked at.
    ///
    /// # Errors
    /// If it is not that file any more.
    pub(crate) fn open(&self) -> Result<Content<'_>, HubError> {
        let content = match &self.source {
            Source::File { place, .. } => {
                Content::File(File::open(place).map_err(|e| FileError::new("read", place, e))?)
            }
            Source::Bytes(bytes) => Content::Bytes(bytes),
        };
        self.check(&content)?;
        Ok(content)
    }

    /// Sees that the file at its path, and what was opened, are what was looked at.
    ///
    /// # Errors
    /// If either is another.
    pub(crate) fn check(&self, content: &Content<'_>) -> Result<(), HubError> {
        let (Source::File { place, stamp }, Content::File(file)) = (&self.source, content) else {
            return Ok(());
        };
        let is = |data: io::Result<Metadata>| data.is_ok_and(|data| Stamp::of(&data) == *stamp);
        if is(file.metadata()) && is(fs::metadata(place)) { Ok(()) } else { Err(self.changed()) }
    }

    /// The error that it is another.
    pub(crate) fn changed(&self) -> HubError {
        HubError::FileChanged { path: self.place().to_owned() }
    }

    /// The error that it cannot be read.
    pub(crate) fn unread(&self, error: io::Error) -> HubError {
        FileError::new("read", self.place(), error).into()
    }

    /// Whether its bytes give `hash`.
    pub(crate) fn is(&self, hash: &Hash, heard: &mut dyn FnMut(u64)) -> Result<bool, HubError> {
        let digits = match hash {
            Hash::Git(_) => self.sum(&self.git, Sum::git(self.size()), heard)?,
            Hash::Sha256(_) => self.sha256(heard)?,
        };
        Ok(digits == hash.digits())
    }

    /// SHA-256 of its bytes; `heard` hears of every byte that is read for it.
    ///
    /// # Errors
    /// If it cannot be read, or changed since it was looked at.
    pub fn sha256(&self, heard: &mut dyn FnMut(u64)) -> Result<&str, HubError> {
        self.sum(&self.sha256, Sum::sha256(), heard)
    }

    fn sum<'a>(
        &self,
        known: &'a OnceLock<String>,
        mut sum: Sum,
        heard: &mut dyn FnMut(u64),
    ) -> Result<&'a str, HubError> {
        if let Some(digits) = known.get() {
            return Ok(digits);
        }
        let (content, mut piece) = (self.open()?, vec![0; PIECE]);
        let mut reader = content.reader();
        loop {
            match reader.read(&mut piece) {
                Ok(0) => break,
                Ok(n) => {
                    sum.add(&piece[..n]);
                    heard(n as u64);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.unread(e)),
            }
        }
        self.check(&content)?;
        Ok(known.get_or_init(|| sum.digits()))
    }
}

/// What a file was when it was looked at: it does not change without one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    inode: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(data: &Metadata) -> Self {
        Self {
            size: data.len(),
            inode: data.ino(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
        }
    }
}
