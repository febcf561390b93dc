//! Cuts a stream of JSON into its records without parsing them: elements of an array, or lines.
//!
//! Only one record is in memory at a time, and none larger than [`MAX_RECORD_BYTES`]; nesting is counted
//! rather than recursed into. So a file decides neither how deep the stack grows nor how much is read at once.

use std::io::{self, BufRead};

/// The largest single record, in bytes. A conversation of a million tokens takes about 4 MiB.
pub(crate) const MAX_RECORD_BYTES: usize = 64 << 20;

/// The deepest nesting inside a record; serde_json's own limit is the same.
const MAX_DEPTH: usize = 127;

/// A place in the file: line and column, both from 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Position {
    pub line: u64,
    pub column: u64,
}

/// The bytes of one record.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub at: Position,
    pub bytes: Vec<u8>,
}

/// Something that is not a record; when it is `fatal`, where the next one begins cannot be known.
#[derive(Debug, PartialEq)]
pub(crate) struct Flaw {
    pub at: Position,
    pub found: String,
    pub expected: String,
    pub fatal: bool,
}

/// How records are set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Array,
    Lines,
}

/// What an array may hold next.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    FirstRecord,
    Record,
    Separator,
    Nothing,
}

/// Iterates over the records of a stream.
pub(crate) struct Splitter<R> {
    scanner: Scanner<R>,
    layout: Layout,
    expect: Expect,
}

impl<R: BufRead> Splitter<R> {
    /// Skips a byte order mark and leading blanks, and tells the layout by the first character;
    /// `None` if there is none.
    pub fn new(input: R) -> io::Result<Option<Self>> {
        let mut scanner = Scanner { input, at: Position { line: 1, column: 1 } };
        for mark in *b"\xef\xbb\xbf" {
            if scanner.peek()? == Some(mark) {
                scanner.input.consume(1);
            }
        }
        scanner.skip_blanks()?;
        let layout = match scanner.peek()? {
            None => return Ok(None),
            Some(b'[') => Layout::Array,
            Some(_) => Layout::Lines,
        };
        if layout == Layout::Array {
            scanner.bump()?;
        }
        Ok(Some(Self { scanner, layout, expect: Expect::FirstRecord }))
    }

    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The next record or flaw; `None` at the end, and after a fatal flaw.
    pub fn next(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        match self.layout {
            Layout::Array => self.next_element(),
            Layout::Lines => self.next_line(),
        }
    }

    /// The reader, wherever it stands.
    pub fn into_inner(self) -> R {
        self.scanner.input
    }

