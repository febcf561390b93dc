//! Finds tool calls in the text of a reply, as the text arrives.

use std::sync::Arc;

use super::{CallFormat, CallPart};
use crate::random_id::random_id;
use crate::stop_text::overlap;

/// A piece of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallPiece {
    /// The start of the call number `index` of a choice.
    Start { index: usize, id: String, name: String },
    /// A piece of the arguments of this call.
    Arguments { index: usize, text: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ToolCall {
    pub id: String,
    pub name: String,
    /// The arguments as JSON.
    pub arguments: String,
}

/// Joins the pieces of calls.
pub(crate) fn whole_calls(pieces: &[CallPiece]) -> Vec<ToolCall> {
    let mut calls: Vec<ToolCall> = Vec::new();
    for piece in pieces {
        match piece {
            CallPiece::Start { id, name, .. } => {
                calls.push(ToolCall { id: id.clone(), name: name.clone(), arguments: String::new() });
            }
            CallPiece::Arguments { index, text } => calls[*index].arguments.push_str(text),
        }
    }
    calls
}

/// Text and calls found in a piece of a reply.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Scanned {
    pub text: String,
    pub calls: Vec<CallPiece>,
}

/// Finds tool calls in a text that arrives in pieces.
#[derive(Clone)]
pub(crate) struct CallScanner {
    format: Arc<CallFormat>,
    names: Vec<String>,
    position: ScanPosition,
    /// Text that is not scanned yet.
    pending: String,
    /// Text that may be the start of a call. If it turns out to be no call, it becomes plain text.
    unconfirmed: String,
    name: String,
    calls: usize,
}

#[derive(Clone, Copy)]
enum ScanPosition {
    /// Outside of calls.
    Text,
    /// Before the part of a call with this index in [`CallFormat::call`].
    Part(usize),
    /// Inside the arguments, which are the part with this index.
    Arguments(usize, JsonDepth),
    AfterCall,
    End,
}

impl CallScanner {
    /// Returns a scanner for calls of the tools with these names.
    pub fn new(format: Arc<CallFormat>, names: Vec<String>) -> Self {
        let (position, calls) = (ScanPosition::Text, 0);
        let (pending, unconfirmed, name) = Default::default();
        Self { format, names, position, pending, unconfirmed, name, calls }
    }

    /// Returns whether a call was found.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// Adds a piece of text.
    pub fn push(&mut self, piece: &str) -> Scanned {
        self.pending.push_str(piece);
        let mut scanned = Scanned::default();
        while self.step(&mut scanned) {}
        scanned
    }

    /// Ends the scan at the end of the reply. Returns the text that did not become a call.
    pub fn finish(&mut self) -> Scanned {
        let mut scanned = Scanned::default();
        match self.position {
            ScanPosition::Text | ScanPosition::Part(_) => {
                self.give_up(&mut scanned);
                scanned.text.push_str(&std::mem::take(&mut self.pending));
            }
            ScanPosition::Arguments(..) | ScanPosition::AfterCall | ScanPosition::End => {}
        }
        scanned
    }

    /// Scans a part of the pending text. Returns whether another step is possible.
    fn step(&mut self, scanned: &mut Scanned) -> bool {
        match self.position {
            ScanPosition::Text => self.find_open(scanned),
            ScanPosition::Part(i) => match self.format.call.get(i).cloned() {
                None => {
                    self.position = ScanPosition::AfterCall;
                    true
                }
                Some(part) => self.read_part(i, part, scanned),
            },
            ScanPosition::Arguments(i, depth) => self.read_arguments(i, depth, scanned),
            ScanPosition::AfterCall => self.read_separator(),
            ScanPosition::End => {
                // The grammar allows no text after the last call.
                self.pending.clear();
                false
            }
        }
    }

    fn find_open(&mut self, scanned: &mut Scanned) -> bool {
        let open = &self.format.open;
        if let Some(at) = self.pending.find(open.as_str()) {
            scanned.text.push_str(&self.pending[..at]);
            self.pending.drain(..at + open.len());
            self.unconfirmed.clone_from(open);
            self.name.clear();
            self.position = ScanPosition::Part(0);
            return true;
        }
        let held = overlap(&self.pending, open);
        scanned.text.extend(self.pending.drain(..self.pending.len() - held));
        false
    }

    fn read_part(&mut self, i: usize, part: CallPart, scanned: &mut Scanned) -> bool {
        match part {
            CallPart::Text(text) => {
                if self.pending.starts_with(&text) {
                    self.take(text.len());
                    self.position = ScanPosition::Part(i + 1);
                    return true;
                }
                if text.starts_with(&self.pending) {
                    return false;
                }
                self.give_up(scanned);
                true
            }
            CallPart::Name | CallPart::Id => {
                let is_inside = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
                let Some(end) = self.pending.find(|c| !is_inside(c)) else { return false };
                let word = self.take(end);
                if part == CallPart::Name {
                    if !self.names.contains(&word) {
                        self.give_up(scanned);
                        return true;
                    }
                    self.name = word;
                }
                self.position = ScanPosition::Part(i + 1);
                true
            }
            CallPart::Arguments => {
                if self.pending.is_empty() {
                    return false;
                }
                if !self.pending.starts_with('{') {
                    self.give_up(scanned);
                    return true;
                }
                let id = match self.format.has_id() {
                    true => random_id("")[..9].to_owned(),
                    false => random_id("call_"),
                };
                let name = std::mem::take(&mut self.name);
                scanned.calls.push(CallPiece::Start { index: self.calls, id, name });
                self.unconfirmed.clear();
                self.calls += 1;
                self.position = ScanPosition::Arguments(i, JsonDepth::default());
                true
            }
        }
    }

