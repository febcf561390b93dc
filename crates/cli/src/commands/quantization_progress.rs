//! Quantizes in the terminal, with progress and a stop after Ctrl-C.

use std::ops::ControlFlow;

use danlu_model::{ModelConfig, ModelError, Quantization, QuantizeProgress, Weights};

use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;
use crate::notices::show_quantizing;
use crate::printer::Printer;

/// Quantizes weights in memory. Returns `weights` unchanged if `quantization` is `None`.
///
/// # Errors
/// If the weights do not match the configuration or are already quantized, or if Ctrl-C stops the
/// quantization.
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

/// Returns a callback that shows progress and stops after Ctrl-C.
pub fn progress(
    quantization: Quantization,
    printer: &Printer,
) -> impl FnMut(QuantizeProgress) -> ControlFlow<()> {
    move |progress| {
        show_quantizing(quantization.quant_type, progress, printer);
        interrupt::check()
    }
}

/// Converts an error to a diagnostic. A stop by Ctrl-C gets its own message.
pub fn diagnose(error: ModelError) -> Diagnostic {
    match error {
        ModelError::Stopped => danlu_loader::LoadError::Stopped.into(),
        error => error.into(),
    }
}

/// Formats the 4-bit type of a stored base, such as `nf4 (stored)`.
pub fn stored_code(stored: Quantization, printer: &Printer) -> String {
    let code = stored.quant_type;
    printer.pick(format!("{code}（基座所存）"), format!("{code} (stored)"))
}
