//! `danlu data`: checks, previews, converts and supplies training data.

pub mod check;
mod convert;
pub mod get;
pub mod preview;
pub mod warnings;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use danlu_data::{EncodeOptions, RecordSource};
use danlu_hub::FetchScope;
use danlu_loader::Notice;
use danlu_model::Tokenizer;

use crate::args::chat_template::with_chat_template;
use crate::args::data::ReadArgs;
use crate::clap_error::at_least_one;
use crate::diagnostic::Result;
use crate::embedded_base;
use crate::model_loader::ModelLoader;
use crate::notices;
use crate::printer::Printer;

pub const EXAMPLES: &str = "\
Examples:
  danlu data preview danlu-demo/palace.json --base danlu-demo/base-8m
  danlu data check danlu-demo/palace.json --base danlu-demo/base-8m
  danlu data check danlu-demo/palace.json --format alpaca
  danlu data check hf:openai/gsm8k:main/test
  danlu data convert danlu-demo/palace.json --to alpaca --output palace.csv";

/// The default of `--max-length`, as in `danlu train`.
const DEFAULT_MAX_LENGTH: usize = 384;

#[derive(Subcommand, Clone, Debug)]
pub enum DataCommand {
    /// Show records as the model sees them: rendered text, token ids, and trained tokens
    #[command(allow_negative_numbers = true)]
    Preview(preview::PreviewArgs),
    /// Count and measure records, and list every fault
    #[command(allow_negative_numbers = true)]
    Check(check::CheckArgs),
    /// Convert data to JSON, CSV, TSV or Parquet, in any format
    Convert(convert::ConvertArgs),
    /// Write a data set for a first training: an embedded one, or one from a public address
    #[command(after_help = get::EXAMPLES)]
    Get(get::GetArgs),
}

/// Flags of `preview` and `check`.
#[derive(Args, Clone, Debug)]
pub struct DataArgs {
    /// Base whose tokenizer and template are used [default: the embedded base]
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// Chat template instead of the base's: a file, or chatml, llama3, alpaca, vicuna or zephyr
    #[arg(long, value_name = "FILE|NAME")]
    pub chat_template: Option<String>,
    #[command(flatten)]
    pub reading: ReadArgs,
    /// Longest record in tokens; longer ones lose the start of their question
    #[arg(long, value_name = "TOKENS", default_value_t = DEFAULT_MAX_LENGTH, value_parser = at_least_one)]
    pub max_length: usize,
    /// System message for conversations without one, as `danlu train --default-system`
    #[arg(long, value_name = "TEXT")]
    pub default_system: Option<String>,
    /// Also train on questions, as `danlu train --train-on-prompt`
    #[arg(long)]
    pub train_on_prompt: bool,
    /// Whether answers without an end token get the EOS token, as `danlu train --add-eos-token`
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true)]
    pub add_eos_token: Option<bool>,
}

impl DataArgs {
    /// Returns the base's tokenizer, or without a base the embedded tokenizer.
    fn tokenizer(&self, printer: &Printer) -> Result<Tokenizer> {
        with_chat_template(self.base_tokenizer(printer)?, self.chat_template.as_deref(), printer)
    }

    fn base_tokenizer(&self, printer: &Printer) -> Result<Tokenizer> {
        if let Some(base) = &self.base {
            let folder = ModelLoader::new(printer).base_folder(base, FetchScope::ConfigOnly)?;
            let tokenizer = Tokenizer::read(&folder)?;
            if let Some(notice) = Notice::ignored_dropout(&tokenizer) {
                notices::print(&notice, printer);
            }
            return Ok(tokenizer);
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
            add_eos_token: self.add_eos_token.unwrap_or(true),
        }
    }
}

/// Downloads the data sets among the files, if the cache lacks them. Returns the paths to read.
fn data_paths<'a>(files: impl IntoIterator<Item = &'a PathBuf>, printer: &Printer) -> Result<Vec<PathBuf>> {
    let loader = ModelLoader::new(printer);
    files.into_iter().map(|file| loader.data_path(file)).collect()
}

/// Formats the position of a record.
fn place(source: &RecordSource, printer: &Printer) -> String {
    let (file, line, number) = (source.file.display(), source.line, source.index + 1);
    printer.pick(format!("{file}:{line}（第 {number} 条）"), source.to_string())
}

/// Runs a subcommand.
///
/// # Errors
/// If the data or the tokenizer is invalid.
pub fn run(command: &DataCommand, printer: &Printer) -> Result<()> {
    match command {
        DataCommand::Preview(args) => preview::run(args, printer),
        DataCommand::Check(args) => check::run(args, printer),
        DataCommand::Convert(args) => convert::run(args, printer),
        DataCommand::Get(args) => get::run(args, printer),
    }
}
