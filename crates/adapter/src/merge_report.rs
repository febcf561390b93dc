//! The report of a merge: its inputs, its files, and the measurements that judged it.

use std::path::PathBuf;

use danlu_model::Quantization;
use serde::{Deserialize, Serialize};

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// The base's folder, as given.
    pub base: PathBuf,
    /// The adapter's folder, if it came from one.
    pub adapter: Option<PathBuf>,
    /// Which form of the base the updates were added to.
    pub merge_base: MergeBase,
    /// Where two forms of the base were at hand: how far what was measured on each is from what was trained.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forms: Vec<FormFidelity>,
    /// What putting the merged model into 4 bits costs, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantized: Option<QuantizedFidelity>,
    /// Element types of the result, as `config.json` spells them; that of 4 bits by its code.
    pub dtype: Vec<String>,
    /// Factors that the updates were multiplied with, ascending, each once.
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
    /// As its author published it, in 16 bits or more.
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

/// How far one form of the base is from what was trained, which is the adapter on the form out of 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FormFidelity {
    /// Which form.
    pub form: MergeBase,
    /// Whether the merge into this form was measured, rounded and written; otherwise it was the adapter beside this
    /// form, where nothing is rounded.
    pub merged: bool,
    /// Mean divergence from what was trained, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}

/// What 4 bits take from a merged model. The measurement in its report is then that of the model in 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizedFidelity {
    /// How they were made.
    #[serde(flatten)]
    pub quantization: Quantization,
    /// Mean divergence from adapter on base, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text, merged and in 4 bits.
    pub perplexity: f64,
    /// Share of what the adapter does that is left, by divergence: see [`Fidelity::adapter_kept`].
    #[serde(default)]
    pub adapter_kept: Option<f64>,
    /// What was measured before, of the merge that was put into 4 bits.
    #[serde(default)]
    pub before: Option<UnquantizedFidelity>,
}

/// A merge that is not kept: the one that goes into 4 bits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnquantizedFidelity {
    /// Mean divergence from adapter on base, in nats a token.
    pub kl: f64,
    /// Perplexity of the held-out text.
    pub perplexity: f64,
}
