//! Tracks open brackets and strings while a record is scanned byte by byte.

/// Deepest nesting inside a record. Equals serde_json's recursion limit.
pub(crate) const MAX_DEPTH: usize = 127;

/// The nesting state after the bytes read so far.
#[derive(Debug, Default)]
pub(crate) struct JsonNesting {
    /// Closing bracket of each open bracket, innermost last.
    closers: Vec<u8>,
    in_text: bool,
    escaped: bool,
    /// Last byte outside strings that is not white space.
    before: u8,
}

impl JsonNesting {
    /// Whether no bracket and no string is open.
    pub fn is_closed(&self) -> bool {
        self.closers.is_empty() && !self.in_text
    }

    /// Number of open brackets.
    pub fn depth(&self) -> usize {
        self.closers.len()
    }

    /// Whether the position lies inside a string.
    pub fn in_string(&self) -> bool {
        self.in_text
    }

    /// The closing brackets still missing, quoted for a message.
    pub fn missing_closers(&self) -> String {
        let closers: String = self.closers.iter().rev().map(|byte| char::from(*byte)).collect();
        if closers.is_empty() { "its end".into() } else { format!("`{closers}`") }
    }

    /// Whether a `{` here can only start another record: nothing inside the record is open, and no key lacks
    /// its value.
    pub fn record_may_start(&self) -> bool {
        !self.in_text && matches!(self.closers[..], [] | [b'}']) && self.before != b':'
    }

    /// The found and expected descriptions if `byte` is invalid here.
    pub fn fault(&self, byte: u8) -> Option<(String, String)> {
        let sign = |byte: u8| format!("`{}`", char::from(byte));
        match byte {
            b'\n' if self.in_text => {
                Some(("a line break inside a text".into(), "the `\"` that ends the text, or `\\n`".into()))
            }
            _ if self.in_text => None,
            b'{' | b'[' if self.closers.len() == MAX_DEPTH => {
                Some((format!("brackets {MAX_DEPTH} deep"), "a record".into()))
            }
            b'{' if self.closers.last() == Some(&b'}') && self.before != b':' => {
                Some((sign(byte), "a key, or `}`".into()))
            }
            b'}' | b']' => {
                let closer = *self.closers.last()?;
                (closer != byte).then(|| (sign(byte), sign(closer)))
            }
            _ => None,
        }
    }

    /// Advances over `byte`. A line break ends a string, because JSON strings contain none.
    pub fn take(&mut self, byte: u8) {
        if self.in_text {
            self.in_text = byte != b'\n' && (self.escaped || byte != b'"');
            self.escaped = !self.escaped && byte == b'\\';
            return;
        }
        match byte {
            b'"' => self.in_text = true,
            b'{' => self.closers.push(b'}'),
            b'[' => self.closers.push(b']'),
            b'}' | b']' => drop(self.closers.pop()),
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            self.before = byte;
        }
    }
}
