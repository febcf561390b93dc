//! `checksums.sha256` of a checkpoint, in the format of `sha256sum -c`.
//!
//! A weight with a flipped bit is usually still a valid number. Without checksums, a run could resume from a
//! damaged checkpoint and give other results without any error.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use danlu_model::{FileError, files, sha256_of_file};

use crate::TrainError;

pub(crate) const CHECKSUMS_FILE: &str = "checksums.sha256";

/// Maximum size of a checksum file that is read. A checkpoint has about a dozen files.
const MAX_BYTES: u64 = 1 << 20;

pub(crate) fn write(folder: &Path) -> Result<(), TrainError> {
    let mut text = String::new();
    for name in files::names_in(folder)? {
        let sum = sum(&folder.join(&name))?;
        writeln!(text, "{sum}  {name}").expect("a string takes everything");
    }
    Ok(files::write_atomic(&folder.join(CHECKSUMS_FILE), text.as_bytes())?)
}

pub(crate) fn are_in(folder: &Path) -> bool {
    folder.join(CHECKSUMS_FILE).is_file()
}

pub(crate) fn missing(folder: &Path) -> TrainError {
    let reason = "it is missing, so the files of the checkpoint cannot be verified";
    TrainError::damaged(&folder.join(CHECKSUMS_FILE), reason)
}

/// Checks that every listed file is unchanged and that all `needed` files are listed.
pub(crate) fn verify(folder: &Path, needed: &[&str]) -> Result<(), TrainError> {
    let path = folder.join(CHECKSUMS_FILE);
    let text = String::from_utf8(files::read_bounded(&path, MAX_BYTES)?)
        .map_err(|_| TrainError::damaged(&path, "it is not UTF-8"))?;
    let mut sums = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        // The name is joined to the folder's path, so the name must not contain a path.
        let Some((sum, name)) = line.split_once("  ").filter(|(_, name)| is_plain(name)) else {
            let reason = format!("line {number} is `{line}`, expected a SHA-256 and a file's name");
            return Err(TrainError::damaged(&path, reason));
        };
        sums.insert(name, sum);
    }
    if let Some(name) = needed.iter().find(|name| !sums.contains_key(**name)) {
        return Err(TrainError::damaged(&path, format!("it does not list `{name}`")));
    }
    for (name, expected) in sums {
        let path = folder.join(name);
        let found = sum(&path)?;
        if found != expected {
            let reason = format!(
                "its SHA-256 is {}…, expected {}… as when the checkpoint was written",
                start(&found),
                start(expected)
            );
            return Err(TrainError::damaged(&path, reason));
        }
    }
    Ok(())
}

fn sum(path: &Path) -> Result<String, TrainError> {
    Ok(sha256_of_file(path).map_err(|e| FileError::new("read", path, e))?)
}

fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|plain| plain == name)
}

fn start(sum: &str) -> &str {
    sum.get(..12).unwrap_or(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_bit_a_file_and_a_line_are_missed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("a"), "abc").unwrap();
        fs::write(at("b"), "").unwrap();
        write(folder.path()).unwrap();
        // Expected text: the output of `sha256sum a b`.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a\n\
                        e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  b\n";
        assert_eq!(fs::read_to_string(at(CHECKSUMS_FILE)).unwrap(), expected);
        let error = |needed: &[&str]| verify(folder.path(), needed).unwrap_err().to_string();
        verify(folder.path(), &["a", "b"]).unwrap();
        fs::write(at("mine.txt"), "a note of the user's").unwrap();
        verify(folder.path(), &["a"]).unwrap();
        assert!(error(&["c"]).ends_with("it does not list `c`"), "{}", error(&["c"]));

        fs::write(at("a"), "abb").unwrap();
        let flipped = error(&[]);
        assert!(
            flipped.contains("a`: its SHA-256 is ") && flipped.contains("expected ba7816bf8f01…"),
            "{flipped}"
        );
        fs::remove_file(at("a")).unwrap();
        assert!(error(&[]).ends_with("a`: it does not exist"), "{}", error(&[]));
        for wrong in ["ba78 a", "ba78  ../a", "ba78  /etc/hostname"] {
            fs::write(at(CHECKSUMS_FILE), wrong).unwrap();
            assert!(error(&[]).contains("line 1 is "), "{}", error(&[]));
        }
    }
}
