//! Bytes of a token's text.

use danlu_model::Tokenizer;

/// Returns the bytes of a token's text. The bytes may end or begin within a UTF-8 character.
///
/// A byte-level vocabulary represents each byte by one printable character (source: `bytes_to_unicode` of
/// GPT-2). SentencePiece represents a space by `▁` and a single byte by a token such as `<0x0A>`.
pub(crate) fn token_bytes(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let Some(spelling) = tokenizer.token_str(id) else { return Vec::new() };
    // The vocabulary contains the text of a special token unchanged.
    if tokenizer.special_in(&spelling) == Some(&spelling) {
        return spelling.into_bytes();
    }
    let is_byte_level = tokenizer.token_id("Ġ").is_some();
    if is_byte_level && let Some(bytes) = spelling.chars().map(byte_of).collect() {
        return bytes;
    }
    let hex = spelling.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    if let Some(byte) = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
        return vec![byte];
    }
    spelling.replace('▁', " ").into_bytes()
}

/// Returns the byte that the character `c` represents in a byte-level vocabulary.
fn byte_of(c: char) -> Option<u8> {
    let is_printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let code = c as u32;
    match u8::try_from(code) {
        Ok(byte) => is_printable(byte).then_some(byte),
        // The bytes that are not printable are assigned to the characters from 256 on, in ascending order.
        Err(_) => (0..=u8::MAX).filter(|&byte| !is_printable(byte)).nth(code as usize - 256),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_characters_are_their_bytes() {
        // Expected values: `bytes_to_unicode()` of transformers 5.17.
        for (c, byte) in [('!', b'!'), ('Ġ', b' '), ('Ċ', b'\n'), ('ä', 0xe4), ('Ń', 0xad), ('ł', 0xa0)]
        {
            assert_eq!(byte_of(c), Some(byte), "{c}");
        }
        assert_eq!(byte_of('中'), None);
    }
}
