//! A part of a file. Each upload attempt reads the part again.

use std::fmt;
use std::io::{self, Read};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use super::file_source::FileSource;
use super::upload_file::UploadFile;
use crate::HubError;
use crate::checksum::Hasher;
use crate::transfer::signed;

pub(crate) struct FilePart<'a> {
    pub of: &'a UploadFile,
    pub content: &'a FileSource<'a>,
    pub start: u64,
    pub len: u64,
    /// Receives the number of bytes sent. If an attempt fails, receives the negative number of its bytes.
    pub advanced: &'a (dyn Fn(i64) + Sync),
    /// Flag that cancels the upload when set.
    pub stop: &'a AtomicBool,
    /// SHA-256 of the bytes of the last attempt, if the part is the whole file.
    pub sent: Mutex<Option<String>>,
}

impl fmt::Debug for FilePart<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes of `{}` from {}", self.len, self.of.path(), self.start)
    }
}

impl<'a> FilePart<'a> {
    /// Starts an upload attempt.
    pub fn reader(&'a self) -> FilePartReader<'a> {
        let is_whole = self.start == 0 && self.len == self.of.size();
        FilePartReader { slice: self, done: 0, sum: is_whole.then(Hasher::sha256) }
    }
}

/// One attempt to upload a [`FilePart`].
pub(crate) struct FilePartReader<'a> {
    slice: &'a FilePart<'a>,
    done: u64,
    sum: Option<Hasher>,
}

impl Read for FilePartReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let FilePart { content, start, len, advanced, stop, .. } = self.slice;
        if stop.load(Ordering::Relaxed) {
            return Err(io::Error::other("stopped"));
        }
        let most = usize::try_from(len - self.done).unwrap_or(usize::MAX).min(out.len());
        if most == 0 {
            return Ok(0);
        }
        let n = content.read_at(&mut out[..most], start + self.done)?;
        if n == 0 {
            return Err(io::Error::other("the file became shorter"));
        }
        if let Some(sum) = &mut self.sum {
            sum.add(&out[..n]);
        }
        self.done += n as u64;
        advanced(n as i64);
        Ok(n)
    }
}

impl FilePartReader<'_> {
    /// Ends the attempt. If the attempt failed, subtracts its bytes from the progress.
    ///
    /// # Errors
    /// If the file changed, or the upload was cancelled.
    pub fn end(self, is_success: bool) -> Result<(), HubError> {
        let slice = self.slice;
        if slice.stop.load(Ordering::Relaxed) {
            return Err(HubError::Stopped);
        }
        if !is_success {
            (slice.advanced)(-signed(self.done));
        }
        let sent = self.sum.filter(|_| self.done == slice.len).map(Hasher::digits);
        *slice.sent.lock().expect("nothing panics while it is held") = sent;
        slice.of.check(slice.content)
    }
}
