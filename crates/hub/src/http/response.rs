//! What a server answered, read no further than it is asked for.

use std::io::{self, Read};
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, StatusCode};

use super::{MAX_RESPONSE_BYTES, retry_after};
use crate::Token;
use crate::checksum::CHUNK_BYTES;

/// What came back: any status that is no redirect.
#[derive(Debug)]
pub(crate) struct Response {
    /// Who gave it, after redirects.
    pub host: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub(super) body: ureq::Body,
    /// Where it is no file, how long all of it may take, and until when that is.
    pub(super) time: Duration,
    pub(super) end: Instant,
    pub(super) token: Option<Token>,
}

/// Why an answer that is no file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    /// The connection: worth another try.
    #[error(transparent)]
    Cut(#[from] io::Error),
    #[error("an answer that is not here after {} seconds", .0.as_secs())]
    Late(Duration),
    #[error("an answer of more than {0} bytes")]
    Long(u64),
}

impl Response {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the same request may do better later, and after which pause if the server names one.
    pub fn is_passing(&self) -> Option<Option<Duration>> {
        is_passing(self.status).then(|| retry_after(self))
    }

    /// The body, as it arrives.
    pub fn into_reader(self) -> impl Read {
        self.body.into_reader()
    }

    /// The whole body, of an answer that is no file.
    pub fn bytes(&mut self) -> Result<Vec<u8>, Unread> {
        self.at_most(MAX_RESPONSE_BYTES)
    }

    /// As [`Response::bytes`], where it may be so long.
    pub fn at_most(&mut self, most: u64) -> Result<Vec<u8>, Unread> {
        let (mut reader, mut piece) = (self.body.as_reader(), vec![0; CHUNK_BYTES]);
        let mut bytes = Vec::new();
        loop {
            // A server that sends a byte now and then never stands still.
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

    /// What the server wrote, as it may be shown.
    pub fn redacted(&self, text: &str) -> String {
        self.token.as_ref().map_or_else(|| text.to_owned(), |token| token.redacted(text))
    }
}

/// Whether the same request may do better later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

/// How long the server asks to wait.
fn retry_after(response: &Response) -> Option<Duration> {
    retry_after::parse(response.header("retry-after")?, response.header("date"))
}
