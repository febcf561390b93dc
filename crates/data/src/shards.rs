//! Reads several files of one data set.

use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::{DataError, Dataset, ReadOptions, read};

/// Reads the files of one data set, in the given order. The result's fingerprint has the name `name`. The
/// checksum of several files is the SHA-256 of their hexadecimal checksums.
///
/// # Errors
/// If `files` is empty, if [`read()`](crate::read()) rejects a file, or if the files have different formats.
/// Also if the records of all files together need more than the maximum memory.
pub fn read_shards(files: &[PathBuf], name: &str, options: &ReadOptions) -> Result<Dataset, DataError> {
    let [first, rest @ ..] = files else {
        return Err(DataError::Empty { file: name.into() });
    };
    let mut options = options.clone();
    let mut all = read(first, &options)?;
    options.reserve(&all);
    let mut sums = Sha256::new();
    sums.update(&all.fingerprint.sha256);
    for file in rest {
        let next = read(file, &options)?;
        options.reserve(&next);
        if next.format != all.format {
            let (file, first) = (file.clone(), first.clone());
            return Err(DataError::MixedFormats { file, format: next.format, first, expected: all.format });
        }
        sums.update(&next.fingerprint.sha256);
        all.fingerprint.bytes += next.fingerprint.bytes;
        all.fingerprint.records += next.fingerprint.records;
        all.fingerprint.bad_records += next.fingerprint.bad_records;
        all.records.extend(next.records);
        all.memory += next.memory;
        all.bad.extend(next.bad);
        let is_known = |key: &String| all.unread_lists.contains(key);
        let unread: Vec<String> = next.unread_lists.into_iter().filter(|key| !is_known(key)).collect();
        all.unread_lists.extend(unread);
        for unknown in next.unknown_keys {
            match all.unknown_keys.iter_mut().find(|known| known.key == unknown.key) {
                Some(known) => known.count += unknown.count,
                None => all.unknown_keys.push(unknown),
            }
        }
        all.encoding = all.encoding.or(next.encoding);
    }
    if !rest.is_empty() {
        all.fingerprint.sha256 = hex::encode(sums.finalize());
    }
    all.fingerprint.name = name.to_owned();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn shards_are_read_as_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let a = write("a.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\", \"x\": 1}\n");
        let b = write("b.jsonl", "{\"prompt\": \"c\", \"completion\": \"d\", \"x\": 2}\n{\n");
        let options = ReadOptions::default();
        let both = read_shards(&[a.clone(), b.clone()], "me/data:train", &options).unwrap();
        assert_eq!((both.records.len(), both.bad.len(), both.unknown_keys.len()), (2, 1, 1));
        assert_eq!(both.unknown_keys[0].count, 2);
        assert_eq!((both.fingerprint.name.as_str(), both.fingerprint.records), ("me/data:train", 2));
        assert_eq!(both.records[1].source.file.as_ref(), b.as_path());
        // A single file has its own checksum.
        let one = read_shards(std::slice::from_ref(&a), "x", &options).unwrap();
        assert_eq!(one.fingerprint.sha256, read(&a, &options).unwrap().fingerprint.sha256);
        let c = write("c.jsonl", "{\"text\": \"e\"}\n");
        let error = read_shards(&[a, c], "x", &options).unwrap_err().to_string();
        assert!(error.contains("text") && error.contains("prompt-completion"), "{error}");
        assert!(read_shards(&[], "x", &options).is_err());
    }

    #[test]
    fn shards_share_the_maximum_memory() {
        let folder = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = (0..3)
            .map(|i| {
                let path = folder.path().join(format!("{i}.jsonl"));
                fs::write(&path, "{\"text\": \"a\"}\n".repeat(1000)).unwrap();
                path
            })
            .collect();
        let read_within = |files: &[PathBuf], max_memory| {
            read_shards(files, "x", &ReadOptions { max_memory, ..ReadOptions::default() })
        };
        let one = read_within(&files[..1], None).unwrap().memory;
        let all = read_within(&files, Some(3 * one)).unwrap();
        assert_eq!((all.records.len(), all.memory), (3000, 3 * one));
        let error = read_within(&files, Some(3 * one - 1)).unwrap_err();
        // The last record of the last file is the first one without room.
        let DataError::Memory { place, .. } = &error else { panic!("{error}") };
        assert_eq!((place.file.as_ref(), place.line), (files[2].as_path(), 1000));
    }
}
