//! What is open at a byte of a record: brackets, a text.

/// The deepest nesting inside a record; serde_json's own limit is the same.
pub(crate) const MAX_DEPTH: usize = 127;

/// Follows a record byte by byte.
#[derive(Debug, Default)]
pub(crate) struct JsonNesting {
    /// What must close what is open, the innermost last.
    closers: Vec<u8>,
    in_text: bool,
    escaped: bool,
    /// The last byte outside of texts that is no blank.
    before: u8,
}

impl JsonNesting {
    /// Whether nothing is open.
    pub fn is_closed(&self) -> bool {
        self.closers.is_empty() && !self.in_text
    }

    /// What would close everything, as a message shows it.
    pub fn missing_closers(&self) -> String {
        let closers: String = self.closers.iter().rev().map(|byte| char::from(*byte)).collect();
        if closers.is_empty() { "its end".into() } else { format!("`{closers}`") }
    }

    /// Whether a `{` here can only be the beginning of another record: nothing inside the record is open, and no key
    /// asks for a value.
    pub fn record_may_start(&self) -> bool {
        !self.in_text && matches!(self.closers[..], [] | [b'}']) && self.before != b':'
    }

    /// What is wrong with `byte` here, if it is: what it is, and what should be.
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

    /// Steps behind `byte`. A line break ends a text: no text holds one, so that its end is missing.
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
