//! Reads the body of a request while the body arrives.

use std::io::{self, BufRead, Read, Write};

use super::Head;
use crate::recorded_request::Entry;

/// Maximum length in bytes of a line between chunks.
const MAX_LINE_BYTES: u64 = 4 << 10;

enum Framing {
    /// A body with a known length. The value is the number of remaining bytes.
    Length(u64),
    /// A body in chunks. `left` is the number of remaining bytes of the chunk, and `first` is true before the
    /// first chunk.
    Chunks { left: u64, first: bool },
}

/// The body of a request. The server's log of requests contains the number of bytes read.
pub(crate) struct Body<'a> {
    reader: &'a mut dyn BufRead,
    writer: &'a mut dyn Write,
    framing: Framing,
    /// Whether the client waits for `100 Continue` before it sends the body.
    waits: bool,
    cut_after: Option<u64>,
    received: u64,
    /// Whether the connection ended early, was closed by a fault, or does not contain valid HTTP.
    pub broken: bool,
    record: Entry,
}

impl<'a> Body<'a> {
    /// Creates the body that follows `head`. `100 Continue` is sent to `writer`.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidData`] if the length is not a number.
    pub fn new(
        head: &Head,
        reader: &'a mut dyn BufRead,
        writer: &'a mut dyn Write,
        record: Entry,
    ) -> io::Result<Self> {
        let framing = if head.header_has("Transfer-Encoding", "chunked") {
            Framing::Chunks { left: 0, first: true }
        } else {
            let length = head.header("Content-Length").unwrap_or("0");
            Framing::Length(length.parse().map_err(|_| invalid("Content-Length is no number"))?)
        };
        let waits = head.header_has("Expect", "100-continue");
        Ok(Self { reader, writer, framing, waits, cut_after: None, received: 0, broken: false, record })
    }

    /// Makes the body fail after `bytes` bytes have been read.
    pub fn cut_after(&mut self, bytes: u64) {
        self.cut_after = Some(bytes);
    }

    /// Reads the whole body.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] if the body has more than `most` bytes. For any other failure, the
    /// error of the socket.
    pub fn read_whole(&mut self, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.take(most + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > most {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }

    /// Reads the rest of the body, so that the next request starts at the right byte.
    ///
    /// # Errors
    /// If the connection is broken, or the client still waits for `100 Continue`. The caller must then close
    /// the connection.
    pub fn drain(&mut self) -> io::Result<()> {
        if self.waits && !matches!(self.framing, Framing::Length(0)) {
            self.broken = true;
            return Err(invalid("the client was never told to send"));
        }
        io::copy(self, &mut io::sink()).map(|_| ())
    }

    fn next(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let left = match &mut self.framing {
            Framing::Length(left) => *left,
            Framing::Chunks { left: 0, first } => {
                let size = read_size(self.reader, *first)?;
                self.framing =
                    if size == 0 { Framing::Length(0) } else { Framing::Chunks { left: size, first: false } };
                size
            }
            Framing::Chunks { left, .. } => *left,
        };
        let mut most = left.min(out.len() as u64);
        if let Some(cut) = self.cut_after {
            most = most.min(cut - self.received);
            if most == 0 && left > 0 {
                return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "cut by a fault"));
            }
        }
        if most == 0 {
            return Ok(0);
        }
        let count = self.reader.read(&mut out[..most as usize])?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &mut self.framing {
            Framing::Length(left) | Framing::Chunks { left, .. } => *left -= count as u64,
        }
        self.received += count as u64;
        self.record.change(|record| record.received += count as u64);
        Ok(count)
    }
}

impl Read for Body<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        if std::mem::take(&mut self.waits) {
            self.writer.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        let result = self.next(out);
        self.broken |= result.is_err();
        result
    }
}

/// Returns the size of the next chunk. After the last chunk, also reads the trailers.
fn read_size(reader: &mut dyn BufRead, first: bool) -> io::Result<u64> {
    if !first && !read_line(reader)?.is_empty() {
        return Err(invalid("a chunk is longer than it said"));
    }
    let line = read_line(reader)?;
    let digits = line.split(';').next().unwrap_or_default().trim();
    let size = u64::from_str_radix(digits, 16).map_err(|_| invalid("the size of a chunk is no number"))?;
    if size == 0 {
        while !read_line(reader)?.is_empty() {}
    }
    Ok(size)
}

fn read_line(reader: &mut dyn BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    reader.take(MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned())
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::read_head;
    use crate::recorded_request::{Host, Records};

    /// Returns the decoded body, the bytes sent to the client, the bytes left in the reader, and the recorded
    /// number of bytes.
    fn read(headers: &str, bytes: &[u8], cut: Option<u64>) -> (io::Result<Vec<u8>>, Vec<u8>, Vec<u8>, u64) {
        let text = [format!("PUT / HTTP/1.1\r\n{headers}\r\n").as_bytes(), bytes].concat();
        let mut reader = &text[..];
        let head = read_head(&mut reader).unwrap().unwrap();
        let records = Records::default();
        let mut told = Vec::new();
        let mut body = Body::new(&head, &mut reader, &mut told, records.begin(Host::Hub, &head)).unwrap();
        if let Some(cut) = cut {
            body.cut_after(cut);
        }
        let result = body.read_whole(1000);
        (result, told, reader.to_vec(), records.all()[0].received)
    }

    #[test]
    fn a_body_ends_where_its_length_says() {
        let (body, told, rest, received) = read("Content-Length: 5\r\n", b"helloGET", None);
        assert_eq!((body.unwrap(), told, rest, received), (b"hello".to_vec(), vec![], b"GET".to_vec(), 5));
        assert_eq!(read("", b"GET", None).0.unwrap(), b"");
    }

    #[test]
    fn chunks_are_joined_and_trailers_passed_over() {
        let chunks = b"5;ext=1\r\nhello\r\n1\r\n!\r\n0\r\nTrailer: x\r\n\r\nGET";
        let (body, _, rest, received) = read("Transfer-Encoding: chunked\r\n", chunks, None);
        assert_eq!((body.unwrap(), rest, received), (b"hello!".to_vec(), b"GET".to_vec(), 6));
        for broken in [&b"5\r\nhello!\r\n0\r\n\r\n"[..], b"x\r\n", b"5\r\nhel", b"5\r\nhello\r\n"] {
            assert!(read("Transfer-Encoding: chunked\r\n", broken, None).0.is_err());
        }
    }

    #[test]
    fn a_client_that_waits_is_told_to_go_on_once() {
        let (body, told, ..) = read("Content-Length: 2\r\nExpect: 100-continue\r\n", b"ok", None);
        assert_eq!((body.unwrap(), told), (b"ok".to_vec(), b"HTTP/1.1 100 Continue\r\n\r\n".to_vec()));
    }

    #[test]
    fn a_short_body_a_long_body_and_a_cut_are_errors() {
        assert!(read("Content-Length: 9\r\n", b"short", None).0.is_err());
        let long = vec![b'a'; 1001];
        let error = read("Content-Length: 1001\r\n", &long, None).0.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        let (body, _, _, received) = read("Content-Length: 9\r\n", b"unhurried", Some(4));
        assert_eq!((body.unwrap_err().kind(), received), (io::ErrorKind::ConnectionAborted, 4));
    }
}
