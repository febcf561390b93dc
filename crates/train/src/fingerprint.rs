//! Short names for long contents: is this still the same data, the same base?

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use danlu_model::FileError;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{Example, TrainError};

/// Weight files up to this size are hashed whole: a second's work.
const WHOLE: u64 = 256 << 20;

/// Of larger ones, this much of the beginning, with every tensor's name, shape and place ...
const HEAD: u64 = 8 << 20;

/// ... and this many pages spread evenly over the rest. Training changes every page of a model.
const PAGES: u64 = 1024;
const PAGE: u64 = 4096;

/// The records of a run as the model sees them: token ids, and which of them are trained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataFingerprint {
    /// Number of records.
    pub records: u64,
    /// Number of their tokens.
    pub tokens: u64,
    /// Of ids and marks, in order.
    pub sha256: String,
}

impl DataFingerprint {
    /// The fingerprint of `examples`.
    pub fn of(examples: &[Example]) -> Self {
        let mut hash = Sha256::new();
        let mut tokens = 0;
        for example in examples {
            let sequence = &example.sequence;
            tokens += sequence.ids.len() as u64;
            hash.update((sequence.ids.len() as u64).to_le_bytes());
            for (id, &trained) in sequence.ids.iter().zip(&sequence.trained) {
                hash.update((u64::from(*id) << 1 | u64::from(trained)).to_le_bytes());
            }
        }
        Self { records: examples.len() as u64, tokens, sha256: hex(hash) }
    }

    pub(crate) fn describe(&self) -> String {
        let Self { records, tokens, sha256 } = self;
        format!("{records} records of {tokens} tokens (sha256 {}…)", sha256.get(..12).unwrap_or(sha256))
    }
}

/// The fingerprint of a model folder: `config.json` and the weights. Large files are sampled.
///
/// # Errors
/// If the folder cannot be read.
pub fn base_fingerprint(folder: &Path) -> Result<String, TrainError> {
    let mut names: Vec<PathBuf> = Vec::new();
    let error = |e| FileError::new("read", folder, e);
    for entry in fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            names.push(path);
        }
    }
    names.sort();
    names.insert(0, folder.join("config.json"));
    let mut hash = Sha256::new();
    for path in names {
        sample(&mut hash, &path).map_err(|e| FileError::new("read", &path, e))?;
    }
    Ok(hex(hash))
}

fn sample(hash: &mut Sha256, path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    hash.update(len.to_le_bytes());
    let mut bytes = Vec::new();
    let head = if len <= WHOLE { len } else { HEAD };
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
    if len > WHOLE {
        let stride = (len - head - PAGE) / PAGES;
        for page in 1..=PAGES {
            file.seek(SeekFrom::Start(head + page * stride))?;
            bytes.clear();
            file.by_ref().take(PAGE).read_to_end(&mut bytes)?;
            hash.update(&bytes);
        }
    }
    Ok(())
}

/// The SHA-256 of a whole file, read in pieces.
pub(crate) fn of_file(path: &Path) -> std::io::Result<String> {
    let (mut file, mut hash) = (File::open(path)?, Sha256::new());
    let mut bytes = vec![0; 1 << 20];
    loop {
        match file.read(&mut bytes)? {
            0 => return Ok(hex(hash)),
            read => hash.update(&bytes[..read]),
        }
    }
}

/// The digest in hex.
pub(crate) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use danlu_model::Sequence;

    #[test]
    fn every_id_mark_and_boundary_counts() {
        let data = |records: &[(&[u32], &[bool])]| {
            let example = |(ids, trained): &(&[u32], &[bool])| Example {
                sequence: Sequence { ids: ids.to_vec(), trained: trained.to_vec() },
                origin: String::new(),
            };
            DataFingerprint::of(&records.iter().map(example).collect::<Vec<_>>()).sha256
        };
        let all = [
            data(&[(&[1, 2, 3], &[false, true, true])]),
            data(&[(&[1, 2, 3], &[false, true, false])]),
            data(&[(&[1, 2, 4], &[false, true, true])]),
            data(&[(&[1, 2], &[false, true]), (&[3], &[true])]),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
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
        let error = base_fingerprint(&folder.path().join("absent")).unwrap_err();
        assert!(error.to_string().contains("absent"), "{error}");
    }
}
