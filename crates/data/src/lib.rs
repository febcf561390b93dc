//! Chat data: files to conversations to token ids with a loss mask.

mod check;
mod conversation;
mod encode;
mod error;
mod fields;
mod format;
mod formats;
mod preview;
mod read;
mod record;
mod shorten;
mod split;
mod splitter;

pub use check::{Bucket, Check, Lengths, check};
pub use encode::{EncodeOptions, Encoded, Truncation, encode};
pub use error::DataError;
pub use format::Format;
pub use preview::{Token, preview, visible};
pub use read::{DataFingerprint, Dataset, read, read_from};
pub use record::{BadRecord, Content, Conversation, Fault, Record, Source};
pub use split::{ValSize, ValSizeError, split};
