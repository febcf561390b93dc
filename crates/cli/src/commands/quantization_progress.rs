//! Quantizing weights at the terminal: progress, Ctrl-C, and the name of the code.

use std::ops::ControlFlow;

use danlu_model::{ModelConfig, ModelError, Quantization, QuantizeProgress, Weights};

use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::notices::show_quantizing;
use crate::printer::Printer;

/// Quantizes weights that are not in a folder; none returns them as they are.
///
/// # Errors
/// If they do not match the configuration or are in 4 bits already, or Ctrl-C stops it.
pub fn quantize(
    weights: Weights,
    config: &ModelConfig,
    quantization: Option<Quantization>,
    threads: usize,
    printer: &Printer,
) -> Result<Weights> {
    let Some(quantization) = quantization else { return Ok(weights) };
    let weights = weights.quantize(config, quantization, threads, &mut progress(quantization, printer));
    printer.clear_live();
    weights.map_err(diagnose)
}

/// Shows progress; stops after Ctrl-C.
pub fn progress(
    quantization: Quantization,
    printer: &Printer,
) -> impl FnMut(QuantizeProgress) -> ControlFlow<()> {
    move |progress| {
        show_quantizing(quantization.quant_type, progress, printer);
        interrupt::check()
    }
}

/// The diagnostic of an error, with a stop in plain words.
pub fn diagnose(error: ModelError) -> Diagnostic {
    match error {
        ModelError::Stopped => danlu_loader::LoadError::Stopped.into(),
        error => error.into(),
    }
}

/// The code of a base that is stored in 4 bits, to show.
pub fn stored_code(stored: Quantization, printer: &Printer) -> String {
    let code = stored.quant_type;
    printer.pick(format!("{code}（基座所存）"), format!("{code} (stored)"))
}
