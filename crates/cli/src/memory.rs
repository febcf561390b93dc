//! Memory of this machine and of this process, as far as the system reports it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use danlu_data::Record;
pub use danlu_train::memory::{anonymous, machine, peak};
use danlu_train::memory::{available, display};

use crate::diagnostic::{Diagnostic, Result};

/// Bytes of memory that the tokenizer needs for each byte of text. It stores offsets and several copies.
const ENCODING_BYTES: u64 = 256;

/// Checks that the longest of `records` can be encoded in the free memory.
///
/// # Errors
/// If it cannot. The error names the record.
pub fn check_longest(records: &[Record]) -> Result<()> {
    let longest = records.iter().max_by_key(|record| record.text_bytes());
    longest.map_or(Ok(()), |record| check_record(record, available()))
}

fn check_record(record: &Record, free: Option<u64>) -> Result<()> {
    let needed = record.text_bytes() as u64 * ENCODING_BYTES;
    let Some(free) = free.filter(|&free| free < needed) else { return Ok(()) };
    let text = format!(
        "cannot encode `{}:{}` (record {}): its text of {} needs about {} of memory, and {} are available",
        record.source.file.display(),
        record.source.line,
        record.source.index + 1,
        display(record.text_bytes() as u64),
        display(needed),
        display(free)
    );
    Err(Diagnostic::input(text).with_hint("split the record into shorter ones, such as one for each chapter"))
}

/// Interval between two samples of a [`MemoryWatch`]. A sample costs some microseconds.
const INTERVAL: Duration = Duration::from_millis(10);

/// Resets [`peak`], if the system supports that.
pub fn forget_peak() {
    // Linux: 5 resets the high-water mark, since 4.0.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Samples the anonymous memory of this process in its own thread.
pub struct MemoryWatch {
    seen: Arc<Seen>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    most: AtomicU64,
    over: AtomicBool,
}

impl Seen {
    fn sample(&self) {
        if let Some(bytes) = anonymous() {
            self.most.fetch_max(bytes, Ordering::Relaxed);
        }
    }
}

impl MemoryWatch {
    /// Starts sampling.
    pub fn start() -> Self {
        let seen = Arc::new(Seen::default());
        seen.sample();
        let watched = Arc::clone(&seen);
        let watch = move || {
            while !watched.over.load(Ordering::Relaxed) {
                watched.sample();
                thread::park_timeout(INTERVAL);
            }
        };
        // If the thread cannot start, the samples at the start and the end remain.
        Self { seen, thread: thread::Builder::new().name("memory".to_owned()).spawn(watch).ok() }
    }

    /// Returns the largest sample in bytes, or `None` if the system does not report memory.
    pub fn finish(self) -> Option<u64> {
        self.seen.sample();
        Some(self.seen.most.load(Ordering::Relaxed)).filter(|&bytes| bytes > 0)
    }
}

impl Drop for MemoryWatch {
    fn drop(&mut self) {
        self.seen.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // The thread only reads, so it cannot panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_beyond_the_free_memory_is_named() {
        let file = format!("{{\"text\": \"{}\"}}", "a".repeat(1 << 20));
        let records = danlu_data::read_from(file.as_bytes(), "novel.jsonl".as_ref(), &Default::default());
        let record = &records.unwrap().records[0];
        assert!(check_record(record, Some(256 << 20)).is_ok() && check_record(record, None).is_ok());
        let error = check_record(record, Some((256 << 20) - 1)).unwrap_err().render(false);
        assert!(
            error.starts_with("error: cannot encode `novel.jsonl:1` (record 1): its text of "),
            "{error}"
        );
        assert!(error.contains("256 MiB"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_watch_sees_what_is_gone_when_it_finishes() {
        let watch = MemoryWatch::start();
        let before = anonymous().unwrap();
        let held = vec![1u8; 64 << 20];
        thread::sleep(5 * INTERVAL);
        drop(std::hint::black_box(held));
        assert!(watch.finish().unwrap() >= before + (48 << 20));
        assert!(peak().unwrap() >= before);
    }
}
