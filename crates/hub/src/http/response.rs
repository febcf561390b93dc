//! An HTTP response with limits on its size and time.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, StatusCode};

use super::{MAX_RESPONSE_BYTES, retry_after};
use crate::Token;
use crate::checksum::CHUNK_BYTES;

/// A response with any status that is not a redirect.
#[derive(Debug)]
pub(crate) struct Response {
    /// The host that sent the response, after redirects.
    pub host: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub(super) body: ureq::Body,
    /// Time limit of a body that is not a file.
    pub(super) time: Duration,
    /// Time at which the limit `time` expires.
    pub(super) end: Instant,
    pub(super) token: Option<Token>,
}

/// Reason why a body was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    /// The connection was lost. Another attempt may succeed.
    #[error(transparent)]
    Cut(#[from] io::Error),
    #[error("an incomplete response after {} seconds", .0.as_secs())]
    Late(Duration),
    #[error("a response of more than {0} bytes")]
    Long(u64),
}

impl Response {
    /// Returns the value of a header as text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Returns `Some` if a retry may succeed. The inner value is the wait that the server requests, or `None`
    /// if the server requests no wait.
    pub fn is_passing(&self) -> Option<Option<Duration>> {
        is_passing(self.status).then(|| retry_after(self))
    }

    /// Returns the body as a stream.
    pub fn into_reader(self) -> impl Read {
        self.body.into_reader()
    }

    /// Reads the whole body.
    pub fn bytes(&mut self) -> Result<Vec<u8>, Unread> {
        self.at_most(MAX_RESPONSE_BYTES)
    }

    /// Reads the whole body, which may have at most `most` bytes.
    pub fn at_most(&mut self, most: u64) -> Result<Vec<u8>, Unread> {
        let (mut reader, mut piece) = (self.body.as_reader(), vec![0; CHUNK_BYTES]);
        let mut bytes = Vec::new();
        loop {
            // If a server sends single bytes, the stall timeout never expires, so the whole body has a time
            // limit too.
            if Instant::now() > self.end {
                return Err(Unread::Late(self.time));
            }
            match reader.read(&mut piece) {
                Ok(0) => return Ok(bytes),
                Ok(n) if (bytes.len() + n) as u64 > most => return Err(Unread::Long(most)),
                Ok(n) => bytes.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Replaces the token in a text from the server.
    pub fn redacted(&self, text: &str) -> String {
        self.token.as_ref().map_or_else(|| text.to_owned(), |token| token.redacted(text))
    }
}

/// Returns whether a retry may succeed.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

fn retry_after(response: &Response) -> Option<Duration> {
    retry_after::parse(response.header("retry-after")?, response.header("date"))
}
