//! Checks JSON schemas of requests against limits, before they are compiled.

use serde_json::{Map, Value};

use crate::api_error::{ApiError, shortened};

const MAX_SCHEMA_BYTES: usize = 128 << 10;

const MAX_SCHEMA_DEPTH: usize = 64;

/// Maximum of `depth * (references + 1)`. The compiler may descend through the whole depth once per
/// reference, so the product limits its recursion.
const MAX_SCHEMA_PATH: usize = 1024;

/// Keywords of JSON Schema that the compiler cannot enforce.
const UNSUPPORTED: [&str; 18] = [
    "$dynamicRef",
    "$recursiveRef",
    "contains",
    "contentSchema",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "maxContains",
    "minContains",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    // From this key, the compiler reads its own settings, which clients must not change.
    "x-guidance",
];

/// Keywords whose value maps names to schemas.
const MAPS: [&str; 4] = ["$defs", "definitions", "patternProperties", "properties"];

/// Keywords whose value is a schema or a list of schemas.
const SCHEMAS: [&str; 7] =
    ["additionalItems", "additionalProperties", "allOf", "anyOf", "items", "oneOf", "prefixItems"];

/// Checks the schema in the field `name` of a request.
///
/// # Errors
/// If the schema is too large or too deep, or has a keyword that cannot be enforced.
pub(crate) fn check_schema(name: &str, schema: &Value) -> Result<(), ApiError> {
    let refuse = |reason: String| ApiError::field(name, format!("cannot use `{name}`: {reason}"));
    if !schema.is_object() {
        return Err(refuse("expected an object that is a JSON schema".to_owned()));
    }
    let bytes = schema.to_string().len();
    if bytes > MAX_SCHEMA_BYTES {
        return Err(refuse(format!("the schema has {bytes} bytes, at most {MAX_SCHEMA_BYTES} are allowed")));
    }
    let mut walk = SchemaWalk::default();
    walk.visit(schema, "", 1).map_err(refuse)?;
    let path = walk.depth * (walk.references + 1);
    if walk.depth > MAX_SCHEMA_DEPTH || path > MAX_SCHEMA_PATH {
        let reason = format!(
            "the schema has {} levels and {} references, at most {MAX_SCHEMA_DEPTH} levels and a product of \
             {MAX_SCHEMA_PATH} are allowed",
            walk.depth, walk.references
        );
        return Err(refuse(reason));
    }
    Ok(())
}

/// Counts found while a schema is visited.
#[derive(Default)]
struct SchemaWalk {
    depth: usize,
    references: usize,
}

impl SchemaWalk {
    /// Visits a schema. `at` is its JSON pointer.
    fn visit(&mut self, schema: &Value, at: &str, depth: usize) -> Result<(), String> {
        self.depth = self.depth.max(depth);
        let Some(map) = schema.as_object() else { return Ok(()) };
        self.check_keywords(map, at)?;
        self.references += usize::from(map.contains_key("$ref"));
        for (key, value) in map {
            let at = format!("{at}/{}", shortened(key));
            if MAPS.contains(&key.as_str()) {
                for (name, schema) in value.as_object().into_iter().flatten() {
                    self.visit(schema, &format!("{at}/{}", shortened(name)), depth + 1)?;
                }
            } else if SCHEMAS.contains(&key.as_str()) {
                match value {
                    Value::Array(list) => {
                        for (i, schema) in list.iter().enumerate() {
                            self.visit(schema, &format!("{at}/{i}"), depth + 1)?;
                        }
                    }
                    schema => self.visit(schema, &at, depth + 1)?,
                }
            }
        }
        Ok(())
    }

    fn check_keywords(&self, map: &Map<String, Value>, at: &str) -> Result<(), String> {
        let is_set = |key: &&&str| map.get(**key).is_some_and(|value| *value != Value::Bool(false));
        match UNSUPPORTED.iter().find(is_set) {
            None => Ok(()),
            Some(key) => {
                let at = if at.is_empty() { "the schema".to_owned() } else { format!("`{at}`") };
                Err(format!("{at} has the keyword `{key}`, which is not supported"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(schema: &Value) -> String {
        check_schema("f", schema).unwrap_err().message().to_owned()
    }

    #[test]
    fn an_unsupported_keyword_is_named_with_its_place() {
        let schema = json!({"properties": {"not": {"type": "string"}, "a": {"items": [{}, {"not": {}}]}}});
        assert_eq!(
            refused(&schema),
            "cannot use `f`: `/properties/a/items/1` has the keyword `not`, which is not supported"
        );
        assert!(refused(&json!({"uniqueItems": true})).contains("the schema has the keyword `uniqueItems`"));
        assert!(refused(&json!({"x-guidance": {"lenient": true}})).contains("x-guidance"));
        check_schema("f", &json!({"uniqueItems": false, "properties": {"if": {"const": "not"}}})).unwrap();
    }

    #[test]
    fn large_and_deep_schemas_are_refused() {
        assert!(refused(&json!(true)).contains("expected an object"));
        assert!(refused(&json!({"title": "a".repeat(MAX_SCHEMA_BYTES)})).contains("at most 131072"));
        let nested = |levels: usize| (1..levels).fold(json!({}), |inner, _| json!({ "items": inner }));
        check_schema("f", &nested(MAX_SCHEMA_DEPTH)).unwrap();
        assert!(refused(&nested(MAX_SCHEMA_DEPTH + 1)).contains("65 levels and 0 references"));
        let chain: Map<String, Value> =
            (0..600).map(|i| (i.to_string(), json!({"$ref": format!("#/$defs/{}", i + 1)}))).collect();
        assert!(refused(&json!({"$defs": chain})).contains("600 references"));
    }
}
