//! A file outside the Hub, with a known size and checksum.

use crate::checksum::Hasher;
use crate::http::url::origin;
use crate::http::{Http, Request};
use crate::{HubError, RetryPolicy};

/// A file at a public URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicFile {
    /// An `http` or `https` URL.
    pub url: String,
    /// SHA-256 of the content, as 64 hexadecimal digits.
    pub sha256: String,
    /// Size of the content in bytes. A longer response is rejected before all of it is read.
    pub bytes: u64,
}

impl PublicFile {
    /// Downloads the content into memory. Sends no token.
    ///
    /// # Errors
    /// If the host cannot be reached, or the content has a different size or checksum.
    pub fn fetch(&self) -> Result<Vec<u8>, HubError> {
        let (scheme, host) =
            origin(&self.url).ok_or_else(|| HubError::Endpoint { text: self.url.clone() })?;
        let http = Http::new(format!("{scheme}://{host}").parse()?, None, RetryPolicy::default());
        let request = Request::get(self.url.as_str());
        let mut response = http.send(&request)?;
        if !response.status.is_success() {
            return Err(request.fault(response.status.to_string()));
        }
        let content = response.at_most(self.bytes).map_err(|unread| request.fault(unread.to_string()))?;
        let mut sum = Hasher::sha256();
        sum.add(&content);
        let digits = sum.digits();
        if digits != self.sha256 {
            let (found, expected) = (&digits[..12], &self.sha256[..12]);
            return Err(request.fault(format!("SHA-256 {found}..., expected {expected}...")));
        }
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// Serves `content` once, and returns the URL.
    fn serve(content: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/talk.json", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 2048];
            let read = stream.read(&mut request).unwrap();
            assert!(!String::from_utf8_lossy(&request[..read]).to_lowercase().contains("authorization"));
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", content.len()).unwrap();
            stream.write_all(content).unwrap();
        });
        url
    }

    /// Returns a file with the content `hello\n`. The SHA-256 is from `printf 'hello\n' | sha256sum`.
    fn hello(url: String) -> PublicFile {
        let sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03".to_owned();
        PublicFile { url, sha256, bytes: 6 }
    }

    #[test]
    fn content_with_the_checksum_is_returned_and_other_content_is_not() {
        assert_eq!(hello(serve(b"hello\n")).fetch().unwrap(), b"hello\n");
        let wrong = hello(serve(b"jello\n")).fetch().unwrap_err().to_string();
        assert!(wrong.contains("expected 5891b5b522d5..."), "{wrong}");
        let long = hello(serve(b"hello, world\n")).fetch().unwrap_err().to_string();
        assert!(long.contains("more than 6 bytes"), "{long}");
    }
}
