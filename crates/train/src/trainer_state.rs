//! `trainer_state.json`: progress and log of a run, in transformers' format.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Progress and log of a run, for tools that read transformers' checkpoints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Step of the best evaluation.
    #[serde(default)]
    pub best_global_step: Option<u64>,
    /// Held-out loss of the best evaluation.
    #[serde(default)]
    pub best_metric: Option<f64>,
    /// The checkpoint of the best evaluation, unless this checkpoint was removed.
    #[serde(default)]
    pub best_model_checkpoint: Option<String>,
    /// Number of epochs so far, including a fraction.
    pub epoch: f64,
    /// Number of steps between two evaluations, or 0 if there are none during the run.
    #[serde(default)]
    pub eval_steps: u64,
    /// Number of optimizer steps completed.
    pub global_step: u64,
    /// Always false.
    #[serde(default)]
    pub is_hyper_param_search: bool,
    /// Always true, because a run has only one process.
    pub is_local_process_zero: bool,
    /// Always true, because a run has only one process.
    pub is_world_process_zero: bool,
    /// All entries of the log, oldest first.
    pub log_history: Vec<LogEntry>,
    /// Number of steps between two entries of the log.
    pub logging_steps: u64,
    /// Number of optimizer steps in the whole run.
    pub max_steps: u64,
    /// Number of tokens processed in training.
    #[serde(default)]
    pub num_input_tokens_seen: u64,
    /// Number of epochs in the whole run, rounded up.
    pub num_train_epochs: u64,
    /// Number of steps between two checkpoints.
    pub save_steps: u64,
    /// Unused. danlu writes this field because transformers writes it.
    #[serde(default)]
    pub stateful_callbacks: Map<String, Value>,
    /// Number of floating-point operations, which danlu does not count.
    #[serde(default)]
    pub total_flos: f64,
    /// Number of records per micro-batch.
    pub train_batch_size: u64,
    /// Unused. danlu writes this field because transformers writes it.
    #[serde(default)]
    pub trial_name: Option<String>,
    /// Unused. danlu writes this field because transformers writes it.
    #[serde(default)]
    pub trial_params: Option<Map<String, Value>>,
}

/// An entry of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum LogEntry {
    /// Metrics of the steps since the previous entry.
    Train {
        /// Number of epochs so far, including a fraction.
        epoch: f64,
        /// Norm of the last step's gradient, before clipping.
        grad_norm: f64,
        /// Learning rate of the last step.
        learning_rate: f64,
        /// Mean loss of these steps, in nats per token.
        loss: f64,
        /// Number of the last step.
        step: u64,
    },
    /// An evaluation on the held-out records.
    Eval {
        /// Number of epochs so far, including a fraction.
        epoch: f64,
        /// Mean loss in nats per token.
        eval_loss: f64,
        /// Duration of the evaluation in seconds.
        eval_runtime: f64,
        /// Number of completed steps.
        step: u64,
    },
    /// An entry that another program wrote. Such an entry is preserved unchanged.
    Other(Map<String, Value>),
}

impl TrainerState {
    /// Adds an evaluation to the log, and records the best evaluation.
    pub(crate) fn log_evaluation(&mut self, eval_loss: f64, eval_runtime: f64) {
        let (epoch, step) = (self.epoch, self.global_step);
        self.log_history.push(LogEntry::Eval { epoch, eval_loss, eval_runtime, step });
        if self.best_metric.is_none_or(|best| eval_loss < best) {
            (self.best_metric, self.best_global_step) = (Some(eval_loss), Some(step));
        }
    }

    /// Returns the step and held-out loss of each evaluation.
    pub fn evaluations(&self) -> Vec<(u64, f64)> {
        let eval = |entry: &LogEntry| match entry {
            LogEntry::Eval { step, eval_loss, .. } => Some((*step, *eval_loss)),
            _ => None,
        };
        self.log_history.iter().filter_map(eval).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_survives_the_trip() {
        let mut state = TrainerState { epoch: 0.1 + 0.2, global_step: 10, ..TrainerState::default() };
        state.log_history.push(LogEntry::Train {
            epoch: state.epoch,
            grad_norm: 1.0 / 3.0,
            learning_rate: 1e-4,
            loss: 2.123_456_789_012_345_6,
            step: 10,
        });
        state.log_evaluation(1.5, 0.25);
        state.log_evaluation(1.75, 0.25);
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<TrainerState>(&text).unwrap(), state);
        assert_eq!(state.evaluations(), [(10, 1.5), (10, 1.75)]);
        assert_eq!(state.best_metric, Some(1.5));
    }

    /// This `trainer_state.json` has the keys that transformers 5.23.0 writes.
    #[test]
    fn what_transformers_writes_is_read() {
        let text = r#"{ "best_global_step": null, "best_metric": null, "best_model_checkpoint": null, "epoch": 1.0,
            "eval_steps": 500, "global_step": 2, "is_hyper_param_search": false, "is_local_process_zero": true,
            "is_world_process_zero": true, "log_history": [
                { "epoch": 0.5, "grad_norm": 2.0, "learning_rate": 0.0001, "loss": 8.0, "step": 1 },
                { "epoch": 1.0, "step": 2, "total_flos": 0.0, "train_loss": 8.0, "train_runtime": 1.0 } ],
            "logging_steps": 1, "max_steps": 2, "num_input_tokens_seen": 0, "num_train_epochs": 1, "save_steps": 500,
            "stateful_callbacks": {}, "total_flos": 0.0, "train_batch_size": 2, "trial_name": null,
            "trial_params": null }"#;
        let state: TrainerState = serde_json::from_str(text).unwrap();
        assert!(matches!(state.log_history[0], LogEntry::Train { step: 1, .. }));
        assert!(matches!(state.log_history[1], LogEntry::Other(_)));
    }
}
