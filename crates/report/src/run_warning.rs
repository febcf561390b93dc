//! Signs in the losses of a run that it failed to learn.

use danlu_train::StepMetrics;
use serde::{Deserialize, Serialize};

use crate::{Language, RunSummary};

/// Relative rise of a loss that counts as worse. Smaller changes are noise.
const MIN_RISE: f64 = 0.01;

/// Number of steps below which a constant training loss is no sign of a failure.
const MIN_STEPS: usize = 20;

/// Number of steps whose median loss is compared with the next step.
const SPIKE_WINDOW: usize = 20;

/// A step is a spike if its loss exceeds the median by this factor and by this many nats.
const SPIKE_FACTOR: f64 = 2.0;
const SPIKE_NATS: f64 = 1.0;

/// A sign that a run failed to learn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunWarning {
    /// The held-out loss is higher than without the adapter.
    HeldOutWorse {
        /// Held-out loss of the base.
        first: f64,
        /// Held-out loss with the adapter.
        last: f64,
    },
    /// The training loss rose.
    TrainLossRose {
        /// Mean over the first tenth of the steps.
        first: f64,
        /// Mean over the last tenth of the steps.
        last: f64,
    },
    /// The training loss did not fall.
    TrainLossFlat {
        /// Mean over the first tenth of the steps.
        first: f64,
        /// Mean over the last tenth of the steps.
        last: f64,
    },
    /// Single steps had a much higher loss than the steps before them.
    Spikes {
        /// Number of such steps.
        count: u64,
        /// The step with the highest of these losses.
        step: u64,
        /// The loss of that step.
        loss: f64,
        /// Median loss of the steps before it.
        usual: f64,
    },
}

impl RunWarning {
    /// Returns the signs in the losses of `run`. A run that learned has none.
    pub fn of(run: &RunSummary) -> Vec<Self> {
        let mut warnings = Vec::new();
        if let Some((first, last)) = run.held_out().filter(|(first, last)| is_higher(*first, *last)) {
            warnings.push(Self::HeldOutWorse { first, last });
        }
        if let Some((first, last)) = run.train_loss() {
            if is_higher(first, last) && run.steps.len() > 1 {
                warnings.push(Self::TrainLossRose { first, last });
            } else if run.steps.len() >= MIN_STEPS && last > first * (1.0 - MIN_RISE) {
                warnings.push(Self::TrainLossFlat { first, last });
            }
        }
        warnings.extend(spikes(&run.steps));
        warnings
    }

    /// Returns one sentence with the values, and the setting to change.
    pub fn text(&self, language: Language) -> String {
        match self {
            Self::HeldOutWorse { first, last } => language.pick(
                format!("训练使留出集损失从 {first:.4} 升到 {last:.4}：适配器比基座差。请降低 learning_rate 重新训练。"),
                format!(
                    "training raised the held-out loss from {first:.4} to {last:.4}: the adapter is worse than the base. Train again with a lower learning_rate."
                ),
            ),
            Self::TrainLossRose { first, last } => language.pick(
                format!("训练损失从 {first:.4} 升到 {last:.4}：训练发散。请降低 learning_rate 重新训练。"),
                format!(
                    "the training loss rose from {first:.4} to {last:.4}: the run diverged. Train again with a lower learning_rate."
                ),
            ),
            Self::TrainLossFlat { first, last } => language.pick(
                format!("训练损失没有下降（{first:.4} → {last:.4}）。请检查数据，或改用别的 learning_rate。"),
                format!(
                    "the training loss did not fall ({first:.4} → {last:.4}). Check the data, or train with another learning_rate."
                ),
            ),
            Self::Spikes { count, step, loss, usual } => language.pick(
                format!(
                    "有 {count} 步的损失突然升高，最高在第 {step} 步：{loss:.4}，之前的中位数是 {usual:.4}。请检查这些步的记录，或降低 learning_rate。"
                ),
                format!(
                    "the loss spiked at {count} of the steps, most at step {step}: {loss:.4} after a median of {usual:.4}. Check the records of these steps, or lower learning_rate."
                ),
            ),
        }
    }
}

fn is_higher(first: f64, last: f64) -> bool {
    last > first * (1.0 + MIN_RISE)
}

/// Returns the steps whose loss is far above the median of the steps before them.
fn spikes(steps: &[StepMetrics]) -> Option<RunWarning> {
    let (mut count, mut worst) = (0, None);
    for (i, step) in steps.iter().enumerate().skip(SPIKE_WINDOW) {
        let mut before: Vec<f64> = steps[i - SPIKE_WINDOW..i].iter().map(|step| step.loss).collect();
        before.sort_by(f64::total_cmp);
        let usual = before[SPIKE_WINDOW / 2];
        if step.loss > usual * SPIKE_FACTOR && step.loss > usual + SPIKE_NATS {
            count += 1;
            if worst.is_none_or(|(_, loss, _)| step.loss > loss) {
                worst = Some((step.step, step.loss, usual));
            }
        }
    }
    worst.map(|(step, loss, usual)| RunWarning::Spikes { count, step, loss, usual })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::sample;

    /// Returns the warnings of a run with these losses.
    fn warnings(losses: &[f64], held_out: &[f64]) -> Vec<RunWarning> {
        let mut run = sample();
        let step = run.steps[0];
        let steps = losses.iter().enumerate();
        run.steps = steps.map(|(i, &loss)| StepMetrics { step: i as u64 + 1, loss, ..step }).collect();
        run.evaluations = held_out.iter().enumerate().map(|(i, &loss)| (i as u64, loss)).collect();
        RunWarning::of(&run)
    }

    #[test]
    fn a_run_that_learns_has_no_warning() {
        let falling: Vec<f64> = (0..60).map(|i| 4.0 - 0.05 * f64::from(i)).collect();
        assert_eq!(warnings(&falling, &[4.0, 1.2]), []);
        assert_eq!(warnings(&[], &[]), []);
        assert_eq!(warnings(&[4.0], &[4.0, 4.001]), []);
    }

    #[test]
    fn a_diverged_run_is_reported_with_both_losses() {
        let rising: Vec<f64> = (0..60).map(|i| (4.0 + 0.2 * f64::from(i)).min(9.01)).collect();
        let found = warnings(&rising, &[7.98, 9.01]);
        assert_eq!(found[0], RunWarning::HeldOutWorse { first: 7.98, last: 9.01 });
        assert!(matches!(found[1], RunWarning::TrainLossRose { last: 9.01, .. }), "{found:?}");
        assert!(found[0].text(Language::En).contains("from 7.9800 to 9.0100"));
    }

    #[test]
    fn a_constant_loss_is_reported_after_enough_steps() {
        assert_eq!(warnings(&[3.0; 19], &[]), []);
        assert_eq!(warnings(&[3.0; 20], &[]), [RunWarning::TrainLossFlat { first: 3.0, last: 3.0 }]);
    }

    #[test]
    fn spikes_are_counted_and_the_highest_is_named() {
        let mut losses: Vec<f64> = (0..60).map(|i| 4.0 - 0.05 * f64::from(i)).collect();
        (losses[30], losses[40]) = (7.5, 9.0);
        let found = warnings(&losses, &[]);
        assert!(matches!(found[..], [RunWarning::Spikes { count: 2, step: 41, loss: 9.0, .. }]), "{found:?}");
    }
}
