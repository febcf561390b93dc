//! `danlu quantize`: a base in 16 bits into a folder in 4.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Instant;

use clap::Args;
use danlu_hub::Extent;
use danlu_kernels::FourBitCode;
use danlu_model::{ModelError, Quantization, Quantized, write_quantized};

use crate::commands::ComputeArgs;
use crate::commands::base;
use crate::commands::no_model;
use crate::printer::Printer;
use crate::report::{Report, Result};
use crate::{interrupt, text};

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu quantize models/Llama-3.2-1B-Instruct --to nf4 --output models/Llama-3.2-1B-Instruct-nf4
  danlu train --base models/Llama-3.2-1B-Instruct-nf4 --data mine.json --output out/mine

The folder is bitsandbytes' own: transformers loads it. `--quant nf4` does the same while a base is loaded, and writes
nothing.";

/// The flags of `danlu quantize`.
#[derive(Args, Clone, Debug)]
pub struct QuantizeArgs {
    /// Folder of the base
    pub base: PathBuf,
    /// Code of 4 bits: nf4 or fp4
    #[arg(long, value_name = "TYPE", default_value = "nf4", value_parser = FourBitCode::from_str)]
    pub to: FourBitCode,
    /// Folder to write to: new or empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Leave the scales in f32 instead of 8 bits
    #[arg(long)]
    pub no_double_quant: bool,
    /// Weights that share a scale [default: 64]
    #[arg(long, value_name = "N")]
    pub quant_block_size: Option<usize>,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

/// Writes the folder.
///
/// # Errors
/// If the base has a fault or is in 4 bits already, or the folder cannot be written.
pub fn run(args: &QuantizeArgs, printer: &Printer) -> Result<()> {
    let block_size = args.quant_block_size.unwrap_or(Quantization::BLOCK_SIZE);
    if let Err(expected) = Quantization::check_block_size(block_size) {
        return Err(Report::input(format!("`--quant-block-size` is {block_size}, expected {expected}")));
    }
    let quantization = Quantization { quant_type: args.to, block_size, double_quant: !args.no_double_quant };
    let base = &no_model::base(&args.base, Extent::All, printer)?;
    let _attention = interrupt::listen(None)?;
    let start = Instant::now();
    let written = write_quantized(
        base,
        &args.output,
        quantization,
        args.compute.threads(),
        &mut base::progress(quantization, printer),
    );
    printer.clear_live();
    let Quantized { weights, elements, bytes, .. } = written.map_err(fault)?;
    let (seconds, size) = (start.elapsed().as_secs_f64(), text::bytes(bytes));
    let (count, rate) = (text::thousands(elements), elements as f64 / seconds / 1e9);
    let (code, output) = (quantization.quant_type, args.output.display());
    printer.out(&printer.pick(
        format!("{weights} 个权重（{count} 个元素）转为 {code}，写出 {size}，用时 {seconds:.1} 秒（每秒 {rate:.2} G 个元素）：{output}"),
        format!("{weights} weights ({count} elements) in {code}, wrote {size} in {seconds:.1}s ({rate:.2} G elements a second): {output}"),
    ));
    Ok(())
}

fn fault(error: ModelError) -> Report {
    match error {
        error @ ModelError::AlreadyFourBit { .. } => Report::from(error).with_hint(
            "use the folder as it is; for another code of 4 bits, name the original that it was made from",
        ),
        error => base::stopped(error),
    }
}