    fn next_line(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        self.scanner.skip_blanks()?;
        let at = self.scanner.at;
        let mut bytes = Vec::new();
        let mut too_large = false;
        while let Some(byte) = self.scanner.bump()? {
            if byte == b'\n' {
                break;
            }
            too_large |= bytes.len() == MAX_RECORD_BYTES;
            if !too_large {
                bytes.push(byte);
            }
        }
        if too_large {
            return Ok(Some(Err(oversized(at))));
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        Ok((!bytes.is_empty()).then_some(Ok(Piece { at, bytes })))
    }

    fn next_element(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        self.scanner.skip_blanks()?;
        let at = self.scanner.at;
        let first = self.scanner.peek()?;
        match (self.expect, first) {
            (Expect::Nothing, _) => Ok(None),
            (Expect::FirstRecord, Some(b']')) => self.close(),
            (Expect::FirstRecord | Expect::Record, Some(b',' | b']')) => {
                self.expect = Expect::Separator;
                let expected = "a record between the commas of the array".into();
                Ok(Some(Err(Flaw { at, found: "nothing".into(), expected, fatal: false })))
            }
            (Expect::FirstRecord | Expect::Record, Some(_)) => {
                self.expect = Expect::Separator;
                self.element(at).map(Some)
            }
            (Expect::Separator, Some(b',')) => {
                self.scanner.bump()?;
                self.expect = Expect::Record;
                self.next_element()
            }
            (Expect::Separator, Some(b']')) => self.close(),
            (_, found) => {
                self.expect = Expect::Nothing;
                let expected = "`,` or `]` after a record".into();
                Ok(Some(Err(Flaw { at, found: describe(found), expected, fatal: true })))
            }
        }
    }

    /// The array's end; only blanks may follow.
    fn close(&mut self) -> io::Result<Option<Result<Piece, Flaw>>> {
        self.expect = Expect::Nothing;
        self.scanner.bump()?;
        self.scanner.skip_blanks()?;
        let at = self.scanner.at;
        Ok(self.scanner.peek()?.map(|byte| {
            let expected = "nothing after the `]` that ends the array".into();
            Err(Flaw { at, found: describe(Some(byte)), expected, fatal: true })
        }))
    }

    /// One element, from its first byte to where its brackets are closed, or to the next separator.
    fn element(&mut self, at: Position) -> io::Result<Result<Piece, Flaw>> {
        let mut bytes = Vec::new();
        let mut too_large = false;
        let mut closers: Vec<u8> = Vec::new();
        let mut in_string = false;
        let mut escaped = false;
        loop {
            let here = self.scanner.at;
            let byte = self.scanner.peek()?;
            let flaw = match byte {
                None => {
                    let expected = format!("the end of the record that begins on line {}", at.line);
                    Some((describe(None), expected))
                }
                Some(b'\n') if in_string => Some((
                    "a line break inside a text".into(),
                    "the `\"` that ends the text, or `\\n`".into(),
                )),
                Some(b'{' | b'[') if !in_string && closers.len() == MAX_DEPTH => {
                    Some((format!("brackets {MAX_DEPTH} deep"), "a record".into()))
                }
                Some(byte @ (b'}' | b']')) if !in_string => match closers.last() {
                    Some(&closer) if closer != byte => {
                        Some((describe(Some(byte)), format!("`{}`", closer as char)))
                    }
                    _ => None,
                },
                Some(_) => None,
            };
            if let Some((found, expected)) = flaw {
                self.expect = Expect::Nothing;
                return Ok(Err(Flaw { at: here, found, expected, fatal: true }));
            }
            let Some(byte) = byte else { unreachable!("the end of the file is a flaw above") };
            if closers.is_empty() && !in_string && matches!(byte, b',' | b']') {
                break;
            }
            self.scanner.bump()?;
            too_large |= bytes.len() == MAX_RECORD_BYTES;
            if !too_large {
                bytes.push(byte);
            }
            if in_string {
                in_string = escaped || byte != b'"';
                escaped = !escaped && byte == b'\\';
                continue;
            }
            match byte {
                b'"' => in_string = true,
                b'{' => closers.push(b'}'),
                b'[' => closers.push(b']'),
                b'}' | b']' => {
                    closers.pop();
                    if closers.is_empty() {
                        break;
                    }
                }
                _ => {}
            }
        }
        bytes.truncate(bytes.trim_ascii_end().len());
        Ok(if too_large { Err(oversized(at)) } else { Ok(Piece { at, bytes }) })
    }
}

fn oversized(at: Position) -> Flaw {
    let found = format!("a record of more than {} MiB", MAX_RECORD_BYTES >> 20);
    Flaw { at, found, expected: "a smaller one".into(), fatal: false }
}

fn describe(byte: Option<u8>) -> String {
    match byte {
        None => "the end of the file".into(),
        Some(byte @ 0x21..=0x7e) => format!("`{}`", byte as char),
        Some(byte) => format!("the byte 0x{byte:02x}"),
    }
}

/// Bytes one by one, with their position.
struct Scanner<R> {
    input: R,
    at: Position,
}

impl<R: BufRead> Scanner<R> {
    fn peek(&mut self) -> io::Result<Option<u8>> {
        loop {
            match self.input.fill_buf() {
                Ok(buffer) => return Ok(buffer.first().copied()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn bump(&mut self) -> io::Result<Option<u8>> {
        let byte = self.peek()?;
        if let Some(byte) = byte {
            self.input.consume(1);
            match byte {
                b'\n' => self.at = Position { line: self.at.line + 1, column: 1 },
                // Continuation bytes of UTF-8 belong to the character before.
                0x80..=0xbf => {}
                _ => self.at.column += 1,
            }
        }
        Ok(byte)
    }

    fn skip_blanks(&mut self) -> io::Result<()> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.peek()? {
            self.bump()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The records as `line:column text`, flaws as `line:column found, expected`, with `!` when fatal.
    fn split(input: &[u8]) -> Vec<String> {
        let Some(mut splitter) = Splitter::new(input).unwrap() else { return vec!["no records".into()] };
        let mut seen = Vec::new();
        while let Some(next) = splitter.next().unwrap() {
            seen.push(match next {
                Ok(Piece { at, bytes }) => {
                    format!("{}:{} {}", at.line, at.column, String::from_utf8_lossy(&bytes))
                }
                Err(Flaw { at, found, expected, fatal }) => {
                    let mark = if fatal { "!" } else { "" };
                    format!("{}:{}{mark} found {found}, expected {expected}", at.line, at.column)
                }
            });
        }
        assert!(splitter.next().unwrap().is_none(), "the end is the end");
        seen
    }

    #[test]
    fn arrays_are_cut_at_their_elements() {
        assert_eq!(
            split(b"[{\"a\": 1},\r\n  {\"b\": [2, {}]} , 3]"),
            ["1:2 {\"a\": 1}", "2:3 {\"b\": [2, {}]}", "2:20 3"]
        );
        assert_eq!(split(b" \n [ ] \n"), [""; 0]);
        assert_eq!(split(b""), ["no records"]);
        assert_eq!(split(b"\xef\xbb\xbf\n"), ["no records"]);
    }

    #[test]
    fn brackets_commas_and_quotes_inside_texts_do_not_count() {
        assert_eq!(
            split(br#"[{"a": "]},{[\"\\"}, "x,\\\"]"]"#),
            [r#"1:2 {"a": "]},{[\"\\"}"#, r#"1:22 "x,\\\"]""#]
        );
    }

    #[test]
    fn columns_count_characters() {
        assert_eq!(split("[\"甄嬛\", 2]".as_bytes()), ["1:2 \"甄嬛\"", "1:8 2"]);
    }

    #[test]
    fn lines_are_cut_at_line_ends_of_either_kind() {
        assert_eq!(
            split(b"\xef\xbb\xbf{\"a\": 1}\r\n\r\n  {\"b\": 2} \n\n{\"c\""),
            ["1:1 {\"a\": 1}", "3:3 {\"b\": 2}", "5:1 {\"c\""]
        );
    }

    #[test]
    fn a_broken_array_gives_what_stands_before_the_break() {
        assert_eq!(
            split(b"[{},\n{\"a\": 1"),
            [
                "1:2 {}",
                "2:8! found the end of the file, expected the end of the record that begins on line 2"
            ]
        );
        assert_eq!(split(b"[{}\n{}]"), ["1:2 {}", "2:1! found `{`, expected `,` or `]` after a record"]);
        assert_eq!(split(b"[{},{\"a\": [1}]"), ["1:2 {}", "1:13! found `}`, expected `]`"]);
        assert_eq!(
            split(b"[{\"a\": \"x\ny\"}]"),
            ["1:10! found a line break inside a text, expected the `\"` that ends the text, or `\\n`"]
        );
        assert_eq!(
            split(b"[{}"),
            ["1:2 {}", "1:4! found the end of the file, expected `,` or `]` after a record"]
        );
        assert_eq!(
            split(b"[{}] {}"),
            ["1:2 {}", "1:6! found `{`, expected nothing after the `]` that ends the array"]
        );
    }

    #[test]
    fn a_comma_too_many_costs_no_record() {
        assert_eq!(
            split(b"[{},,{},]"),
            [
                "1:2 {}",
                "1:5 found nothing, expected a record between the commas of the array",
                "1:6 {}",
                "1:9 found nothing, expected a record between the commas of the array"
            ]
        );
    }

    #[test]
    fn deep_nesting_ends_the_file_and_not_the_stack() {
        let bomb = [b"[{},".as_slice(), &vec![b'['; 10_000_000]].concat();
        assert_eq!(split(&bomb), ["1:2 {}", "1:132! found brackets 127 deep, expected a record"]);
    }

    #[test]
    fn an_endless_record_is_not_kept_in_memory() {
        let long = vec![b'x'; MAX_RECORD_BYTES + 1];
        let lines = split(&[b"{}\n", long.as_slice(), b"\n{}"].concat());
        assert_eq!(
            lines,
            ["1:1 {}", "2:1 found a record of more than 64 MiB, expected a smaller one", "3:1 {}"]
        );
        let array = split(&[b"[\"", long.as_slice(), b"\",\n{}]"].concat());
        assert_eq!(array, ["1:2 found a record of more than 64 MiB, expected a smaller one", "2:1 {}"]);
    }
}
