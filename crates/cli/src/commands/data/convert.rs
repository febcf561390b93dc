//! `danlu data convert`: converts data between formats.

use std::path::PathBuf;

use clap::Args;
use danlu_data::{BadRecord, Format, OutputKind, Record, common_format, to_json};
use danlu_model::{FileError, files};

use super::{data_paths, warnings};
use crate::args::data::{ReadArgs, format};
use crate::diagnostic::{Diagnostic, Result};
use crate::evaluation::held_out::read_entries;
use crate::printer::Printer;
use crate::terminal_text;

/// Number of bad records that an error lists.
const MAX_LISTED: usize = 10;

/// The flags of `danlu data convert`.
#[derive(Args, Clone, Debug)]
pub struct ConvertArgs {
    /// Data files, or data sets on the Hub such as hf:org/name:train
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Output file: .json, .jsonl, .csv, .tsv or .parquet, also with .gz or .zst
    #[arg(long, value_name = "FILE")]
    pub output: PathBuf,
    /// Output format [default: messages; text for documents]
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    pub to: Option<Format>,
    /// Skip bad records
    #[arg(long)]
    pub skip_bad: bool,
    #[command(flatten)]
    pub reading: ReadArgs,
}

/// Converts the files.
///
/// # Errors
/// If a file cannot be read, a record is bad, or the format cannot express a record.
pub fn run(args: &ConvertArgs, printer: &Printer) -> Result<()> {
    let output = args.output.display();
    let Some(kind) = OutputKind::of(&args.output) else {
        return Err(Diagnostic::input(format!("cannot write `{output}`: unknown file extension"))
            .with_hint("use .json, .jsonl, .csv, .tsv or .parquet, also with .gz or .zst"));
    };
    if args.output.exists() {
        return Err(Diagnostic::input(format!("cannot write `{output}`: it exists already"))
            .with_hint("remove it, or name another file"));
    }
    let (mut records, mut bad): (Vec<Record>, Vec<BadRecord>) = (Vec::new(), Vec::new());
    let mut reading = args.reading.options();
    for file in &data_paths(&args.files, printer)? {
        for dataset in read_entries(file, &mut reading)? {
            warnings::of_file(&dataset, printer).iter().for_each(|note| printer.warn(note));
            records.extend(dataset.records);
            bad.extend(dataset.bad);
        }
    }
    if !bad.is_empty() && !args.skip_bad {
        let details = bad.iter().take(MAX_LISTED).map(ToString::to_string).collect();
        return Err(Diagnostic::input(format!(
            "{} of {} records are bad",
            bad.len(),
            bad.len() + records.len()
        ))
        .with_details(details)
        .with_hint("correct them, or skip them with `--skip-bad`"));
    }
    let Some(format) = args.to.or_else(|| common_format(&records)) else {
        return Err(Diagnostic::input("cannot mix documents and conversations in one file")
            .with_hint("convert them into two files"));
    };
    if let Some(bad) = records.iter().find_map(|record| to_json(record, format).err()) {
        return Err(Diagnostic::input(bad.to_string())
            .with_hint("write another format with `--to`, such as `--to messages`"));
    }
    let objects = records.iter().filter_map(|record| to_json(record, format).ok());
    let bytes = kind.bytes(objects).map_err(|source| FileError::new("write", &args.output, source))?;
    files::write_atomic(&args.output, &bytes)?;
    let count = terminal_text::thousands(records.len() as u64);
    printer.status_bilingual(
        &format!("{output}：{count} 条，{format}"),
        &format!("{output}: {count} records, {format}"),
    );
    Ok(())
}
