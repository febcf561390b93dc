//! Tracks open brackets and strings while the bytes of a record are scanned.

/// Maximum nesting depth of a record, which is the recursion limit of serde_json.
pub(crate) const MAX_DEPTH: usize = 127;

#[derive(Debug, Default)]
pub(crate) struct JsonNesting {
    /// The expected closing bracket for each open bracket. The innermost bracket is last.
    closers: Vec<u8>,
    in_text: bool,
    escaped: bool,
    /// The last byte outside strings, except white space.
    before: u8,
}

impl JsonNesting {
    pub fn is_closed(&self) -> bool {
        self.closers.is_empty() && !self.in_text
    }

    pub fn depth(&self) -> usize {
        self.closers.len()
    }

    pub fn in_string(&self) -> bool {
        self.in_text
    }

    /// Returns the missing closing brackets in backticks, for a message.
    pub fn missing_closers(&self) -> String {
        let closers: String = self.closers.iter().rev().map(|byte| char::from(*byte)).collect();
        if closers.is_empty() { "its end".into() } else { format!("`{closers}`") }
    }

    /// Returns whether a `{` at this position must be the start of a record. This is true outside every
    /// record. At the top level of a record, a `{` is valid only after a `:`. Any other `{` there starts the
    /// next record, because the `}` of the current record is missing.
    pub fn record_may_start(&self) -> bool {
        !self.in_text && matches!(self.closers[..], [] | [b'}']) && self.before != b':'
    }

    /// If `byte` is invalid at this position, returns descriptions of the found and the expected text.
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

    /// Advances past `byte`. A line break ends a string, because a JSON string cannot contain a line break.
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
