//! `just fuzz data_reader 180`
//!
//! The first byte selects the format. The rest is a file, which is read twice: as a whole, and byte by byte.
//! The first line of the file is also inserted into an array, between two valid records.

#![no_main]

use std::io::Read;
use std::path::Path;

use danlu_data::{DataError, Dataset, Format, ReadOptions, RecordContent, RecordFault, read_from};
use libfuzzer_sys::fuzz_target;

/// A reader that returns one byte at a time.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let few = buffer.len().min(1);
        self.0.read(&mut buffer[..few])
    }
}

/// Asserts the invariants of a dataset.
fn check(dataset: &Dataset, data: &[u8]) {
    assert_eq!(dataset.fingerprint.bytes, data.len() as u64);
    assert_eq!(dataset.fingerprint.records, dataset.records.len());
    // In compressed files and in Parquet, line numbers do not refer to lines of `data`.
    if [&b"PAR1"[..], b"\x1f\x8b", b"\x28\xb5\x2f\xfd"].iter().any(|magic| data.starts_with(magic)) {
        return;
    }
    let lines = 1 + data.iter().filter(|byte| **byte == b'\n').count() as u64;
    let mut sources: Vec<_> = dataset.records.iter().map(|record| &record.source).collect();
    sources.extend(dataset.bad.iter().filter(|bad| bad.fault != RecordFault::Array).map(|bad| &bad.source));
    sources.sort_by_key(|source| source.index);
    for (index, source) in sources.iter().enumerate() {
        assert_eq!(source.index, index, "each piece of the file is one record or one bad record");
        assert!((1..=lines).contains(&source.line));
    }
    assert!(sources.is_sorted_by_key(|source| source.line));
    for bad in &dataset.bad {
        assert!(!bad.to_string().contains('\n'), "a fault is one line");
    }
    for record in &dataset.records {
        let RecordContent::Chat(chat) = &record.content else { continue };
        assert!(chat.answers().count() > 0);
        let is_empty = |text: &str| text.trim().is_empty();
        assert!(chat.messages.iter().all(|message| !is_empty(&message.content) || !message.extra.is_empty()));
    }
}

/// Asserts that a damaged record hides neither the record before it nor the one after.
///
/// The file has no final `]`. If `line` opens an array, a final `]` could close it, and the record after
/// `line` would then be an element of this array.
fn check_line(data: &[u8]) {
    let line = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let (before, after) = (r#"{"instruction":"a","output":"b"}"#, r#"{"instruction":"c","output":"d"}"#);
    let file = [b"[\n", before.as_bytes(), b",\n{", line, b",\n", after.as_bytes()].concat();
    let dataset = read_from(&file[..], Path::new("chat.json"), &ReadOptions::default())
        .expect("the first record is good");
    for kept in [2, 4] {
        assert!(dataset.records.iter().any(|record| record.source.line == kept), "{:?}", dataset.bad);
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, data)) = data.split_first() else { return };
    check_line(data);
    let format = Format::ALL.get(usize::from(choice) % (Format::ALL.len() + 1)).copied();
    let name = Path::new("chat.json");
    let whole = read_from(data, name, &format.into());
    let trickled = read_from(Trickle(data), name, &format.into());
    match (whole, trickled) {
        (Ok(whole), Ok(trickled)) => {
            check(&whole, data);
            assert_eq!((&whole.records, &whole.bad), (&trickled.records, &trickled.bad));
        }
        (Err(whole), Err(trickled)) => {
            assert_eq!(whole.to_string(), trickled.to_string());
            assert!(whole.hint().is_some() || matches!(whole, DataError::Read(_)));
        }
        (whole, trickled) => panic!("whole {whole:?}, byte by byte {trickled:?}"),
    }
});
