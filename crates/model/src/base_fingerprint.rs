//! Fingerprints of model folders, which show whether a base is the one on which an adapter was trained.

use std::fs::{self, File};
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::files;
use crate::{FileError, Weights};

/// Weight files up to this size are hashed completely, which takes about a second.
const WHOLE: u64 = 256 << 20;

/// Number of bytes hashed at the start of a larger file. The start contains the name, shape and offset of
/// every tensor.
const HEAD: u64 = 8 << 20;

/// Number of evenly spread pages that are hashed in the rest of a larger file. A sample of the pages is
/// enough to detect another model, because full fine-tuning changes nearly every page of the weights.
const PAGES: u64 = 1024;
const PAGE: u64 = 4096;

/// Number of bytes that the quick fingerprint hashes at the start of a file. The number is small, because
/// every load of a model computes the quick fingerprint.
const SAMPLE_HEAD: u64 = 64 << 10;

/// Number of pages that the quick fingerprint hashes in the rest of a file.
const SAMPLE_PAGES: u64 = 64;

/// Returns the fingerprint of `config.json` and the weights. Of files above 256 MiB, only a sample of the
/// bytes is hashed.
///
/// # Errors
/// If the folder cannot be read.
pub fn base_fingerprint(folder: &Path) -> Result<String, FileError> {
    of_base(folder, &FINGERPRINT)
}

/// Returns a quick fingerprint, computed from a few pages of each file. The quick fingerprint detects a
/// different base, but may miss a few changed bytes.
///
/// # Errors
/// If the folder cannot be read.
pub fn base_sample(folder: &Path) -> Result<String, FileError> {
    of_base(folder, &SAMPLE)
}

/// Returns the same value as [`base_fingerprint`], computed from the bytes of `config.json` and the open
/// weights.
///
/// # Errors
/// If the folder cannot be listed, or a safetensors file cannot be read.
pub fn base_fingerprint_of(config_json: &[u8], weights: &Weights) -> Result<String, FileError> {
    of_open_base(config_json, weights, &FINGERPRINT)
}

/// Returns the same value as [`base_sample`], computed from the bytes of `config.json` and the open weights.
///
/// # Errors
/// The errors of [`base_fingerprint_of`].
pub fn base_sample_of(config_json: &[u8], weights: &Weights) -> Result<String, FileError> {
    of_open_base(config_json, weights, &SAMPLE)
}

struct Depth {
    whole: u64,
    head: u64,
    pages: u64,
}

const FINGERPRINT: Depth = Depth { whole: WHOLE, head: HEAD, pages: PAGES };
const SAMPLE: Depth = Depth { whole: SAMPLE_HEAD, head: SAMPLE_HEAD, pages: SAMPLE_PAGES };

