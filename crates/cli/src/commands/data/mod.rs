//! `danlu data`: look at training data before training on it.

mod check;
pub mod preview;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{Args, Subcommand};
use danlu_data::{Dataset, EncodeOptions, Format, Record, RecordSource, encode};
use danlu_hub::Extent;
use danlu_model::{LabeledSequence, Tokenizer};

use crate::clap_error::at_least_one;
use crate::commands::{hub, no_model};
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::printer::Printer;
use crate::terminal_text;

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu data preview huanhuan.json --base models/base-28m
  danlu data check a.json b.jsonl --base models/base-28m --max-length 256
  danlu data check chat.json --format sharegpt";

/// `--max-length` where it is not given, as `danlu train` has it.
const DEFAULT_MAX_LENGTH: usize = 384;

/// What to do with data.
#[derive(Subcommand, Clone, Debug)]
pub enum DataCommand {
    /// Show records as the model sees them: rendered text, token ids, and what is trained
    #[command(allow_negative_numbers = true)]
    Preview(preview::PreviewArgs),
    /// Count, measure, and name every record that has a fault
    #[command(allow_negative_numbers = true)]
    Check(check::CheckArgs),
}

/// Flags of both commands.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Folder of the base whose tokenizer and template are used [default: the embedded base's]
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Format of the data instead of the recognised one [alpaca, messages, sharegpt, prompt-completion, text]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub format: Option<Format>,
    /// Longest record in tokens; longer ones lose the front of their question
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_MAX_LENGTH, value_parser = at_least_one)]
    pub max_length: usize,
    /// System message of conversations that bring none, as `danlu train --default-system`
    #[arg(long, value_name = "TEXT")]
    pub default_system: Option<String>,
    /// Mark the questions as trained too, as `danlu train --train-on-prompt` does
    #[arg(long)]
    pub train_on_prompt: bool,
}

impl DataArgs {
    /// The base's tokenizer, or the embedded one.
    fn tokenizer(&self, printer: &Printer) -> Result<Tokenizer> {
        if let Some(base) = &self.base {
            return Ok(Tokenizer::read(&no_model::base(base, Extent::Settings, printer)?)?);
        }
        printer.status_bilingual(
            &format!("没有给出 --base：用内置 {} 的分词器与模板", embedded_base::BASE_NAME),
            &format!(
                "no --base given: using the tokenizer and template of the embedded {}",
                embedded_base::BASE_NAME
            ),
        );
        embedded_base::tokenizer()
    }

    fn options(&self) -> EncodeOptions {
        EncodeOptions {
            max_length: self.max_length,
            train_on_prompt: self.train_on_prompt,
            default_system: self.default_system.clone(),
        }
    }
}

/// Where a record stands, in the language of talk.
fn place(source: &RecordSource, printer: &Printer) -> String {
    let (file, line, number) = (source.file.display(), source.line, source.index + 1);
    printer.pick(format!("{file}:{line}（第 {number} 条）"), source.to_string())
}

/// Runs one of them.
///
/// # Errors
/// If the data or the tokenizer has a fault.
pub fn run(command: &DataCommand, printer: &Printer) -> Result<()> {
    match command {
        DataCommand::Preview(args) => preview::run(args, printer),
        DataCommand::Check(args) => check::run(args, printer),
    }
}

/// A format by its name.
///
/// # Errors
/// Lists the names there are.
pub fn format(name: &str) -> Result<Format, String> {
    Format::from_str(name).map_err(|_| {
        let known: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        format!("expected one of {}", known.join(", "))
    })
}

/// Reads a data file.
///
/// # Errors
/// As [`danlu_data::read`]; a name that may be a data set's on the Hub is told that files are read here.
pub fn read(file: &Path, format: Option<Format>) -> Result<Dataset> {
    danlu_data::read(file, format).map_err(|error| {
        let diagnostic = Diagnostic::from(error);
        match file.extension().is_none() && hub::name_of(file).is_some() {
            true => diagnostic.and_hint(format!(
                "data is read from files here: a data set of the Hub is fetched first, as by \
                 `hf download {} --repo-type dataset --local-dir DIR`",
                file.display()
            )),
            false => diagnostic,
        }
    })
}

/// Records to measure a model on, and their tokens.
#[derive(Clone, Debug)]
pub struct HeldOut {
    /// The records.
    pub records: Vec<Record>,
    /// Their tokens, in the same order.
    pub sequences: Vec<LabeledSequence>,
    /// How many records of the file could not be used.
    pub left_out: usize,
}

impl HeldOut {
    /// Says how many records of `file` could not be used.
    pub fn warn(&self, file: &Path, printer: &Printer) {
        let n = self.left_out;
        if n > 0 {
            let (records, check) = (terminal_text::counted(n as u64, "record"), check_command(file));
            let file = file.display();
            printer.warn(&printer.pick(
                format!("`{file}` 中有 {n} 条记录用不上（{check} 说明原因）"),
                format!("{records} of `{file}` cannot be used: `{check}` says why"),
            ));
        }
    }

    /// Keeps the records that `other` holds too.
    pub fn keep_common(&mut self, other: &Self) {
        let theirs: HashSet<usize> = other.records.iter().map(|record| record.source.index).collect();
        let records = std::mem::take(&mut self.records).into_iter();
        let pairs = records.zip(std::mem::take(&mut self.sequences));
        (self.records, self.sequences) =
            pairs.filter(|(record, _)| theirs.contains(&record.source.index)).unzip();
    }
}

/// Reads at most `limit` records to measure on, spread evenly over the file; 0 reads all. Bad records and
/// those without an answer are left out, and counted.
///
/// # Errors
/// If the file cannot be read, or nothing can be measured on.
pub fn read_held_out(
    file: &Path,
    format: Option<Format>,
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
    limit: usize,
) -> Result<HeldOut> {
    let dataset = read(file, format)?;
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
        let text = format!("`{}` holds no record to measure on", file.display());
        return Err(Diagnostic::input(text).with_hint(format!("`{}` says why", check_command(file))));
    }
    Ok(held_out)
}

/// The command that says what is wrong with a file.
fn check_command(file: &Path) -> String {
    format!("danlu data check {}", terminal_text::shell_path(file))
}
