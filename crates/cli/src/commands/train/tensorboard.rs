//! Writes TensorBoard's event files.
//!
//! A file is a sequence of TFRecords. A TFRecord consists of the length (u64), a checksum of the length, the
//! data, and a checksum of the data. The data is a protobuf message `Event`. Four of its fields are written:
//! `wall_time = 1` (double), `step = 2` (int64), `file_version = 3` (string) and `summary = 5`.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::diagnostic::{Diagnostic, Result};

/// Folder of the event files in the output folder.
pub const FOLDER: &str = "tensorboard";

/// An event file.
pub struct EventFile {
    path: std::path::PathBuf,
    file: File,
}

impl EventFile {
    /// Creates an event file in the output folder. A resumed run creates one more file, and TensorBoard joins
    /// all files.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn create(output: &Path) -> Result<Self> {
        let folder = output.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|error| Diagnostic::io("create", &folder, error))?;
        let now = now();
        let path =
            folder.join(format!("events.out.tfevents.{:010}.danlu.{}", now as u64, std::process::id()));
        let file = File::create(&path).map_err(|error| Diagnostic::io("write", &path, error))?;
        let mut events = Self { path, file };
        events.write(&version_event(now))?;
        Ok(events)
    }

    /// Adds values of a step, each with its tag.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn add(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        self.write(&scalar_event(now(), step, values))
    }

    fn write(&mut self, event: &[u8]) -> Result<()> {
        self.file.write_all(&record(event)).map_err(|error| Diagnostic::io("write", &self.path, error))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// Frames an event as a TFRecord.
fn record(event: &[u8]) -> Vec<u8> {
    let len = (event.len() as u64).to_le_bytes();
    [&len[..], &masked_crc(&len).to_le_bytes(), event, &masked_crc(event).to_le_bytes()].concat()
}

fn version_event(time: f64) -> Vec<u8> {
    let mut event = double(1, time);
    event.extend(bytes(3, b"brain.Event:2"));
    event
}

fn scalar_event(time: f64, step: u64, values: &[(&str, f64)]) -> Vec<u8> {
    let mut summary = Vec::new();
    for (tag, value) in values {
        let mut entry = bytes(1, tag.as_bytes());
        // This is field 2, a 32-bit float.
        entry.push(2 << 3 | 5);
        entry.extend((*value as f32).to_le_bytes());
        summary.extend(bytes(1, &entry));
    }
    let mut event = double(1, time);
    // This is field 2, a varint.
    event.push(2 << 3);
    event.extend(varint(step));
    event.extend(bytes(5, &summary));
    event
}

fn double(field: u8, value: f64) -> Vec<u8> {
    let mut out = vec![field << 3 | 1];
    out.extend(value.to_le_bytes());
    out
}

fn bytes(field: u8, data: &[u8]) -> Vec<u8> {
    let mut out = vec![field << 3 | 2];
    out.extend(varint(data.len() as u64));
    out.extend(data);
    out
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

/// Returns the CRC-32C of `data`, rotated and offset as the format requires.
fn masked_crc(data: &[u8]) -> u32 {
    let crc = crc32c(data);
    crc.rotate_right(15).wrapping_add(0xa282_ead8)
}

fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_those_of_rfc_3720() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    /// The expected bytes come from `RecordWriter` and `Event.SerializeToString` of tensorboard 2.21.0 on
    /// PyPI.
    #[test]
    fn events_are_the_bytes_of_tensorboard() {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(&version_event(1.5)), "09000000000000f83f1a0d627261696e2e4576656e743a32");
        assert_eq!(
            hex(&record(&scalar_event(1.5, 300, &[("train/loss", 2.5)]))),
            "2100000000000000017becf609000000000000f83f10ac022a130a110a0a747261696e2f6c6f73731500002040b4ca3a3b"
        );
    }
}
