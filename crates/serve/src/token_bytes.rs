//! Bytes of a token's text.

use std::collections::HashMap;
use std::sync::LazyLock;

use danlu_model::Tokenizer;

/// The bytes that the characters of a byte-level vocabulary represent (source: `bytes_to_unicode` of GPT-2).
static BYTE_LEVEL: LazyLock<HashMap<char, u8>> = LazyLock::new(|| {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let (printable, other): (Vec<u8>, Vec<u8>) = (0..=u8::MAX).partition(|&byte| is_printable(byte));
    // The other bytes are assigned to the characters from 256 on, in ascending order.
    let other = ('\u{100}'..).zip(other);
    printable.into_iter().map(|byte| (char::from(byte), byte)).chain(other).collect()
});

/// Spelling of the tokens of a vocabulary.
///
/// A byte-level vocabulary represents each byte by one printable character. SentencePiece represents a space
/// by `▁` and a single byte by a token such as `<0x0A>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenSpelling {
    ByteLevel,
    SentencePiece,
}

impl TokenSpelling {
    /// Returns the spelling of a tokenizer's vocabulary.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        match tokenizer.token_id("Ġ") {
            Some(_) => Self::ByteLevel,
            None => Self::SentencePiece,
        }
    }

    /// Returns the bytes of a token that is not special. The bytes may end or begin within a UTF-8
    /// character.
    pub fn bytes(self, token: &str) -> Vec<u8> {
        if self == Self::ByteLevel
            && let Some(bytes) = token.chars().map(|c| BYTE_LEVEL.get(&c).copied()).collect()
        {
            return bytes;
        }
        let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
        if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            return vec![byte];
        }
        token.replace('▁', " ").into_bytes()
    }
}

/// Returns the bytes of a token's text. The bytes may end or begin within a UTF-8 character.
pub(crate) fn token_bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let Some(token) = tokenizer.token_str(id) else { return Vec::new() };
    // The vocabulary contains the text of a special token unchanged.
    if tokenizer.special_in(&token) == Some(&token) {
        return token.into_bytes();
    }
    TokenSpelling::of(tokenizer).bytes(&token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_characters_are_their_bytes() {
        // Expected values: `bytes_to_unicode()` of transformers 5.17.
        for (c, byte) in [('!', b'!'), ('Ġ', b' '), ('Ċ', b'\n'), ('ä', 0xe4), ('Ń', 0xad), ('ł', 0xa0)]
        {
            assert_eq!(BYTE_LEVEL.get(&c), Some(&byte), "{c}");
        }
        assert_eq!(BYTE_LEVEL.get(&'中'), None);
        assert_eq!(TokenSpelling::SentencePiece.bytes("▁a<"), b" a<");
        assert_eq!(TokenSpelling::SentencePiece.bytes("<0x0A>"), b"\n");
    }
}
