//! The model that is measured: a base, or random weights with a known shape.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;
use danlu_hub::FetchScope;
use danlu_kernels::DType;
use danlu_loader::folder_name;
use danlu_model::{
    FolderState, ModelConfig, ModelError, Preset, Quantization, RandomProgress, RandomWeights, Weights,
};
use danlu_train::{WeightBytes, device_weight_bytes, device_weight_bytes_of, weight_bytes, weight_bytes_of};

use super::output::BenchOutput;
use super::stopped;
use crate::commands::quantization_progress::quantize;
use crate::diagnostic::{Diagnostic, Result};
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::{interrupt, memory, terminal_text};

/// Seed of the random weights.
const SEED: u64 = 1;

/// Largest weight file, in bytes: the default of transformers 4.
const SHARD: u64 = 5_000_000_000;

/// The flags that choose a model.
#[derive(Args, Clone, Debug)]
pub struct ModelArgs {
    /// Model: a folder or a Hub name
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub base: Option<PathBuf>,
    /// Random weights in a known shape instead: base-8m, base-28m, llama-125m, llama-3.2-1b, llama-3-8b,
    /// qwen3-0.6b, gemma-3-1b or phi-4-mini
    #[arg(long, value_name = "NAME", value_parser = Preset::from_str, help_heading = "Model")]
    pub shape: Option<Preset>,
    /// Folder for the random weights; existing ones are used again [default: in memory]
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    pub keep: Option<PathBuf>,
}

/// The model that the flags select.
#[derive(Clone, Debug)]
pub enum BenchModel {
    /// A model in a folder.
    Folder(PathBuf),
    /// Random weights with a known shape. If a folder is given, the weights are stored in it.
    Shape(Preset, Option<PathBuf>),
}

impl ModelArgs {
    /// Returns the model that the flags select.
    ///
    /// # Errors
    /// If the flags select no model, or two models.
    pub fn model(&self, printer: &Printer) -> Result<BenchModel> {
        let shapes = || Preset::ALL.map(Preset::name).join(", ");
        match (&self.base, self.shape, &self.keep) {
            (Some(_), Some(_), _) => Err(Diagnostic::input("`--base` and `--shape` cannot be used together")
                .with_hint("omit one of them")),
            (Some(_), None, Some(_)) => Err(Diagnostic::input("`--keep` goes with `--shape`")
                .with_hint("omit `--keep`, which stores random weights")),
            (Some(base), None, None) => {
                Ok(BenchModel::Folder(ModelLoader::new(printer).base_folder(base, FetchScope::Full)?))
            }
            (None, Some(shape), keep) => Ok(BenchModel::Shape(shape, keep.clone())),
            (None, None, _) => {
                Err(Diagnostic::input("`--base` or `--shape` is missing: the model to measure")
                    .with_hint(format!("the shapes are {}", shapes())))
            }
        }
    }
}

impl BenchModel {
    pub fn is_in_memory(&self) -> bool {
        matches!(self, Self::Shape(_, None))
    }

    /// Returns the configuration.
    ///
    /// # Errors
    /// If the folder has no supported configuration.
    pub fn config(&self) -> Result<ModelConfig> {
        match self {
            Self::Folder(folder) => Ok(ModelConfig::read(folder)?),
            Self::Shape(shape, _) => Ok(shape.config()),
        }
    }

    pub fn name(&self) -> String {
        match self {
            Self::Folder(folder) => folder_name(folder),
            Self::Shape(shape, _) => shape.name().to_owned(),
        }
    }

    /// Returns the folder of the weights. Random weights are written to the folder of `--keep`, or without
    /// this flag to `otherwise`.
    ///
    /// # Errors
    /// If the weights cannot be written, or the folder contains a different model.
    pub fn folder(&self, otherwise: &Path, threads: usize, printer: &Printer) -> Result<PathBuf> {
        let (shape, keep) = match self {
            Self::Folder(folder) => return Ok(folder.clone()),
            Self::Shape(shape, keep) => (*shape, keep),
        };
        let folder = keep.as_deref().unwrap_or(otherwise);
        let config = shape.config();
        match FolderState::of(folder, &config)? {
            FolderState::Same => {
                let place = folder.display();
                printer.status_bilingual(
                    &format!("使用 {place} 里已有的权重"),
                    &format!("using the existing weights in {place}"),
                );
            }
            FolderState::Other => {
                let text = format!("`{}` holds a model that differs from `{shape}`", folder.display());
                return Err(Diagnostic::input(text).with_hint("name a new folder, or omit `--keep`"));
            }
            FolderState::None => {
                let weights = RandomWeights { config: &config, seed: SEED, threads };
                weights.write(folder, SHARD, &mut making(printer)).map_err(making_failed)?;
                printer.clear_live();
            }
        }
        Ok(folder.to_owned())
    }

    /// Returns the weights, quantized if requested. The weights are mapped from a folder or generated in
    /// memory.
    ///
    /// # Errors
    /// If a file is invalid, there is too little memory, or the weights are already in 4 bits.
    pub fn weights(
        &self,
        config: &ModelConfig,
        quantization: Option<Quantization>,
        threads: usize,
        printer: &Printer,
    ) -> Result<Weights> {
        let mapped = match self {
            Self::Shape(shape, None) => {
                check_memory(*shape, config, quantization)?;
                let weights = RandomWeights { config, seed: SEED, threads };
                let made = weights.in_memory(quantization, &mut making(printer)).map_err(making_failed)?;
                printer.clear_live();
                return Ok(made);
            }
            Self::Shape(_, Some(keep)) => Weights::open(&self.folder(keep, threads, printer)?)?,
            Self::Folder(folder) => Weights::open(folder)?,
        };
        quantize(mapped, config, quantization, threads, printer)
    }

