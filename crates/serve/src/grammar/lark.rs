//! Writes grammars in the Lark dialect of `llguidance`.

use danlu_model::Tokenizer;
use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::tools::{CallFormat, CallPart, ToolDefinition};

/// White space between two JSON tokens: one space, or a line break with an indent. Without a limit, a small
/// model may write white space forever.
const WHITE_SPACE: &str = r"[ ]|\n[ ]{0,32}";

/// Returns the grammar of a JSON value with a schema.
pub(crate) fn json_grammar(schema: &Value) -> TopLevelGrammar {
    TopLevelGrammar::from_json_schema(with_white_space(schema))
}

fn with_white_space(schema: &Value) -> Value {
    let mut schema = schema.clone();
    if let Some(map) = schema.as_object_mut() {
        map.insert("x-guidance".to_owned(), json!({"whitespace_pattern": WHITE_SPACE}));
    }
    schema
}

/// Returns the grammar of a reply with calls of `tools`. If `instead` is set, the reply may instead be a JSON
/// value with this schema.
///
/// If `starts_open` is true, the grammar starts after [`CallFormat::open`], which the reply already contains.
pub(crate) fn calls_grammar(
    tokenizer: &Tokenizer,
    format: &CallFormat,
    tools: &[&ToolDefinition],
    is_parallel: bool,
    starts_open: bool,
    instead: Option<&Value>,
) -> TopLevelGrammar {
    let open = if starts_open { String::new() } else { literal(tokenizer, &format.open) };
    let more = match format.between.as_ref().filter(|_| is_parallel) {
        Some(between) => format!("( {} call )*", literal(tokenizer, between)),
        None => String::new(),
    };
    let instead = match instead {
        Some(schema) => format!(" | %json {}", with_white_space(schema)),
        None => String::new(),
    };
    let close = literal(tokenizer, &format.close);
    let calls: Vec<String> = tools.iter().map(|tool| call(tokenizer, format, tool)).collect();
    TopLevelGrammar::from_lark(format!(
        "start: calls{instead}\ncalls: {open} call {more} {close}\ncall: {}\n",
        calls.join("\n    | ")
    ))
}

fn call(tokenizer: &Tokenizer, format: &CallFormat, tool: &ToolDefinition) -> String {
    let part = |part: &CallPart| match part {
        CallPart::Text(text) => literal(tokenizer, text),
        CallPart::Name => literal(tokenizer, &tool.name),
        CallPart::Id => "/[a-zA-Z0-9]{9}/".to_owned(),
        CallPart::Arguments => format!("%json {}", with_white_space(&tool.parameters)),
    };
    format.call.iter().map(part).collect::<Vec<_>>().join(" ")
}

/// Returns a text as a sequence of strings and special tokens.
fn literal(tokenizer: &Tokenizer, text: &str) -> String {
    let mut parts = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let found = tokenizer.specials().iter().filter(|special| !special.is_empty());
        let found = found.filter_map(|special| Some((rest.find(special.as_str())?, special)));
        let first = found.min_by_key(|&(at, special)| (at, std::cmp::Reverse(special.len())));
        let id = first.and_then(|(at, special)| Some((at, special, tokenizer.token_id(special)?)));
        let plain = id.map_or(rest, |(at, ..)| &rest[..at]);
        if !plain.is_empty() {
            parts.push(Value::from(plain).to_string());
        }
        rest = &rest[plain.len()..];
        if let Some((_, special, id)) = id {
            parts.push(format!("<[{id}]>"));
            rest = &rest[special.len()..];
        }
    }
    parts.join(" ")
}
