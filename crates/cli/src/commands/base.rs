//! A base on its way into memory: as it is in its folder, or put into 4 bits.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use danlu_adapter::{LoraConfig, TokenIdentity};
use danlu_kernels::{Backend, FourBitCode};
use danlu_model::{Decoder, ModelConfig, ModelError, Quantization, QuantizeProgress, Weights};

use super::loaded::{FOUR_BIT_NAME, ModelDirs};
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;
use crate::{interrupt, terminal_text};

/// What the base at `place` is put into to stand as it stood when the adapter was trained: as `danlu.json` tells, or
/// as bitsandbytes does by default where the adapter names a repository in 4 bits. None without an adapter, and where
/// the base is in 4 bits already.
///
/// # Errors
/// If a file of the adapter or the base has a fault.
pub fn trained_over(place: &ModelDirs, printer: &Printer) -> Result<Option<Quantization>> {
    let Some(adapter) = &place.adapter else { return Ok(None) };
    let identity = TokenIdentity::read(adapter)?;
    let trained = identity.as_ref().and_then(TokenIdentity::quantization);
    let named = match trained {
        Some(_) => None,
        None => names_four_bit(adapter)?,
    };
    if trained.is_none() && named.is_none() {
        return Ok(None);
    }
    let weights = Weights::open(&place.base)?;
    if weights.first_four_bit().is_some() {
        let stored = weights.stored_quantization()?;
        if let (Some(trained), Some(stored)) = (trained, stored)
            && trained != stored
        {
            let (name, base, [trained, stored]) =
                (place.name(), place.base.display(), [trained, stored].map(words));
            printer.warn(&printer.pick(
                format!("{name} 是在 {trained} 的基座上训练的，而 `{base}` 是 {stored}"),
                format!("{name} was trained over {trained}, and `{base}` is in {stored}"),
            ));
        }
        return Ok(None);
    }
    let skipped = identity.as_ref().map_or(&[][..], TokenIdentity::skip_modules);
    if !skipped.is_empty() {
        let text = format!(
            "the adapter was trained over 4 bits that leave {} out, and `{}` is in 16 bits or more: they are not made again here",
            terminal_text::counted(skipped.len() as u64, "projection"),
            place.base.display()
        );
        let hint = format!(
            "name the base it was trained on with `--base DIR`; `danlu quantize ORIGINAL --skip-modules {} --output DIR` makes it",
            skipped.join(",")
        );
        return Err(Diagnostic::input(text).with_hint(hint));
    }
    if let Some(named) = named {
        let base = place.base.display();
        printer.status_bilingual(
            &format!("适配器的基座是 `{named}`，即 4 位量化的仓库；以 `{base}` 为原始权重，按 bitsandbytes 的默认（nf4、双重量化）重现其 4 位形式"),
            &format!(
                "the adapter names `{named}`, a repository in 4 bits: `{base}` is taken for its original, and put into 4 bits as bitsandbytes does by default (nf4, double quantisation)"
            ),
        );
        return Ok(Some(Quantization::new(FourBitCode::Nf4)));
    }
    Ok(trained)
}

/// The 4 bits that the base in `folder` is stored in, if it is: as its weights tell, or its configuration where they are
/// not there.
///
/// # Errors
/// If a file of the weights has a fault.
pub fn stored(folder: &Path, config: &ModelConfig) -> Result<Option<Quantization>> {
    match Weights::open(folder) {
        Ok(weights) => Ok(weights.stored_quantization()?),
        Err(ModelError::NoWeights { .. } | ModelError::NoShard { .. }) => Ok(config.quantization),
        Err(error) => Err(error.into()),
    }
}

/// The code of a base that is stored in 4 bits, for whoever reads.
pub fn as_stored(stored: Quantization, printer: &Printer) -> String {
    let code = stored.quant_type;
    printer.pick(format!("{code}（基座所存）"), format!("{code} (stored)"))
}

/// A quantisation as its flags are written.
fn words(Quantization { quant_type, block_size, double_quant }: Quantization) -> String {
    let scales = if double_quant { "" } else { " --no-double-quant" };
    format!("`{quant_type} --quant-block-size {block_size}{scales}`")
}

/// The base that an adapter of another program names, where the name says that it was in 4 bits.
fn names_four_bit(adapter: &Path) -> Result<Option<String>> {
    let named = LoraConfig::read(adapter)?.base_model_name_or_path;
    Ok(named.filter(|named| named.ends_with(FOUR_BIT_NAME)))
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
        let (done, total, code) =
            (terminal_text::bytes(p.bytes), terminal_text::bytes(p.total), quantization.quant_type);
        printer.live(&printer.pick(
            format!("转为 {code}：{done} / {total}"),
            format!("putting weights into {code}: {done} of {total}"),
        ));
        interrupt::check()
    }
}

/// A stop in plain words.
pub fn stopped(error: ModelError) -> Diagnostic {
    match error {
        ModelError::Stopped => Diagnostic::input("stopped while weights were put into 4 bits"),
        error => error.into(),
    }
}
