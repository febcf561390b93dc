//! Reads LLaMA-Factory's `dataset_info.json`, which lists data files together with the names of columns and
//! roles.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Columns, DataError, Format, ReadOptions, columns::NameMapError, fields::Object};

const FILE_NAME: &str = "dataset_info.json";

const MAX_INFO_BYTES: u64 = 16 << 20;

/// Keys for the location of the data. If an entry has none of these keys, LLaMA-Factory did not write the
/// file.
const SOURCES: [&str; 5] = ["file_name", "hf_hub_url", "ms_hub_url", "om_hub_url", "script_url"];

/// Column keys of data that danlu cannot train on.
const UNSUPPORTED: [&str; 6] = ["chosen", "rejected", "kto_tag", "images", "videos", "audios"];

/// Column keys of alpaca entries, as pairs `(LLaMA-Factory's key, danlu's key)`.
const ALPACA: [(&str, &str); 5] = [
    ("prompt", "instruction"),
    ("query", "input"),
    ("response", "output"),
    ("system", "system"),
    ("history", "history"),
];

/// Returns whether the name of the file is that of LLaMA-Factory's list of data sets.
pub(crate) fn is_info(file: &Path) -> bool {
    file.file_name().is_some_and(|name| name == FILE_NAME)
}

/// Returns the data file that a `dataset_info.json` names, and the options for that file. Returns `None` for
/// any other file.
pub(crate) fn resolve(
    file: &Path,
    options: &ReadOptions,
) -> Result<Option<(PathBuf, ReadOptions)>, DataError> {
    if !is_info(file) {
        return Ok(None);
    }
    let bytes = danlu_model::files::read_bounded(file, MAX_INFO_BYTES)?;
    let Ok(Value::Object(entries)) = serde_json::from_slice::<Value>(&bytes) else { return Ok(None) };
    let is_entry = |entry: &Value| SOURCES.iter().any(|key| entry.get(key).is_some());
    if entries.is_empty() || !entries.values().all(is_entry) {
        return Ok(None);
    }
    let error = |name: Option<&str>, reason: String| DataError::DatasetInfo {
        file: file.to_owned(),
        name: name.map(str::to_owned),
        reason,
        names: entries.keys().cloned().collect(),
    };
    let (name, entry) = match &options.dataset {
        Some(name) => {
            let entry = entries.get(name).ok_or_else(|| error(Some(name), "it has no such entry".into()))?;
            (name.as_str(), entry)
        }
        None if entries.len() == 1 => {
            entries.iter().next().map(|(name, entry)| (name.as_str(), entry)).expect("one entry")
        }
        None => return Err(error(None, format!("it names {} data sets", entries.len()))),
    };
    let resolved = entry_options(entry, options).map_err(|reason| error(Some(name), reason))?;
    let Some(data) = entry.get("file_name").and_then(Value::as_str) else {
        let hub = entry.get("hf_hub_url").and_then(Value::as_str);
        return Err(error(
            Some(name),
            match hub {
                Some(hub) => {
                    format!("its data is not in a file but on the Hub: read it with `--data hf:{hub}`")
                }
                None => "its data is not in a file; download the file first".into(),
            },
        ));
    };
    Ok(Some((file.parent().unwrap_or(Path::new("")).join(data), resolved)))
}

