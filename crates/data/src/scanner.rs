//! Bytes one by one, with their place, some of them read a second time.

use std::io::{self, BufRead};

/// A place in the file: line and column, both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub line: u64,
    pub column: u64,
}

/// Walks through a stream.
pub(crate) struct Scanner<R> {
    input: R,
    at: Position,
    begins_line: bool,
    /// Bytes that come before those of `input`, from `next` on; those before `next` were the last to be read.
    pending: Vec<u8>,
    next: usize,
}

impl<R: BufRead> Scanner<R> {
    /// At the beginning, or behind the byte order mark there.
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

    /// The place of the next byte.
    pub fn at(&self) -> Position {
        self.at
    }

    /// Whether only blanks stand before the next byte on its line.
    pub fn begins_line(&self) -> bool {
        self.begins_line
    }

    /// The reader, wherever it stands.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// The next byte; `None` at the end.
    pub fn peek(&mut self) -> io::Result<Option<u8>> {
        if let Some(byte) = self.pending.get(self.next) {
            return Ok(Some(*byte));
        }
        Ok(self.fill()?.first().copied())
    }

    /// The next byte, and steps behind it.
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
            // Continuation bytes of UTF-8 belong to the character before.
            0x80..=0xbf => {}
            _ => self.at.column += 1,
        }
        self.begins_line = byte == b'\n' || (self.begins_line && matches!(byte, b' ' | b'\t' | b'\r'));
        Ok(Some(byte))
    }

    /// Steps behind blanks and line ends.
    pub fn skip_blanks(&mut self) -> io::Result<()> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek()? {
            self.bump()?;
        }
        Ok(())
    }

    /// Goes back to `at`, in the middle of a line; `bytes` are those from there to here.
    pub fn push_back(&mut self, bytes: &[u8], at: Position) {
        // What is pending may be 64 MiB, and a file decides how often one goes back: nothing of it is moved then.
        match self.next.checked_sub(bytes.len()) {
            Some(next) => self.next = next,
            None => {
                self.pending.splice(..self.next, bytes.iter().copied());
                self.next = 0;
            }
        }
        (self.at, self.begins_line) = (at, false);
    }

    /// The next `count` bytes, or all that are left.
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
        // A second call gives what the first has read; the loop cannot return its borrow.
        self.input.fill_buf()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_ahead_and_pushed_back_come_again() {
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
    fn looking_ahead_and_going_back_move_nothing_that_is_pending() {
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
