//! Plain messages for faults in JSON files.

/// The text at a fault in a JSON file, and the text that was expected there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonFault {
    /// The text at the fault.
    pub found: String,
    /// The text that was expected.
    pub expected: &'static str,
}

impl JsonFault {
    /// Describes the parser's `error`. `at` is the character at the fault, or `None` at the end of the file.
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

/// Describes a fault without line and column. The text may be invalid JSON, or valid JSON with wrong fields.
pub fn json_words(bytes: &[u8], error: &serde_json::Error) -> String {
    if error.is_data() {
        let message = error.to_string();
        return data_words(message.split(" at line ").next().unwrap_or(&message));
    }
    let JsonFault { found, expected } = JsonFault::new(error, character(bytes, error));
    format!("found {found}, expected {expected}")
}

/// Returns the character at the fault, or `None` at the end.
fn character(bytes: &[u8], error: &serde_json::Error) -> Option<char> {
    if error.is_eof() {
        return None;
    }
    let line = bytes.split(|&byte| byte == b'\n').nth(error.line().checked_sub(1)?)?;
    // The column that serde_json reports may be inside a character of several bytes.
    let text = String::from_utf8_lossy(line);
    let at = error.column().saturating_sub(1).min(text.len());
    let start = (0..=at).rev().find(|at| text.is_char_boundary(*at))?;
    text[start..].chars().next()
}

/// Rewrites serde's message about wrong fields or values. Messages of danlu itself are returned unchanged.
fn data_words(message: &str) -> String {
    let name = |rest: &str| rest.split('`').nth(1).unwrap_or_default().to_owned();
    if message.starts_with("missing field ") {
        return format!("`{}` is missing", name(message));
    }
    if message.starts_with("duplicate field ") {
        return format!("`{}` stands there twice", name(message));
    }
    for (unknown, found) in [("unknown variant ", ""), ("unknown field ", "the unknown key ")] {
        if let Some(rest) = message.strip_prefix(unknown) {
            return format!("found {found}{rest}");
        }
    }
    let said = ["invalid type: ", "invalid value: ", "invalid length "];
    let Some(rest) = said.iter().find_map(|said| message.strip_prefix(said)) else {
        return message.to_owned();
    };
    match rest.rsplit_once(", expected ") {
        Some((found, expected)) => {
            format!("found {}, expected {}", found_words(found), expected_words(expected))
        }
        None => format!("found {}", found_words(rest)),
    }
}

/// Translates serde's name of the value that was found.
fn found_words(found: &str) -> String {
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    match (kind, value) {
        ("boolean" | "integer", value) => value.to_owned(),
        ("floating", value) => value.trim_start_matches("point ").to_owned(),
        ("string", value) => format!("the text {value}"),
        ("sequence", _) => "a list".to_owned(),
        ("map", _) => "an object".to_owned(),
        ("null" | "unit", _) => "`null`".to_owned(),
        (count, "") if count.parse::<u64>().is_ok() => format!("a list of {count}"),
        _ => found.to_owned(),
    }
}

/// Translates serde's name of the value that was expected.
fn expected_words(expected: &str) -> String {
    let said = match expected {
        "a string" | "path string" => "a text in double quotes",
        "a boolean" => "`true` or `false`",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        expected if expected.starts_with("struct ") => "an object",
        expected => match expected.strip_prefix("a tuple of size ").or(expected.strip_prefix("tuple of ")) {
            Some(count) => return format!("a list of {}", count.trim_end_matches(" elements")),
            None => expected,
        },
    };
    said.to_owned()
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
    fn faults_of_fields_do_not_quote_the_parser() {
        #[derive(Debug, serde::Deserialize)]
        #[serde(deny_unknown_fields)]
        #[expect(dead_code, reason = "only its faults are read")]
        struct Record {
            name: String,
            size: u32,
            share: Option<f64>,
            pair: Option<(u8, u8)>,
            kind: Option<Kind>,
        }
        #[derive(Debug, serde::Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Kind {
            One,
        }
        for (text, words) in [
            ("{}", "`name` is missing"),
            ("{\"name\": 1}", "found `1`, expected a text in double quotes"),
            ("{\"name\": null}", "found `null`, expected a text in double quotes"),
            ("{\"name\": [1]}", "found a list, expected a text in double quotes"),
            ("{\"name\": \"a\", \"size\": -1}", "found `-1`, expected a whole number, 0 or more"),
            (
                "{\"name\": \"a\", \"size\": \"b\"}",
                "found the text \"b\", expected a whole number, 0 or more",
            ),
            ("{\"share\": true}", "found `true`, expected a number"),
            ("{\"pair\": [1]}", "found a list of 1, expected a list of 2"),
            ("{\"kind\": \"two\"}", "found `two`, expected `one`"),
            ("{\"name\": \"a\", \"name\": \"b\"}", "`name` stands there twice"),
            (
                "{\"nam\": 1}",
                "found the unknown key `nam`, expected one of `name`, `size`, `share`, `pair`, `kind`",
            ),
            ("[]", "found a list of 0, expected an object"),
            ("3", "found `3`, expected an object"),
            ("{\"name\"", "found no end of an object, expected `}`"),
        ] {
            let error = serde_json::from_str::<Record>(text).unwrap_err();
            assert_eq!(json_words(text.as_bytes(), &error), words, "{text}");
        }
    }

    #[test]
    fn syntax_faults_do_not_quote_the_parser() {
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
