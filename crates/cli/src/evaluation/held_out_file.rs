//! `held_out.json`: records that a run does not train on. `compare` and `merge` read this file.

use std::path::{Path, PathBuf};

use danlu_data::{Record, common_format, to_json};
use danlu_model::files;
use serde_json::Value;

use crate::diagnostic::Result;
use crate::printer::Printer;

/// Name of the file in the output folder.
pub const HELD_OUT_FILE: &str = "held_out.json";

/// Returns the path of `held_out.json` in the adapter's folder, if it exists. For a checkpoint, the file may
/// also be in the folder of the run.
pub fn beside(adapter: &Path) -> Option<PathBuf> {
    let is_checkpoint =
        adapter.file_name().is_some_and(|name| name.to_string_lossy().starts_with("checkpoint-"));
    let above = adapter.parent().filter(|_| is_checkpoint);
    std::iter::once(adapter).chain(above).map(|folder| folder.join(HELD_OUT_FILE)).find(|file| file.is_file())
}

/// Writes the records to the output folder. Writes nothing if there are no records, or if documents and
/// conversations are mixed. If the file already contains other records, prints a warning and does not change
/// the file.
///
/// # Errors
/// If the file cannot be read or written.
pub fn write(records: &[Record], output: &Path, printer: &Printer) -> Result<()> {
    let Some(text) = render(records) else { return Ok(()) };
    let path = output.join(HELD_OUT_FILE);
    if path.exists() {
        if files::read_bounded(&path, u64::MAX)? != text.as_bytes() {
            let shown = path.display();
            printer.warn(&printer.pick(
                format!("{shown} 与这次运行留出的记录不同：未覆盖"),
                format!("{shown} differs from the records that this run holds out: it is not overwritten"),
            ));
        }
        return Ok(());
    }
    Ok(files::write_atomic(&path, text.as_bytes())?)
}

/// Formats the records as a JSON array with one record per line, all in one format. Returns `None` if there
/// are no records, or if documents and conversations are mixed.
fn render(records: &[Record]) -> Option<String> {
    let format = common_format(records)?;
    let line = |record| Some(Value::Object(to_json(record, format).ok()?).to_string());
    let lines: Vec<String> = records.iter().map(line).collect::<Option<_>>()?;
    Some(format!("[\n{}\n]\n", lines.join(",\n")))
}

#[cfg(test)]
mod tests {
    use danlu_data::ReadOptions;

    use super::*;

    fn read(name: &str, text: &str) -> Vec<Record> {
        let dataset =
            danlu_data::read_from(text.as_bytes(), Path::new(name), &ReadOptions::default()).unwrap();
        assert!(dataset.bad.is_empty(), "{:?}", dataset.bad);
        dataset.records
    }

    #[test]
    fn what_is_written_is_read_back_as_it_was() {
        let alpaca = r#"[{"instruction": "问\n\"一\"", "input": "", "output": "答", "system": "你是甄嬛。", "history": [["a", "b"]]}]"#;
        let prompt = r#"{"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}], "completion": [{"role": "assistant", "content": "d"}]}
{"prompt": "e", "completion": "f"}"#;
        let text = "{\"text\": \"一段\"}\n{\"text\": \"two\"}\n";
        for source in [alpaca, prompt, text] {
            let records = read("a", source);
            let again = read("b", &render(&records).unwrap());
            let contents = |records: Vec<Record>| records.into_iter().map(|r| r.content).collect::<Vec<_>>();
            assert_eq!(contents(again), contents(records));
        }
        let mixed = [read("a", text), read("b", alpaca)].concat();
        assert_eq!((render(&mixed), render(&[])), (None, None));
    }

    #[test]
    fn an_adapter_and_its_checkpoints_share_the_file() {
        let run = tempfile::tempdir().unwrap();
        let (out, file) = (run.path().join("out"), run.path().join("out").join(HELD_OUT_FILE));
        std::fs::create_dir_all(out.join("checkpoint-4")).unwrap();
        std::fs::create_dir_all(out.join("mine")).unwrap();
        assert_eq!(beside(&out), None);
        std::fs::write(&file, "[]").unwrap();
        assert_eq!(beside(&out), Some(file.clone()));
        assert_eq!(beside(&out.join("checkpoint-4")), Some(file));
        assert_eq!(beside(&out.join("mine")), None);
    }
}
