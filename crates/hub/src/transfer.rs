use std::time::{Duration, Instant};

/// Progress of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Number of bytes that have been transferred.
    pub done: u64,
    /// Size of all files in bytes.
    pub total: u64,
    /// Number of bytes in `done` that were present before the transfer.
    pub before: u64,
    /// Number of files.
    pub files: usize,
}

const MIN_REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// Limits the rate of progress reports.
#[derive(Debug, Default)]
pub(crate) struct ProgressThrottle(Option<Instant>);

impl ProgressThrottle {
    /// Returns whether a report is due. If so, starts the next interval.
    pub fn is_due(&mut self) -> bool {
        let is_due = self.0.is_none_or(|last| last.elapsed() >= MIN_REPORT_INTERVAL);
        if is_due {
            self.0 = Some(Instant::now());
        }
        is_due
    }
}

impl Transfer {
    /// Returns the number of bytes downloaded.
    pub fn fetched(&self) -> u64 {
        self.done.saturating_sub(self.before)
    }
}

pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
