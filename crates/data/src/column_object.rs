//! Converts a table that is one JSON object, as written by pandas and Python's `datasets`, to records.

use serde_json::Value;

use crate::fields::Object;
use crate::{Columns, Format};

/// Returns the records of an object that holds a whole table, or `None` for any other object.
///
/// - Columns of lists: `{"prompt": ["a", "b"], "completion": ["c", "d"]}`.
/// - Columns of objects, pandas' default: `{"prompt": {"0": "a", "1": "b"}, ...}`.
/// - Records by name: `{"0": {"prompt": "a", "completion": "b"}, ...}`.
pub(crate) fn rows(object: &Object) -> Option<Vec<Object>> {
    by_name(object).or_else(|| columns(object))
}

/// Returns whether an object has the keys of a record: those of a format, or aliases such as `question`.
fn has_known_keys(object: &Object) -> bool {
    !Format::candidates(object).is_empty() || Columns::alias(object).is_some()
}

/// Returns the values of an object such as `{"0": {"prompt": "a", "completion": "b"}}`, whose values are
/// records.
fn by_name(object: &Object) -> Option<Vec<Object>> {
    let records: Option<Vec<&Object>> = object.values().map(Value::as_object).collect();
    let records = records.filter(|records| !records.is_empty())?;
    let is_record = |record: &&Object| has_known_keys(record);
    (!has_known_keys(object) && records.iter().all(is_record)).then(|| records.into_iter().cloned().collect())
}

/// Returns the rows of an object whose values are columns. All columns must have the same row names.
fn columns(object: &Object) -> Option<Vec<Object>> {
    if !has_known_keys(object) {
        return None;
    }
    // A single list such as `{"conversations": [["a", "b"]]}` is one record, and not a column.
    if object.len() == 1 && object.values().all(Value::is_array) && !object.contains_key("text") {
        return None;
    }
    let columns: Option<Vec<Vec<(String, &Value)>>> = object.values().map(cells).collect();
    let columns = columns?;
    let first = columns.first().filter(|cells| !cells.is_empty())?;
    let is_same = |cells: &Vec<(String, &Value)>| {
        cells.len() == first.len() && cells.iter().zip(first).all(|((a, _), (b, _))| a == b)
    };
    if !columns.iter().all(is_same) {
        return None;
    }
    let row = |i: usize| {
        object.keys().zip(&columns).map(|(key, cells)| (key.clone(), cells[i].1.clone())).collect::<Object>()
    };
    Some((0..first.len()).map(row).collect())
}

/// Returns the cells of a column, each with the name of its row. Returns `None` for a list that contains
/// objects, because it is a conversation and not a column.
fn cells(value: &Value) -> Option<Vec<(String, &Value)>> {
    match value {
        Value::Array(list) if !list.iter().any(Value::is_object) => {
            Some(list.iter().enumerate().map(|(i, cell)| (i.to_string(), cell)).collect())
        }
        Value::Object(cells) if cells.keys().all(|name| name.bytes().all(|c| c.is_ascii_digit())) => {
            Some(cells.iter().map(|(name, cell)| (name.clone(), cell)).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(json: &str) -> Option<String> {
        let object: Object = serde_json::from_str(json).unwrap();
        rows(&object).map(|rows| serde_json::to_string(&rows).unwrap())
    }

    #[test]
    fn tables_in_three_forms_become_records() {
        let rows = Some(r#"[{"prompt":"a","completion":"b"},{"prompt":"c","completion":"d"}]"#.to_owned());
        assert_eq!(found(r#"{"prompt": ["a", "c"], "completion": ["b", "d"]}"#), rows);
        assert_eq!(found(r#"{"prompt": {"0": "a", "5": "c"}, "completion": {"0": "b", "5": "d"}}"#), rows);
        let named = r#"{"x": {"prompt": "a", "completion": "b"}, "y": {"prompt": "c", "completion": "d"}}"#;
        assert_eq!(found(named), rows);
        let conversations = r#"{"messages": {"0": [{"role": "user", "content": "a"}]}}"#;
        assert_eq!(
            found(conversations),
            Some(r#"[{"messages":[{"role":"user","content":"a"}]}]"#.to_owned())
        );
    }

    #[test]
    fn records_are_no_tables() {
        for json in [
            r#"{"prompt": "a", "completion": "b"}"#,
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
            r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#,
            r#"{"prompt": ["a", "b"], "completion": ["c"]}"#,
            r#"{"instruction": "a", "output": "b", "history": [["c", "d"]]}"#,
            r#"{"prompt": [], "completion": []}"#,
            r#"{"a": ["b"], "c": ["d"]}"#,
            "{}",
        ] {
            assert_eq!(found(json), None, "{json}");
        }
    }
}
