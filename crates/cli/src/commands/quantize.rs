//! `danlu quantize`: writes a 16-bit base as a 4-bit folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use danlu_adapter::CONFIG_FILE;
use danlu_adapter::IDENTITY_FILE;
use danlu_hub::FetchScope;
use danlu_kernels::{DType, FourBitCode};
use danlu_loader::{ModelRef, folder_name, identify_base};
use danlu_model::{
    Extra, ModelConfig, ModelError, Quantization, Quantized, StagedFolder, Weights, files, projections,
    quantize_into,
};
use danlu_report::card::{self, Card, CardLanguage, InFourBits, PICTURE_FILE};

use crate::args::ComputeArgs;
use crate::commands::quantization_progress::{diagnose, progress};
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::lesson;
use crate::memory_forecast::MemoryForecast;
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::style::Style;
use crate::{interrupt, terminal_text};

pub const EXAMPLES: &str = "\
Examples:
  danlu quantize danlu-demo/base-8m --to nf4 --output out/base-8m-nf4
  danlu train --base out/base-8m-nf4 --data danlu-demo/palace.json \\
    --output out/qlora

The folder has the format of bitsandbytes, and transformers loads it. `--quant nf4` does the same \
at load time, and writes nothing.";

/// Maximum size in bytes of a copied file such as `danlu.json`.
const MAX_CARRIED_BYTES: u64 = 16 << 20;

/// The flags of `danlu quantize`.
#[derive(Args, Clone, Debug)]
pub struct QuantizeArgs {
    /// Base: a folder or a Hub name
    pub base: PathBuf,
    /// 4-bit type: nf4 or fp4
    #[arg(long, value_name = "TYPE", default_value = "nf4", value_parser = FourBitCode::from_str)]
    pub to: FourBitCode,
    /// Output folder: new or empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Store the scales in f32 instead of 8 bits
    #[arg(long)]
    pub no_double_quant: bool,
    /// Number of weights that share a scale [default: 64]
    #[arg(long, value_name = "N")]
    pub quant_block_size: Option<usize>,
    /// Modules that are not quantized, separated by commas: full names or their last parts, such as down_proj
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = module)]
    pub skip_modules: Vec<String>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Quantizes the base, and writes the folder.
///
/// # Errors
/// If the base is invalid or already in 4 bits, or the folder cannot be written.
pub fn run(args: &QuantizeArgs, printer: &Printer) -> Result<()> {
    let block_size = args.quant_block_size.unwrap_or(Quantization::BLOCK_SIZE);
    if let Err(expected) = Quantization::check_block_size(block_size) {
        return Err(Diagnostic::input(format!("`--quant-block-size` is {block_size}, expected {expected}")));
    }
    let quantization = Quantization { quant_type: args.to, block_size, double_quant: !args.no_double_quant };
    let loader = ModelLoader::new(printer);
    let model = ModelRef::parse(&embedded_base::resolve(&args.base)?);
    let folder = loader.run(|loader, notices| loader.resolve(&model, FetchScope::Full, notices))?;
    if folder.join(CONFIG_FILE).is_file() && !folder.join("config.json").is_file() {
        let (shown, word) = (args.base.display(), terminal_text::shell_path(&args.base));
        let hint = format!("merge it first: danlu merge {word} --output DIR; then danlu quantize DIR");
        return Err(Diagnostic::input(format!("`{shown}` is an adapter, expected a base")).with_hint(hint));
    }
    let base = &loader.base_folder(&folder, FetchScope::Full)?;
    let _attention = interrupt::graceful_stop(None)?;
    let start = Instant::now();
    let wide = size_of_weights(base)?;
    check_memory(args, base, (quantization, wide), printer)?;
    // `danlu.json` and the card are read before the quantization, so that an error in these files appears
    // early.
    let identity = carried(base, IDENTITY_FILE)?;
    let known = known(base, printer).filter(|card| card.merge.is_some());
    let notes = if known.is_some() { card::read_notes(base)?.unwrap_or_default() } else { String::new() };
    let picture =
        if known.as_ref().is_some_and(|card| card.has_picture) { carried(base, PICTURE_FILE)? } else { None };
    let known = known.map(|card| Card { has_picture: picture.is_some(), ..card });
    let extra = |written: &Quantized| {
        let in_four_bits = InFourBits {
            quantization,
            skipped: args.skip_modules.clone(),
            sizes: (terminal_text::bytes(wide), terminal_text::bytes(written.weight_bytes)),
        };
        let name = folder_name(&args.output);
        let card = known.unwrap_or_else(|| {
            let named = identify_base(&args.base.to_string_lossy(), base);
            let language = printer.pick(CardLanguage::Zh, CardLanguage::En);
            Card::of_base(name.clone(), language, named, base)
        });
        let card = card.quantized(name, in_four_bits);
        card.files(&notes).into_iter().chain(identity).chain(picture).collect()
    };
    let written = quantize_into(
        StagedFolder::create(&args.output)?,
        base,
        quantization,
        &args.skip_modules,
        args.compute.threads(),
        extra,
        &mut progress(quantization, printer),
    );
    printer.clear_live();
    let Quantized { weights, elements, weight_bytes, .. } = written.map_err(fault)?;
    let (seconds, before, after) =
        (start.elapsed().as_secs_f64(), terminal_text::bytes(wide), terminal_text::bytes(weight_bytes));
    let (count, rate) = (terminal_text::thousands(elements), elements as f64 / seconds / 1e9);
    let (code, output) = (quantization.quant_type, args.output.display());
    printer.data(&printer.pick(
        format!("{weights} 个权重（{count} 个元素）转为 {code}，{before} → {after}，用时 {seconds:.1} 秒（每秒 {rate:.2} G 个元素）：{output}"),
        format!("{weights} weights ({count} elements) in {code}, {before} → {after} in {seconds:.1}s ({rate:.2} G elements/s): {output}"),
    ));
    printer.teach(lesson::QUANTIZED);
    printer.status(&format!("\n{}", printer.pick("接下来：", "next:")));
    let output = terminal_text::shell_path(&args.output);
    let train = format!("danlu train --base {output} --data FILE --output DIR");
    for command in [format!("danlu chat {output}"), train] {
        printer.status(&format!("  {}", printer.paint_status(Style::Cyan, &command)));
    }
    Ok(())
}

