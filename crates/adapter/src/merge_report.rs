//! The report of a merge: its inputs, its files, and the measurements that judged it.

use std::path::PathBuf;

use danlu_model::Quantization;
use serde::{Deserialize, Serialize};

/// The report of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// The base's folder, as given.
    pub base: PathBuf,
    /// The adapter's folder, if it came from one.
    pub adapter: Option<PathBuf>,
    /// Which form of the base the updates were added to.
    pub merge_base: MergeBase,
    /// The difference of each form of the base from the trained model, if both forms were available.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<FormFidelity>,
    /// The cost of quantizing the merged model, if it was quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<QuantizedFidelity>,
    /// Element types of the result, as `config.json` spells them, and the code of 4-bit weights.
    pub dtype: Vec<String>,
    /// Factors of the updates, ascending, each once.
    pub scaling: Vec<f32>,
    /// Tensors that received an update.
    pub merged_tensors: usize,
    /// Tensors taken over.
    pub copied_tensors: usize,
    /// Names of the weights' files.
    pub shards: Vec<String>,
    /// Bytes of all files written but this report.
    pub bytes: u64,
    /// Time it took.
    pub seconds: f64,
}

/// The form of the base that an adapter is merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeBase {
    /// The published weights, in 16 bits or more.
    Original,
    /// Out of 4 bits.
    Dequantized,
}

impl MergeBase {
    /// The word for it: `original`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Dequantized => "dequantized",
        }
    }
}

/// The difference of one form of the base from the trained model, which is the adapter on the dequantized
/// form.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormFidelity {
    /// Which form.
    pub form: MergeBase,
    /// Whether the written, rounded merge was measured. Otherwise it was the adapter on this form, without
    /// rounding.
    pub merged: bool,
    /// Mean divergence from the trained model, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}

/// The cost of quantizing a merged model. The measurement in the report is then that of the quantized model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedFidelity {
    /// The quantization.
    #[serde(flatten)]
    pub quantization: Quantization,
    /// Mean divergence from adapter on base, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text, merged and in 4 bits.
    pub perplexity: f64,
    /// Share of the adapter's effect that is left, by divergence: `Fidelity::adapter_kept`.
    #[serde(default)]
    pub adapter_kept: Option<f64>,
    /// The measurement of the merge before it was quantized.
    #[serde(default)]
    pub before: Option<UnquantizedFidelity>,
}

/// The measurement of an unquantized merge that is then quantized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnquantizedFidelity {
    /// Mean divergence from adapter on base, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}
