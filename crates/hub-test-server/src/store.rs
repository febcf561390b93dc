//! Stores content on disk by SHA-256. Memory contains at most one buffer of a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempDir};

use crate::recorded_request::lock;

const BUFFER: usize = 256 << 10;

pub(crate) struct Store {
    objects: PathBuf,
    incoming: PathBuf,
    /// The temporary folder, if the store created one.
    temporary: Mutex<Option<TempDir>>,
}

impl Store {
    /// Opens a store in `root`, or in a temporary folder.
    ///
    /// # Errors
    /// If the folder cannot be created.
    pub fn new(root: Option<&Path>) -> io::Result<Self> {
        let temporary = if root.is_none() { Some(TempDir::with_prefix("hub-test-server-")?) } else { None };
        let root =
            root.map_or_else(|| temporary.as_ref().map(|t| t.path().to_owned()), |r| Some(r.to_owned()));
        let root = root.unwrap_or_default();
        let (objects, incoming) = (root.join("objects"), root.join("incoming"));
        fs::create_dir_all(&objects)?;
        fs::create_dir_all(&incoming)?;
        Ok(Self { objects, incoming, temporary: Mutex::new(temporary) })
    }

    /// Deletes the temporary folder, even if a connection that is being closed still uses it.
    pub fn close(&self) {
        drop(lock(&self.temporary).take());
    }

    /// Opens the content with this hash.
    ///
    /// # Errors
    /// If the store has no such content.
    pub fn open(&self, sha256: &str) -> io::Result<File> {
        File::open(self.objects.join(sha256))
    }

    /// Returns the size of the content with this hash, if it exists.
    pub fn size(&self, sha256: &str) -> Option<u64> {
        fs::metadata(self.objects.join(sha256)).ok().map(|data| data.len())
    }

    /// Stores `bytes` and returns their hash.
    ///
    /// # Errors
    /// If the bytes cannot be written.
    pub fn put(&self, bytes: &[u8]) -> io::Result<String> {
        Ok(self.receive(&mut &bytes[..], None)?.0)
    }

    /// Stores the content of `reader`, and returns its hash and its size.
    ///
    /// If `expected` is set and the hash is different, the content is not stored.
    ///
    /// # Errors
    /// If reading or writing fails. Nothing is stored then.
    pub fn receive(&self, reader: &mut dyn Read, expected: Option<&str>) -> io::Result<(String, u64)> {
        let mut file = NamedTempFile::new_in(&self.incoming)?;
        let (sha256, size) = copy_hashed(reader, &mut file)?;
        if expected.is_none_or(|expected| expected == sha256) {
            file.persist(self.objects.join(&sha256)).map_err(|error| error.error)?;
        }
        Ok((sha256, size))
    }

    /// Stores the file at `path` as a hard link or, if the file system does not allow a link, as a copy.
    /// Returns hash and size.
    ///
    /// # Errors
    /// If the file cannot be read, linked or copied.
    pub fn take_in(&self, path: &Path) -> io::Result<(String, u64)> {
        let (sha256, size) = copy_hashed(&mut File::open(path)?, &mut io::sink())?;
        let object = self.objects.join(&sha256);
        if !object.exists() && fs::hard_link(path, &object).is_err() {
            fs::copy(path, &object)?;
        }
        Ok((sha256, size))
    }

    /// Writes a part of the upload `name` at the offset `start`. Returns the size and the ETag of the part.
    ///
    /// # Errors
    /// If reading or writing fails.
    pub fn receive_part(&self, name: &str, start: u64, reader: &mut dyn Read) -> io::Result<(String, u64)> {
        let path = self.incoming.join(name);
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path)?;
        file.seek(SeekFrom::Start(start))?;
        copy_hashed(reader, &mut file)
    }

    /// Hashes the upload `name`. Stores the content if its hash is `expected`, and removes the upload.
    /// Returns hash and size.
    ///
    /// # Errors
    /// If the upload cannot be read or moved.
    pub fn complete(&self, name: &str, expected: &str) -> io::Result<(String, u64)> {
        let path = self.incoming.join(name);
        let (sha256, size) = copy_hashed(&mut File::open(&path)?, &mut io::sink())?;
        if sha256 == expected {
            fs::rename(&path, self.objects.join(&sha256))?;
        } else {
            fs::remove_file(&path)?;
        }
        Ok((sha256, size))
    }
}

fn copy_hashed(reader: &mut dyn Read, writer: &mut dyn Write) -> io::Result<(String, u64)> {
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0, vec![0; BUFFER]);
    loop {
        let count = match reader.read(&mut buffer) {
            Ok(0) => return Ok((hex::encode(hash.finalize()), size)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..count]);
        writer.write_all(&buffer[..count])?;
        size += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // SHA-256 of `abc`. Source: FIPS 180-4.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn only_what_has_the_expected_hash_stays() {
        let store = Store::new(None).unwrap();
        let (found, size) = store.receive(&mut &b"abd"[..], Some(ABC)).unwrap();
        assert_ne!(found, ABC);
        assert_eq!((size, store.size(ABC), store.size(&found)), (3, None, None));
        assert_eq!(store.receive(&mut &b"abc"[..], Some(ABC)).unwrap(), (ABC.to_owned(), 3));
        assert_eq!(store.size(ABC), Some(3));
        assert_eq!(fs::read_dir(&store.incoming).unwrap().count(), 0);
    }

    #[test]
    fn parts_become_one_content_or_none() {
        let store = Store::new(None).unwrap();
        store.receive_part("up", 2, &mut &b"c"[..]).unwrap();
        store.receive_part("up", 0, &mut &b"ab"[..]).unwrap();
        assert_eq!(store.complete("up", ABC).unwrap(), (ABC.to_owned(), 3));
        assert_eq!(store.size(ABC), Some(3));
        store.receive_part("up", 0, &mut &b"abd"[..]).unwrap();
        assert_ne!(store.complete("up", ABC).unwrap().0, ABC);
        assert!(store.complete("up", ABC).is_err());
    }

    #[test]
    fn a_closed_store_leaves_nothing() {
        let store = Store::new(None).unwrap();
        store.put(b"abc").unwrap();
        let folder = store.objects.parent().unwrap().to_owned();
        assert!(folder.exists());
        store.close();
        assert!(!folder.exists());
    }
}
