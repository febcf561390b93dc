//! Reads, encodes and splits the data.

use std::path::{Path, PathBuf};

use danlu_data::{
    BadRecord, Dataset, EncodeOptions, EncodedRecord, ReadOptions, Record, RecordContent, TemplateAudit,
    Truncation, ValSize, encode, split,
};
use danlu_model::{Tokenizer, files};
use danlu_report::card::TextLanguage;
use danlu_report::{DataFile, DataSummary};
use danlu_train::{Example, TrainSettings};

use crate::commands::data::{check, warnings};
use crate::diagnostic::{Diagnostic, Result};
use crate::evaluation::held_out::read_entries;
use crate::evaluation::replies::{self, Question};
use crate::printer::Printer;
use crate::terminal_text;

/// Maximum number of bad records that are listed in the terminal. If there are more, [`SKIPPED_FILE`] lists
/// all of them.
const MAX_LISTED: usize = 10;

/// Share of the records that is held out without `--val-size`.
pub const DEFAULT_VAL_SIZE: f64 = 0.02;

/// Smallest number of records that are split by default. With fewer records, the held-out share is too small
/// to measure anything.
const MIN_SPLIT_RECORDS: usize = 50;

/// Name of the file in the output folder that lists the skipped records.
pub const SKIPPED_FILE: &str = "skipped_records.txt";

/// Encoded and split records.
pub struct Prepared {
    pub examples: Vec<Example>,
    /// The records of `examples`, before encoding.
    pub records: Vec<Record>,
    pub held_out: Vec<Example>,
    /// The records of `held_out`, before encoding.
    pub held_out_records: Vec<Record>,
    pub summary: DataSummary,
    /// Skipped records with their faults.
    pub bad: Vec<BadRecord>,
    /// Size of the held-out part. This is the requested size, or the default for this number of records.
    pub val_size: f64,
}

impl Prepared {
    /// Returns up to `count` questions for the base and the adapter. The questions come from the held-out
    /// records if there are any, else from the training records.
    pub fn questions(&self, count: usize) -> Vec<Question> {
        let held_out = !self.held_out_records.is_empty();
        replies::questions(if held_out { &self.held_out_records } else { &self.records }, count)
    }
}

/// Records with their examples.
type Items = Vec<(Record, Example)>;

/// Reads, encodes and splits the data. Without a `val_size`, holds out the share [`DEFAULT_VAL_SIZE`] if
/// there are at least [`MIN_SPLIT_RECORDS`] records.
///
/// # Errors
/// If a file cannot be read, records are bad and not skipped, or no record remains.
pub fn prepare(
    data: &[PathBuf],
    reading: &ReadOptions,
    skip_bad: bool,
    tokenizer: &Tokenizer,
    settings: &TrainSettings,
    val_size: Option<f64>,
    printer: &Printer,
) -> Result<Prepared> {
    let options = EncodeOptions {
        max_length: settings.max_length,
        train_on_prompt: settings.train_on_prompt,
        default_system: settings.default_system.clone(),
        add_eos_token: settings.add_eos_token,
    };
    let mut summary = DataSummary::default();
    let (mut bad, mut items) = (Vec::new(), Vec::new());
    let mut audit = TemplateAudit::new(tokenizer);
    let mut texts = warnings::TextWarnings::default();
    let mut found = Vec::new();
    let mut reading = reading.clone();
    let entries = data.iter().flat_map(|file| match read_entries(file, &mut reading) {
        Ok(datasets) => datasets.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    });
    for dataset in entries {
        let dataset = dataset?;
        found.extend(warnings_about(&dataset, printer));
        summary.files.push(DataFile {
            name: dataset.fingerprint.name,
            format: dataset.format.name().to_owned(),
            records: dataset.fingerprint.records as u64,
            sha256: dataset.fingerprint.sha256,
        });
        bad.extend(dataset.bad);
        let total = dataset.records.len();
        for (done, record) in dataset.records.into_iter().enumerate() {
            if done % 256 == 0 {
                printer.live(
                    &printer.pick(format!("编码 {done}/{total}"), format!("encoding {done} of {total}")),
                );
            }
            if matches!(record.content, RecordContent::Chat(_)) {
                // A missing template is an error of the base, so it is not reported as a bad record.
                tokenizer.template()?;
            }
            texts.add(&record, tokenizer);
            match encode(&record, tokenizer, &options) {
                Ok(encoded) => {
                    if !options.train_on_prompt {
                        audit.add(&record, &encoded);
                    }
                    if let Some(fault) = take(record, encoded, &mut items, &mut summary) {
                        bad.push(fault);
                    }
                }
                Err(fault) => bad.push(*fault),
            }
        }
    }
    printer.clear_live();
    if audit.records() > 0 {
        found.extend(warnings::added_eos(tokenizer, settings.add_eos_token, printer));
    }
    let records = audit.records();
    found.extend(warnings::of_template(&audit.into_findings(), records, printer));
    found.extend(texts.warnings(printer));
    found.iter().for_each(|warning| printer.warn(warning));
    summary.skipped = bad.len() as u64;
    if !bad.is_empty() && !skip_bad {
        return Err(refuse(&bad, items.len(), data));
    }
    let is_enough = items.len() >= MIN_SPLIT_RECORDS;
    let val_size = val_size.unwrap_or(if is_enough { DEFAULT_VAL_SIZE } else { 0.0 });
    let (train, held_out) = hold_out(items, &summary, val_size, settings.seed)?;
    Ok(Prepared { val_size, ..prepared(train, held_out, summary, bad) })
}

