//! One record of a data file: its content and its position.

use std::{fmt, ops::Range, path::Path, sync::Arc};

use danlu_model::Message;
use serde_json::Value;

/// A valid record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The content.
    pub content: RecordContent,
    /// The position in the file.
    pub source: RecordSource,
}

/// The content of a record.
#[derive(Clone, Debug, PartialEq)]
pub enum RecordContent {
    /// A conversation, rendered with the model's chat template.
    Chat(Conversation),
    /// A document without roles. Every token but the first carries a loss.
    Text(String),
}

/// Messages in order, and which parts of them carry a loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages: an optional `system` message, then the turns.
    pub messages: Vec<Message>,
    /// The trained part of each message.
    pub loss: Vec<TurnLoss>,
    /// Definitions of tools, which the template renders.
    pub tools: Vec<Value>,
}

/// The part of a message that carries a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnLoss {
    /// None: the message is a question, or an answer inside a prompt.
    Context,
    /// None, even if prompts are trained: the data masks this message.
    Masked,
    /// The text and its end-of-turn token.
    Whole,
    /// Byte ranges of the text. The end-of-turn token is included if a range reaches the end of the text.
    Parts(Vec<Range<usize>>),
}

impl TurnLoss {
    /// Whether any part of the message carries a loss.
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Whole | Self::Parts(_))
    }
}

/// The position of a record in its file.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordSource {
    /// The path that the user gave.
    pub file: Arc<Path>,
    /// First line of the record, from 1.
    pub line: u64,
    /// Index among all records of the file, good or bad, from 0. Messages print it from 1.
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

/// A record that cannot be trained on, and the reason.
#[derive(Clone, Debug, PartialEq)]
pub struct BadRecord {
    /// The record's position. `line` is the line of the fault.
    pub source: RecordSource,
    /// Column of the fault in `source.line`, in characters from 1, if known.
    pub column: Option<u64>,
    /// The kind of fault.
    pub fault: RecordFault,
    /// Description of the value found.
    pub found: String,
    /// Description of the value expected.
    pub expected: String,
    /// Whether reading stopped here. The file may contain more records.
    pub rest_unread: bool,
}

/// Kinds of faults of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordFault {
    /// Not UTF-8.
    Charset,
    /// Not JSON.
    Json,
    /// An unexpected byte between two records of an array.
    Array,
    /// Valid JSON whose keys or types differ from the format.
    Shape,
    /// An empty question, answer or text.
    Empty,
    /// Content that danlu does not train on, such as images.
    Unsupported,
    /// A sequence of roles that is not a conversation.
    Conversation,
    /// The chat template rejects the conversation.
    Template,
    /// No token carries a loss.
    Untrained,
}

impl BadRecord {
    /// Creates the fault of a valid record without a trained token.
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

/// A fault without its position.
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
