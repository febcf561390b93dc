//! Progress of files on their way.

use std::time::{Duration, Instant};

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes that are here.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
    /// Of `done`, those that were here before.
    pub before: u64,
    /// Files of all.
    pub files: usize,
}

/// Least time between two words about progress.
const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Keeps progress from speaking too often.
#[derive(Debug, Default)]
pub(crate) struct ProgressThrottle(Option<Instant>);

impl ProgressThrottle {
    /// Whether it is time for another word, which is then spoken.
    pub fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() >= MIN_REPORT_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

impl Transfer {
    /// Bytes that came over the network.
    pub fn fetched(&self) -> u64 {
        self.done.saturating_sub(self.before)
    }
}

/// Bytes as they are added and taken back.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