/// Returns the options of one entry. The user's flags take precedence over the entry.
fn entry_options(entry: &Value, options: &ReadOptions) -> Result<ReadOptions, String> {
    if entry.get("ranking").and_then(Value::as_bool) == Some(true) {
        return Err("`ranking` is preference data, which danlu does not train on".into());
    }
    let empty = Object::new();
    let columns = entry.get("columns").and_then(Value::as_object).unwrap_or(&empty);
    if let Some(key) = UNSUPPORTED.iter().find(|key| columns.contains_key(**key)) {
        return Err(format!("its column `{key}` is not supported"));
    }
    let column = |key: &str| columns.get(key).and_then(Value::as_str);
    let mut resolved = ReadOptions { dataset: None, ..options.clone() };
    let (format, mut names) = match entry.get("formatting").and_then(Value::as_str).unwrap_or("alpaca") {
        "alpaca" if column("prompt").is_some() && column("response").is_none() => {
            (Format::Text, pairs(&[("prompt", "text")], &column))
        }
        "alpaca" => (Format::Alpaca, pairs(&ALPACA, &column)),
        "sharegpt" | "openai" => (
            Format::ShareGpt,
            pairs(&[("messages", "conversations"), ("system", "system"), ("tools", "tools")], &column),
        ),
        other => return Err(format!("its formatting `{other}` is unknown, expected `alpaca` or `sharegpt`")),
    };
    let tags = entry.get("tags").and_then(Value::as_object).unwrap_or(&empty);
    let tag = |key: &str| tags.get(key).and_then(Value::as_str);
    names.extend(pairs(&[("role_tag", "role"), ("content_tag", "content")], &tag));
    let mut mapped = options.columns.clone();
    mapped.extend(names.into_iter().try_fold(Columns::default(), with).map_err(|error| error.to_string())?);
    resolved.columns = mapped;
    resolved.format = options.format.or(Some(format));
    let roles = [("user_tag", "user"), ("assistant_tag", "assistant"), ("system_tag", "system")];
    for (key, role) in roles {
        if let Some(name) = tag(key) {
            resolved.roles = std::mem::take(&mut resolved.roles).or(name, role);
        }
    }
    Ok(resolved)
}

fn with(columns: Columns, (ours, theirs): (&str, &str)) -> Result<Columns, NameMapError> {
    if ours == theirs { Ok(columns) } else { columns.with(ours, theirs) }
}

/// Returns a pair `(danlu's key, file's key)` for each of `keys` that the entry renames.
fn pairs<'a>(
    keys: &[(&str, &'static str)],
    value: &dyn Fn(&str) -> Option<&'a str>,
) -> Vec<(&'static str, &'a str)> {
    keys.iter().filter_map(|(key, ours)| Some((*ours, value(key)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RecordContent, read};

    fn folder(info: &str, data: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE_NAME), info).unwrap();
        std::fs::write(folder.path().join("d.json"), data).unwrap();
        folder
    }

    #[test]
    fn an_entry_maps_columns_and_role_names() {
        let info = r#"{"a": {"file_name": "d.json", "formatting": "sharegpt", "columns": {"messages": "dialog"},
            "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "A", "assistant_tag": "B"}},
            "b": {"file_name": "d.json", "columns": {"prompt": "dialog"}}, "c": {"hf_hub_url": "x/y"}}"#;
        let data = r#"[{"dialog": [{"who": "A", "said": "q"}, {"who": "B", "said": "r"}]}]"#;
        let folder = folder(info, data);
        let file = folder.path().join(FILE_NAME);
        let named = |name: &str| ReadOptions { dataset: Some(name.to_owned()), ..ReadOptions::default() };
        let dataset = read(&file, &named("a")).unwrap();
        let RecordContent::Chat(chat) = &dataset.records[0].content else { panic!("a conversation") };
        assert_eq!((chat.messages[0].content.as_str(), chat.messages[1].role.as_str()), ("q", "assistant"));
        assert_eq!(read(&file, &named("b")).unwrap().format, Format::Text);
        let error = read(&file, &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().ends_with("it names 3 data sets"), "{error}");
        assert_eq!(error.hint().unwrap(), "choose an entry with `--dataset NAME`: `a`, `b`, `c`");
        assert!(read(&file, &named("c")).unwrap_err().to_string().contains("`--data hf:x/y`"));
        let both = named("a, b").for_each_entry(&file);
        assert_eq!(
            both.iter().map(|options| options.dataset.as_deref().unwrap()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(named("a,b").for_each_entry(&folder.path().join("d.json")).len(), 1);
    }
}
