//! Opens a data file, decompresses the data, and returns the first bytes.

use std::cell::Cell;
use std::io::{self, BufReader, Read};
use std::rc::Rc;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use crate::unsupported_file::Compression;

/// Number of bytes at the start of a file that are used to detect its type.
const HEAD_BYTES: u64 = 1 << 16;

/// Maximum ratio of decompressed to compressed bytes. The ratio is about 10 for ordinary text.
const MAX_EXPANSION: u64 = 1 << 10;

/// A stream, together with a copy of its first bytes.
pub(crate) struct Opened<'a> {
    /// The first bytes, after decompression.
    pub head: Vec<u8>,
    /// All bytes from the start, after decompression.
    pub stream: Box<dyn Read + 'a>,
}

/// Opens `input`, and decompresses gzip and Zstandard.
pub(crate) fn open<'a>(input: impl Read + 'a) -> io::Result<Opened<'a>> {
    let opened = peek(input)?;
    let Some(compression) = Compression::of(&opened.head) else { return Ok(opened) };
    let source = Counting { inner: opened.stream, bytes: 0 };
    match compression {
        Compression::Gzip => {
            peek(Limited::new(MultiGzDecoder::new(source), |decoder| decoder.get_ref().bytes))
        }
        Compression::Zstd => {
            let decoder = zstd::Decoder::with_buffer(BufReader::new(source))?;
            peek(Limited::new(decoder, |decoder| decoder.get_ref().get_ref().bytes))
        }
    }
}

fn peek<'a>(mut input: impl Read + 'a) -> io::Result<Opened<'a>> {
    let mut head = Vec::new();
    input.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    let stream = Box::new(io::Cursor::new(head.clone()).chain(input));
    Ok(Opened { head, stream })
}

struct Counting<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.bytes += count as u64;
        Ok(count)
    }
}

/// A decoder that fails if the ratio of output bytes to input bytes exceeds [`MAX_EXPANSION`].
struct Limited<R, F> {
    decoder: R,
    /// A function that returns the number of compressed bytes read so far.
    source: F,
    bytes: u64,
}

impl<R: Read, F: Fn(&R) -> u64> Limited<R, F> {
    fn new(decoder: R, source: F) -> Self {
        Self { decoder, source, bytes: 0 }
    }
}

impl<R: Read, F: Fn(&R) -> u64> Read for Limited<R, F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.decoder.read(buffer)?;
        self.bytes += count as u64;
        if self.bytes / MAX_EXPANSION > (self.source)(&self.decoder) + HEAD_BYTES {
            let message = format!("it grows more than {MAX_EXPANSION} times when decompressed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(count)
    }
}

/// A reader that hashes and counts the bytes that it returns.
pub(crate) struct Hashing<R> {
    inner: R,
    sha256: Sha256,
    /// The count of the bytes. A clone of this `Rc` can be read while the reader is borrowed.
    bytes: Rc<Cell<u64>>,
}

impl<R: Read> Hashing<R> {
    pub fn new(inner: R) -> Self {
        Self { inner, sha256: Sha256::new(), bytes: Rc::default() }
    }

    /// Returns the count of the bytes read, which changes with every read.
    pub fn byte_count(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.bytes)
    }

    /// Returns the SHA-256 of the bytes read, in hexadecimal.
    pub fn sha256(self) -> String {
        hex::encode(self.sha256.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..count]);
        self.bytes.set(self.bytes.get() + count as u64);
        Ok(count)
    }
}
