//! A file that goes.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use danlu_model::FileError;

use super::file_source::FileSource;
use crate::HubError;
use crate::checksum::{CHUNK_BYTES, Checksum, Hasher};

/// A file that goes.
#[derive(Debug)]
pub struct UploadFile {
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

impl UploadFile {
    /// The file that was opened at `place`, as it is now.
    pub(super) fn of(path: String, place: PathBuf, file: &File) -> io::Result<Self> {
        let stamp = Stamp::of(&file.metadata()?);
        Ok(Self::new(path, Source::File { place, stamp }))
    }

    /// A file with `bytes` in place of those in the folder.
    pub(super) fn from_bytes(path: String, bytes: Vec<u8>) -> Self {
        Self::new(path, Source::Bytes(bytes))
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
    pub(crate) fn open(&self) -> Result<FileSource<'_>, HubError> {
        let content = match &self.source {
            Source::File { place, .. } => {
                FileSource::File(File::open(place).map_err(|e| FileError::new("read", place, e))?)
            }
            Source::Bytes(bytes) => FileSource::Bytes(bytes),
        };
        self.check(&content)?;
        Ok(content)
    }

    /// Sees that the file at its path, and what was opened, are what was looked at.
    ///
    /// # Errors
    /// If either is another.
    pub(crate) fn check(&self, content: &FileSource<'_>) -> Result<(), HubError> {
        let (Source::File { place, stamp }, FileSource::File(file)) = (&self.source, content) else {
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
    pub(crate) fn is(&self, hash: &Checksum, heard: &mut dyn FnMut(u64)) -> Result<bool, HubError> {
        let digits = match hash {
            Checksum::Git(_) => self.sum(&self.git, Hasher::git(self.size()), heard)?,
            Checksum::Sha256(_) => self.sha256(heard)?,
        };
        Ok(digits == hash.digits())
    }

    /// SHA-256 of its bytes; `heard` hears of every byte that is read for it.
    ///
    /// # Errors
    /// If it cannot be read, or changed since it was looked at.
    pub fn sha256(&self, heard: &mut dyn FnMut(u64)) -> Result<&str, HubError> {
        self.sum(&self.sha256, Hasher::sha256(), heard)
    }

    fn sum<'a>(
        &self,
        known: &'a OnceLock<String>,
        mut sum: Hasher,
        heard: &mut dyn FnMut(u64),
    ) -> Result<&'a str, HubError> {
        if let Some(digits) = known.get() {
            return Ok(digits);
        }
        let (content, mut piece) = (self.open()?, vec![0; CHUNK_BYTES]);
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
