//! `danlu config`: translates configuration files of other tools.

use std::path::PathBuf;

use clap::{Args, Command, Subcommand};

use super::train::TrainArgs;
use crate::config_file::ConfigFile;
use crate::diagnostic::Result;
use crate::printer::Printer;

pub const EXAMPLES: &str = "\
Examples:
  printf 'base_model: danlu-demo/base-8m\\nlora_r: 16\\n' > axolotl.yaml
  danlu config translate axolotl.yaml
  danlu config translate axolotl.yaml > run.toml
  danlu train --config axolotl.yaml --data danlu-demo/palace.json \\
    --output out/mine

Files of axolotl, LLaMA-Factory, TRL and mlx-lm are recognised. The table goes to stderr, the translated file to stdout.";

/// The subcommands.
#[derive(Subcommand, Clone, Debug)]
pub enum ConfigCommand {
    /// Show what danlu takes from a file, what it ignores, and what differs
    Translate(TranslateArgs),
}

/// The flags of `danlu config translate`.
#[derive(Args, Clone, Debug)]
pub struct TranslateArgs {
    /// YAML, JSON or TOML file
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// Prints the table of a translation, and the translated file.
///
/// # Errors
/// If the file cannot be read, or describes training that danlu does not support.
pub fn run(command: &ConfigCommand, printer: &Printer) -> Result<()> {
    let ConfigCommand::Translate(args) = command;
    let config = ConfigFile::read(&args.file, &TrainArgs::augment_args(Command::new("train")))?;
    match config.translation() {
        Some(translation) => translation.print(printer),
        None => printer.status_bilingual("这是 danlu 的配置文件", "this is a configuration file of danlu"),
    }
    printer.data_raw(&config.to_toml());
    Ok(())
}
