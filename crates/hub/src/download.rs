//! Downloads one file. Resumes a partial download, and verifies the checksum before the file gets its final
//! name.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use danlu_model::FileError;

use crate::cache::Cache;
use crate::checksum::{CHUNK_BYTES, Hasher};
use crate::http::Request;
use crate::http::Resource;
use crate::http::rate_floor::RateFloor;
use crate::http::retry_after;
use crate::listing::{RemoteFile, file_url};
use crate::transfer::signed;
use crate::{Hub, HubError, RepoName};

/// A file to download from a commit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FileFetch<'a> {
    pub repo: &'a RepoName,
    pub commit: &'a str,
    pub path: &'a str,
    pub file: &'a RemoteFile,
    /// Cancels this download when set to `true`, which happens after another file has failed.
    pub stop: &'a AtomicBool,
}

/// A partial file, and the checksum of the bytes that it contains.
struct PartialFile<'a> {
    path: &'a Path,
    out: File,
    sum: Hasher,
    done: u64,
    /// Number of times that the download started again at the first byte.
    begun: u32,
}

/// Reason why a transfer ended early.
enum Interruption {
    /// The connection was lost. Another attempt may succeed.
    Cut(String),
    /// The server was too slow. Another attempt may succeed.
    Slow(String),
    Error(HubError),
}

