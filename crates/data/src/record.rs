//! One record of a data file: what it says and where it stands.

use std::{fmt, path::Path, sync::Arc};

use danlu_model::Message;

/// A record that can be trained on.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What it says.
    pub content: RecordContent,
    /// Where it stands.
    pub source: RecordSource,
}

/// What a record says.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordContent {
    /// A conversation, to be rendered with the model's chat template.
    Chat(Conversation),
    /// A document without roles, trained from its first token to its last.
    Text(String),
}

/// Messages in order, and which of the assistant's are answers to learn.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// An optional `system` first, then the turns.
    pub messages: Vec<Message>,
    /// Assistant messages from this index on are trained. Above 0 only where a record says which
    /// part is the prompt and that part holds earlier answers.
    pub trained_from: usize,
}

/// Where a record stands in its file.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordSource {
    /// The file, as it was named.
    pub file: Arc<Path>,
    /// The line on which the record begins, from 1.
    pub line: u64,
    /// The record's position among all of the file's, good and bad, from 0; messages count from 1.
    pub index: usize,
}

impl fmt::Display for RecordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} (record {})", self.file.display(), self.line, self.index + 1)
    }
}

impl fmt::Debug for RecordSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// A record that cannot be trained on, and why.
#[derive(Clone, Debug, PartialEq)]
pub struct BadRecord {
    /// Where it stands; for a fault in the middle of a record, the line of the fault.
    pub source: RecordSource,
    /// The exact column on `source.line`, from 1 in characters, where the fault has one.
    pub column: Option<u64>,
    /// The kind of fault.
    pub fault: RecordFault,
    /// What is there.
    pub found: String,
    /// What should be.
    pub expected: String,
    /// Whether the file cannot be followed beyond this point, so that records may be missing.
    pub rest_unread: bool,
}

/// The kinds of fault a record can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordFault {
    /// Not UTF-8.
    Encoding,
    /// Not JSON.
    Json,
    /// Something between two records of an array that does not belong there.
    Array,
    /// JSON with other keys or types than the format has.
    Shape,
    /// An empty question, answer or text.
    Empty,
    /// Something that training does not do yet, such as tool calls or images.
    Unsupported,
    /// Roles that make no conversation.
    Conversation,
    /// The chat template refuses the conversation.
    Template,
    /// Nothing of it carries a loss.
    Untrained,
}

impl BadRecord {
    /// The record at `source`, which can be read and would teach nothing.
    pub fn untrained(source: RecordSource) -> Self {
        let expected = "an answer, or a text, that some token of the model stands for";
        Mismatch::new(RecordFault::Untrained, "no token that carries a loss", expected).at(source)
    }
}

impl fmt::Display for BadRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.source.file.display(), self.source.line)?;
        if let Some(column) = self.column {
            write!(f, ":{column}")?;
        }
        if self.fault != RecordFault::Array {
            write!(f, " (record {})", self.source.index + 1)?;
        }
        write!(f, ": found {}, expected {}", self.found, self.expected)?;
        if self.rest_unread {
            write!(f, "; what follows was not read")?;
        }
        Ok(())
    }
}

/// A fault before it is known where the record stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Mismatch {
    pub fault: RecordFault,
    pub found: String,
    pub expected: String,
}

impl Mismatch {
    pub fn new(fault: RecordFault, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Self { fault, found: found.into(), expected: expected.into() }
    }

    pub fn at(self, source: RecordSource) -> BadRecord {
        let Self { fault, found, expected } = self;
        BadRecord { source, column: None, fault, found, expected, rest_unread: false }
    }
}
