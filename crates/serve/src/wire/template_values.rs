//! Values that a request passes to the chat template, such as `enable_thinking`.

use serde_json::{Map, Value};

use crate::api_error::{ApiError, shortened};
use crate::json_fields::Fields;

/// Names of values that the server sets itself.
const RESERVED: [&str; 6] =
    ["add_generation_prompt", "chat_template", "documents", "messages", "tokenize", "tools"];

/// Reads `chat_template_kwargs`. As in vLLM, a template ignores a value that it does not read.
///
/// # Errors
/// If the field is no object, or contains a name that the server sets itself.
pub(crate) fn read(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let values = fields.object("chat_template_kwargs")?.cloned().unwrap_or_default();
    match values.keys().find(|name| RESERVED.contains(&name.as_str())) {
        None => Ok(values),
        Some(name) => {
            let path = format!("chat_template_kwargs.{}", shortened(name));
            let message = format!("cannot use `{path}`: the server sets this value");
            Err(ApiError::field(&path, message))
        }
    }
}

/// Reads Ollama's `think`, which becomes the template's `enable_thinking`. The value is a flag or a level,
/// such as `low`.
///
/// # Errors
/// If the field is neither a flag nor a level.
pub(crate) fn read_think(fields: &Fields<'_>) -> Result<Map<String, Value>, ApiError> {
    let thinks = match fields.get("think") {
        None => return Ok(Map::new()),
        Some(Value::Bool(thinks)) => *thinks,
        Some(Value::String(level)) if ["low", "medium", "high"].contains(&level.as_str()) => true,
        Some(_) => return Err(fields.wrong("think", "true, false, low, medium or high")),
    };
    Ok(Map::from_iter([("enable_thinking".to_owned(), thinks.into())]))
}
