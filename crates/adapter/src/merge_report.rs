//! Report of a merge: inputs, files, and the measurements that decided whether the merge passed.

use std::path::{Path, PathBuf};

use danlu_model::Quantization;
use serde::{Deserialize, Serialize, Serializer};

/// The report of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// Folder of the base.
    #[serde(serialize_with = "lossy")]
    pub base: PathBuf,
    /// Folder from which the adapter was loaded, if there is one.
    #[serde(serialize_with = "lossy_if_any")]
    pub adapter: Option<PathBuf>,
    /// The variant of the base that the updates were added to.
    pub merge_base: MergeBase,
    /// The measurement of each variant of the base, if the original and the dequantized base were both
    /// available.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<FormFidelity>,
    /// If the merged model was quantized, the effect of the quantization.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<QuantizedFidelity>,
    /// Element types of the result, as `config.json` spells them, and the 4-bit type of quantized weights.
    pub dtype: Vec<String>,
    /// Scaling factors of the updates in ascending order, each factor once.
    pub scaling: Vec<f32>,
    /// Number of tensors to which an update was added.
    pub merged_tensors: usize,
    /// Number of tensors that were copied unchanged.
    pub copied_tensors: usize,
    /// Names of the weight files.
    pub shards: Vec<String>,
    /// Total size of all files except this report, in bytes.
    pub bytes: u64,
    /// Duration of the merge in seconds.
    pub seconds: f64,
}

/// Serializes a path. JSON cannot represent every path, so invalid UTF-8 is replaced by U+FFFD.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn lossy_if_any<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

/// A variant of the base that an adapter can be merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeBase {
    /// The original weights of the base, in 16 bits or more.
    Original,
    /// The weights of the base after quantization to 4 bits and dequantization.
    Dequantized,
}

impl MergeBase {
    /// Returns the name of the variant, such as `original`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Dequantized => "dequantized",
        }
    }
}

/// Difference of one variant of the base from the trained model. The trained model is the adapter on the
/// dequantized variant.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormFidelity {
    /// The variant of the base.
    pub form: MergeBase,
    /// Whether the merged and rounded weights were measured. If false, the adapter was measured on this
    /// variant without merging.
    pub merged: bool,
    /// Mean divergence from the trained model, in nats per token.
    pub kl: f64,
    /// Perplexity on the held-out text.
    pub perplexity: f64,
}

/// The effect of quantizing a merged model. If a `MergeReport` contains this value, the `fidelity` in
/// `merge_report.json` is that of the quantized model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedFidelity {
    /// Settings of the quantization.
    #[serde(flatten)]
    pub quantization: Quantization,
    /// Mean divergence from the base with adapter, in nats per token.
    pub kl: f64,
    /// Perplexity of the merged 4-bit model on the held-out text.
    pub perplexity: f64,
    /// Share of the adapter's effect that remains, measured by divergence: see `Fidelity::adapter_kept`.
    #[serde(default)]
    pub adapter_kept: Option<f64>,
    /// Measurement of the merged model before quantization.
    #[serde(default)]
    pub before: Option<UnquantizedFidelity>,
}

/// Measurement of a merged model before quantization.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnquantizedFidelity {
    /// Mean divergence from the base with adapter, in nats per token.
    pub kl: f64,
    /// Perplexity on the held-out text.
    pub perplexity: f64,
}
