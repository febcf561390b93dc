//! Reads a stream byte by byte, tracks the position, and can rewind.

use std::io::{self, BufRead};

/// A position in a file. Line and column start at 1, and the column counts characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub line: u64,
    pub column: u64,
}

pub(crate) struct Scanner<R> {
    input: R,
    at: Position,
    begins_line: bool,
    /// Bytes that were read ahead or pushed back. The bytes from index `next` on are read before `input`.
    pending: Vec<u8>,
    next: usize,
}

impl<R: BufRead> Scanner<R> {
    /// Creates a scanner and skips a UTF-8 byte order mark.
    pub fn new(input: R) -> io::Result<Self> {
        let at = Position { line: 1, column: 1 };
        let mut scanner = Self { input, at, begins_line: true, pending: Vec::new(), next: 0 };
        for mark in *b"\xef\xbb\xbf" {
            if scanner.peek()? == Some(mark) {
                scanner.input.consume(1);
            }
        }
        Ok(scanner)
    }

    pub fn at(&self) -> Position {
        self.at
    }

    /// Returns whether only white space precedes the next byte on its line.
    pub fn begins_line(&self) -> bool {
        self.begins_line
    }

    /// Returns the next byte without consuming it, or `None` at the end of the file.
    pub fn peek(&mut self) -> io::Result<Option<u8>> {
        if let Some(byte) = self.pending.get(self.next) {
            return Ok(Some(*byte));
        }
        Ok(self.fill()?.first().copied())
    }

    /// Consumes and returns the next byte.
    pub fn bump(&mut self) -> io::Result<Option<u8>> {
        let byte = self.peek()?;
        let Some(byte) = byte else { return Ok(None) };
        if self.next < self.pending.len() {
            self.next += 1;
        } else {
            self.pending.clear();
            self.next = 0;
            self.input.consume(1);
        }
        match byte {
            b'\n' => self.at = Position { line: self.at.line + 1, column: 1 },
            // A UTF-8 continuation byte is part of the previous character.
            0x80..=0xbf => {}
            _ => self.at.column += 1,
        }
        self.begins_line = byte == b'\n' || (self.begins_line && matches!(byte, b' ' | b'\t' | b'\r'));
        Ok(Some(byte))
    }

    pub fn skip_blanks(&mut self) -> io::Result<()> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek()? {
            self.bump()?;
        }
        Ok(())
    }

    /// Rewinds to the position `at`, which is not the start of a line. `bytes` are the bytes from `at` to the
    /// current position.
    pub fn push_back(&mut self, bytes: &[u8], at: Position) {
        // If possible, only `next` moves back. A copy would be slow: `bytes` may have 128 MiB, and a file can
        // force many rewinds.
        match self.next.checked_sub(bytes.len()) {
            Some(next) => self.next = next,
            None => {
                self.pending.splice(..self.next, bytes.iter().copied());
                self.next = 0;
            }
        }
        (self.at, self.begins_line) = (at, false);
    }

    /// Returns the next `count` bytes without consuming them. Near the end of the file, there may be fewer
    /// bytes.
    pub fn ahead(&mut self, count: usize) -> io::Result<&[u8]> {
        if self.pending.len() - self.next < count {
            self.pending.drain(..self.next);
            self.next = 0;
        }
        while self.pending.len() - self.next < count {
            let missing = count - self.pending.len();
            let buffer = self.fill()?;
            let taken = buffer.len().min(missing);
            if taken == 0 {
                break;
            }
            let bytes = buffer[..taken].to_vec();
            self.pending.extend(bytes);
            self.input.consume(taken);
        }
        let ahead = &self.pending[self.next..];
        Ok(&ahead[..count.min(ahead.len())])
    }

    fn fill(&mut self) -> io::Result<&[u8]> {
        loop {
            match self.input.fill_buf() {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // The borrow checker does not allow a return inside the loop. A second call returns the same buffer.
        self.input.fill_buf()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peeked_and_pushed_back_bytes_are_read_again() {
        let mut scanner = Scanner::new(&b"\xef\xbb\xbf  {\"a\"}\n"[..]).unwrap();
        scanner.skip_blanks().unwrap();
        assert!(scanner.begins_line());
        assert_eq!(scanner.ahead(3).unwrap(), b"{\"a");
        assert_eq!((scanner.bump().unwrap(), scanner.at().column), (Some(b'{'), 4));
        assert_eq!(scanner.ahead(100).unwrap(), b"\"a\"}\n");
        scanner.bump().unwrap();
        scanner.push_back(b"{\"", Position { line: 1, column: 3 });
        assert_eq!(scanner.ahead(100).unwrap(), b"{\"a\"}\n");
        while scanner.peek().unwrap() != Some(b'\n') {
            scanner.bump().unwrap();
        }
        scanner.push_back(b"a\"}", Position { line: 1, column: 5 });
        assert_eq!(scanner.ahead(100).unwrap(), b"a\"}\n");
        while scanner.bump().unwrap().is_some() {}
        assert_eq!(scanner.at(), Position { line: 2, column: 1 });
        assert!(scanner.begins_line());
    }

    #[test]
    fn look_ahead_and_rewind_move_no_pending_bytes() {
        let text = b"{\"a\": 1}, {\"a\": 2}";
        let mut scanner = Scanner::new(&b""[..]).unwrap();
        scanner.push_back(text, Position { line: 1, column: 1 });
        let first = scanner.ahead(4).unwrap().as_ptr();
        for behind in 1..text.len() - 4 {
            scanner.bump().unwrap();
            assert_eq!(scanner.ahead(4).unwrap().as_ptr(), first.wrapping_add(behind));
        }
        scanner.push_back(&text[1..text.len() - 5], Position { line: 1, column: 2 });
        assert_eq!(scanner.ahead(4).unwrap().as_ptr(), first.wrapping_add(1));
        assert_eq!(scanner.ahead(100).unwrap(), &text[1..]);
    }
}
