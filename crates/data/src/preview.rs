//! One encoded record, token by token, to be looked at.

use danlu_model::Tokenizer;

use crate::Encoded;

/// A token as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PreviewToken {
    /// Its id.
    pub id: u32,
    /// The text it adds, control characters as visible signs (`↵`, `→`, `␀` ...). Empty where a character is spread
    /// over several tokens and an earlier one shows it.
    pub text: String,
    /// Whether it carries a loss.
    pub trained: bool,
}

/// The tokens of an encoded record. Their texts join to the rendered text, apart from tokens that stand for nothing
/// in it (the BOS and EOS around a document), which show their name.
pub fn preview(encoded: &Encoded, tokenizer: &Tokenizer) -> Vec<PreviewToken> {
    let mut shown = 0;
    let tokens = encoded.sequence.ids.iter().zip(&encoded.sequence.trained).zip(&encoded.offsets);
    tokens
        .map(|((&id, &trained), range)| {
            let text = match range.is_empty() {
                true => tokenizer.token_str(id).unwrap_or_default(),
                false => encoded.text.get(shown..range.end).unwrap_or_default().to_owned(),
            };
            shown = shown.max(range.end);
            PreviewToken { id, text: visible(&text), trained }
        })
        .collect()
}

/// A text with its control characters as signs, so that none of them acts on a terminal.
pub fn visible(text: &str) -> String {
    text.chars()
        .map(|char| match char {
            '\n' => '↵',
            '\t' => '→',
            // Unicode's control pictures, in the order of the characters.
            '\0'..='\x1f' => char::from_u32(0x2400 + char as u32).unwrap_or('\u{fffd}'),
            '\x7f' => '␡',
            // C1 controls, and what turns the direction of the text around it.
            '\u{80}'..='\u{9f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
            _ => char,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_become_signs() {
        assert_eq!(visible("a\n\t\r\u{1b}[31m\0\u{7f}\u{9b}\u{202e}嬛"), "a↵→␍␛[31m␀␡\u{fffd}\u{fffd}嬛");
    }
}