fn of_open_base(config_json: &[u8], weights: &Weights, depth: &Depth) -> Result<String, FileError> {
    let mut hash = Sha256::new();
    sample(&mut hash, &mut Cursor::new(config_json), depth).expect("reading memory does not fail");
    for path in weight_files_in(weights.folder())? {
        match weights.open_file_at(&path) {
            Some(file) => {
                let mut file = FileCursor { file, at: 0 };
                sample(&mut hash, &mut file, depth).map_err(|e| FileError::new("read", &path, e))?;
            }
            None => sample_file(&mut hash, &path, depth)?,
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// A read position in an open file. Several threads may read the same file, so the cursor does not move the
/// file's own position.
struct FileCursor<'a> {
    file: &'a File,
    at: u64,
}

impl Read for FileCursor<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(out, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for FileCursor<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.file.metadata()?.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

fn of_base(folder: &Path, depth: &Depth) -> Result<String, FileError> {
    let mut hash = Sha256::new();
    sample_file(&mut hash, &folder.join("config.json"), depth)?;
    for path in weight_files_in(folder)? {
        sample_file(&mut hash, &path, depth)?;
    }
    Ok(hex::encode(hash.finalize()))
}

fn weight_files_in(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let mut paths: Vec<PathBuf> = Vec::new();
    let error = |e| FileError::new("read", folder, e);
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let is_torch = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with("pytorch_model") && name.ends_with(".bin"));
        if path.extension().is_some_and(|e| e == "safetensors") || is_torch {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn sample_file(hash: &mut Sha256, path: &Path, depth: &Depth) -> Result<(), FileError> {
    sample(hash, &mut files::open_regular(path)?, depth).map_err(|e| FileError::new("read", path, e))
}

fn sample(hash: &mut Sha256, file: &mut (impl Read + Seek), depth: &Depth) -> io::Result<()> {
    let len = file.seek(SeekFrom::End(0))?;
    file.rewind()?;
    hash.update(len.to_le_bytes());
    let mut bytes = Vec::new();
    let head = if len <= depth.whole { len } else { depth.head };
    let mut left = head;
    while left > 0 {
        bytes.clear();
        let read = file.by_ref().take(left.min(1 << 20)).read_to_end(&mut bytes)? as u64;
        if read == 0 {
            break;
        }
        hash.update(&bytes);
        left -= read;
    }
    if len > depth.whole {
        let stride = (len - head).saturating_sub(PAGE) / depth.pages;
        for page in 1..=depth.pages {
            file.seek(SeekFrom::Start(head + page * stride))?;
            bytes.clear();
            file.by_ref().take(PAGE).read_to_end(&mut bytes)?;
            hash.update(&bytes);
        }
    }
    Ok(())
}

/// Returns the SHA-256 of a file. The file is never loaded into memory as a whole.
///
/// # Errors
/// If the file cannot be read, or if it is not a regular file. A device such as `/dev/zero` has no end.
pub fn sha256_of_file(path: &Path) -> std::io::Result<String> {
    files::check_regular(&fs::metadata(path)?)?;
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hex::encode(hash.finalize())),
            read => hash.update(&bytes[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn a_device_without_end_is_not_hashed() {
        let error = sha256_of_file(Path::new("/dev/zero")).unwrap_err();
        assert_eq!(error.to_string(), "it is not a regular file");
    }

    #[test]
    fn a_byte_of_the_base_counts() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("config.json"), "{}").unwrap();
        fs::write(folder.path().join("model.safetensors"), [0; 5000]).unwrap();
        let first = base_fingerprint(folder.path()).unwrap();
        fs::write(folder.path().join("README.md"), "other").unwrap();
        assert_eq!(base_fingerprint(folder.path()).unwrap(), first);
        let mut bytes = [0; 5000];
        bytes[4999] = 1;
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        assert_ne!(base_fingerprint(folder.path()).unwrap(), first);
        // The quick fingerprint detects a different model, even though it reads only a few pages of a large
        // file.
        let sample = |bytes: &[u8]| {
            fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
            base_sample(folder.path()).unwrap()
        };
        let (large, small) = (vec![0; 1 << 20], vec![0; (64 << 10) + 1]);
        assert_eq!(sample(&large), sample(&large));
        assert_ne!(sample(&large), sample(&small));
        let trained: Vec<u8> = large.iter().enumerate().map(|(i, _)| u8::from(i > 100_000)).collect();
        assert_ne!(sample(&large), sample(&trained));
        // The fingerprint of open files equals the fingerprint of the folder, each time it is computed.
        let base = Path::new("../cli/assets/base-8m");
        let config = fs::read(base.join("config.json")).unwrap();
        let weights = Weights::open(base).unwrap();
        for _ in 0..2 {
            assert_eq!(base_sample_of(&config, &weights).unwrap(), base_sample(base).unwrap());
            assert_eq!(base_fingerprint_of(&config, &weights).unwrap(), base_fingerprint(base).unwrap());
        }
        let error = base_fingerprint(&folder.path().join("absent")).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