impl<E: Into<HubError>> From<E> for Interruption {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Hub {
    /// Downloads a file, verifies its checksum, and stores it in the cache.
    ///
    /// `advanced` receives byte counts whose sum is the progress. A count is negative if the transfer
    /// restarts.
    pub(crate) fn fetch(
        &self,
        cache: &Cache,
        wanted: FileFetch<'_>,
        advanced: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<(), HubError> {
        let FileFetch { repo, commit, path, file, stop } = wanted;
        let blob = cache.blob_path(&file.hash);
        let _lock = cache.lock(&file.hash, stop)?;
        let is_there = || fs::metadata(&blob).is_ok_and(|there| there.len() == file.size);
        if is_there() {
            let _ = advanced(signed(file.size));
        } else {
            self.fill(cache, wanted, advanced)?;
        }
        cache.link_snapshot(commit, path, &file.hash)?;
        tracing::debug!("{repo}: {path}");
        Ok(())
    }

    /// Downloads a file that the cache lacks. The caller must hold the file's
    /// [`BlobLock`](crate::cache::BlobLock).
    fn fill(
        &self,
        cache: &Cache,
        wanted: FileFetch<'_>,
        advanced: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<(), HubError> {
        let FileFetch { repo, path, file, .. } = wanted;
        let incomplete = cache.partial_path(&file.hash);
        let mut found = String::new();
        // If the checksum is wrong, the download is repeated once from the first byte.
        for _ in 0..2 {
            let (sum, done) = self.gather(&incomplete, wanted, advanced)?;
            found = sum.digits();
            if found == file.hash.digits() {
                let blob = cache.blob_path(&file.hash);
                let error = |e: io::Error| FileError::new("write", &blob, e);
                File::open(&incomplete).and_then(|file| file.sync_all()).map_err(error)?;
                fs::rename(&incomplete, &blob).map_err(error)?;
                return Ok(());
            }
            fs::remove_file(&incomplete).map_err(|e| FileError::new("remove", &incomplete, e))?;
            let _ = advanced(-signed(done));
        }
        let expected = file.hash.digits().to_owned();
        Err(HubError::Checksum { repo: Box::new(repo.clone()), file: path.to_owned(), found, expected })
    }

    /// Computes the checksum of the partial file, then downloads the remaining bytes.
    ///
    /// Each interruption uses up an attempt. If a connection delivered bytes before it was lost, the count of
    /// attempts starts again. After a connection that was too slow, at most one attempt is left.
    fn gather(
        &self,
        incomplete: &Path,
        wanted: FileFetch<'_>,
        advanced: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<(Hasher, u64), HubError> {
        let size = wanted.file.size;
        let error = |e: io::Error| FileError::new("write", incomplete, e);
        let mut out = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(incomplete)
            .map_err(error)?;
        if out.metadata().map_err(error)?.len() > size {
            out.set_len(0).map_err(error)?;
        }
        let mut sum = Hasher::like(&wanted.file.hash, size);
        let done = summed(&mut out, &mut sum, advanced).map_err(error)?;
        let mut part = PartialFile { path: incomplete, out, sum, done, begun: 0 };
        let retry_policy = self.http.retry_policy();
        let (mut left, mut pause) = (retry_policy.attempts, retry_policy.pause);
        while part.done < size {
            let before = part.done;
            let (reason, is_slow) = match self.stream(&mut part, wanted, advanced) {
                Ok(()) => continue,
                Err(Interruption::Error(error)) => return Err(error),
                Err(Interruption::Cut(reason)) => (reason, false),
                Err(Interruption::Slow(reason)) => (reason, true),
            };
            let done = part.done;
            if done > before && !is_slow {
                (left, pause) = (retry_policy.attempts, retry_policy.pause);
            }
            // An attempt with a slow server takes long, so at most one more attempt is made.
            left = if is_slow { left.min(2) - 1 } else { left - 1 };
            // Restarts are limited too. Without this limit, a server that always restarts would keep the
            // client busy forever.
            if left == 0 || part.begun >= retry_policy.attempts {
                return Err(HubError::Cut { file: wanted.path.to_owned(), done, size, reason });
            }
            tracing::info!("{}: {reason} at {done} of {size} bytes; going on", wanted.path);
            retry_after::pause(pause, Some(wanted.stop))?;
            pause *= 2;
        }
        Ok((part.sum, part.done))
    }

    /// Requests the remaining bytes, and appends them to the partial file.
    fn stream(
        &self,
        part: &mut PartialFile<'_>,
        wanted: FileFetch<'_>,
        advanced: &mut dyn FnMut(i64) -> ControlFlow<()>,
    ) -> Result<(), Interruption> {
        let FileFetch { repo, commit, path, file, stop } = wanted;
        let PartialFile { path: incomplete, out, sum, done, begun } = part;
        let error = |e: io::Error| FileError::new("write", incomplete, e);
        let mut request = Request::get(file_url(self, repo, commit, path));
        request.stop = Some(stop);
        if *done > 0 {
            request.headers.push(("range".into(), format!("bytes={done}-")));
        }
        let resource = Resource::File(repo, path);
        let response = self.http.send_checked(&request, resource, self.settings.token_is_variable)?;
        let continues = response.status.as_u16() == 206
            && response
                .header("content-range")
                .is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
        if *done > 0 && !continues {
            // The server ignored the range and sends the whole file.
            let _ = advanced(-signed(*done));
            (*sum, *done, *begun) = (Hasher::like(&file.hash, file.size), 0, *begun + 1);
            out.set_len(0).and_then(|()| out.seek(SeekFrom::Start(0))).map_err(error)?;
        }
        let (mut reader, mut piece) = (response.into_reader(), vec![0; CHUNK_BYTES]);
        let mut rate = RateFloor::new(self.http.retry_policy());
        loop {
            let n = match reader.read(&mut piece) {
                Ok(0) if *done < file.size => {
                    return Err(Interruption::Cut("the connection ended".to_owned()));
                }
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Interruption::Cut(e.to_string())),
            };
            if n as u64 > file.size - *done {
                let fault = format!("more than the {} bytes of `{path}`", file.size);
                return Err(request.fault(fault).into());
            }
            out.write_all(&piece[..n]).map_err(error)?;
            sum.add(&piece[..n]);
            *done += n as u64;
            if advanced(n as i64).is_break() {
                return Err(HubError::Stopped.into());
            }
            rate.count(n as u64).map_err(Interruption::Slow)?;
        }
    }
}

/// Adds the bytes of a file to a checksum, and returns the number of bytes. Afterwards, the position is at
/// the end of the file.
fn summed(
    file: &mut File,
    sum: &mut Hasher,
    advanced: &mut dyn FnMut(i64) -> ControlFlow<()>,
) -> io::Result<u64> {
    let (mut piece, mut done) = (vec![0; CHUNK_BYTES], 0);
    loop {
        let n = file.read(&mut piece)?;
        if n == 0 {
            return Ok(done);
        }
        sum.add(&piece[..n]);
        done += n as u64;
        let _ = advanced(n as i64);
    }
}
