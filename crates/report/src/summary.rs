//! The summary of a run, from which the page and the card are written.

use danlu_train::{MemoryPlan, StepMetrics, TrainSettings};
use serde::{Deserialize, Serialize};

/// A finished run. It holds names only, no path of the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// The adapter's name: the name of its folder.
    pub adapter_name: String,
    /// The base's name on the Hub, or the name of its folder.
    pub base_name: String,
    /// Parameters of base and adapter together, as PEFT counts them.
    pub all_parameters: u64,
    /// Parameters of the adapter.
    pub trainable_parameters: u64,
    /// Every setting.
    pub settings: TrainSettings,
    /// The data.
    pub data: DataSummary,
    /// Every step.
    pub steps: Vec<StepMetrics>,
    /// Step and held-out loss. Step 0 measures the base.
    pub evaluations: Vec<(u64, f64)>,
    /// Replies of base and adapter to the same questions.
    pub replies: Vec<Reply>,
    /// The name of the back end.
    pub backend: String,
    /// Planned and measured memory.
    #[serde(default)]
    pub memory: Option<MemoryUse>,
    /// Version of danlu.
    pub version: String,
}

/// Predicted and measured memory of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// The prediction.
    pub plan: MemoryPlan,
    /// The measured peak in bytes, where the system reports it.
    pub peak: Option<u64>,
}

/// The records of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSummary {
    /// Files, in order.
    pub files: Vec<DataFile>,
    /// Records trained on.
    pub training_records: u64,
    /// Records held out.
    pub held_out_records: u64,
    /// Tokens of the training records.
    pub tokens: u64,
    /// Tokens with a loss.
    pub trained_tokens: u64,
    /// Tokens of the longest training record.
    pub longest: u64,
    /// Records that were truncated.
    pub shortened: u64,
    /// Records dropped because no token with a loss fits.
    pub dropped: u64,
    /// Records skipped because they could not be read.
    pub skipped: u64,
    /// Languages of the trained text as the Hub spells them, as far as they are certain.
    pub languages: Vec<String>,
}

/// One file of records.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataFile {
    /// Its name, without a path.
    pub name: String,
    /// Its format, detected or given.
    pub format: String,
    /// Records in it.
    pub records: u64,
    /// SHA-256 of its bytes.
    pub sha256: String,
}

/// A question, and the replies of base and adapter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// The question.
    pub prompt: String,
    /// The base's reply.
    pub before: String,
    /// The reply with the adapter.
    pub after: String,
}

impl RunSummary {
    /// Seconds spent in steps.
    pub fn seconds(&self) -> f64 {
        self.steps.iter().map(|s| s.seconds).sum()
    }

    /// Tokens through the model per second of training.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let tokens: u64 = self.steps.iter().map(|s| s.tokens).sum();
        let seconds = self.seconds();
        (seconds > 0.0).then(|| tokens as f64 / seconds)
    }

    /// Held-out loss before the first and after the last step, where both were measured.
    pub fn held_out(&self) -> Option<(f64, f64)> {
        let (first, last) = (self.evaluations.first()?, self.evaluations.last()?);
        (first.0 == 0 && last.0 > 0).then_some((first.1, last.1))
    }

    /// Mean training loss of the first and of the last tenth of the steps.
    pub fn train_loss(&self) -> Option<(f64, f64)> {
        let tenth = self.steps.len().div_ceil(10);
        let mean = |steps: &[StepMetrics]| steps.iter().map(|s| s.loss).sum::<f64>() / steps.len() as f64;
        (tenth > 0).then(|| (mean(&self.steps[..tenth]), mean(&self.steps[self.steps.len() - tenth..])))
    }

    /// Trainable parameters in percent of all.
    pub fn trainable_percent(&self) -> f64 {
        100.0 * self.trainable_parameters as f64 / self.all_parameters.max(1) as f64
    }
}

/// A setting as text: `q_proj, v_proj` instead of JSON.
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

    /// A run with hostile names and texts in every place.
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