/// Splits the items into training and held-out items.
fn hold_out(items: Items, summary: &DataSummary, val_size: f64, seed: u64) -> Result<(Items, Items)> {
    if items.is_empty() {
        let (dropped, bad) = (summary.dropped, summary.skipped);
        let text = format!("no record is left to train on: {dropped} dropped, {bad} bad");
        return Err(Diagnostic::input(text)
            .with_hint("`danlu data check` shows the reasons; try a larger `--max-length`"));
    }
    let size = ValSize::try_from(val_size).map_err(|error| Diagnostic::input(error.to_string()))?;
    let (wanted, all) = (size.wanted(items.len()), items.len());
    if wanted >= all {
        let text = format!("`val_size` {val_size} asks for {wanted} of {all} records");
        return Err(Diagnostic::input(text).with_hint("use a smaller `--val-size`"));
    }
    let (train, held_out) = split(items, size, seed, |(_, example)| &example.sequence.ids[..]);
    if wanted > 0 && held_out.is_empty() {
        let text = format!("none of {all} records can be held out: each has more copies than `val_size`");
        return Err(Diagnostic::input(text)
            .with_hint("remove copies (`danlu data check` lists them), or use `--val-size 0`"));
    }
    Ok((train, held_out))
}

fn prepared(train: Items, held_out: Items, mut summary: DataSummary, bad: Vec<BadRecord>) -> Prepared {
    let (records, examples): (Vec<_>, Vec<_>) = train.into_iter().unzip();
    let (held_out_records, held_out): (Vec<_>, Vec<_>) = held_out.into_iter().unzip();
    summary.languages = languages(&records);
    let tokens = |e: &Example| e.sequence.ids.len() as u64;
    summary.training_records = examples.len() as u64;
    summary.held_out_records = held_out.len() as u64;
    summary.tokens = examples.iter().map(tokens).sum();
    summary.trained_tokens = examples.iter().map(|e: &Example| e.sequence.trained_tokens() as u64).sum();
    summary.longest = examples.iter().map(tokens).max().unwrap_or(0);
    Prepared { examples, records, held_out, held_out_records, summary, bad, val_size: 0.0 }
}

/// Returns the warnings of `data check` about a file.
fn warnings_about(dataset: &Dataset, printer: &Printer) -> Vec<String> {
    let mut found = warnings::of_file(dataset, printer);
    for unknown in &dataset.unknown_keys {
        let key = check::describe_key(unknown, printer);
        found.push(printer.pick(format!("未知的键，不会读取：{key}"), format!("ignored unknown key {key}")));
    }
    found
}

/// Detects the languages of the trained answers and texts.
fn languages(records: &[Record]) -> Vec<String> {
    let mut language = TextLanguage::default();
    for record in records {
        match &record.content {
            RecordContent::Text(text) => language.add(text),
            RecordContent::Chat(chat) => {
                let answers = chat.messages.iter().filter(|message| message.role == "assistant");
                answers.for_each(|message| language.add(&message.content));
            }
        }
    }
    language.codes()
}

/// Adds a record to `items`, and counts the record if it was truncated. If truncation removed all trained
/// tokens, only counts the record as dropped. If the record has no trained tokens for any other reason,
/// returns a bad record.
fn take(
    record: Record,
    encoded: EncodedRecord,
    items: &mut Vec<(Record, Example)>,
    summary: &mut DataSummary,
) -> Option<BadRecord> {
    if encoded.sequence.trained_tokens() == 0 {
        if matches!(encoded.truncation, Truncation::Dropped { .. }) {
            summary.dropped += 1;
            return None;
        }
        return Some(BadRecord::untrained(record.source));
    }
    if matches!(encoded.truncation, Truncation::Shortened { .. }) {
        summary.shortened += 1;
    }
    let origin = record.source.to_string();
    items.push((record, Example { sequence: encoded.sequence, origin }));
    None
}

fn refuse(bad: &[BadRecord], good: usize, data: &[PathBuf]) -> Diagnostic {
    let all = bad.len() + good;
    let mut details: Vec<String> = bad.iter().take(MAX_LISTED).map(ToString::to_string).collect();
    if bad.len() > MAX_LISTED {
        details.push(format!("… and {} more", bad.len() - MAX_LISTED));
    }
    let file = data.iter().find(|file| bad[0].source.file.as_ref() == file.as_path()).unwrap_or(&data[0]);
    let check = format!("danlu data check {}", terminal_text::shell_path(file));
    let hint = format!("correct them (`{check}` lists all), or skip them with `--skip-bad`");
    let noun = if bad.len() == 1 { "records is" } else { "records are" };
    Diagnostic::input(format!("{} of {all} {noun} bad", bad.len())).with_details(details).with_hint(hint)
}

/// Prints the first skipped records. If there are more than [`MAX_LISTED`], writes all of them to
/// [`SKIPPED_FILE`].
///
/// # Errors
/// If the file cannot be written.
pub fn list_skipped(bad: &[BadRecord], output: &Path, printer: &Printer) -> Result<()> {
    if bad.is_empty() {
        return Ok(());
    }
    let n = bad.len();
    let verb = if n == 1 { "is" } else { "are" };
    let counted = terminal_text::counted(n as u64, "bad record");
    printer.warn(&printer.pick(format!("{n} 条坏记录被跳过："), format!("{counted} {verb} skipped:")));
    for record in bad.iter().take(MAX_LISTED) {
        printer.status(&format!("  {}", terminal_text::printable(&printer.detail(&record.to_string()))));
    }
    if n > MAX_LISTED {
        let path = output.join(SKIPPED_FILE);
        let all: String = bad.iter().map(|record| format!("{record}\n")).collect();
        files::write_atomic(&path, all.as_bytes())?;
        let shown = path.display();
        printer.status(&printer.pick(format!("  全部列在 {shown}"), format!("  all of them: {shown}")));
    }
    Ok(())
}