    /// Returns the size of the loaded weights. Random weights need not exist yet.
    ///
    /// # Errors
    /// If a file is invalid, or if `quantization` is given but the weights are already in 4 bits.
    pub fn weight_bytes(
        &self,
        config: &ModelConfig,
        quantization: Option<(Quantization, usize)>,
    ) -> Result<WeightBytes> {
        let keep = match self {
            Self::Folder(folder) => return Ok(weight_bytes(folder, config, quantization, None)?),
            Self::Shape(_, keep) => keep,
        };
        let bytes = weight_bytes_of(None, config, quantization, None);
        Ok(match keep {
            Some(_) => bytes,
            None => WeightBytes { mapped: 0, resident: bytes.total(), ..bytes },
        })
    }

    /// Returns the device memory of the loaded weights for computation in `dtype`. Random weights need not
    /// exist yet.
    ///
    /// # Errors
    /// Returns the errors of [`BenchModel::weight_bytes`].
    pub fn device_weight_bytes(
        &self,
        config: &ModelConfig,
        quantization: Option<Quantization>,
        dtype: DType,
    ) -> Result<WeightBytes> {
        match self {
            Self::Folder(folder) => Ok(device_weight_bytes(folder, config, quantization, dtype)?),
            Self::Shape(..) => Ok(device_weight_bytes_of(None, config, quantization, dtype, None)),
        }
    }

    /// Reports the model. Returns the size of its weights in bytes.
    pub fn describe(
        &self,
        config: &ModelConfig,
        (weights, quantization): (&Weights, Option<Quantization>),
        figures: &mut BenchOutput<'_>,
        printer: &Printer,
    ) -> u64 {
        let bytes = match quantization.filter(|_| !weights.is_quantized()) {
            Some(quantization) => {
                weight_bytes_of(Some(weights), config, Some((quantization, 1)), None).total()
            }
            None => weights.total_bytes(),
        };
        let which = match self {
            Self::Folder(folder) => folder.display().to_string(),
            Self::Shape(shape, Some(folder)) => printer.pick(
                format!("{shape} · 随机权重，在 {}", folder.display()),
                format!("{shape} · random weights in {}", folder.display()),
            ),
            Self::Shape(shape, None) => {
                printer.pick(format!("{shape} · 随机权重"), format!("{shape} · random weights"))
            }
        };
        let (parameters, size) = (config.num_parameters(), terminal_text::bytes(bytes));
        let count = terminal_text::thousands(parameters);
        figures.row(
            ("模型", "model"),
            &printer.pick(
                format!("{which} · {count} 个参数，{size}"),
                format!("{which} · {count} parameters, {size}"),
            ),
        );
        figures.set("model", self.name());
        figures.set("random_weights", matches!(self, Self::Shape(..)));
        figures.set("parameters", parameters);
        figures.set("weight_bytes", bytes);
        bytes
    }
}

/// Returns a callback that shows progress and stops after Ctrl-C.
fn making(printer: &Printer) -> impl FnMut(RandomProgress) -> ControlFlow<()> {
    |p| {
        let (done, total) = (terminal_text::bytes(p.bytes), terminal_text::bytes(p.total));
        printer.live(&printer.pick(
            format!("生成随机权重 {done} / {total}"),
            format!("generating random weights: {done} of {total}"),
        ));
        interrupt::check()
    }
}

fn making_failed(error: ModelError) -> Diagnostic {
    match error {
        ModelError::Stopped => stopped(),
        error => error.into(),
    }
}

/// Checks that the weights fit the available memory.
fn check_memory(shape: Preset, config: &ModelConfig, quantization: Option<Quantization>) -> Result<()> {
    let bytes = weight_bytes_of(None, config, quantization.map(|q| (q, 1)), None);
    let needed = bytes.total() + bytes.loading;
    match memory::machine() {
        Some((_, available)) if needed > available => {
            let (needed, available) = (terminal_text::bytes(needed), terminal_text::bytes(available));
            let text =
                format!("the weights of `{shape}` need {needed}, and {available} of memory is available");
            Err(Diagnostic::input(text)
                .with_hint("write them to a disk with `--keep DIR`, which maps them from there"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lang::Lang;
    use crate::style::Color;

    fn refused(base: bool, shape: bool, keep: bool) -> String {
        let path = |given: bool| given.then(|| PathBuf::from("x"));
        let args = ModelArgs { base: path(base), shape: shape.then_some(Preset::Base8m), keep: path(keep) };
        args.model(&Printer::new(Lang::En, Color::Never, false)).unwrap_err().render(false)
    }

    #[test]
    fn exactly_one_model_is_measured() {
        assert!(
            refused(true, true, false).starts_with("error: `--base` and `--shape` cannot be used together")
        );
        assert!(refused(true, false, true).starts_with("error: `--keep` goes with `--shape`"));
        let none = refused(false, false, false);
        assert!(none.contains("is missing") && none.contains("llama-3.2-1b"), "{none}");
    }
}
