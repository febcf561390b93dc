//! Quoting for commands that a user copies into a shell.

/// Quotes `text` as one word of a shell command, if necessary.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | '=' | '@');
    let text = text.replace(char::is_control, " ");
    match !text.is_empty() && text.chars().all(plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_words_that_need_quotes_get_them() {
        assert_eq!(shell_word("out/huanhuan=甄嬛"), "out/huanhuan=甄嬛");
        assert_eq!(shell_word("me/huan@v2"), "me/huan@v2");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