    fn read_arguments(&mut self, i: usize, mut depth: JsonDepth, scanned: &mut Scanned) -> bool {
        if self.pending.is_empty() {
            return false;
        }
        let end = self.pending.bytes().position(|byte| depth.push(byte)).map(|at| at + 1);
        let text: String = self.pending.drain(..end.unwrap_or(self.pending.len())).collect();
        scanned.calls.push(CallPiece::Arguments { index: self.calls - 1, text });
        self.position = match end {
            Some(_) => ScanPosition::Part(i + 1),
            None => ScanPosition::Arguments(i, depth),
        };
        true
    }

    fn read_separator(&mut self) -> bool {
        let between = self.format.between.as_deref();
        if let Some(between) = between.filter(|between| self.pending.starts_with(between)) {
            self.unconfirmed = between.to_owned();
            self.pending.drain(..between.len());
            self.position = ScanPosition::Part(0);
            return true;
        }
        if between.is_some_and(|between| between.starts_with(&self.pending)) {
            return false;
        }
        let is_closing = self.format.close.starts_with(&self.pending);
        if !is_closing {
            self.position = ScanPosition::End;
        }
        !is_closing
    }

    /// Removes the first `len` bytes of the pending text.
    fn take(&mut self, len: usize) -> String {
        let text: String = self.pending.drain(..len).collect();
        self.unconfirmed.push_str(&text);
        text
    }

    /// Returns the scanned text of an incomplete call as plain text.
    fn give_up(&mut self, scanned: &mut Scanned) {
        scanned.text.push_str(&std::mem::take(&mut self.unconfirmed));
        self.position = ScanPosition::Text;
    }
}

/// Finds the end of a JSON object.
#[derive(Clone, Copy, Default)]
struct JsonDepth {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
}

impl JsonDepth {
    /// Reads one byte. Returns whether the byte ends the object.
    fn push(&mut self, byte: u8) -> bool {
        if self.in_string {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth = self.depth.saturating_sub(1),
            _ => {}
        }
        self.depth == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scanner() -> CallScanner {
        let format = CallFormat {
            open: "<call>{\"name\": \"".to_owned(),
            call: vec![CallPart::Name, CallPart::Text("\", \"arguments\": ".to_owned()), CallPart::Arguments],
            between: Some("}</call>\n<call>{\"name\": \"".to_owned()),
            close: "}</call>".to_owned(),
        };
        CallScanner::new(Arc::new(format), vec!["add".to_owned(), "now".to_owned()])
    }

    /// Scans a text in pieces of `size` characters. Returns the plain text and the calls.
    fn scan(text: &str, size: usize) -> (String, Vec<(String, String)>) {
        let mut scanner = scanner();
        let chars: Vec<char> = text.chars().collect();
        let mut found: Vec<Scanned> =
            chars.chunks(size).map(|piece| scanner.push(&piece.iter().collect::<String>())).collect();
        found.push(scanner.finish());
        let pieces: Vec<CallPiece> = found.iter().flat_map(|scanned| scanned.calls.clone()).collect();
        let calls = whole_calls(&pieces).into_iter().map(|call| (call.name, call.arguments));
        (found.into_iter().map(|scanned| scanned.text).collect(), calls.collect())
    }

    #[test]
    fn calls_are_found_at_any_piece_size() {
        let arguments = "{\"a\": \"}</call>\\\"\", \"b\": [{}]}";
        let text = format!(
            "好<call>{{\"name\": \"add\", \"arguments\": {arguments}}}</call>\n\
             <call>{{\"name\": \"now\", \"arguments\": {{}}}}</call>"
        );
        let calls = vec![("add".to_owned(), arguments.to_owned()), ("now".to_owned(), "{}".to_owned())];
        for size in [1, 2, 3, 7, 1000] {
            assert_eq!(scan(&text, size), ("好".to_owned(), calls.clone()), "{size}");
        }
    }

    #[test]
    fn text_that_is_no_call_stays_text() {
        for text in [
            "a <call> b",
            "<call>{\"name\": \"",
            "<call>{\"name\": \"sub\", \"arguments\": {}}</call>",
            "<call>{\"name\": \"add\", \"other\": 1}",
            "<call>{\"name\": \"add\", \"arguments\": 3}",
        ] {
            for size in [1, 1000] {
                assert_eq!(scan(text, size), (text.to_owned(), vec![]), "{text}");
            }
        }
    }

    #[test]
    fn a_reply_that_ends_inside_a_call_has_the_arguments_so_far() {
        let (text, calls) = scan("<call>{\"name\": \"add\", \"arguments\": {\"a\": 1", 4);
        assert_eq!((text.as_str(), calls), ("", vec![("add".to_owned(), "{\"a\": 1".to_owned())]));
    }
}
