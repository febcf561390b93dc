//! Reads chat data. A file becomes records, and a record becomes token ids with a loss mask, which marks the
//! tokens to train on.
//!
//! | step | function | file |
//! |---|---|---|
//! | parse a file into records | [`read()`] | `read.rs`, `record_splitter.rs`, `formats/` |
//! | encode a record as token ids and a loss mask | [`encode()`] | `encode.rs`, `truncate.rs` |
//! | collect statistics and warnings before training | [`check()`] | `check.rs` |
//! | show a record token by token | [`preview()`] | `preview.rs` |
//! | hold records out of training, for evaluation | [`split()`] | `hold_out.rs` |
//!
//! Every fault in a file is reported with its line number, or with its row number in Parquet.
//!
//! The keys of the first record identify the format:
//!
//! ```
//! use danlu_data::{Format, ReadOptions, RecordContent, read_from};
//!
//! let file = br#"{"prompt": "Who are you?", "completion": "Zhen Huan."}
//! {"prompt": "And where?"}"#;
//! let dataset = read_from(&file[..], "chat.jsonl".as_ref(), &ReadOptions::default())?;
//! assert_eq!(dataset.format, Format::PromptCompletion);
//!
//! let RecordContent::Chat(chat) = &dataset.records[0].content else { panic!("not a text") };
//! assert_eq!(chat.messages[1].role, "assistant");
//! assert_eq!(
//!     dataset.bad[0].to_string(),
//!     "chat.jsonl:2 (record 2): found the key `prompt`, \
//!      expected `prompt`, `completion` of the prompt-completion format (and perhaps `tools`)"
//! );
//! # Ok::<(), danlu_data::DataError>(())
//! ```

mod charset;
mod check;
mod column_object;
mod columns;
mod conversation;
mod dataset_info;
mod encode;
mod error;
mod fields;
mod format;
mod formats;
mod hold_out;
mod json_layout;
mod json_nesting;
mod json_record;
mod next_record;
mod options;
mod parquet_file;
mod preview;
mod read;
mod record;
mod record_memory;
mod record_splitter;
mod roles;
mod scanner;
mod shards;
mod stream;
mod table;
mod table_rows;
mod template_audit;
mod truncate;
mod unknown_keys;
mod unsupported_file;
mod write;
mod write_file;

pub use charset::Charset;
pub use check::{Bucket, Check, Lengths, check, record_hashes};
pub use columns::{Columns, NameMapError};
pub use danlu_model::{JsonFault, closest_word, edit_distance};
pub use encode::{EncodeOptions, EncodedRecord, Truncation, encode, foreign_mark, is_rendered};
pub use error::DataError;
pub use format::Format;
pub use hold_out::{ValSize, ValSizeError, split};
pub use options::ReadOptions;
pub use parquet_file::is_decoding_parquet;
pub use preview::{PreviewToken, preview, replace_controls};
pub use read::{DataFileFingerprint, Dataset, read, read_from};
pub use record::{BadRecord, Conversation, Record, RecordContent, RecordFault, RecordSource, TurnLoss};
pub use roles::Roles;
pub use shards::read_shards;
pub use template_audit::{TemplateAudit, TemplateEffect, TemplateFinding};
pub use unknown_keys::UnknownKey;
pub use unsupported_file::UnsupportedFile;
pub use write::{common_format, to_json};
pub use write_file::OutputKind;
