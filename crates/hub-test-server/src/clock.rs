//! Dates in the Hub's format.

use chrono::{DateTime, Utc};

/// Returns the seconds since 1970.
pub(crate) fn now() -> u64 {
    u64::try_from(Utc::now().timestamp()).unwrap_or(0)
}

/// Formats `seconds` since 1970 as `2026-11-25T21:22:51.000Z`.
pub(crate) fn date(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let time = DateTime::from_timestamp(seconds, 0).expect("a test's dates are not far in the future");
    time.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: `date -u -d @SECONDS +%FT%TZ`.
    #[test]
    fn dates_are_written_in_utc_with_milliseconds() {
        assert_eq!(date(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(date(951_782_400), "2000-02-29T00:00:00.000Z");
        assert_eq!(date(1_700_000_000), "2023-11-14T22:13:20.000Z");
    }
}
