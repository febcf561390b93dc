//! Fields that constrain the reply: `response_format`, `tools` and `tool_choice`.

use serde_json::{Map, Value, json};

use crate::api_error::{ApiError, shortened};
use crate::grammar::check_schema;
use crate::json_fields::Fields;
use crate::tools::ToolDefinition;

/// Maximum number of tools. OpenAI has the same limit.
const MAX_TOOLS: usize = 128;

/// Maximum length of a tool's name. OpenAI has the same limit.
const MAX_NAME_CHARS: usize = 64;

/// The tool calls that a reply may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ToolChoice {
    /// The reply has no calls.
    #[default]
    None,
    /// The model chooses between text and calls.
    Auto,
    /// The reply has at least one call.
    Required,
    /// The reply has at least one call, and calls only the tool with this name.
    Named(String),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ToolFields {
    pub tools: Vec<ToolDefinition>,
    pub choice: ToolChoice,
    /// Whether a reply may have several calls.
    pub is_parallel: bool,
}

impl ToolFields {
    /// Returns the definitions that the chat template renders.
    pub fn shown(&self) -> Vec<Value> {
        match self.choice {
            ToolChoice::None => Vec::new(),
            _ => self.tools.iter().map(|tool| tool.definition.clone()).collect(),
        }
    }
}

/// The required form of a reply.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct OutputFields {
    /// JSON schema of the text.
    pub schema: Option<Value>,
    pub tools: ToolFields,
}

impl OutputFields {
    /// Reads the fields of OpenAI.
    pub fn read(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let tools = read_tools(fields)?;
        let choice = read_choice(fields, &tools)?;
        let is_parallel = fields.flag_or_on("parallel_tool_calls")?;
        Ok(Self { schema: read_response_format(fields)?, tools: ToolFields { tools, choice, is_parallel } })
    }

    /// Reads the fields of Ollama.
    pub fn read_ollama(fields: &Fields<'_>) -> Result<Self, ApiError> {
        let tools = read_tools(fields)?;
        let choice = if tools.is_empty() { ToolChoice::None } else { ToolChoice::Auto };
        let schema = match fields.get("format") {
            None => None,
            Some(Value::String(text)) if text.is_empty() => None,
            Some(Value::String(text)) if text == "json" => Some(any_object()),
            Some(schema @ Value::Object(_)) => Some(schema.clone()),
            Some(_) => return Err(fields.wrong("format", "`json` or a JSON schema")),
        };
        if let Some(schema) = &schema {
            check_schema("format", schema)?;
        }
        Ok(Self { schema, tools: ToolFields { tools, choice, is_parallel: true } })
    }
}

fn any_object() -> Value {
    json!({"type": "object"})
}

/// Returns the schema in `response_format`, or `None` for text.
fn read_response_format(fields: &Fields<'_>) -> Result<Option<Value>, ApiError> {
    let Some(format) = fields.object("response_format")? else { return Ok(None) };
    let format = Fields::nested(format, "response_format.");
    let schema = match format.text("type")? {
        Some("text") => return Ok(None),
        // llama.cpp accepts a schema beside the type.
        Some("json_object") => match format.object("schema")? {
            Some(schema) => ("response_format.schema", Value::Object(schema.clone())),
            None => ("response_format", any_object()),
        },
        Some("json_schema") => {
            let Some(inner) = format.object("json_schema")? else {
                return Err(format.wrong("json_schema", "an object with `name` and `schema`"));
            };
            let inner = Fields::nested(inner, "response_format.json_schema.");
            if inner.text("name")?.is_none() {
                return Err(inner.wrong("name", "the name of the schema"));
            }
            inner.flag("strict")?;
            let schema = inner.object("schema")?.cloned();
            ("response_format.json_schema.schema", schema.map_or_else(any_object, Value::Object))
        }
        _ => return Err(format.wrong("type", "`text`, `json_object` or `json_schema`")),
    };
    let (name, schema) = schema;
    check_schema(name, &schema)?;
    Ok(Some(schema))
}

