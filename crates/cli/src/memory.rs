//! Reads the memory of this machine and of this process, if the system reports it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use danlu_train::memory::{anonymous, machine, peak};

/// Interval between two samples of a [`MemoryWatch`]. One sample takes a few microseconds.
const INTERVAL: Duration = Duration::from_millis(10);

/// Resets the value of [`peak`], if the system supports that.
pub fn forget_peak() {
    // Since Linux 4.0, writing 5 resets the high-water mark.
    let _ = fs::write("/proc/self/clear_refs", "5");
}

/// Samples the anonymous memory of this process in a separate thread.
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
        // If the thread cannot start, only the samples at the start and at the end remain.
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
            // The thread only reads memory counters, so it cannot panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
