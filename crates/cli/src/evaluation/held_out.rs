//! Held-out records for evaluation.

use std::collections::HashSet;
use std::path::Path;

use danlu_data::{Dataset, EncodeOptions, ReadOptions, Record, encode};
use danlu_model::{LabeledSequence, Tokenizer};

use crate::diagnostic::{Diagnostic, Result};
use crate::model_loader::hub_name;
use crate::printer::Printer;
use crate::terminal_text;

/// Reads a data file.
///
/// # Errors
/// Returns the errors of [`danlu_data::read`]. A hint is added if the path looks like a data set on the Hub.
pub fn read(file: &Path, options: &ReadOptions) -> Result<Dataset> {
    danlu_data::read(file, options).map_err(|error| {
        let diagnostic = Diagnostic::from(error);
        if let Some(hint) = path_hint(file) {
            return diagnostic.with_hint(hint);
        }
        match file.extension().is_none() && hub_name(file).is_some() {
            true => diagnostic.and_hint(format!(
                "download data sets of the Hub first: \
                 `hf download {} --repo-type dataset --local-dir DIR`",
                file.display()
            )),
            false => diagnostic,
        }
    })
}

/// Returns a hint for a path that the shell did not expand, or that only another tool would accept.
fn path_hint(file: &Path) -> Option<String> {
    let text = file.to_str().filter(|_| !file.exists())?;
    match text {
        _ if text.starts_with("http:/") || text.starts_with("https:/") => {
            Some("download it first, for example with `curl -LO URL`, and name the file".to_owned())
        }
        _ if text.starts_with("~/") => Some(format!("write the folder in full: `$HOME{}`", &text[1..])),
        _ if text.contains(['*', '?', '[']) => {
            Some("let the shell list the files: remove the quotes".to_owned())
        }
        _ if text.split(',').count() > 1 && text.split(',').all(|part| Path::new(part).exists()) => {
            Some(format!("name the files one by one: {}", text.replace(',', " ")))
        }
        _ => None,
    }
}

/// Records for evaluation, and their tokens.
#[derive(Clone, Debug)]
pub struct HeldOut {
    pub records: Vec<Record>,
    pub sequences: Vec<LabeledSequence>,
    /// Number of unusable records.
    pub left_out: usize,
}

impl HeldOut {
    /// Warns about unusable records of `file`.
    pub fn warn(&self, file: &Path, printer: &Printer) {
        let n = self.left_out;
        if n > 0 {
            let (records, check) = (terminal_text::counted(n as u64, "record"), check_command(file));
            let file = file.display();
            printer.warn(&printer.pick(
                format!("`{file}` 中有 {n} 条记录用不上（{check} 说明原因）"),
                format!("{records} of `{file}` cannot be used: `{check}` lists the reasons"),
            ));
        }
    }

    /// Keeps only the records that `other` also contains.
    pub fn keep_common(&mut self, other: &Self) {
        let theirs: HashSet<usize> = other.records.iter().map(|record| record.source.index).collect();
        let records = std::mem::take(&mut self.records).into_iter();
        let pairs = records.zip(std::mem::take(&mut self.sequences));
        (self.records, self.sequences) =
            pairs.filter(|(record, _)| theirs.contains(&record.source.index)).unzip();
    }
}

/// Reads at most `limit` records, spread evenly over the file. If `limit` is 0, all records are read. Bad
/// records, and records without an answer, are skipped and counted.
///
/// # Errors
/// If the file cannot be read, or no record is usable.
pub fn read_held_out(
    file: &Path,
    reading: &ReadOptions,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
    limit: usize,
) -> Result<HeldOut> {
    let dataset = read(file, reading)?;
    let bad = dataset.bad.len();
    let total = dataset.records.len();
    let count = if limit == 0 { total } else { limit.min(total) };
    let mut wanted = (0..count).map(|i| i * total / count).peekable();
    let chosen = dataset.records.into_iter().enumerate().filter(|(i, _)| wanted.next_if_eq(i).is_some());

    let mut held_out = HeldOut { records: Vec::new(), sequences: Vec::new(), left_out: 0 };
    for (_, record) in chosen {
        if let Ok(encoded) = encode(&record, tokenizer, options)
            && encoded.sequence.trained_tokens() > 0
        {
            held_out.records.push(record);
            held_out.sequences.push(encoded.sequence);
        }
    }
    held_out.left_out = bad + count - held_out.records.len();
    if held_out.records.is_empty() {
        let text = format!("`{}` holds no record that can be measured", file.display());
        return Err(Diagnostic::input(text).with_hint(format!("`{}` shows the reasons", check_command(file))));
    }
    Ok(held_out)
}

/// Returns the command that lists the faults of a file.
fn check_command(file: &Path) -> String {
    format!("danlu data check {}", terminal_text::shell_path(file))
}
