//! Checksums of the Hub: git's checksum for small files, and SHA-256 for large files.

use sha1::Sha1;
use sha2::{Digest, Sha256};

pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// A checksum in hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Checksum {
    /// Git's checksum of a small file: SHA-1 over a header and the content.
    Git(String),
    /// SHA-256 of a large file.
    Sha256(String),
}

/// A checksum that is computed incrementally.
#[derive(Clone)]
pub(crate) enum Hasher {
    Git(Sha1),
    Sha256(Sha256),
}

impl Hasher {
    /// Starts git's checksum of a file of `size` bytes.
    pub fn git(size: u64) -> Self {
        Self::Git(Sha1::new_with_prefix(format!("blob {size}\0")))
    }

    pub fn sha256() -> Self {
        Self::Sha256(Sha256::new())
    }

    /// Starts a checksum of the same kind as `hash`, for a file of `size` bytes.
    pub fn like(hash: &Checksum, size: u64) -> Self {
        match hash {
            Checksum::Git(_) => Self::git(size),
            Checksum::Sha256(_) => Self::sha256(),
        }
    }

    pub fn add(&mut self, bytes: &[u8]) {
        match self {
            Self::Git(sum) => sum.update(bytes),
            Self::Sha256(sum) => sum.update(bytes),
        }
    }

    pub fn digits(self) -> String {
        match self {
            Self::Git(sum) => hex::encode(sum.finalize()),
            Self::Sha256(sum) => hex::encode(sum.finalize()),
        }
    }
}

impl Checksum {
    pub fn digits(&self) -> &str {
        match self {
            Self::Git(digits) | Self::Sha256(digits) => digits,
        }
    }
}

/// Returns whether `text` is `len` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: `git hash-object` and `sha256sum` of the same bytes.
    #[test]
    fn sums_are_those_of_git_and_of_sha256sum() {
        for (sum, digits) in [
            (Hasher::git(6), "ce013625030ba8dba906f756967f9e9ca394464a"),
            (Hasher::sha256(), "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"),
        ] {
            let mut sum = sum;
            sum.add(b"hel");
            sum.add(b"lo\n");
            assert_eq!(sum.digits(), digits);
        }
    }
}
