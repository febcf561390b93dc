//! Flags that define an adapter, and the limit on memory.

use std::str::FromStr;

use clap::Args;
use danlu_adapter::{TargetModules, parse_byte_size};
use danlu_train::TrainSettings;

/// The flags that shape the adapter.
#[derive(Args, Clone, Debug, Default)]
pub struct AdapterArgs {
    /// Rank of the adapter: more rank, more capacity and more memory [default: 8]
    #[arg(long, value_name = "R", help_heading = "Adapter")]
    pub lora_r: Option<u32>,
    /// Alpha: the adapter is scaled by alpha / rank [default: 32]
    #[arg(long, value_name = "ALPHA", help_heading = "Adapter")]
    pub lora_alpha: Option<f64>,
    /// Dropout probability of the adapter [default: 0.1]
    #[arg(long, value_name = "P", help_heading = "Adapter")]
    pub lora_dropout: Option<f64>,
    /// Projections with an adapter: all-linear, names separated by commas, or a regular expression [default:
    /// all-linear]
    #[arg(long, value_name = "NAMES", value_parser = TargetModules::from_str, help_heading = "Adapter")]
    pub target_modules: Option<TargetModules>,
    /// Scale by alpha / sqrt(rank) instead of alpha / rank (rsLoRA)
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Adapter")]
    pub use_rslora: Option<bool>,
    /// Train a magnitude for each output as well (DoRA); the dropout is then 0
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Adapter")]
    pub use_dora: Option<bool>,
}

impl AdapterArgs {
    /// Sets the fields for which a flag is given.
    pub fn apply(&self, settings: &mut TrainSettings) {
        set(&mut settings.lora_r, &self.lora_r);
        set(&mut settings.lora_alpha, &self.lora_alpha);
        set(&mut settings.lora_dropout, &self.lora_dropout);
        set(&mut settings.target_modules, &self.target_modules);
        set(&mut settings.use_rslora, &self.use_rslora);
        set(&mut settings.use_dora, &self.use_dora);
        if settings.use_dora && self.lora_dropout.is_none() {
            settings.lora_dropout = 0.0;
        }
    }
}

/// Sets `field` if the flag is given.
pub fn set<T: Clone>(field: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        field.clone_from(value);
    }
}

/// Parses a size with a unit, such as `8GiB`.
pub fn memory_limit(text: &str) -> Result<u64, String> {
    let number = text.trim();
    if number.parse::<f64>().is_err() {
        return parse_byte_size(text).map_err(|error| error.to_string());
    }
    // The hint suggests only values that the flag accepts.
    let sizes = [("GiB", ""), ("B", " for bytes")].map(|(unit, note)| (format!("{number}{unit}"), note));
    let sizes = sizes.iter().filter(|(size, _)| parse_byte_size(size).is_ok());
    let sizes: Vec<_> = sizes.map(|(size, note)| format!("`{size}`{note}")).collect();
    Err(match sizes.is_empty() {
        true => format!("`{number}` is not a size; write a number with a unit, such as 8GiB or 900MB"),
        false => format!("`{number}` has no unit; write {}", sizes.join(", or ")),
    })
}