/// Checks that the largest weight and its 4-bit form fit into the free memory.
fn check_memory(
    args: &QuantizeArgs,
    base: &Path,
    (quantization, wide): (Quantization, u64),
    printer: &Printer,
) -> Result<()> {
    let config = ModelConfig::read(base)?;
    let threads = args.compute.threads();
    let largest = projections(&config).map(|(_, rows, cols)| rows * cols).max().unwrap_or(0);
    // Every tensor is read and checked, including the embedding table. One tensor is in memory at a time, so
    // the largest one counts.
    let tensor = config.tensors().map(|(_, shape)| shape.iter().product::<usize>()).max().unwrap_or(0);
    let mut forecast = MemoryForecast::new();
    forecast.add_file(wide);
    forecast.add_pages((tensor * config.dtype.unwrap_or(DType::Bf16).size()) as u64);
    forecast.add_working(quantization.bytes(largest) + quantization.passing_bytes(largest, threads));
    forecast.check("quantize", &args.base, printer)
}

/// Parses the name of a module. transformers reads the name as a pattern, so characters that are special in
/// patterns are rejected, except the dot.
fn module(name: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
    match !name.is_empty() && name.chars().all(is_plain) {
        true => Ok(name.to_owned()),
        false => Err("expected letters, digits, `_` and `.`, as in down_proj".to_owned()),
    }
}

/// Reads the card of the base. If `card.json` is invalid, prints a warning and returns `None`.
fn known(base: &Path, printer: &Printer) -> Option<Card> {
    Card::read(base).unwrap_or_else(|error| {
        printer.warn(&printer.pick(
            format!("{error}：模型卡片按没有记录写"),
            format!("{error}: the model card is written as without a record"),
        ));
        None
    })
}

/// Returns the content of the base's file `name`, if the file exists. The caller writes it to the output.
fn carried(base: &Path, name: &'static str) -> Result<Option<Extra>> {
    let path = base.join(name);
    if !path.is_file() {
        return Ok(None);
    }
    Ok(Some((name, files::read_bounded(&path, MAX_CARRIED_BYTES)?)))
}

/// Returns the total size of a model's safetensors files.
fn size_of_weights(folder: &Path) -> Result<u64> {
    let size = |file: &PathBuf| fs::metadata(file).map(|file| file.len());
    let sizes = Weights::open(folder)?.files().iter().map(size).sum::<io::Result<u64>>();
    sizes.map_err(|error| Diagnostic::io("read", folder, error))
}

fn fault(error: ModelError) -> Diagnostic {
    match error {
        error @ ModelError::AlreadyFourBit { .. } => Diagnostic::from(error).with_hint(
            "use the folder as it is, or name the original to quantize it to a different 4-bit type",
        ),
        error => diagnose(error),
    }
}
