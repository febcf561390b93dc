//! What a JSON parser met, in words for whoever wrote the file.

/// A fault of a JSON text: what is there, and what should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFault {
    /// What is there.
    pub found: String,
    /// What should be.
    pub expected: &'static str,
}

impl JsonFault {
    /// Words for the parser's `error`; `at` is the character that it stumbled over, `None` at the end.
    pub fn new(error: &serde_json::Error, at: Option<char>) -> Self {
        let message = error.to_string();
        let reason = message.split(" at line ").next().unwrap_or(&message);
        let here = match at {
            None => "the end of the text".into(),
            Some(char) if char.is_control() => "a control character".into(),
            Some(char) => format!("`{char}`"),
        };
        let said = |found: &str, expected| Self { found: found.into(), expected };
        let there = |expected| Self { found: here.clone(), expected };
        match reason {
            "EOF while parsing a list" => said("no end of a list", "`]`"),
            "EOF while parsing an object" => said("no end of an object", "`}`"),
            "EOF while parsing a string" => said("no end of a text", "`\"`"),
            "EOF while parsing a value" => said("nothing", "a value"),
            "expected `:`" => there("`:` after a key"),
            "expected `,` or `]`" => there("`,` or `]` after a value of a list"),
            "expected `,` or `}`" => there("`,` or `}` after a value"),
            "expected ident" | "expected value" => {
                there("a value: a text in double quotes, a number, `true`, `false`, `null`, `[` or `{`")
            }
            "key must be a string" => there("a key in double quotes"),
            "trailing comma" => said("a `,` after the last value", "none"),
            "trailing characters" => there("nothing more"),
            "control character (\\u0000-\\u001F) found while parsing a string" => {
                said("a control character inside a text", "an escape such as `\\t` or `\\n`")
            }
            "invalid escape" => {
                said("a `\\` that begins no escape", "`\\\\`, `\\\"`, `\\n`, `\\t` or `\\u` with four digits")
            }
            "invalid number" => said("a number that is none", "digits such as `3` or `0.5`"),
            "number out of range" => said("a number beyond all bounds", "a smaller one"),
            "recursion limit exceeded" => said("brackets 128 deep", "a record"),
            "lone leading surrogate in hex escape"
            | "unexpected end of hex escape"
            | "invalid unicode code point" => {
                said("half a character after `\\u`", "both halves, such as `\\ud83d\\ude00`")
            }
            _ => there("JSON"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn fault(text: &str) -> String {
        let error = serde_json::from_str::<Value>(text).unwrap_err();
        let JsonFault { found, expected } = JsonFault::new(&error, text.chars().nth(error.column() - 1));
        format!("found {found}, expected {expected}")
    }

    #[test]
    fn mistakes_are_told_without_the_parsers_words() {
        let value = "a value: a text in double quotes, a number, `true`, `false`, `null`, `[` or `{`";
        for (text, words) in [
            ("{\"a\": 1", "found no end of an object, expected `}`".to_owned()),
            ("[1", "found no end of a list, expected `]`".to_owned()),
            ("{\"a\": \"b", "found no end of a text, expected `\"`".to_owned()),
            ("{\"a\": ", "found nothing, expected a value".to_owned()),
            ("{\"a\" 1}", "found `1`, expected `:` after a key".to_owned()),
            ("[1 2]", "found `2`, expected `,` or `]` after a value of a list".to_owned()),
            ("{\"a\": 1 \"b\"}", "found `\"`, expected `,` or `}` after a value".to_owned()),
            ("{\"a\": 'b'}", format!("found `'`, expected {value}")),
            ("{'a': 1}", "found `'`, expected a key in double quotes".to_owned()),
            ("{\"a\": 1,}", "found a `,` after the last value, expected none".to_owned()),
            ("{\"a\": 1} x", "found `x`, expected nothing more".to_owned()),
            (
                "{\"a\": \"\t\"}",
                "found a control character inside a text, expected an escape such as `\\t` or `\\n`"
                    .to_owned(),
            ),
        ] {
            assert_eq!(fault(text), words, "{text}");
        }
        for text in ["{\"a\": tru}", "\"\\x\"", "01", "1e999", "\"\\ud800\"", "\"\\ud8\"", "-"] {
            let words = fault(text);
            for parser in ["ident", "EOF", "invalid", "hex", "line "] {
                assert!(!words.contains(parser), "{text}: {words}");
            }
            assert!(!words.ends_with("expected JSON"), "{text}: {words}");
        }
    }
}