fn read_tools(fields: &Fields<'_>) -> Result<Vec<ToolDefinition>, ApiError> {
    let items = fields.list("tools")?.unwrap_or_default();
    if items.len() > MAX_TOOLS {
        return Err(fields.wrong("tools", &format!("a list of at most {MAX_TOOLS} tools")));
    }
    let mut tools: Vec<ToolDefinition> = Vec::new();
    for (i, item) in items.iter().enumerate() {
        let tool = read_tool(&format!("tools[{i}]"), item)?;
        if tools.iter().any(|other| other.name == tool.name) {
            let path = format!("tools[{i}].function.name");
            let message = format!("cannot use `{path}`: an earlier tool also has the name `{}`", tool.name);
            return Err(ApiError::field(&path, message));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn read_tool(path: &str, item: &Value) -> Result<ToolDefinition, ApiError> {
    let empty = Map::new();
    let outer_prefix = format!("{path}.");
    let outer = Fields::nested(item.as_object().unwrap_or(&empty), &outer_prefix);
    if outer.text("type")? != Some("function") {
        return Err(outer.wrong("type", "`function`, the only supported type of tools"));
    }
    let Some(function) = outer.object("function")? else {
        return Err(outer.wrong("function", "an object with `name` and `parameters`"));
    };
    let prefix = format!("{path}.function.");
    let inner = Fields::nested(function, &prefix);
    let is_plain = |name: &&str| {
        let is_inside = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-');
        (1..=MAX_NAME_CHARS).contains(&name.len()) && name.bytes().all(is_inside)
    };
    let Some(name) = inner.text("name")?.filter(is_plain) else {
        let expected = format!("1 to {MAX_NAME_CHARS} letters, digits, `_` or `-`");
        return Err(inner.wrong("name", &expected));
    };
    inner.text("description")?;
    inner.flag("strict")?;
    let parameters = match inner.object("parameters")? {
        Some(schema) if !schema.is_empty() => Value::Object(schema.clone()),
        _ => json!({"type": "object", "properties": {}, "additionalProperties": false}),
    };
    if parameters.get("type").is_some_and(|kind| kind != "object") {
        return Err(inner.wrong("parameters", "a schema of type `object`"));
    }
    check_schema(&format!("{prefix}parameters"), &parameters)?;
    Ok(ToolDefinition { name: name.to_owned(), parameters: of_object(parameters), definition: item.clone() })
}

/// Adds the type `object` to a schema without a type, because arguments are always an object.
fn of_object(mut schema: Value) -> Value {
    if let Some(map) = schema.as_object_mut() {
        map.entry("type").or_insert_with(|| "object".into());
    }
    schema
}

fn read_choice(fields: &Fields<'_>, tools: &[ToolDefinition]) -> Result<ToolChoice, ApiError> {
    let expected = "`none`, `auto`, `required` or `{\"type\": \"function\", \"function\": {\"name\": NAME}}`";
    let wrong = || fields.wrong("tool_choice", expected);
    let choice = match fields.get("tool_choice") {
        None if tools.is_empty() => ToolChoice::None,
        None => ToolChoice::Auto,
        Some(Value::String(text)) => match text.as_str() {
            "none" => ToolChoice::None,
            "auto" if tools.is_empty() => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            _ => return Err(wrong()),
        },
        Some(choice) if choice.get("type").is_some_and(|kind| kind == "function") => {
            let name = choice.pointer("/function/name").and_then(Value::as_str).ok_or_else(wrong)?;
            if !tools.iter().any(|tool| tool.name == name) {
                let message = format!("cannot use `tool_choice`: no tool has the name `{}`", shortened(name));
                return Err(ApiError::field("tool_choice", message));
            }
            ToolChoice::Named(name.to_owned())
        }
        Some(_) => return Err(wrong()),
    };
    if tools.is_empty() && choice != ToolChoice::None {
        let message = "cannot use `tool_choice`: the request has no `tools`";
        return Err(ApiError::field("tool_choice", message));
    }
    Ok(choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: Value) -> Result<OutputFields, String> {
        let fields = body.as_object().unwrap();
        OutputFields::read(&Fields::new(fields)).map_err(|error| error.message().to_owned())
    }

    fn tool(name: &str, parameters: Value) -> Value {
        json!({"type": "function", "function": {"name": name, "parameters": parameters}})
    }

    #[test]
    fn choices_need_tools() {
        let tools = json!([tool("a", json!({})), tool("b", json!({"properties": {}}))]);
        let choice = |choice: Value| {
            read(json!({"tools": tools, "tool_choice": choice})).map(|output| output.tools.choice)
        };
        assert_eq!(choice(Value::Null), Ok(ToolChoice::Auto));
        assert_eq!(choice(json!("none")), Ok(ToolChoice::None));
        let named = |name: &str| json!({"type": "function", "function": {"name": name}});
        assert_eq!(choice(named("b")), Ok(ToolChoice::Named("b".to_owned())));
        assert!(choice(named("c")).unwrap_err().contains("no tool has the name `c`"));
        assert!(choice(json!("any")).unwrap_err().contains("`required`"));
        assert!(read(json!({"tool_choice": "required"})).unwrap_err().contains("has no `tools`"));
        assert_eq!(read(json!({"tool_choice": "auto", "tools": []})).unwrap(), read(json!({})).unwrap());
    }

    #[test]
    fn wrong_tools_and_formats_are_named() {
        let schema = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}});
        for (body, told) in [
            (json!({"tools": [{"type": "custom"}]}), "`tools[0].type`"),
            (json!({"tools": [3]}), "`tools[0].type`: it is missing"),
            (json!({"tools": [tool("a b", json!({}))]}), "`tools[0].function.name`"),
            (json!({"tools": [tool("a", json!({})), tool("a", json!({}))]}), "an earlier tool"),
            (json!({"tools": [tool("a", json!({"type": "string"}))]}), "of type `object`"),
            (json!({"tools": [tool("a", json!({"not": {}}))]}), "the keyword `not`"),
            (json!({"response_format": {"type": "xml"}}), "`json_schema`"),
            (json!({"response_format": {"type": "json_schema"}}), "`response_format.json_schema`"),
            (json!({"response_format": {"type": "json_schema", "json_schema": {}}}), "json_schema.name`"),
            (schema(json!({"if": {}})), "the keyword `if`"),
        ] {
            let error = read(body.clone()).unwrap_err();
            assert!(error.contains(told), "{body}: {error}");
        }
        assert_eq!(read(schema(json!({"type": "array"}))).unwrap().schema, Some(json!({"type": "array"})));
    }
}
