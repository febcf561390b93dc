//! The minimum rate of a transfer. Without this limit, a server that sends single bytes could occupy a client
//! for hours.

use std::time::Instant;

use super::RetryPolicy;

/// Compares the rate of a transfer with the minimum rate of a [`RetryPolicy`].
///
/// The rate is measured over intervals of length [`RetryPolicy::stall`].
#[derive(Debug)]
pub(crate) struct RateFloor {
    policy: RetryPolicy,
    start: Instant,
    bytes: u64,
}

impl RateFloor {
    /// Starts the first interval.
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy, start: Instant::now(), bytes: 0 }
    }

    /// Counts bytes that have arrived.
    ///
    /// # Errors
    /// If an interval has ended and its rate was below the minimum. The error is a text with the reason.
    pub fn count(&mut self, bytes: u64) -> Result<(), String> {
        self.bytes += bytes;
        let time = self.start.elapsed();
        if time < self.policy.stall {
            return Ok(());
        }
        let (rate, least) = (self.bytes as f64 / time.as_secs_f64(), self.policy.min_rate);
        if rate < least as f64 {
            return Err(format!(
                "the server sent {rate:.0} bytes a second for {:.0} seconds, expected at least {least}",
                time.as_secs_f64()
            ));
        }
        (self.start, self.bytes) = (Instant::now(), 0);
        Ok(())
    }
}
