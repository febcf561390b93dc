//! The summary of a run. The page and the card are created from this summary.

use danlu_train::{MemoryPlan, StepMetrics, TrainSettings};
use serde::{Deserialize, Serialize};

/// The summary of a run, which may still be in progress. The summary contains names, but no local paths.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Name of the adapter's folder.
    pub adapter_name: String,
    /// Name of the base on the Hub, or name of the base's folder.
    pub base_name: String,
    /// Number of parameters of base and adapter together, as PEFT counts them.
    pub all_parameters: u64,
    /// Number of parameters of the adapter.
    pub trainable_parameters: u64,
    /// All settings of the run.
    pub settings: TrainSettings,
    /// Counts of training data and held-out data.
    pub data: DataSummary,
    /// Metrics of each step.
    pub steps: Vec<StepMetrics>,
    /// Step and held-out loss of each evaluation. Step 0 is the base without an adapter.
    pub evaluations: Vec<(u64, f64)>,
    /// Replies to the same questions by the base and by the base with the adapter.
    pub replies: Vec<Reply>,
    /// Name of the back end.
    pub backend: String,
    /// Predicted and measured memory.
    #[serde(default)]
    pub memory: Option<MemoryUse>,
    /// Version of danlu that trained the adapter.
    pub version: String,
}

/// Predicted and measured memory of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// The predicted peak memory and its components.
    pub plan: MemoryPlan,
    /// The measured peak memory in bytes, if the system reports this value.
    pub peak: Option<u64>,
}

/// Counts of the records and tokens of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSummary {
    /// Data files, in the order of the command line.
    pub files: Vec<DataFile>,
    /// Number of training records.
    pub training_records: u64,
    /// Number of held-out records.
    pub held_out_records: u64,
    /// Number of tokens in the training records.
    pub tokens: u64,
    /// Number of tokens with a loss in the training records.
    pub trained_tokens: u64,
    /// Number of tokens in the longest training record.
    pub longest: u64,
    /// Number of records that were truncated to the maximum length.
    pub shortened: u64,
    /// Number of records that were dropped because truncation would have removed all trained tokens.
    pub dropped: u64,
    /// Number of bad records, which were skipped.
    pub skipped: u64,
    /// Languages of the trained text in the Hub's spelling. Uncertain languages are omitted.
    pub languages: Vec<String>,
}

/// One data file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// Name of the file without its folder.
    pub name: String,
    /// Format of the records, either detected or specified by the user.
    pub format: String,
    /// Number of records.
    pub records: u64,
    /// SHA-256 of the file.
    pub sha256: String,
}

/// A question, and the replies with and without the adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The question.
    pub prompt: String,
    /// Reply of the base without the adapter.
    pub before: String,
    /// Reply of the base with the adapter.
    pub after: String,
}

impl RunSummary {
    /// Returns the total duration of all steps, in seconds.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(|s| s.seconds).sum()
    }

    /// Returns the number of tokens that training processed per second.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let tokens: u64 = self.steps.iter().map(|s| s.tokens).sum();
        let seconds = self.seconds();
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Returns the held-out losses at step 0 and at the last evaluation, if both were measured.
    pub fn held_out(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.evaluations.first()?, self.evaluations.last()?);
        (first.0 == 0 && last.0 > 0).then_some((first.1, last.1))
    }

    /// Returns the mean training loss over the first tenth of the steps, and over the last tenth.
    pub fn train_loss(&self) -> Option<(f64, f64)> {
        let tenth = self.steps.len().div_ceil(10);
        let mean = |steps: &[StepMetrics]| steps.iter().map(|s| s.loss).sum::<f64>() / steps.len() as f64;
        (tenth > 0).then(|| (mean(&self.steps[..tenth]), mean(&self.steps[self.steps.len() - tenth..])))
    }

    /// Returns the number of trainable parameters as a percentage of all parameters.
    pub fn trainable_percent(&self) -> f64 {
        100.0 * self.trainable_parameters as f64 / self.all_parameters.max(1) as f64
    }
}

/// Formats the value of a setting as text, such as `q_proj, v_proj` for a list in JSON.
pub(crate) fn value_text(value: &serde_json::Value, not_set: &str) -> String {
    use serde_json::Value;
    match value {
        Value::Null => not_set.to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(|v| value_text(v, not_set)).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Returns a run whose names and texts try to inject markup.
    pub(crate) fn sample() -> RunSummary {
        let step = |step: u64| StepMetrics {
            step,
            epoch: step as f64 / 100.0,
            loss: 4.0 / (1.0 + step as f64 / 30.0) + 0.3 * (step as f64 * 1.7).sin(),
            grad_norm: 1.0,
            learning_rate: 1e-4 * (1.0 - step as f64 / 120.0),
            tokens: 250 + step % 7 * 10,
            trained_tokens: 100,
            seconds: 0.25 + 0.01 * (step as f64).sin(),
        };
        RunSummary {
            adapter_name: "huan<huan>".into(),
            base_name: "base-8m".into(),
            all_parameters: 8_500_000,
            trainable_parameters: 500_256,
            settings: TrainSettings::default(),
            data: DataSummary {
                files: vec![DataFile {
                    name: "pal|ace & co.json".into(),
                    format: "alpaca".into(),
                    records: 310,
                    sha256: "ab".repeat(32),
                }],
                training_records: 290,
                held_out_records: 20,
                tokens: 18_000,
                trained_tokens: 7_000,
                longest: 120,
                ..DataSummary::default()
            },
            steps: (1..=120).map(step).collect(),
            evaluations: vec![(0, 4.4), (60, 2.0), (120, 1.3)],
            replies: vec![Reply {
                prompt: "<script>alert(1)</script>".into(),
                before: "推荐您去海底捞火锅。".into(),
                after: "```\n臣妾参见皇上 \"&\"".into(),
            }],
            backend: "cpu avx512bf16, 2 threads".into(),
            memory: None,
            version: "0.1.0".into(),
        }
    }

    #[test]
    fn figures_come_from_the_steps() {
        let run = sample();
        assert_eq!(run.held_out(), Some((4.4, 1.3)));
        let (first, last) = run.train_loss().unwrap();
        assert!(first > last);
        assert!((900.0..1200.0).contains(&run.tokens_per_second().unwrap()));
        let empty = RunSummary { steps: vec![], evaluations: vec![], ..run };
        assert_eq!((empty.held_out(), empty.train_loss(), empty.tokens_per_second()), (None, None, None));
    }
}
