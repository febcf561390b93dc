//! Finds secrets in files: tokens and private keys by their format, and the user's own token.

use std::borrow::Cow;
use std::io::{self, Read};

use crate::Token;
use crate::checksum::CHUNK_BYTES;

/// For each kind of token: its prefix, the minimum number of characters after the prefix, and whether `_` and
/// `-` are allowed there.
const SHAPES: [(&[u8], usize, bool); 13] = [
    (b"hf_", 30, false),
    (b"api_org_", 30, false),
    (b"sk-", 20, true),
    (b"sk_live_", 16, false),
    (b"ghp_", 30, false),
    (b"gho_", 30, false),
    (b"ghs_", 30, false),
    (b"github_pat_", 30, true),
    (b"glpat-", 20, true),
    (b"xoxb-", 20, true),
    (b"xoxp-", 20, true),
    (b"AKIA", 16, false),
    (b"ASIA", 16, false),
];

/// Start and end of the first line of a private key, and the maximum number of bytes between them.
const KEY: (&[u8], &[u8], usize) = (b"-----BEGIN ", b"PRIVATE KEY", 32);

/// Number of bytes at the end of a chunk that are scanned again with the next chunk. No token is longer.
const OVERLAP: usize = 8 << 10;

/// Returns the line number of the first text that looks like a secret.
///
/// # Errors
/// If the reader fails.
pub(crate) fn find(mut reader: impl Read, own: Option<&Token>) -> io::Result<Option<u64>> {
    let mut buffer: Vec<u8> = Vec::with_capacity(CHUNK_BYTES + OVERLAP);
    // Number of line ends before the start of the buffer.
    let mut lines = 0;
    loop {
        let cut = buffer.len().saturating_sub(OVERLAP);
        lines += line_ends(&buffer[..cut]);
        // The last `OVERLAP` bytes stay in the buffer. The first of these bytes is only context, because the
        // check for a token reads the byte before the token.
        buffer.drain(..cut);
        let taken = reader.by_ref().take(CHUNK_BYTES as u64).read_to_end(&mut buffer)?;
        if taken == 0 {
            return Ok(None);
        }
        let bytes = without_references(&buffer);
        let found = |bytes: &[u8]| {
            let at = position(bytes, cut > 0).or_else(|| own?.position_in(bytes))?;
            Some(lines + line_ends(&bytes[..at]) + 1)
        };
        // In UTF-16 text, each ASCII letter has a zero byte next to it.
        let found = found(&bytes).or_else(|| {
            let visible: Vec<u8> = bytes.iter().copied().filter(|&byte| byte != 0).collect();
            if visible.len() < bytes.len() { found(&visible) } else { None }
        });
        if found.is_some() {
            return Ok(found);
        }
    }
}

/// Returns the position of a secret in a path.
pub(crate) fn find_in_path(path: &str, own: Option<&Token>) -> Option<usize> {
    position(path.as_bytes(), false).or_else(|| own?.position_in(path.as_bytes()))
}

/// Returns whether a text contains the user's own token, or text in the format of a token or a private key.
pub fn has_secret(text: &str, own: Option<&Token>) -> bool {
    find_in_path(text, own).is_some()
}

/// Replaces character references such as Markdown's `&#95;` with the characters.
fn without_references(bytes: &[u8]) -> Cow<'_, [u8]> {
    const BEGIN: &[u8] = b"&#";
    if !bytes.windows(BEGIN.len()).any(|window| window == BEGIN) {
        return bytes.into();
    }
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, after)) = rest.split_first() {
        let reference = rest.strip_prefix(BEGIN).and_then(letter);
        let (byte, after) = reference.unwrap_or((first, after));
        out.push(byte);
        rest = after;
    }
    out.into()
}

