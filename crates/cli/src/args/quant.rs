//! `--quant`, and the flags for its details.

use std::str::FromStr;

use clap::Args;
use danlu_loader::QuantChoice;
use danlu_model::Quantization;
use danlu_train::{Quant, TrainSettings};

use crate::diagnostic::Result;

/// Flags that quantize a 16-bit base at load time.
#[derive(Args, Clone, Debug, Default)]
pub struct QuantArgs {
    /// Quantize the base's projections to 4 bits at load time: nf4, fp4 or none [default: none]
    #[arg(long, value_name = "TYPE", value_parser = Quant::from_str, help_heading = "4 bits")]
    pub quant: Option<Quant>,
    /// Store the 4-bit scales in f32 instead of 8 bits
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "4 bits")]
    pub no_double_quant: Option<bool>,
    /// Number of weights that share a 4-bit scale [default: 64]
    #[arg(long, value_name = "N", help_heading = "4 bits")]
    pub quant_block_size: Option<usize>,
}

impl QuantArgs {
    /// Sets the fields for which a flag is given.
    pub fn apply(&self, settings: &mut TrainSettings) {
        settings.quant = self.quant.unwrap_or(settings.quant);
        settings.no_double_quant = self.no_double_quant.unwrap_or(settings.no_double_quant);
        settings.quant_block_size = self.quant_block_size.unwrap_or(settings.quant_block_size);
    }

    /// Returns the quantization that the flags select. The result is `None` without `--quant`, and
    /// `Some(None)` for `--quant none`.
    ///
    /// # Errors
    /// If [`TrainSettings::validate`] rejects the flags.
    pub fn quantization(&self) -> Result<Option<Option<Quantization>>> {
        let mut settings = TrainSettings::default();
        self.apply(&mut settings);
        settings.validate()?;
        Ok(self.quant.map(|_| settings.quantization()))
    }

    /// Returns how a model's base is quantized: as `--quant` selects, or without this flag as in the
    /// adapter's training.
    ///
    /// # Errors
    /// Returns the errors of [`QuantArgs::quantization`].
    pub fn choice(&self) -> Result<QuantChoice> {
        Ok(self.quantization()?.map_or(QuantChoice::AsTrained, QuantChoice::As))
    }
}
