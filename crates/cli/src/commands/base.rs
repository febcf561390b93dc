//! A base on its way into memory: as it is in its folder, or put into 4 bits.

use std::ops::ControlFlow;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use danlu_kernels::Backend;
use danlu_model::{Decoder, ModelConfig, ModelError, Quantization, QuantizeProgress, Weights};
use danlu_train::{Quant, TokenIdentity, TrainSettings};

use super::loaded::Place;
use crate::printer::Printer;
use crate::report::{Report, Result};
use crate::{interrupt, text};

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
    /// If the block size cannot be, or a detail is given of a quantisation that is not.
    pub fn quantization(&self) -> Result<Option<Option<Quantization>>> {
        let mut settings = TrainSettings::default();
        self.apply(&mut settings);
        settings.validate()?;
        let quantization = settings.quantization();
        if quantization.is_none() && (self.no_double_quant == Some(true) || self.quant_block_size.is_some()) {
            let text = "`--no-double-quant` and `--quant-block-size` say how, and `--quant` is not there";
            return Err(Report::input(text).with_hint("add `--quant nf4`"));
        }
        Ok(self.quant.map(|_| quantization))
    }

    /// What the base of the model at `place` is put into: as the flags ask, else as the adapter was trained.
    ///
    /// # Errors
    /// If the flags contradict each other, or the adapter's `danlu.json` has a fault.
    pub fn of(&self, place: &Place, printer: &Printer) -> Result<Option<Quantization>> {
        if let Some(asked) = self.quantization()? {
            return Ok(asked);
        }
        let trained = trained_over(place)?;
        if let Some(Quantization { code, .. }) = trained {
            printer.tell(
                &format!("适配器是在 {code} 基座上训练的：基座同样转为 4 位（`--quant none` 可保持原样）"),
                &format!("the adapter was trained over {code}: its base is put into 4 bits too (`--quant none` leaves it)"),
            );
        }
        Ok(trained)
    }
}

/// How the base was put into 4 bits when the adapter at `place` was trained; none without an adapter.
///
/// # Errors
/// If the adapter's `danlu.json` has a fault.
pub fn trained_over(place: &Place) -> Result<Option<Quantization>> {
    let Some(adapter) = &place.adapter else { return Ok(None) };
    Ok(TokenIdentity::read(adapter)?.and_then(|identity| identity.quantization()))
}

/// Opens the base in `folder`, and puts it into 4 bits where that is asked for.
///
/// # Errors
/// If a file has a fault, or the base is in 4 bits already and should be put there.
pub fn load(
    folder: &Path,
    quantization: Option<Quantization>,
    threads: usize,
    backend: Arc<dyn Backend>,
    printer: &Printer,
) -> Result<Decoder> {
    let config = ModelConfig::read(folder)?;
    let weights = quantized(Weights::open(folder)?, &config, quantization, threads, printer)?;
    Ok(Decoder::new(config, &weights, backend)?)
}

/// The weights, put into 4 bits where that is asked for.
///
/// # Errors
/// If they are not those of the configuration, or in 4 bits already; if Ctrl-C stops it.
pub fn quantized(
    weights: Weights,
    config: &ModelConfig,
    quantization: Option<Quantization>,
    threads: usize,
    printer: &Printer,
) -> Result<Weights> {
    let Some(quantization) = quantization else { return Ok(weights) };
    let weights = weights.quantize(config, quantization, threads, &mut progress(quantization, printer));
    printer.clear_live();
    weights.map_err(stopped)
}

/// Shows how far it is, and stops where someone asked for it.
pub fn progress(
    quantization: Quantization,
    printer: &Printer,
) -> impl FnMut(QuantizeProgress) -> ControlFlow<()> {
    move |p| {
        let (done, total, code) = (text::bytes(p.bytes), text::bytes(p.total), quantization.code);
        printer.live(&printer.pick(
            format!("转为 {code}：{done} / {total}"),
            format!("putting weights into {code}: {done} of {total}"),
        ));
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }
}

/// A stop in plain words.
pub fn stopped(error: ModelError) -> Report {
    match error {
        ModelError::Stopped => Report::input("stopped while weights were put into 4 bits"),
        error => error.into(),
    }
}
