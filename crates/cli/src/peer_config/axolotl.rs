//! Translates the list `datasets` of an axolotl file.

use serde_json::{Map, Value};

use super::{Flag, Outcome, dataset_name, scalar};

/// Fields of an item of the list that rename columns, each with danlu's name of the column.
const COLUMN_FIELDS: [(&str, &str); 9] = [
    ("field_messages", "messages"),
    ("message_field_role", "role"),
    ("message_field_content", "content"),
    ("field_instruction", "instruction"),
    ("field_input", "input"),
    ("field_output", "output"),
    ("field_system", "system"),
    ("field_tools", "tools"),
    ("field", "text"),
];

/// Names of columns that danlu recognizes without `--columns`.
const RECOGNIZED: [&str; 8] =
    ["messages", "conversations", "role", "from", "content", "value", "text", "tools"];

/// Translates the items of the list. danlu has one mapping of columns and of roles for all files.
pub(super) fn data(items: &[Value], file: &Map<String, Value>) -> Outcome {
    let paths: Vec<String> = items.iter().flat_map(paths).collect();
    let columns: Vec<String> = items.iter().map(columns).collect();
    let roles: Vec<String> = items.iter().map(roles).collect();
    let mut flags: Vec<Flag> = vec![("data".to_owned(), paths)];
    let mut how = Vec::new();
    for (flag, values) in [("columns", columns), ("roles", roles)] {
        match values.split_first() {
            Some((first, rest)) if rest.iter().all(|other| other == first) => {
                if !first.is_empty() {
                    flags.push((flag.to_owned(), vec![first.clone()]));
                }
            }
            _ => how
                .push(format!("the items map different names, set --{flag} or convert the files one by one")),
        }
    }
    let mut kinds: Vec<String> = items.iter().filter_map(|item| text(item, "type")).collect();
    kinds.dedup();
    match kinds.as_slice() {
        [] => {}
        [kind] if kind == "chat_template" => {}
        [kind] if kind.starts_with("sharegpt") => flags.push(format_flag("sharegpt")),
        [kind] if kind == "completion" => flags.push(format_flag("text")),
        [kind] if kind.starts_with("alpaca") => {
            flags.push(format_flag("alpaca"));
            if !file.contains_key("chat_template") {
                flags.push(("chat-template".to_owned(), vec!["alpaca".to_owned()]));
            }
        }
        _ => how.push(format!("the format is detected, not {}, set --format", kinds.join(" and "))),
    }
    if items.iter().any(|item| ["format", "no_input_format"].iter().any(|key| of_type(item, key).is_some())) {
        how.push("the prompt of `format` is not used, the chat template writes the prompt".to_owned());
    }
    match how.is_empty() {
        true => Outcome::Taken(flags),
        false => Outcome::Differs(flags, how.join("; ")),
    }
}

fn format_flag(format: &str) -> Flag {
    ("format".to_owned(), vec![format.to_owned()])
}

fn text(item: &Value, key: &str) -> Option<String> {
    scalar(item.get(key)?)
}

/// Returns a field of a `type` that is a table.
fn of_type(item: &Value, key: &str) -> Option<String> {
    scalar(item.get("type")?.as_object()?.get(key)?)
}

fn paths(item: &Value) -> Vec<String> {
    match item.get("data_files") {
        Some(Value::Array(files)) => files.iter().filter_map(scalar).collect(),
        Some(file) => scalar(file).into_iter().collect(),
        None => {
            let (subset, split) = (text(item, "name"), text(item, "split"));
            let name = |path: String| dataset_name(&path, subset.as_deref(), split.as_deref());
            text(item, "path").map(name).into_iter().collect()
        }
    }
}

/// Returns the value of `--columns` for one item.
fn columns(item: &Value) -> String {
    let mapped = item.get("message_property_mappings").and_then(Value::as_object);
    let of_messages =
        ["role", "content"].into_iter().filter_map(|ours| Some((ours, scalar(mapped?.get(ours)?)?)));
    let fields = COLUMN_FIELDS
        .iter()
        .filter_map(|(field, ours)| Some((*ours, of_type(item, field).or_else(|| text(item, field))?)));
    let renamed = fields.chain(of_messages);
    let renamed = renamed.filter(|(ours, theirs)| ours != theirs && !RECOGNIZED.contains(&theirs.as_str()));
    renamed.map(|(ours, theirs)| format!("{ours}={theirs}")).collect::<Vec<_>>().join(",")
}

/// Returns the value of `--roles` for one item. axolotl lists the names of each role.
fn roles(item: &Value) -> String {
    let roles = item.get("roles").and_then(Value::as_object);
    let pairs = roles.into_iter().flatten().flat_map(|(role, names)| {
        let names = match names {
            Value::Array(names) => names.iter().filter_map(scalar).collect(),
            name => scalar(name).into_iter().collect::<Vec<_>>(),
        };
        let is_ours = ["system", "user", "assistant"].contains(&role.as_str());
        names
            .into_iter()
            .filter(move |name| is_ours && name != role)
            .map(move |name| format!("{name}={role}"))
    });
    pairs.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn flags(items: Value) -> String {
        let outcome = data(items.as_array().unwrap(), &Map::new());
        let (flags, how) = match outcome {
            Outcome::Taken(flags) => (flags, String::new()),
            Outcome::Differs(flags, how) => (flags, format!(" ({how})")),
            Outcome::Ignored(why) => (Vec::new(), why),
        };
        let shown = flags.iter().map(|(flag, values)| format!("--{flag} {}", values.join(" ")));
        shown.collect::<Vec<_>>().join(" ") + &how
    }

    #[test]
    fn names_of_columns_and_roles_are_taken() {
        let item = json!([{
            "path": "a.jsonl", "type": "chat_template", "field_messages": "dialog",
            "message_property_mappings": {"role": "speaker", "content": "value"},
            "roles": {"assistant": ["gpt", "npc"], "user": ["player", "user"]},
        }]);
        assert_eq!(
            flags(item),
            "--data a.jsonl --columns messages=dialog,role=speaker --roles gpt=assistant,npc=assistant,player=user"
        );
        let own = json!([{"path": "json", "data_files": "b.json", "type": {
            "field_instruction": "q", "field_output": "a", "format": "[INST] {instruction} [/INST]",
        }}]);
        assert_eq!(
            flags(own),
            "--data b.json --columns instruction=q,output=a (the prompt of `format` is not used, the chat template \
             writes the prompt)"
        );
    }

    #[test]
    fn a_data_set_on_the_hub_keeps_its_subset_and_split() {
        let item = json!([{"path": "org/name", "split": "train[:10%]", "type": "alpaca"}]);
        assert_eq!(flags(item), "--data hf:org/name:train[:10%] --format alpaca --chat-template alpaca");
        let item = json!([{"path": "org/name", "name": "zh", "type": "completion", "field": "body"}]);
        assert_eq!(flags(item), "--data hf:org/name:zh/train --columns text=body --format text");
        let two = json!([{"path": "a.json", "field_messages": "x"}, {"path": "b.json"}]);
        assert!(flags(two).contains("map different names"));
    }
}
