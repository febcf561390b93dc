//! The content of a file to upload: a file on disk, or bytes in memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

/// Opened content that can be read several times.
#[derive(Debug)]
pub(crate) enum FileSource<'a> {
    File(File),
    Bytes(&'a [u8]),
}

impl FileSource<'_> {
    /// Reads up to `out.len()` bytes from the offset `at`.
    pub fn read_at(&self, out: &mut [u8], at: u64) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read_at(out, at),
            Self::Bytes(bytes) => {
                let rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                rest.take(out.len() as u64).read(out)
            }
        }
    }

    pub fn reader(&self) -> Reader<'_> {
        Reader { content: self, at: 0 }
    }
}

/// A sequential reader of a [`FileSource`].
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    content: &'a FileSource<'a>,
    at: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.content.read_at(out, self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}
