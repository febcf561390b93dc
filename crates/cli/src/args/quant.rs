//! `--quant` and its companions.

use std::str::FromStr;

use clap::Args;
use danlu_model::Quantization;
use danlu_train::{Quant, TrainSettings};

use crate::commands::base::trained_over;
use crate::commands::loaded::ModelDirs;
use crate::diagnostic::Result;
use crate::printer::Printer;

/// The flags that put a base in 16 bits into 4 while it is loaded.
#[derive(Args, Clone, Debug, Default)]
pub struct QuantArgs {
    /// Put the base's projections into 4 bits while it is loaded: nf4, fp4 or none [default: none]
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
    /// Sets what was given.
    pub fn apply(&self, settings: &mut TrainSettings) {
        settings.quant = self.quant.unwrap_or(settings.quant);
        settings.no_double_quant = self.no_double_quant.unwrap_or(settings.no_double_quant);
        settings.quant_block_size = self.quant_block_size.unwrap_or(settings.quant_block_size);
    }

    /// What the flags ask for, if they ask for anything: `Some(None)` leaves the base as it is.
    ///
    /// # Errors
    /// If [`TrainSettings::validate`] refuses them.
    pub fn quantization(&self) -> Result<Option<Option<Quantization>>> {
        let mut settings = TrainSettings::default();
        self.apply(&mut settings);
        settings.validate()?;
        Ok(self.quant.map(|_| settings.quantization()))
    }

    /// What the base of the model at `place` is put into: as the flags ask, else as [`trained_over`] says.
    ///
    /// # Errors
    /// If the flags contradict each other, or a file of the adapter or the base has a fault.
    pub fn of(&self, place: &ModelDirs, printer: &Printer) -> Result<Option<Quantization>> {
        if let Some(asked) = self.quantization()? {
            return Ok(asked);
        }
        let trained = trained_over(place, printer)?;
        if let Some(Quantization { quant_type, .. }) = trained {
            let name = place.name();
            printer.status_bilingual(
                &format!("{name} 是在 {quant_type} 基座上训练的：基座同样转为 4 位（`--quant none` 可保持原样）"),
                &format!("{name} was trained over {quant_type}: its base is put into 4 bits too (`--quant none` leaves it)"),
            );
        }
        Ok(trained)
    }
}
