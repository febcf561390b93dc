//! Flags of commands that read data files.

use std::str::FromStr;

use clap::Args;
use danlu_data::{Columns, Format, ReadOptions, Roles};
use danlu_train::memory;

/// How to read data files.
#[derive(Args, Clone, Debug, Default)]
pub struct ReadArgs {
    /// Format of the data, if it is not recognised: alpaca, messages, sharegpt, prompt-completion or text
    #[arg(long, value_name = "FORMAT", value_parser = format, help_heading = "Data")]
    pub format: Option<Format>,
    /// Column names of the file for a format's keys, such as instruction=question,output=answer
    #[arg(long, value_name = "KEY=NAME,…", value_parser = columns, help_heading = "Data")]
    pub columns: Option<Columns>,
    /// Role names of the file, such as Alice=user,Bob=assistant
    #[arg(long, value_name = "NAME=ROLE,…", value_parser = roles, help_heading = "Data")]
    pub roles: Option<Roles>,
    /// Entries of LLaMA-Factory's dataset_info.json to read, separated by commas
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub dataset: Option<String>,
}

impl ReadArgs {
    /// Returns the options for reading data files.
    pub fn options(&self) -> ReadOptions {
        let Self { format, columns, roles, dataset } = self.clone();
        let (columns, roles) = (columns.unwrap_or_default(), roles.unwrap_or_default());
        // Only half of the free memory is used, because the tokens of the records need about as much memory
        // as the records.
        let max_memory = memory::available().map(|bytes| bytes / 2);
        ReadOptions { format, columns, roles, dataset, max_memory }
    }

    /// Returns the flags that were given, with their values.
    pub fn given(&self) -> Vec<(&'static str, String)> {
        let Self { format, columns, roles, dataset } = self;
        let flags = [
            ("format", format.as_ref().map(ToString::to_string)),
            ("columns", columns.as_ref().map(ToString::to_string)),
            ("roles", roles.as_ref().map(ToString::to_string)),
            ("dataset", dataset.clone()),
        ];
        flags.into_iter().filter_map(|(flag, value)| Some((flag, value?))).collect()
    }
}

/// Parses the name of a format.
///
/// # Errors
/// If there is no such format. The error lists all formats.
pub fn format(name: &str) -> Result<Format, String> {
    Format::from_str(name).map_err(|_| {
        let known: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
        format!("expected one of {}", known.join(", "))
    })
}

fn columns(pairs: &str) -> Result<Columns, String> {
    pairs.parse().map_err(|error: danlu_data::NameMapError| error.to_string())
}

fn roles(pairs: &str) -> Result<Roles, String> {
    pairs.parse().map_err(|error: danlu_data::NameMapError| error.to_string())
}
