//! Estimates the memory of records, so that a file of millions of tiny records is rejected in time.
//!
//! The size of a file does not limit this memory: a record of ten bytes in the file needs over a hundred
//! bytes in memory.

use std::mem::size_of;

use danlu_model::Message;
use serde_json::Value;

use crate::record::{Record, RecordContent, TurnLoss};

/// Bytes that the allocator adds to a block, roughly.
const BLOCK: usize = 16;

/// Returns the memory of a record in bytes, roughly.
pub(crate) fn of_record(record: &Record) -> u64 {
    let content = match &record.content {
        RecordContent::Text(text) => of_text(text),
        RecordContent::Chat(chat) => {
            let messages: usize = chat.messages.iter().map(of_message).sum();
            let loss = chat.loss.iter().map(|loss| match loss {
                TurnLoss::Parts(parts) => BLOCK + size_of_val(parts.as_slice()),
                _ => 0,
            });
            let lists = size_of::<Message>() * chat.messages.capacity()
                + size_of::<TurnLoss>() * chat.loss.capacity()
                + 2 * BLOCK;
            lists + messages + loss.sum::<usize>() + of_values(&chat.tools)
        }
    };
    (size_of::<Record>() + content) as u64
}

fn of_message(message: &Message) -> usize {
    let extra = message.extra.iter().map(|(key, value)| ENTRY + of_text(key) + of_value(value));
    of_text(&message.role) + of_text(&message.content) + extra.sum::<usize>()
}

/// Approximate bytes of one entry of an object: key, value, hash, and index in the hash table.
const ENTRY: usize = 2 * (size_of::<String>() + 2 * size_of::<usize>());

fn of_text(text: &str) -> usize {
    if text.is_empty() { 0 } else { BLOCK + text.len() }
}

fn of_values(values: &[Value]) -> usize {
    BLOCK + size_of_val(values) + values.iter().map(of_value).sum::<usize>()
}

/// Returns the heap memory of a value. The recursion is bounded, because serde_json limits the depth of a
/// value.
fn of_value(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 0,
        Value::String(text) => of_text(text),
        Value::Array(values) => of_values(values),
        Value::Object(object) => {
            object.iter().map(|(key, value)| ENTRY + of_text(key) + of_value(value)).sum()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::{DataError, ReadOptions, read_from};

    fn read(text: &str, max_memory: u64) -> Result<usize, DataError> {
        let options = ReadOptions { max_memory: Some(max_memory), ..ReadOptions::default() };
        read_from(text.as_bytes(), Path::new("tiny.jsonl"), &options).map(|dataset| dataset.records.len())
    }

    #[test]
    fn records_beyond_the_memory_are_refused_by_place() {
        let text = "{\"text\":\"a\"}\n".repeat(100_000);
        let error = read(&text, 4 << 20).unwrap_err();
        let DataError::Memory { place, needed, limit } = &error else { panic!("{error}") };
        assert!(*needed > *limit && *needed < *limit + 200);
        // A record of one character needs 104 bytes for itself and 17 for its text.
        assert_eq!((place.line, place.index), (34_664, 34_663));
        assert_eq!(
            error.to_string(),
            "cannot read `tiny.jsonl:34664` (record 34664): the records up to it need 5 MiB of memory, \
             and at most 4 MiB are free for records"
        );
        assert_eq!(read(&text, 13 << 20).unwrap(), 100_000);
    }

    #[test]
    fn compressed_records_may_not_outgrow_their_file() {
        let text = "{\"text\":\"a\"}\n".repeat(1_200_000);
        let packed = zstd::encode_all(text.as_bytes(), 1).unwrap();
        let read = |bytes: &[u8]| read_from(bytes, Path::new("tiny.jsonl"), &ReadOptions::default());
        let error = read(&packed).unwrap_err();
        let DataError::RecordGrowth { place, needed, bytes } = &error else { panic!("{error}") };
        // 128 MiB, and 64 times the compressed file. A record needs 121 bytes.
        let limit = (128 << 20) + 64 * bytes;
        assert!(*bytes <= packed.len() as u64 && (limit..limit + 200).contains(needed), "{needed}");
        assert_eq!(place.line, needed.div_ceil(121));
        assert_eq!(read(text.as_bytes()).unwrap().records.len(), 1_200_000);
    }

    #[test]
    fn every_part_of_a_conversation_counts() {
        let chat = |turn: &str| {
            format!(
                r#"{{"messages":[{{"role":"user","content":"q"}},{{"role":"assistant","content":"a"{turn}}}]}}"#
            )
        };
        let smallest = |text: &str| (0..1 << 14).find(|limit| read(text, *limit).is_ok()).unwrap();
        let plain = smallest(&chat(""));
        // Each of the two messages needs 120 bytes, and each `TurnLoss` 24 bytes.
        assert!((400..700).contains(&plain), "{plain}");
        let tool = format!(r#","tool_calls":[{{"name":"{}"}}]"#, "x".repeat(1000));
        assert!(smallest(&chat(&tool)) > plain + 1000);
    }
}
