//! The head of a request, which contains the request line and the headers.

use std::io::{self, BufRead};

use super::Target;

const MAX_HEAD_BYTES: usize = 64 << 10;
const MAX_HEADERS: usize = 100;

#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub method: String,
    pub target: Target,
    headers: Vec<(String, String)>,
}

impl Head {
    /// Returns the value of a header. Header names are case-insensitive.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Returns whether `word` is in the comma-separated list of the header `name`.
    pub fn header_has(&self, name: &str, word: &str) -> bool {
        self.header(name).is_some_and(|v| v.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    }
}

/// Reads the head of a request. Returns `None` if the connection ends before the first byte.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] if the head is not valid HTTP. For any other failure, the error of the
/// socket.
pub(crate) fn read_head(reader: &mut impl BufRead) -> io::Result<Option<Head>> {
    let mut text = Vec::new();
    loop {
        let available = reader.fill_buf()?;
        if available.is_empty() {
            return if text.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        // The head is read line by line, so the bytes after it are not removed from the reader.
        let line = available.iter().position(|&byte| byte == b'\n').map_or(available.len(), |at| at + 1);
        text.extend_from_slice(&available[..line]);
        reader.consume(line);
        if text.ends_with(b"\r\n\r\n") || text.ends_with(b"\n\n") {
            return parse(&text).map(Some);
        }
        if text.len() > MAX_HEAD_BYTES {
            return Err(invalid("the head is too long"));
        }
    }
}

fn parse(text: &[u8]) -> io::Result<Head> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(text) {
        Ok(status) if status.is_complete() => {}
        Ok(_) => return Err(invalid("the head is cut")),
        Err(error) => return Err(invalid(&error.to_string())),
    }
    let (Some(method), Some(path)) = (request.method, request.path) else {
        return Err(invalid("the first line is cut"));
    };
    let owned = |header: &httparse::Header<'_>| {
        (header.name.to_owned(), String::from_utf8_lossy(header.value).trim().to_owned())
    };
    Ok(Head {
        method: method.to_owned(),
        target: Target::parse(path),
        headers: request.headers.iter().map(owned).collect(),
    })
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_leaves_the_body_in_the_reader() {
        let mut reader = &b"PUT /a?b=c HTTP/1.1\r\nHost: x\r\ncontent-LENGTH: 3\r\n\r\nabcGET"[..];
        let head = read_head(&mut reader).unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.target.path()), ("PUT", "/a"));
        assert_eq!(head.header("Content-Length"), Some("3"));
        assert_eq!(reader, b"abcGET");
    }

    #[test]
    fn an_end_before_a_head_is_no_error_and_within_it_is() {
        assert!(read_head(&mut &b""[..]).unwrap().is_none());
        assert!(read_head(&mut &b"GET / HTTP/1.1\r\nHo"[..]).is_err());
    }

    #[test]
    fn what_is_no_http_and_what_never_ends_is_refused() {
        let kind = |text: &[u8]| read_head(&mut &text[..]).unwrap_err().kind();
        assert_eq!(kind(b"\x16\x03\x01 tls\r\n\r\n"), io::ErrorKind::InvalidData);
        let endless = [&b"GET / HTTP/1.1\r\nA: "[..], &vec![b'a'; 2 * MAX_HEAD_BYTES]].concat();
        assert_eq!(kind(&endless), io::ErrorKind::InvalidData);
    }
}
