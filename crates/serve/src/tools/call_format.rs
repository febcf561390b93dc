//! The text form of tool calls.
//!
//! Each model family writes calls in its own form. The chat template contains this form, because the template
//! renders the calls of earlier turns. danlu renders a conversation with two known calls, and reads the form
//! from the text around their names and arguments:
//!
//! ```text
//! <tool_call>⏎{"name": "NAME", "arguments": {…}}⏎</tool_call>⏎<tool_call>⏎{"name": "NAME…}⏎</tool_call>
//! └─────── open ───────┘                       └───────────── between ─────────────┘     └── close ───┘
//! ```

use danlu_model::{ChatTemplate, Message, ModelError, Tokenizer};
use serde_json::{Value, json};

/// Names of the two known calls.
const NAMES: [&str; 2] = ["danlu_probe_a", "danlu_probe_b"];
/// Ids of the two known calls. Mistral's templates accept only ids of nine characters.
const IDS: [&str; 2] = ["danluidaa", "danluidbb"];
/// The key in the arguments of a known call.
const KEY: &str = "danlu_probe_key";

/// A part of the text of one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CallPart {
    Text(String),
    Name,
    /// An id of nine letters and digits.
    Id,
    /// A JSON object.
    Arguments,
}

/// The text form of the calls in a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallFormat {
    /// Text before the first call.
    pub open: String,
    /// Parts of one call.
    pub call: Vec<CallPart>,
    /// Text between two calls, or `None` if a reply has one call at most.
    pub between: Option<String>,
    /// Text after the last call.
    pub close: String,
}

impl CallFormat {
    /// Returns the form of calls in a chat template.
    ///
    /// # Errors
    /// If the template renders no tools, or renders calls in a form that is not JSON.
    pub fn find(template: &ChatTemplate, tokenizer: &Tokenizer) -> Result<Self, String> {
        let template = template.with_tools(&[tool(NAMES[0]), tool(NAMES[1])]);
        let user = Message::new("user", "a");
        let prompt = template.render(std::slice::from_ref(&user), true);
        let prompt = prompt.map_err(|error| shown(&error))?;
        if !prompt.contains(NAMES[0]) {
            return Err("its chat template renders no tools".to_owned());
        }
        let one = reply_parts(&template, tokenizer, &prompt, 1)?;
        let (open, call, close) =
            split(&one).ok_or_else(|| no_form("the parts of a call are not in order"))?;
        if open.trim().is_empty() {
            return Err(no_form("no text begins a call"));
        }
        let two = reply_parts(&template, tokenizer, &prompt, 2);
        let between = two.ok().and_then(|two| between(&two, &open, &call, &close));
        Ok(Self { open, call, between, close })
    }

    /// Returns whether a special token is a part of the form.
    pub fn has_special(&self, tokenizer: &Tokenizer) -> bool {
        let texts = self.call.iter().filter_map(|part| match part {
            CallPart::Text(text) => Some(text),
            _ => None,
        });
        let mut texts = texts.chain([&self.open, &self.close]).chain(&self.between);
        texts.any(|text| tokenizer.special_in(text).is_some())
    }

    /// Returns whether the form contains ids.
    pub fn has_id(&self) -> bool {
        self.call.contains(&CallPart::Id)
    }
}

fn no_form(reason: &str) -> String {
    format!("its chat template renders calls in a form that cannot be read: {reason}")
}

fn shown(error: &ModelError) -> String {
    format!("its chat template renders no tools: {error}")
}

fn tool(name: &str) -> Value {
    let parameters = json!({"type": "object", "properties": {KEY: {"type": "string", "description": "a"}}});
    json!({"type": "function", "function": {"name": name, "description": "a", "parameters": parameters}})
}

fn arguments() -> Value {
    json!({KEY: "a"})
}

/// Renders a reply with `count` calls. Returns its parts without the end of the turn.
fn reply_parts(
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
    prompt: &str,
    count: usize,
) -> Result<Vec<CallPart>, String> {
    let calls = (0..count).map(|i| {
        let function = json!({"name": NAMES[i], "arguments": arguments()});
        json!({"id": IDS[i], "type": "function", "function": function})
    });
    let mut reply = Message::new("assistant", "");
    reply.extra.insert("tool_calls".to_owned(), calls.collect());
    // Some templates render the last message of a conversation differently, so results follow the calls.
    let results = (0..count).map(|i| {
        let mut result = Message::new("tool", "a");
        result.extra.insert("name".to_owned(), NAMES[i].into());
        result.extra.insert("tool_call_id".to_owned(), IDS[i].into());
        result
    });
    let turns: Vec<Message> = [Message::new("user", "a"), reply].into_iter().chain(results).collect();
    let text = template.render(&turns, false).map_err(|error| no_form(&error.to_string()))?;
    let Some(body) = text.strip_prefix(prompt) else {
        return Err(no_form("it changes the prompt before the calls"));
    };
    let ends = tokenizer.stop_ids().iter().filter_map(|&id| tokenizer.token_str(id));
    let ends = ends.chain(template.end_of_turn().map(str::to_owned)).filter(|end| !end.is_empty());
    let Some(end) = ends.filter_map(|end| body.find(&end)).min() else {
        return Err(no_form("no token ends the calls"));
    };
    find_parts(&body[..end]).ok_or_else(|| no_form("the arguments are no JSON"))
}