/// Parses the part after `&#` of a reference to a visible ASCII letter. Returns the letter and the remaining
/// bytes.
fn letter(rest: &[u8]) -> Option<(u8, &[u8])> {
    let end = rest.iter().take(8).position(|&byte| byte == b';')?;
    let digits = std::str::from_utf8(&rest[..end]).ok()?;
    let number = match digits.strip_prefix(['x', 'X']) {
        Some(digits) => u8::from_str_radix(digits, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.is_ascii_graphic().then_some((number, &rest[end + 1..]))
}

fn line_ends(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u64
}

/// Returns the position of a secret in `bytes`. If `before` is true, the first byte precedes the text, and no
/// secret starts at it.
fn position(bytes: &[u8], before: bool) -> Option<usize> {
    (usize::from(before)..bytes.len()).find(|&at| match bytes[at] {
        b'-' => is_key(&bytes[at..]),
        b'h' | b'a' | b's' | b'g' | b'x' | b'A' => is_token(&bytes[at..], || is_start(bytes, at)),
        _ => false,
    })
}

/// Returns whether a token may start at `at`. A token may not directly follow a letter, a digit, `-` or `_`,
/// unless this byte ends an escape sequence such as `\n` or `%20`.
fn is_start(bytes: &[u8], at: usize) -> bool {
    let back = |n: usize| at.checked_sub(n).map(|at| bytes[at]);
    !back(1).is_some_and(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        || back(2) == Some(b'\\')
        || back(3) == Some(b'%')
}

fn is_key(rest: &[u8]) -> bool {
    let (begin, end, between) = KEY;
    let Some(rest) = rest.strip_prefix(begin) else { return false };
    rest[..rest.len().min(between + end.len())].windows(end.len()).any(|window| window == end)
}

fn is_token(rest: &[u8], is_start: impl Fn() -> bool) -> bool {
    SHAPES.iter().any(|&(begin, least, with_dashes)| {
        let Some(tail) = rest.strip_prefix(begin).and_then(|rest| rest.get(..least)) else { return false };
        let is_dash = |byte: &u8| with_dashes && matches!(byte, b'_' | b'-');
        // Excludes words joined by dashes, such as `sk-learn-...`, and placeholders, such as `hf_xxxx`.
        tail.iter().all(|byte| byte.is_ascii_alphanumeric() || is_dash(byte))
            && (!with_dashes || tail.iter().any(u8::is_ascii_digit))
            && tail.iter().any(|byte| *byte != tail[0])
            // A prefix with `_` cannot be the end of a longer word, so the text before the prefix does not
            // matter.
            && (begin.contains(&b'_') || is_start())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &[u8]) -> Option<u64> {
        find(text, Some(&Token::new("my-own-token").unwrap())).unwrap()
    }

    #[test]
    fn secrets_are_found_by_their_shape() {
        // The token is built at run time, so that secret scanners ignore this file.
        let tail = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dE3fG6";
        for begin in ["hf_", "sk-", "sk-proj-", "ghp_", "github_pat_", "glpat-", "xoxb-"] {
            let text = format!("first\ntoken = \"{begin}{tail}\"\n");
            assert_eq!(line(text.as_bytes()), Some(2), "{begin}");
        }
        assert_eq!(line(format!("{}{}", "hf_", "aBcDeFgHiJkLmNoPqRsTuVwXyZaBcDeFgH").as_bytes()), Some(1));
        for before in ["Bearer%20", "\\n", "KEY=", "'", ""] {
            assert_eq!(line(format!("{before}sk-{tail}").as_bytes()), Some(1), "{before}");
            assert_eq!(line(format!("{before}hf_{tail}").as_bytes()), Some(1), "{before}");
        }
        assert_eq!(line(format!("{}{}", "AKIA", "ABCDEFGH12345678").as_bytes()), Some(1));
        for kind in ["", "RSA ", "OPENSSH ", "ENCRYPTED "] {
            let text = format!("\n\n-----BEGIN {kind}PRIVATE {}-----\n", "KEY");
            assert_eq!(line(text.as_bytes()), Some(3), "{kind}");
        }
        assert_eq!(line(b"a\nb\nit is my-own-token\n"), Some(3));
        for underscore in ["&#95;", "&#x5f;", "&#095;"] {
            assert_eq!(line(format!("a &#38;\n`hf{underscore}{tail}`").as_bytes()), Some(2), "{underscore}");
        }
        assert_eq!(line(b"my&#45;own-token &#10;"), Some(1));
        let utf16 = |text: &str| text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<u8>>();
        assert_eq!(line(&utf16(&format!("a\nhf_{tail}\n"))), Some(2));
        assert_eq!(line(&utf16("my-own-token")), Some(1));
        assert_eq!(line(&[&[0xff, 0, 0xfe, b'\n'][..], b"hf_", tail.as_bytes()].concat()), Some(2));
    }

    #[test]
    fn what_only_resembles_one_is_none() {
        for text in [
            "hf_token",
            "hf_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
            "a task-a1b2c3d4e5f6g7h8i9j0k1l2m3",
            "sk-learn-and-other-words-joined",
            "-----BEGIN PUBLIC KEY-----",
            "-----BEGIN CERTIFICATE-----",
            "AKIA is short",
            "hf_a_function_with_a_long_name_of_many_words",
            "",
        ] {
            assert_eq!(line(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn a_secret_across_two_pieces_is_found() {
        let token = format!("{}{}", "hf_", "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0dE3fG6");
        for at in [CHUNK_BYTES - 5, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES - OVERLAP, 2 * CHUNK_BYTES - 3]
        {
            let mut text = vec![b'.'; 3 * CHUNK_BYTES];
            text[10] = b'\n';
            text[at..at + token.len()].copy_from_slice(token.as_bytes());
            assert_eq!(line(&text), Some(2), "{at}");
        }
    }
}
