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
    /// A conversation, which is rendered with the model's chat template.
    Chat(Conversation),
    /// A document without roles. Every token except the first has a loss.
    Text(String),
}

impl RecordContent {
    /// Returns the text of each message, or the document.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let (messages, document) = match self {
            Self::Chat(chat) => (chat.messages.as_slice(), None),
            Self::Text(text) => (&[][..], Some(text.as_str())),
        };
        messages.iter().map(|message| message.content.as_str()).chain(document)
    }
}

/// Messages in order, and the parts of the messages that have a loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages. An optional `system` message is first, and the turns follow.
    pub messages: Vec<Message>,
    /// The trained part of each message.
    pub loss: Vec<TurnLoss>,
    /// Definitions of tools, which the template adds to the text.
    pub tools: Vec<Value>,
}

/// The part of a message that has a loss.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TurnLoss {
    /// No part. The message is a question, or an answer inside a prompt.
    Context,
    /// No part, even if prompts are trained, because the data masks this message.
    Masked,
    /// The whole text and its end-of-turn token.
    Whole,
    /// Byte ranges of the text. The end-of-turn token is included if a range reaches the end of the text.
    Parts(Vec<Range<usize>>),
}

impl TurnLoss {
    /// Returns whether any part of the message has a loss.
    pub fn is_trained(&self) -> bool {
        matches!(self, Self::Whole | Self::Parts(_))
    }
}

/// The position of a record in its file.
#[derive(Clone, PartialEq, Eq)]
pub struct RecordSource {
    /// Path of the file.
    pub file: Arc<Path>,
    /// Number of the record's first line, or of its row in Parquet, starting at 1.
    pub line: u64,
    /// Index among all good and bad records of the file, starting at 0. Messages print the index plus 1.
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
    /// Position of the record. The `line` of a bad record is the line of the fault.
    pub source: RecordSource,
    /// Column of the fault in the line `source.line`, if known. Columns count characters and start at 1.
    pub column: Option<u64>,
    /// The kind of fault.
    pub fault: RecordFault,
    /// Description of the actual value.
    pub found: String,
    /// Description of the expected value.
    pub expected: String,
    /// Whether reading stopped at this record. The file may contain more records.
    pub rest_unread: bool,
}

/// The kind of a record's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RecordFault {
    /// The record is not UTF-8.
    Charset,
    /// The record is not valid JSON.
    Json,
    /// There is an unexpected byte between two records of an array.
    Array,
    /// The record is valid JSON, but its keys or types do not match the format.
    Shape,
    /// A question, an answer or a text is empty.
    Empty,
    /// The record has content that danlu does not train on, such as images.
    Unsupported,
    /// The messages are not a valid conversation, for example because no answer exists or a role is unknown.
    Conversation,
    /// The chat template rejects the conversation.
    Template,
    /// No token has a loss.
    Untrained,
}

impl BadRecord {
    /// Creates the bad record for a valid record in which no token has a loss.
    pub fn untrained(source: RecordSource) -> Self {
        let expected = "an answer or a text that gives at least one trained token";
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

/// A fault without the position of its record.
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
