//! Chat data: files to conversations to token ids with a loss mask.
//!
//! | step | function | file |
//! |---|---|---|
//! | bytes to records, each fault with its line | [`read()`] | `read.rs`, over `splitter.rs` and `formats/` |
//! | a record to ids and loss mask, within a length | [`encode()`] | `encode.rs`, `shorten.rs` |
//! | statistics and warnings before training | [`check()`] | `check.rs` |
//! | a record token by token | [`preview()`] | `preview.rs` |
//! | held-out records | [`split()`] | `split.rs` |
//!
//! The keys of the first record identify the format:
//!
//! ```
//! use danlu_data::{RecordContent, Format, read_from};
//!
//! let file = br#"{"prompt": "Who are you?", "completion": "Zhen Huan."}
//! {"prompt": "And where?"}"#;
//! let dataset = read_from(&file[..], "chat.jsonl".as_ref(), None)?;
//! assert_eq!(dataset.format, Format::PromptCompletion);
//!
//! let RecordContent::Chat(chat) = &dataset.records[0].content else { panic!("not a text") };
//! assert_eq!(chat.messages[1].role, "assistant");
//! assert_eq!(
//!     dataset.bad[0].to_string(),
//!     "chat.jsonl:2 (record 2): found the key `prompt`, \
//!      expected `prompt`, `completion` of the prompt-completion format"
//! );
//! # Ok::<(), danlu_data::DataError>(())
//! ```

mod check;
mod conversation;
mod encode;
mod encoding;
mod error;
mod fields;
mod format;
mod formats;
mod json_nesting;
mod preview;
mod read;
mod record;
mod resync;
mod scanner;
mod spelling;
mod split;
mod splitter;
mod truncate;
mod unknown_keys;

pub use check::{Bucket, Check, Lengths, check};
pub use danlu_model::JsonFault;
pub use encode::{EncodeOptions, Encoded, Truncation, encode};
pub use encoding::Encoding;
pub use error::DataError;
pub use format::Format;
pub use preview::{PreviewToken, preview, visible};
pub use read::{DataFingerprint, Dataset, read, read_from};
pub use record::{BadRecord, Conversation, Record, RecordContent, RecordFault, RecordSource};
pub use spelling::nearest;
pub use split::{ValSize, ValSizeError, split};
pub use unknown_keys::UnknownKey;
