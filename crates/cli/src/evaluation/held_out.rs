//! Held-out records for evaluation.

use std::collections::HashSet;
use std::path::Path;

use danlu_data::{Dataset, EncodeOptions, ReadOptions, Record, encode, read_shards};
use danlu_hub::DatasetRef;
use danlu_loader::{DataRef, HubSource as _, explicit_dataset};
use danlu_model::{LabeledSequence, Tokenizer};

use crate::commands::data::get::NamedData;
use crate::diagnostic::{Diagnostic, Result};
use crate::model_loader::LazyHub;
use crate::printer::Printer;
use crate::terminal_text;

/// Reads a data file, or a data set that [`ModelLoader::data_path`] downloaded.
///
/// # Errors
/// Returns the errors of [`danlu_data::read`]. A hint is added if the path looks like a data set on the Hub.
///
/// [`ModelLoader::data_path`]: crate::model_loader::ModelLoader::data_path
pub fn read(file: &Path, options: &ReadOptions) -> Result<Dataset> {
    if let Some(dataset) = explicit_dataset(file) {
        return read_cached(&dataset, options);
    }
    if let Some(address) =
        file.to_str().filter(|text| text.starts_with("http://") || text.starts_with("https://"))
    {
        return Err(Diagnostic::input(format!("cannot read `{address}`: it is an address, expected a file"))
            .with_hint("download it first, for example with `curl -LO URL`, and name the file"));
    }
    danlu_data::read(file, options).map_err(|error| {
        let diagnostic = Diagnostic::from(error);
        if let Some(hint) = path_hint(file) {
            return diagnostic.with_hint(hint);
        }
        match DataRef::parse(file).hub_hint() {
            Some(hint) => diagnostic.and_hint(hint),
            None => diagnostic,
        }
    })
}

/// Reads a data file as [`read`] does. A `dataset_info.json` may name several data sets. Lowers the maximum
/// memory of `options` by that of the records.
///
/// # Errors
/// Returns the errors of [`read`].
pub fn read_entries(file: &Path, options: &mut ReadOptions) -> Result<Vec<Dataset>> {
    let mut datasets = Vec::new();
    for entry in options.for_each_entry(file) {
        let dataset = read(file, &ReadOptions { max_memory: options.max_memory, ..entry })?;
        options.reserve(&dataset);
        datasets.push(dataset);
    }
    Ok(datasets)
}

/// Reads the files of a data set from the cache.
fn read_cached(dataset: &DatasetRef, options: &ReadOptions) -> Result<Dataset> {
    let hub = LazyHub::of_cache();
    let Some(found) = hub.hub()?.cached_dataset(dataset)? else {
        return Err(Diagnostic::input(format!("`{dataset}` is no longer in the cache"))
            .with_hint("run the command again; it downloads the data set"));
    };
    let commit = found.pulled.commit.get(..SHOWN_COMMIT).unwrap_or(&found.pulled.commit);
    let name = format!("{}@{commit}:{}", dataset.repo().id(), found.part);
    Ok(read_shards(&found.files, &name, options)?)
}

/// Number of digits of a commit in the name of a data set.
const SHOWN_COMMIT: usize = 8;

/// Returns a hint for a path that the shell did not expand, or that only another tool would accept.
fn path_hint(file: &Path) -> Option<String> {
    let text = file.to_str().filter(|_| !file.exists())?;
    let named =
        NamedData::all().iter().find(|data| text.strip_suffix(".json").unwrap_or(text) == data.name());
    match text {
        _ if named.is_some() => {
            let name = named.map(NamedData::name).unwrap_or_default();
            Some(format!("write the data set first: danlu data get {name}"))
        }
        _ if text.contains(['*', '?', '[']) => {
            Some("let the shell list the files: remove the quotes".to_owned())
        }
        // The comma of a missing name separates two names, unless a folder has a comma too.
        _ if text.contains(',') && text.split(',').all(|part| Path::new(part).extension().is_some()) => {
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
        let place = |record: &Record| (record.source.file.clone(), record.source.index);
        let theirs: HashSet<_> = other.records.iter().map(place).collect();
        let records = std::mem::take(&mut self.records).into_iter();
        let pairs = records.zip(std::mem::take(&mut self.sequences));
        (self.records, self.sequences) = pairs.filter(|(record, _)| theirs.contains(&place(record))).unzip();
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
