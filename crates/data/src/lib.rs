//! Chat data: files to conversations to token ids with a loss mask.

mod conversation;
mod error;
mod fields;
mod format;
mod formats;
mod read;
mod record;
mod splitter;

pub use error::DataError;
pub use format::Format;
pub use read::{DataFingerprint, Dataset, read, read_from};
pub use record::{BadRecord, Content, Conversation, Fault, Record, Source};
