//! Report of a merge: inputs, files, and the measurements that decided.

use std::path::{Path, PathBuf};

use danlu_model::Quantization;
use serde::{Deserialize, Serialize, Serializer};

/// The report of a merge.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// Folder of the base.
    #[serde(serialize_with = "lossy")]
    pub base: PathBuf,
    /// Folder of the adapter, if it was loaded from one.
    #[serde(serialize_with = "lossy_if_any")]
    pub adapter: Option<PathBuf>,
    /// Form of the base that the updates were added to.
    pub merge_base: MergeBase,
    /// Difference of each form of the base from the trained model, if both forms were available.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<FormFidelity>,
    /// Cost of quantizing the merged model, if it was quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<QuantizedFidelity>,
    /// Element types of the result, spelt as in `config.json`, and the code of 4-bit weights.
    pub dtype: Vec<String>,
    /// Scaling factors of the updates, ascending, without repetition.
    pub scaling: Vec<f32>,
    /// Tensors that received an update.
    pub merged_tensors: usize,
    /// Tensors copied unchanged.
    pub copied_tensors: usize,
    /// Names of the weight files.
    pub shards: Vec<String>,
    /// Bytes of all files except this report.
    pub bytes: u64,
    /// Duration.
    pub seconds: f64,
}

/// JSON cannot represent every path. Invalid UTF-8 becomes U+FFFD.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

fn lossy_if_any<S: Serializer>(path: &Option<PathBuf>, serializer: S) -> Result<S::Ok, S::Error> {
    path.as_ref().map(|path| path.to_string_lossy()).serialize(serializer)
}

/// The form of the base that an adapter is merged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MergeBase {
    /// The published weights, in 16 bits or more.
    Original,
    /// The weights as dequantized from 4 bits.
    Dequantized,
}

impl MergeBase {
    /// Returns the name of the form: `original`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Original => "original",
            Self::Dequantized => "dequantized",
        }
    }
}

/// Difference of one form of the base from the trained model. The trained model is the adapter on the
/// dequantized form.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormFidelity {
    /// Form of the base.
    pub form: MergeBase,
    /// Whether the merged and rounded weights were measured. Otherwise the adapter on this form was measured.
    pub merged: bool,
    /// Mean divergence from the trained model, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}

/// Cost of quantizing a merged model. `MergeReport` then holds the measurement of the quantized model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedFidelity {
    /// Settings of the quantization.
    #[serde(flatten)]
    pub quantization: Quantization,
    /// Mean divergence from the base with adapter, in nats a token.
    pub kl: f64,
    /// Perplexity of the merged 4-bit model on the held-out text.
    pub perplexity: f64,
    /// Share of the adapter's effect that remains, by divergence: `Fidelity::adapter_kept`.
    #[serde(default)]
    pub adapter_kept: Option<f64>,
    /// Measurement of the merge before quantization.
    #[serde(default)]
    pub before: Option<UnquantizedFidelity>,
}

/// Measurement of a merge before it is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnquantizedFidelity {
    /// Mean divergence from the base with adapter, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}
