//! Waits between attempts, and parses `Retry-After`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chrono::{DateTime, NaiveDateTime, Utc};

use crate::HubError;

/// Interval at which a waiting thread checks the stop flag.
pub(crate) const STOP_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Sleeps for `time`.
///
/// # Errors
/// If `stop` is set during the sleep.
pub(crate) fn pause(time: Duration, stop: Option<&AtomicBool>) -> Result<(), HubError> {
    let Some(stop) = stop else {
        thread::sleep(time);
        return Ok(());
    };
    let end = Instant::now() + time;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(HubError::Stopped);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(STOP_POLL_INTERVAL));
    }
}

/// Parses `Retry-After`, which is a number of seconds or an HTTP date. `date` is the server's `Date` header.
pub(crate) fn parse(retry_after: &str, date: Option<&str>) -> Option<Duration> {
    let text = retry_after.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = date.and_then(parse_http_date).unwrap_or_else(Utc::now);
    let seconds = parse_http_date(text)?.timestamp() - now.timestamp();
    Some(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Parses `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn parse_http_date(text: &str) -> Option<DateTime<Utc>> {
    // The day of the week is ignored, because some servers send a wrong one.
    let (_, date) = text.split_once(", ")?;
    Some(NaiveDateTime::parse_from_str(date, "%d %b %Y %H:%M:%S GMT").ok()?.and_utc())
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected values: `date -u -d '...' +%s`.
    #[test]
    fn http_dates_are_seconds_since_1970() {
        for (text, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Thu, 29 Feb 2024 23:59:59 GMT", 1_709_251_199),
            ("Sat, 01 Mar 2025 00:00:00 GMT", 1_740_787_200),
            ("Thu, 31 Dec 2026 12:00:00 GMT", 1_798_718_400),
        ] {
            assert_eq!(parse_http_date(text).map(|date| date.timestamp()), Some(seconds), "{text}");
        }
        for wrong in
            ["", "Sun, 06 Nov 1994", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, +6 Nov 1994 08:49:37 GMT", "x, 1"]
        {
            assert_eq!(parse_http_date(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_server_asks_in_seconds_or_by_its_own_clock() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(parse(" 7 ", None), Some(Duration::from_secs(7)));
        assert_eq!(parse("Sun, 06 Nov 1994 08:50:07 GMT", date), Some(Duration::from_secs(30)));
        // By the clock of this computer, the date is in the past.
        assert_eq!(parse("Sun, 06 Nov 1994 08:50:07 GMT", None), Some(Duration::ZERO));
        assert_eq!(parse("soon", date), None);
    }

    #[test]
    fn a_pause_ends_when_it_is_in_vain() {
        assert!(matches!(
            pause(Duration::from_secs(600), Some(&AtomicBool::new(true))),
            Err(HubError::Stopped)
        ));
        assert!(pause(Duration::ZERO, Some(&AtomicBool::new(false))).is_ok());
    }
}
