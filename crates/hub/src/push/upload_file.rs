use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use danlu_model::FileError;

use super::file_source::FileSource;
use crate::HubError;
use crate::checksum::{CHUNK_BYTES, Checksum, Hasher};

/// A file to upload.
#[derive(Debug)]
pub struct UploadFile {
    path: String,
    source: Source,
    git: OnceLock<String>,
    sha256: OnceLock<String>,
}

#[derive(Debug)]
enum Source {
    /// A file on disk, with its metadata when the folder was read.
    File { place: PathBuf, stamp: Stamp },
    /// Content in memory, which replaces a file of the folder or is a new file.
    Bytes(Vec<u8>),
}

impl UploadFile {
    /// Creates an entry for the open file with the path `place`.
    pub(super) fn of(path: String, place: PathBuf, file: &File) -> io::Result<Self> {
        let stamp = Stamp::of(&file.metadata()?);
        Ok(Self::new(path, Source::File { place, stamp }))
    }

    pub(super) fn from_bytes(path: String, bytes: Vec<u8>) -> Self {
        Self::new(path, Source::Bytes(bytes))
    }

    fn new(path: String, source: Source) -> Self {
        let (git, sha256) = Default::default();
        Self { path, source, git, sha256 }
    }

    /// Returns the path in the folder, with `/` as separator.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        match &self.source {
            Source::File { stamp, .. } => stamp.size,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Returns the path on disk. For content in memory, returns the path in the folder.
    fn place(&self) -> &Path {
        match &self.source {
            Source::File { place, .. } => place,
            Source::Bytes(_) => self.path.as_ref(),
        }
    }

    /// Opens the file.
    ///
    /// # Errors
    /// If the file has changed since the folder was read.
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

    /// Checks that the path and the open file have not changed since the folder was read.
    ///
    /// # Errors
    /// If one of them has changed.
    pub(crate) fn check(&self, content: &FileSource<'_>) -> Result<(), HubError> {
        let (Source::File { place, stamp }, FileSource::File(file)) = (&self.source, content) else {
            return Ok(());
        };
        let is = |data: io::Result<Metadata>| data.is_ok_and(|data| Stamp::of(&data) == *stamp);
        if is(file.metadata()) && is(fs::metadata(place)) { Ok(()) } else { Err(self.changed()) }
    }

    pub(crate) fn changed(&self) -> HubError {
        HubError::FileChanged { path: self.place().to_owned() }
    }

    /// Returns the error for an unreadable file.
    pub(crate) fn unread(&self, error: io::Error) -> HubError {
        FileError::new("read", self.place(), error).into()
    }

    /// Returns whether the checksum of the content is `hash`.
    pub(crate) fn is(&self, hash: &Checksum, heard: &mut dyn FnMut(u64)) -> Result<bool, HubError> {
        let digits = match hash {
            Checksum::Git(_) => self.sum(&self.git, Hasher::git(self.size()), heard)?,
            Checksum::Sha256(_) => self.sha256(heard)?,
        };
        Ok(digits == hash.digits())
    }

    /// Returns the SHA-256 of the content. `heard` receives the number of bytes read.
    ///
    /// # Errors
    /// If the file cannot be read, or has changed since the folder was read.
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

/// Metadata of a file. If the content changes, at least one field changes.
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
