//! Converts messages from OpenAI's format to the format of chat templates.

use danlu_model::Message;
use serde_json::{Map, Value};

use crate::api_error::ApiError;
use crate::json_fields::Fields;

/// Accepted roles of a message. `developer` is the newer name of `system`.
const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

const MAX_MESSAGES: usize = 10_000;

/// Reads the field `messages`.
pub(crate) fn read(map: &Map<String, Value>) -> Result<Vec<Message>, ApiError> {
    let expected = format!("a list of 1 to {MAX_MESSAGES} messages");
    let fields = Fields::new(map);
    match fields.list("messages")? {
        Some(items) if (1..=MAX_MESSAGES).contains(&items.len()) => {
            items.iter().enumerate().map(|(i, item)| message(i, item)).collect()
        }
        _ => Err(fields.wrong("messages", &expected)),
    }
}

fn message(i: usize, item: &Value) -> Result<Message, ApiError> {
    let prefix = format!("messages[{i}].");
    let Some(map) = item.as_object() else {
        let path = format!("messages[{i}]");
        return Err(ApiError::field(&path, format!("cannot use `{path}`: expected an object")));
    };
    let fields = Fields::nested(map, &prefix);
    let role = match fields.text("role")? {
        Some(role) if ROLES.contains(&role) => role,
        _ => return Err(fields.wrong("role", &format!("one of {}", ROLES.join(", ")))),
    };
    let calls = fields.list("tool_calls")?.filter(|calls| !calls.is_empty());
    let content = match fields.get("content") {
        // An assistant message that only calls tools has no text.
        None if role == "assistant" && calls.is_some() => String::new(),
        None => return Err(fields.wrong("content", "a string, or parts of type `text`")),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Array(parts)) => {
            parts.iter().enumerate().map(|(k, part)| part_text(&prefix, k, part)).collect::<Result<_, _>>()?
        }
        Some(_) => return Err(fields.wrong("content", "a string, or parts of type `text`")),
    };
    let role = if role == "developer" { "system" } else { role };
    let mut message = Message::new(role, content);
    // Ollama sends `tool_name` in place of `name`.
    for (name, key) in [("tool_name", "name"), ("name", "name"), ("tool_call_id", "tool_call_id")] {
        if let Some(text) = fields.text(name)? {
            message.extra.insert(key.to_owned(), text.into());
        }
    }
    if let Some(calls) = calls {
        message.extra.insert("tool_calls".to_owned(), calls.iter().map(with_parsed_arguments).collect());
    }
    Ok(message)
}

fn part_text<'a>(prefix: &str, k: usize, part: &'a Value) -> Result<&'a str, ApiError> {
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("none");
    match part.get("text").and_then(Value::as_str).filter(|_| kind == "text") {
        Some(text) => Ok(text),
        None => {
            let path = format!("{prefix}content[{k}]");
            let kind = crate::api_error::shortened(kind);
            let message = format!("cannot use `{path}`: its type is `{kind}`, and only `text` is supported");
            Err(ApiError::field(&path, message))
        }
    }
}

/// Returns a tool call whose arguments are a JSON object, as chat templates expect. In OpenAI's format, the
/// arguments are a string. A string that is no JSON object remains a string.
fn with_parsed_arguments(call: &Value) -> Value {
    let mut call = call.clone();
    if let Some(arguments) = call.pointer_mut("/function/arguments")
        && let Some(parsed) = arguments.as_str().and_then(|text| serde_json::from_str::<Value>(text).ok())
        && parsed.is_object()
    {
        *arguments = parsed;
    }
    call
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(messages: Value) -> Result<Vec<Message>, String> {
        read(json!({ "messages": messages }).as_object().unwrap()).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn parts_and_roles_become_plain_messages() {
        let found = parse(json!([
            {"role": "developer", "content": "a"},
            {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}
            ]},
            {"role": "tool", "content": "d", "tool_call_id": "1"}
        ]))
        .unwrap();
        let texts: Vec<_> = found.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        assert_eq!(texts, [("system", "a"), ("user", "bc"), ("assistant", ""), ("tool", "d")]);
        assert_eq!(found[2].extra["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(found[3].extra["tool_call_id"], "1");
    }

    #[test]
    fn a_wrong_message_is_named() {
        for (messages, told) in [
            (json!([]), "`messages`"),
            (json!("hi"), "`messages`"),
            (json!([{"role": "king", "content": "x"}]), "`messages[0].role`"),
            (json!([{"role": "user"}]), "`messages[0].content`: it is missing"),
            (
                json!([{"role": "user", "content": [{"type": "image_url"}]}]),
                "`messages[0].content[0]`: its type is `image_url`",
            ),
            (json!([1]), "`messages[0]`"),
        ] {
            let error = parse(messages).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
    }
}
