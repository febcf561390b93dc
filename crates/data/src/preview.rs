//! Shows an encoded record token by token.

use danlu_model::Tokenizer;

use crate::EncodedRecord;

/// One token of a preview.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewToken {
    /// Token id.
    pub id: u32,
    /// Text of the token. Control characters are shown as symbols such as `↵`, `→`, `␀`. The text is empty if
    /// an earlier token contains the same character.
    pub text: String,
    /// Whether the token has a loss.
    pub trained: bool,
}

/// Returns the tokens of an encoded record. A token without text, such as the BOS token of a document, is
/// shown by its name. The concatenated texts of the other tokens are the rendered text, except that control
/// characters are replaced.
pub fn preview(encoded: &EncodedRecord, tokenizer: &Tokenizer) -> Vec<PreviewToken> {
    let mut shown = 0;
    let tokens = encoded.sequence.ids.iter().zip(&encoded.sequence.trained).zip(&encoded.offsets);
    tokens
        .map(|((&id, &trained), range)| {
            let text = match range.is_empty() {
                true => tokenizer.token_str(id).unwrap_or_default(),
                false => encoded.text.get(shown..range.end).unwrap_or_default().to_owned(),
            };
            shown = shown.max(range.end);
            PreviewToken { id, text: replace_controls(&text), trained }
        })
        .collect()
}

/// Replaces control characters by printable symbols, so that the text cannot control the terminal.
pub fn replace_controls(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '\n' => '↵',
            '\t' => '→',
            // Unicode's control pictures have the same order as the control characters.
            '\0'..='\x1f' => char::from_u32(0x2400 + char as u32).unwrap_or('\u{fffd}'),
            '\x7f' => '␡',
            // This range contains C1 control characters, and characters that change the direction of text.
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            _ => char,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_symbols() {
        assert_eq!(
            replace_controls("a\n\t\r\u{1b}[31m\0\u{7f}\u{9b}\u{202e}嬛"),
            "a↵→␍␛[31m␀␡\u{fffd}\u{fffd}嬛"
        );
    }
}
