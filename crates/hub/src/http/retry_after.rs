//! Waiting: for as long as a server asks, and no longer than someone wants what comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::HubError;

/// Between two looks whether someone still waits.
pub(crate) const STOP_POLL_INTERVAL: Duration = Duration::from_millis(50);

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Waits.
///
/// # Errors
/// As soon as `stop` says that it is in vain.
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

/// What `Retry-After` asks for: seconds, or a moment. `date` is the server's clock, where it tells.
pub(crate) fn asked(retry_after: &str, date: Option<&str>) -> Option<Duration> {
    let text = retry_after.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let now = date.and_then(moment).or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        Some(since.as_secs())
    })?;
    Some(Duration::from_secs(moment(text)?.saturating_sub(now)))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
fn moment(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(", ")?;
    let parts: Vec<&str> = rest.split(' ').collect();
    let [day, month, year, time, "GMT"] = parts[..] else { return None };
    let number = |text: &str, digits: usize, most: u64| {
        let is_plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u64>().ok().filter(|&n| is_plain && n <= most)
    };
    let (day, year) = (number(day, 2, 31)?, number(year, 4, 9999)?);
    let month = MONTHS.iter().position(|name| *name == month)? as u64;
    let mut clock = time.split(':');
    let mut next = |most| number(clock.next()?, 2, most);
    let (hours, minutes, seconds) = (next(23)?, next(59)?, next(60)?);
    // Days since 1970 as if years began in March, so that a leap day is a year's last.
    let (year, month) = if month < 2 { (year.checked_sub(1)?, month + 10) } else { (year, month - 2) };
    let days = (365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day)
        .checked_sub(719_469)?;
    Some(days * 86_400 + hours * 3600 + minutes * 60 + seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    // Expected: `date -u -d '...' +%s`.
    #[test]
    fn a_moment_is_seconds_since_1970() {
        for (text, seconds) in [
            ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
            ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
            ("Thu, 29 Feb 2024 23:59:59 GMT", 1_709_251_199),
            ("Sat, 01 Mar 2025 00:00:00 GMT", 1_740_787_200),
            ("Thu, 31 Dec 2026 12:00:00 GMT", 1_798_718_400),
        ] {
            assert_eq!(moment(text), Some(seconds), "{text}");
        }
        for wrong in
            ["", "Sun, 06 Nov 1994", "Sun, 06 Nov 1994 08:49:37 CET", "Sun, +6 Nov 1994 08:49:37 GMT", "x, 1"]
        {
            assert_eq!(moment(wrong), None, "{wrong}");
        }
        assert_eq!(moment("Sat, 01 Jan 0000 00:00:00 GMT"), None);
    }

    #[test]
    fn a_server_asks_in_seconds_or_by_its_own_clock() {
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(asked(" 7 ", None), Some(Duration::from_secs(7)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:07 GMT", date), Some(Duration::from_secs(30)));
        // A moment that is past, by this machine's clock.
        assert_eq!(asked("Sun, 06 Nov 1994 08:50:07 GMT", None), Some(Duration::ZERO));
        assert_eq!(asked("soon", date), None);
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