/// Divides a text at the known names, ids and arguments.
fn find_parts(text: &str) -> Option<Vec<CallPart>> {
    let mut parts = Vec::new();
    let mut rest = text;
    loop {
        let name = NAMES.iter().filter_map(|name| Some((rest.find(name)?, name.len(), CallPart::Name)));
        let id = IDS.iter().filter_map(|id| Some((rest.find(id)?, id.len(), CallPart::Id)));
        let values = rest.find(KEY).map(|key| {
            let start = rest[..key].rfind('{').unwrap_or(key);
            let end = rest[key..].find('}').map_or(key, |end| key + end + 1);
            (start, end - start, CallPart::Arguments)
        });
        let first = name.chain(id).chain(values).min_by_key(|&(at, ..)| at);
        let Some((at, len, part)) = first else {
            parts.extend((!rest.is_empty()).then(|| CallPart::Text(rest.to_owned())));
            return Some(parts);
        };
        if part == CallPart::Arguments && serde_json::from_str(&rest[at..at + len]).ok() != Some(arguments())
        {
            return None;
        }
        parts.extend((at > 0).then(|| CallPart::Text(rest[..at].to_owned())));
        parts.push(part);
        rest = &rest[at + len..];
    }
}

/// Divides the parts of a reply with one call into the text before the call, the call, and the text after it.
fn split(parts: &[CallPart]) -> Option<(String, Vec<CallPart>, String)> {
    let text = |part: Option<&CallPart>| match part {
        Some(CallPart::Text(text)) => text.clone(),
        _ => String::new(),
    };
    let is_text = |part: &CallPart| matches!(part, CallPart::Text(_));
    let start = parts.iter().position(|part| !is_text(part))?;
    let end = parts.iter().rposition(|part| !is_text(part))? + 1;
    let call = parts[start..end].to_vec();
    let at = |wanted: &CallPart| call.iter().position(|part| part == wanted);
    let count = |wanted: &CallPart| call.iter().filter(|part| *part == wanted).count();
    let is_complete = count(&CallPart::Name) == 1 && count(&CallPart::Arguments) == 1;
    // A stream must send the name before the arguments.
    let is_in_order = at(&CallPart::Name) < at(&CallPart::Arguments);
    let ends_names = call.windows(2).all(|pair| is_text(&pair[0]) || is_text(&pair[1]));
    (is_complete && is_in_order && ends_names)
        .then(|| (text(parts[..start].last()), call, text(parts.get(end))))
}

/// Returns the text between the two calls in `two`, if both calls have the form `call`.
fn between(two: &[CallPart], open: &str, call: &[CallPart], close: &str) -> Option<String> {
    let has_text = |text: &str| usize::from(!text.is_empty());
    let start = has_text(open);
    let end = two.len().checked_sub(has_text(close))?;
    let (first, rest) = two.get(start..end)?.split_at_checked(call.len())?;
    let (separator, second) = rest.split_first()?;
    let CallPart::Text(separator) = separator else { return None };
    (first == call && second == call).then(|| separator.clone())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn text(text: &str) -> CallPart {
        CallPart::Text(text.to_owned())
    }

    /// Returns the form in the template of a published model, or `None` if the test files are absent.
    fn published(name: &str) -> Option<Result<CallFormat, String>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/tokenizers").join(name);
        if !folder.is_dir() {
            eprintln!("skipped: {} does not exist", folder.display());
            return None;
        }
        let tokenizer = Tokenizer::read(&folder).unwrap();
        Some(CallFormat::find(tokenizer.template().unwrap(), &tokenizer))
    }

    #[test]
    fn forms_of_published_templates_are_found() {
        use CallPart::{Arguments, Id, Name};
        // Expected values: read from the templates of the models.
        let hermes = CallFormat {
            open: "<tool_call>\n{\"name\": \"".to_owned(),
            call: vec![Name, text("\", \"arguments\": "), Arguments],
            between: Some("}\n</tool_call>\n<tool_call>\n{\"name\": \"".to_owned()),
            close: "}\n</tool_call>".to_owned(),
        };
        let llama = CallFormat {
            open: "{\"name\": \"".to_owned(),
            call: vec![Name, text("\", \"parameters\": "), Arguments],
            between: None,
            close: "}".to_owned(),
        };
        let mistral = CallFormat {
            open: "[TOOL_CALLS] [{\"name\": \"".to_owned(),
            call: vec![Name, text("\", \"arguments\": "), Arguments, text(", \"id\": \""), Id],
            between: Some("\"}, {\"name\": \"".to_owned()),
            close: "\"}]".to_owned(),
        };
        for (name, expected) in
            [("qwen2.5", hermes.clone()), ("qwen3", hermes), ("llama3.2", llama), ("mistral-v0.3", mistral)]
        {
            if let Some(found) = published(name) {
                assert_eq!(found, Ok(expected), "{name}");
            }
        }
        for name in ["phi4", "gemma3"] {
            if let Some(found) = published(name) {
                assert!(found.unwrap_err().contains("renders no tools"), "{name}");
            }
        }
    }
}
