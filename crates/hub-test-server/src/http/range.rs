/// A parsed `Range` header for a body of known size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Range {
    /// There is no header, or the header is ignored. A header with several ranges, another unit or no numbers
    /// is ignored.
    Whole,
    /// The range as start and length in bytes.
    Part { start: u64, length: u64 },
    /// The range contains no byte of the body.
    Unsatisfiable,
}

/// Parses `header` for a body of `size` bytes.
pub(crate) fn parse_range(header: Option<&str>, size: u64) -> Range {
    let Some((first, last)) =
        header.and_then(|text| text.trim().strip_prefix("bytes=")).and_then(|range| range.split_once('-'))
    else {
        return Range::Whole;
    };
    let (start, end) = match (first.trim(), last.trim()) {
        ("", suffix) => match suffix.parse::<u64>() {
            Ok(0) => return Range::Unsatisfiable,
            Ok(count) => (size.saturating_sub(count), size),
            Err(_) => return Range::Whole,
        },
        (first, "") => match first.parse() {
            Ok(start) => (start, size),
            Err(_) => return Range::Whole,
        },
        (first, last) => match (first.parse(), last.parse::<u64>()) {
            (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(size)),
            _ => return Range::Whole,
        },
    };
    if start >= size { Range::Unsatisfiable } else { Range::Part { start, length: end - start } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_body() {
        let part = |start, length| Range::Part { start, length };
        for (header, expected) in [
            ("bytes=0-3", part(0, 4)),
            ("bytes=4-", part(4, 6)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-99", part(0, 10)),
            ("bytes=9-99", part(9, 1)),
            ("bytes=0-18446744073709551615", part(0, 10)),
            ("bytes=10-", Range::Unsatisfiable),
            ("bytes=-0", Range::Unsatisfiable),
            ("bytes=5-4", Range::Whole),
            ("bytes=0-1,4-5", Range::Whole),
            ("bytes=a-b", Range::Whole),
            ("lines=0-1", Range::Whole),
        ] {
            assert_eq!(parse_range(Some(header), 10), expected, "{header}");
        }
        assert_eq!(parse_range(None, 10), Range::Whole);
        assert_eq!(parse_range(Some("bytes=0-"), 0), Range::Unsatisfiable);
    }
}
