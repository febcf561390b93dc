//! `just fuzz table_reader 180`
//!
//! Reads rows of CSV or TSV below a valid header, as a whole and byte by byte. Both results are equal.

#![no_main]

use std::io::Read;
use std::path::Path;

use danlu_data::{ReadOptions, read_from};
use libfuzzer_sys::fuzz_target;

/// A reader that returns one byte at a time.
struct Trickle<'a>(&'a [u8]);

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let few = buffer.len().min(1);
        self.0.read(&mut buffer[..few])
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, rows)) = data.split_first() else { return };
    let headers =
        ["instruction,output\n", "instruction\tinput\toutput\r\n", "\u{feff}prompt;completion\n", "text\n"];
    let header = headers[usize::from(kind % 4)];
    let file = [header.as_bytes(), rows].concat();
    let name = Path::new("table.csv");
    let whole = read_from(&file[..], name, &ReadOptions::default());
    let trickled = read_from(Trickle(&file), name, &ReadOptions::default());
    match (whole, trickled) {
        (Ok(whole), Ok(trickled)) => {
            assert_eq!(whole.fingerprint.bytes, file.len() as u64);
            assert_eq!((&whole.records, &whole.bad), (&trickled.records, &trickled.bad));
            let lines = 1 + file.iter().filter(|byte| **byte == b'\n').count() as u64;
            let records = whole.records.iter().map(|record| &record.source);
            for source in records.chain(whole.bad.iter().map(|bad| &bad.source)) {
                assert!((2..=lines).contains(&source.line), "line {} of {lines}", source.line);
            }
            assert!(whole.bad.iter().all(|bad| !bad.to_string().contains('\n')), "a fault is one line");
        }
        (Err(whole), Err(trickled)) => assert_eq!(whole.to_string(), trickled.to_string()),
        (whole, trickled) => panic!("whole {whole:?}, byte by byte {trickled:?}"),
    }
});
