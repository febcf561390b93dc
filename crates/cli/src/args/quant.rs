//! `--quant` and its companions.

use std::str::FromStr;

use clap::Args;
use danlu_loader::QuantChoice;
use danlu_model::Quantization;
use danlu_train::{Quant, TrainSettings};

use crate::diagnostic::Result;

/// The flags that quantize a 16-bit base while it is loaded.
#[derive(Args, Clone, Debug, Default)]
pub struct QuantArgs {
    /// Quantize the base's projections to 4 bits while it is loaded: nf4, fp4 or none [default: none]
    #[arg(long, value_name = "TYPE", value_parser = Quant::from_str, help_heading = "4 bits")]
    pub quant: Option<Quant>,
    /// Leave the scales of 4 bits in f32 instead of 8 bits
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "4 bits")]
    pub no_double_quant: Option<bool>,
    /// Weights that share a scale in 4 bits [default: 64]
    #[arg(long, value_name = "N", help_heading = "4 bits")]
    pub quant_block_size: Option<usize>,
}

impl QuantArgs {
    /// Sets the fields whose flags are given.
    pub fn apply(&self, settings: &mut TrainSettings) {
        settings.quant = self.quant.unwrap_or(settings.quant);
        settings.no_double_quant = self.no_double_quant.unwrap_or(settings.no_double_quant);
        settings.quant_block_size = self.quant_block_size.unwrap_or(settings.quant_block_size);
    }

    /// The quantization of the flags, if `--quant` is given. `Some(None)` leaves the base as it is.
    ///
    /// # Errors
    /// If [`TrainSettings::validate`] refuses them.
    pub fn quantization(&self) -> Result<Option<Option<Quantization>>> {
        let mut settings = TrainSettings::default();
        self.apply(&mut settings);
        settings.validate()?;
        Ok(self.quant.map(|_| settings.quantization()))
    }

    /// The quantization of a model's base: as the flags ask, otherwise as the adapter was trained.
    ///
    /// # Errors
    /// As [`QuantArgs::quantization`].
    pub fn choice(&self) -> Result<QuantChoice> {
        Ok(self.quantization()?.map_or(QuantChoice::AsTrained, QuantChoice::As))
    }
}
