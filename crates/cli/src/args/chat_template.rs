//! `--chat-template` replaces the base's template, or sets one for a base that has none.
//! `--chat-template-kwargs` passes values to the template.

use std::path::Path;
use std::str::FromStr;

use danlu_model::{KNOWN_TEMPLATES, Tokenizer, files, known_template};
use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;

/// Largest template file that is read, in bytes.
const MAX_TEMPLATE_BYTES: u64 = 1 << 20;

/// Values of a chat template, written as a JSON object.
#[derive(Clone, Debug, PartialEq)]
pub struct TemplateValues(pub Map<String, Value>);

/// Names of values that danlu sets itself.
const RESERVED: [&str; 4] = ["add_generation_prompt", "documents", "messages", "tools"];

impl FromStr for TemplateValues {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let values: Map<String, Value> = serde_json::from_str(text)
            .map_err(|_| "write a JSON object, such as `{\"enable_thinking\": false}`".to_owned())?;
        match RESERVED.iter().find(|name| values.contains_key(**name)) {
            Some(name) => Err(format!("danlu sets `{name}` itself")),
            None => Ok(Self(values)),
        }
    }
}

/// Returns the tokenizer with the template `choice`, which is a known name or a file. Warns if the template
/// uses tokens that the tokenizer lacks.
///
/// # Errors
/// If `choice` is neither a known name nor a file, or the template is not valid.
pub fn with_chat_template(
    tokenizer: Tokenizer,
    choice: Option<&str>,
    printer: &Printer,
) -> Result<Tokenizer> {
    let Some(choice) = choice else { return Ok(tokenizer) };
    if let Some(known) = known_template(choice) {
        for token in known.tokens.iter().filter(|token| tokenizer.token_id(token).is_none()) {
            printer.warn(&printer.pick(
                format!("模板 `{choice}` 用到 `{token}`，分词器里没有这个词元：会拆成几个词元"),
                format!("the template `{choice}` uses `{token}`, which the tokenizer lacks: it becomes several tokens"),
            ));
        }
        return Ok(tokenizer.with_template(Path::new(choice), known.source)?);
    }
    let file = Path::new(choice);
    if !file.is_file() {
        let names: Vec<String> = KNOWN_TEMPLATES.iter().map(|known| format!("`{}`", known.name)).collect();
        return Err(Diagnostic::input(format!(
            "cannot read the chat template `{choice}`: there is no such file"
        ))
        .with_hint(format!("name a file, or one of {}", names.join(", "))));
    }
    let source = String::from_utf8(files::read_bounded(file, MAX_TEMPLATE_BYTES)?).map_err(|_| {
        Diagnostic::input(format!("cannot read the chat template `{choice}`: it is not UTF-8"))
    })?;
    Ok(tokenizer.with_template(file, &source)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_an_object_without_reserved_names() {
        let TemplateValues(values) = r#"{"enable_thinking": false, "depth": 2}"#.parse().unwrap();
        assert_eq!((values["enable_thinking"].as_bool(), values["depth"].as_i64()), (Some(false), Some(2)));
        for (text, says) in [
            ("false", "write a JSON object"),
            ("{enable_thinking: false}", "write a JSON object"),
            (r#"{"messages": []}"#, "danlu sets `messages` itself"),
        ] {
            assert!(text.parse::<TemplateValues>().unwrap_err().contains(says), "{text}");
        }
    }
}
