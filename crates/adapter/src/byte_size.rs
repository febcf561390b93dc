//! Parses sizes as people write them: `2GB`, `500MB`, `1GiB`.

use crate::AdapterError;

/// Parses a size such as `5GB` (1000³) or `1GiB` (1024³). A number without a unit is a number of bytes.
///
/// # Errors
/// If the text is not such a size, or if the size is 0 or does not fit into 64 bits.
pub fn parse_byte_size(text: &str) -> Result<u64, AdapterError> {
    let wrong = || AdapterError::Size { found: text.to_owned() };
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(end);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000u64.pow(2),
        "gb" => 1000u64.pow(3),
        "tb" => 1000u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(wrong()),
    };
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor).ok_or_else(wrong)?,
        // A fraction may be rounded. The cast saturates, and the check below rejects the largest `u64`.
        Err(_) => (number.parse::<f64>().map_err(|_| wrong())? * factor as f64) as u64,
    };
    if bytes == 0 || bytes == u64::MAX { Err(wrong()) } else { Ok(bytes) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_those_people_write() {
        for (text, bytes) in [
            ("500MB", 500_000_000),
            ("2GB", 2_000_000_000),
            ("1GiB", 1 << 30),
            (" 1.5 gb ", 1_500_000_000),
            ("4096", 4096),
            ("10kb", 10_000),
        ] {
            assert_eq!(parse_byte_size(text).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "0", "0.0001b", "2 GX", "-1GB", "1e9", "99999999999999TB", "1..5GB", "inf"] {
            assert!(parse_byte_size(text).is_err(), "{text}");
        }
    }
}
