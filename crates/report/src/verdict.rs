//! The verdict on a finished run: whether it learned, overfitted or diverged.

use danlu_train::StepMetrics;
use serde::{Deserialize, Serialize};

use crate::{Language, RunSummary};

/// Smallest relative change of a loss that is treated as significant. Smaller changes are treated as noise.
const MIN_CHANGE: f64 = 0.01;

/// Relative decrease of the held-out loss below which the loss is treated as settled.
const SETTLED_CHANGE: f64 = 0.001;

/// Minimum number of steps for a warning that the training loss did not fall.
const MIN_STEPS: usize = 20;

/// Number of steps over which the median loss is computed. The loss of the next step is compared with this
/// median.
const SPIKE_WINDOW: usize = 20;

/// A step is a spike if its loss exceeds both the median times this factor and the median plus
/// [`SPIKE_NATS`].
const SPIKE_FACTOR: f64 = 2.0;

/// Minimum difference in nats between the loss of a spike and the median.
const SPIKE_NATS: f64 = 1.0;

/// The training loss rose if its median over `SPIKE_WINDOW / 2` consecutive steps exceeds the loss of the
/// base times this factor.
const RISE_FACTOR: f64 = 1.15;

/// The findings from the losses of a run. The first finding is the main result. A run without steps has no
/// findings.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Verdict(Vec<Finding>);

/// One finding from the losses of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finding {
    /// The held-out loss is higher with the adapter than without it.
    #[serde(alias = "held_out_worse")]
    HeldOutRose {
        /// Held-out loss of the base without the adapter.
        first: f64,
        /// Held-out loss of the base with the adapter.
        last: f64,
    },
    /// The held-out loss first fell and then rose.
    Overfitted {
        /// The step with the lowest held-out loss.
        step: u64,
        /// The lowest held-out loss.
        best: f64,
        /// The last held-out loss.
        last: f64,
    },
    /// The held-out loss hardly changed.
    NoGain {
        /// Held-out loss of the base without the adapter.
        first: f64,
        /// Held-out loss of the base with the adapter.
        last: f64,
    },
    /// The training loss rose far above its start and fell back, without a gain.
    RoseAndFell {
        /// Held-out loss of the base without the adapter, or the training loss of the first step.
        first: f64,
        /// The step around which the loss was highest.
        step: u64,
        /// Median training loss of the steps around `step`.
        peak: f64,
    },
    /// The held-out loss fell.
    Learned {
        /// The decrease as a fraction of the first loss.
        gain: f64,
        /// The step after which the held-out loss fell no further, if many steps came after it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        settled: Option<u64>,
    },
    /// The training loss rose.
    TrainLossRose {
        /// Mean training loss over the first tenth of the steps.
        first: f64,
        /// Mean training loss over the last tenth of the steps.
        last: f64,
    },
    /// The training loss neither rose nor fell significantly.
    TrainLossFlat {
        /// Mean training loss over the first tenth of the steps.
        first: f64,
        /// Mean training loss over the last tenth of the steps.
        last: f64,
    },
    /// The training loss did not rise, but there are no held-out losses.
    Untested {
        /// The decrease as a fraction of the first loss.
        gain: f64,
    },
    /// Single steps had a much higher loss than the steps before.
    Spikes {
        /// Number of steps with a spike.
        count: u64,
        /// The step of the spike with the highest loss.
        step: u64,
        /// The loss of this spike.
        loss: f64,
        /// Median loss of the steps before this spike.
        usual: f64,
    },
}

impl Verdict {
    /// Judges a run by its losses.
    pub fn of(run: &RunSummary) -> Self {
        let held_out = run.held_out().map(|losses| judge_held_out(losses, &run.evaluations));
        let training = run.train_loss().map(|losses| judge_training(losses, run.steps.len()));
        let spikes = find_spikes(&run.steps);
        // The held-out loss takes precedence over the training loss, because the training loss differs
        // between batches.
        let training = match held_out {
            None => training,
            Some(Finding::Learned { .. }) => None,
            Some(_) => training.filter(|found| found.is_warning() && run.steps.len() >= MIN_STEPS),
        };
        // `NoGain` suggests a higher learning rate, which is wrong advice for an unstable run.
        let is_unstable = spikes.is_some() || matches!(training, Some(Finding::TrainLossRose { .. }));
        let held_out = held_out.filter(|found| !(is_unstable && matches!(found, Finding::NoGain { .. })));
        let start = run.held_out().map(|(first, _)| first).or(run.steps.first().map(|step| step.loss));
        let rise = start.and_then(|start| find_rise(&run.steps, start));
        let held_out = held_out.map(|found| replace_no_gain(found, rise.as_ref()));
        let training = training.map(|found| replace_no_gain(found, rise.as_ref()));
        let training = training.filter(|found| held_out.as_ref() != Some(found));
        Self([held_out, training, spikes].into_iter().flatten().collect())
    }

    /// Returns all findings. The first finding is the main result.
    pub fn findings(&self) -> &[Finding] {
        &self.0
    }

    /// Returns whether there are no findings.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether danlu should suggest merging the adapter.
    pub fn is_usable(&self) -> bool {
        !self
            .0
            .iter()
            .any(|found| matches!(found, Finding::HeldOutRose { .. } | Finding::TrainLossRose { .. }))
    }
}

impl Finding {
    /// Returns the name of the finding for JSON.
    pub fn name(&self) -> &'static str {
        match self {
            Self::HeldOutRose { .. } => "held_out_rose",
            Self::Overfitted { .. } => "overfitted",
            Self::NoGain { .. } => "no_gain",
            Self::RoseAndFell { .. } => "rose_and_fell",
            Self::Learned { .. } => "learned",
            Self::TrainLossRose { .. } => "train_loss_rose",
            Self::TrainLossFlat { .. } => "train_loss_flat",
            Self::Untested { .. } => "untested",
            Self::Spikes { .. } => "spikes",
        }
    }

    /// Returns whether the finding indicates a problem.
    pub fn is_warning(&self) -> bool {
        !matches!(self, Self::Learned { .. } | Self::Untested { .. })
    }

    /// Returns a text with the values of the finding and, for a warning, the next step.
    pub fn text(&self, language: Language) -> String {
        language.pick(self.text_zh(), self.text_en())
    }

    fn text_zh(&self) -> String {
        match self {
            Self::HeldOutRose { first, last } => format!(
                "模型变差了：留出集损失从 {first:.4} 升到 {last:.4}。请降低 --learning-rate 重新训练。"
            ),
            Self::Overfitted { step, best, last } => format!(
                "过拟合：留出集损失在第 {step} 步最低（{best:.4}），之后升到 {last:.4}。可用 --max-steps {step} 重新训练。"
            ),
            Self::NoGain { first, last } => format!(
                "几乎没有变化：留出集损失 {first:.4} → {last:.4}。可提高 --learning-rate 或 --num-train-epochs。"
            ),
            Self::RoseAndFell { first, step, peak } => format!(
                "等于白练：训练损失从起点 {first:.4} 升到第 {step} 步前后的 {peak:.4}，又落回原处。请降低 --learning-rate 重新训练。"
            ),
            Self::Learned { gain, settled } => {
                let settled = settled
                    .map_or_else(String::new, |step| format!("第 {step} 步之后不再下降，训练到那里就够了。"));
                format!("有效：留出集损失下降了 {:.0}%，没有过拟合的迹象。{settled}", 100.0 * gain)
            }
            Self::TrainLossRose { first, last } => {
                format!("训练发散：训练损失从 {first:.4} 升到 {last:.4}。请降低 --learning-rate 重新训练。")
            }
            Self::TrainLossFlat { first, last } => format!(
                "训练损失没有下降（{first:.4} → {last:.4}）。请检查数据，或改用别的 --learning-rate。"
            ),
            Self::Untested { gain } => format!(
                "训练损失下降了 {:.0}%；没有留出的记录（--val-size），无法判断是否过拟合。",
                100.0 * gain.max(0.0)
            ),
            Self::Spikes { count, step, loss, usual } => format!(
                "有 {count} 步的损失突然升高，最高在第 {step} 步：{loss:.4}，之前的中位数是 {usual:.4}。请检查这些步的记录，或降低 --learning-rate。"
            ),
        }
    }

    fn text_en(&self) -> String {
        match self {
            Self::HeldOutRose { first, last } => format!(
                "the model got worse: the held-out loss rose from {first:.4} to {last:.4}. Train again with a lower --learning-rate."
            ),
            Self::Overfitted { step, best, last } => format!(
                "the model overfitted: the held-out loss was lowest after step {step} ({best:.4}) and rose to {last:.4}. Train again with --max-steps {step}."
            ),
            Self::NoGain { first, last } => format!(
                "the model hardly changed: the held-out loss went from {first:.4} to {last:.4}. Raise --learning-rate or --num-train-epochs."
            ),
            Self::RoseAndFell { first, step, peak } => format!(
                "the run gained nothing: the training loss rose from its start, {first:.4}, to {peak:.4} around step {step} and fell back. Train again with a lower --learning-rate."
            ),
            Self::Learned { gain, settled } => format!(
                "the model learned: the held-out loss fell by {:.0}%, with no sign of overfitting.{}",
                100.0 * gain,
                settled.map_or_else(String::new, |step| format!(
                    " It fell no further after step {step}, so {step} steps are enough."
                ))
            ),
            Self::TrainLossRose { first, last } => format!(
                "the run diverged: the training loss rose from {first:.4} to {last:.4}. Train again with a lower --learning-rate."
            ),
            Self::TrainLossFlat { first, last } => format!(
                "the training loss did not fall ({first:.4} → {last:.4}). Check the data, or train with another --learning-rate."
            ),
            Self::Untested { gain } => format!(
                "the training loss fell by {:.0}%. Without held-out records (--val-size), overfitting cannot be seen.",
                100.0 * gain.max(0.0)
            ),
            Self::Spikes { count, step, loss, usual } => format!(
                "the loss spiked at {count} of the steps, most at step {step}: {loss:.4} after a median of {usual:.4}. Check the records of these steps, or lower --learning-rate."
            ),
        }
    }
}

/// Judges the held-out losses. `first` and `last` are the losses of the first and the last evaluation.
fn judge_held_out((first, last): (f64, f64), evaluations: &[(u64, f64)]) -> Finding {
    if is_higher(first, last) {
        return Finding::HeldOutRose { first, last };
    }
    let best = evaluations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, first));
    let gain = 1.0 - last / first;
    match best {
        (step @ 1.., best) if is_higher(best, last) => Finding::Overfitted { step, best, last },
        _ if gain < MIN_CHANGE => Finding::NoGain { first, last },
        _ => Finding::Learned { gain, settled: settled_step(evaluations) },
    }
}

/// Returns the first step after which the held-out loss fell no further, if at least a quarter of the run
/// came after this step.
fn settled_step(evaluations: &[(u64, f64)]) -> Option<u64> {
    let last = evaluations.last()?.0;
    let falls_later = |from: usize, loss: f64| {
        evaluations[from + 1..].iter().any(|(_, later)| *later < loss * (1.0 - SETTLED_CHANGE))
    };
    let mut later = evaluations.iter().enumerate().skip(1);
    let (_, (step, _)) = later.find(|(at, (_, loss))| !falls_later(*at, *loss))?;
    (step * 4 <= last * 3).then_some(*step)
}

/// Judges the training loss. `first` and `last` are the means over the first and the last tenth of the steps.
fn judge_training((first, last): (f64, f64), steps: usize) -> Finding {
    let gain = 1.0 - last / first;
    match () {
        () if is_higher(first, last) => Finding::TrainLossRose { first, last },
        () if steps >= MIN_STEPS && gain < MIN_CHANGE => Finding::TrainLossFlat { first, last },
        () => Finding::Untested { gain },
    }
}

/// Returns whether a loss rose significantly. A loss that is not finite is treated as a loss that rose.
fn is_higher(first: f64, last: f64) -> bool {
    !last.is_finite() || last > first * (1.0 + MIN_CHANGE)
}

/// Finds the highest median of the training loss over `SPIKE_WINDOW / 2` consecutive steps. Returns `None`
/// unless this median is far above `first`, the loss of the base.
fn find_rise(steps: &[StepMetrics], first: f64) -> Option<Finding> {
    let size = SPIKE_WINDOW / 2;
    let (step, peak) = steps
        .windows(size)
        .map(|window| {
            let mut losses: Vec<f64> = window.iter().map(|step| step.loss).collect();
            losses.sort_by(f64::total_cmp);
            (window[size / 2].step, losses[size / 2])
        })
        .max_by(|a, b| a.1.total_cmp(&b.1))?;
    (peak > first * RISE_FACTOR).then_some(Finding::RoseAndFell { first, step, peak })
}

/// Replaces a finding that suggests a higher learning rate, which is wrong advice after a rise of the loss.
fn replace_no_gain(found: Finding, rise: Option<&Finding>) -> Finding {
    match (&found, rise) {
        (Finding::NoGain { .. } | Finding::TrainLossFlat { .. }, Some(rise)) => rise.clone(),
        _ => found,
    }
}

fn find_spikes(steps: &[StepMetrics]) -> Option<Finding> {
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
    worst.map(|(step, loss, usual)| Finding::Spikes { count, step, loss, usual })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::sample;

    /// Judges a run with the training losses `losses`. Each pair in `held_out` is a step and its held-out
    /// loss.
    fn judge(losses: &[f64], held_out: &[(u64, f64)]) -> Verdict {
        let mut run = sample();
        let step = run.steps[0];
        let steps = losses.iter().enumerate();
        run.steps = steps.map(|(i, &loss)| StepMetrics { step: i as u64 + 1, loss, ..step }).collect();
        run.evaluations = held_out.to_vec();
        Verdict::of(&run)
    }

    /// Returns 60 decreasing losses that start at 4.
    fn falling() -> Vec<f64> {
        (0..60).map(|i| 4.0 - 0.05 * f64::from(i)).collect()
    }

    #[test]
    fn held_out_losses_decide_the_outcome() {
        let of = |held_out: &[(u64, f64)]| judge(&[3.0, 1.0], held_out).findings().to_vec();
        assert_eq!(of(&[(0, 4.0), (10, 3.0)]), [Finding::Learned { gain: 0.25, settled: None }]);
        assert_eq!(
            of(&[(0, 4.0), (10, 3.0), (20, 3.5)]),
            [Finding::Overfitted { step: 10, best: 3.0, last: 3.5 }]
        );
        // A rise below one percent is noise.
        assert!(matches!(of(&[(0, 4.0), (10, 3.0), (20, 3.01)])[..], [Finding::Learned { .. }]));
        assert_eq!(of(&[(0, 4.0), (10, 3.99)]), [Finding::NoGain { first: 4.0, last: 3.99 }]);
        // The loss rises slowly to 8 and falls back to 4. The learning rate was too high, so the advice must
        // not be to raise the learning rate.
        let hill: Vec<f64> = (0..60).map(|i| 8.0 - 4.0 * (f64::from(i) / 29.5 - 1.0).abs()).collect();
        let hot = judge(&hill, &[(0, 4.0), (60, 3.99)]);
        assert!(matches!(hot.findings(), [Finding::RoseAndFell { .. }]), "{hot:?}");
        assert!(hot.findings()[0].text(Language::En).contains("lower --learning-rate"));
        let worse = judge(&[3.0, 1.0], &[(0, 6.6), (3, 9.0)]);
        assert_eq!(worse.findings(), [Finding::HeldOutRose { first: 6.6, last: 9.0 }]);
        assert!(!worse.is_usable());
        assert!(matches!(of(&[(0, 4.0), (3, f64::NAN)])[..], [Finding::HeldOutRose { .. }]));
    }

    #[test]
    fn a_held_out_loss_that_stays_is_named_with_its_step() {
        // The losses of the demo, which stay at 5.40 from step 86 on.
        let demo = [(0, 7.9061), (43, 5.5326), (86, 5.4030), (129, 5.4058), (172, 5.4041)];
        assert_eq!(settled_step(&demo), Some(86));
        // The loss still falls in the last quarter.
        assert_eq!(settled_step(&[(0, 4.0), (10, 3.5), (20, 3.2), (30, 3.1)]), None);
        assert_eq!(settled_step(&[(0, 4.0), (10, 3.0)]), None);
        let text = Finding::Learned { gain: 0.32, settled: Some(86) }.text(Language::En);
        assert!(text.ends_with("It fell no further after step 86, so 86 steps are enough."), "{text}");
    }

    #[test]
    fn without_held_out_records_the_training_loss_decides() {
        assert_eq!(judge(&[4.0, 3.0], &[]).findings(), [Finding::Untested { gain: 0.25 }]);
        assert_eq!(judge(&[4.0, 9.0], &[]).findings(), [Finding::TrainLossRose { first: 4.0, last: 9.0 }]);
        assert!(!judge(&[4.0, 9.0], &[]).is_usable());
        assert!(judge(&[], &[]).is_empty());
    }

    #[test]
    fn a_run_that_learns_has_no_warning() {
        for held_out in [&[][..], &[(0, 4.0), (60, 1.2)]] {
            let verdict = judge(&falling(), held_out);
            assert!(verdict.is_usable() && !verdict.is_empty());
            assert!(!verdict.findings().iter().any(Finding::is_warning), "{verdict:?}");
        }
        // If the held-out loss fell, the run learned, even if the training loss did not fall.
        assert!(matches!(judge(&[4.0; 20], &[(0, 4.0), (20, 3.0)]).findings(), [Finding::Learned { .. }]));
    }

    #[test]
    fn a_diverged_run_is_reported_with_both_losses() {
        let rising: Vec<f64> = (0..60).map(|i| (4.0 + 0.2 * f64::from(i)).min(9.01)).collect();
        let verdict = judge(&rising, &[(0, 7.98), (60, 9.01)]);
        let found = verdict.findings();
        assert_eq!(found[0], Finding::HeldOutRose { first: 7.98, last: 9.01 });
        assert!(matches!(found[1], Finding::TrainLossRose { last: 9.01, .. }), "{found:?}");
        assert!(found[0].text(Language::En).contains("from 7.9800 to 9.0100"));
        assert!(found[0].text(Language::Zh).contains("从 7.9800 升到 9.0100"));
    }

    #[test]
    fn a_constant_loss_is_reported_after_enough_steps() {
        assert_eq!(judge(&[3.0; 19], &[]).findings(), [Finding::Untested { gain: 0.0 }]);
        assert_eq!(judge(&[3.0; 20], &[]).findings(), [Finding::TrainLossFlat { first: 3.0, last: 3.0 }]);
    }

    #[test]
    fn spikes_are_counted_and_the_highest_is_named() {
        let mut losses = falling();
        (losses[30], losses[40]) = (7.5, 9.0);
        let verdict = judge(&losses, &[]);
        let [Finding::Untested { .. }, spikes] = verdict.findings() else { panic!("{verdict:?}") };
        assert!(matches!(spikes, Finding::Spikes { count: 2, step: 41, loss: 9.0, .. }), "{spikes:?}");
        // `NoGain` would suggest a higher learning rate, which is wrong advice for this run.
        let verdict = judge(&losses, &[(0, 4.0), (60, 3.99)]);
        assert!(matches!(verdict.findings(), [Finding::Spikes { .. }]), "{verdict:?}");
    }

    #[test]
    fn the_names_in_json_and_in_a_card_are_equal() {
        let verdict = judge(&[4.0, 9.0], &[(0, 6.6), (3, 9.0)]);
        let stored = serde_json::to_value(&verdict).unwrap();
        assert_eq!(stored[0][verdict.findings()[0].name()]["last"], 9.0);
        assert_eq!(serde_json::from_value::<Verdict>(stored).unwrap(), verdict);
        // Older cards use a different name for this finding.
        let older = r#"[{"held_out_worse": {"first": 6.6, "last": 9.0}}]"#;
        assert_eq!(serde_json::from_str::<Verdict>(older).unwrap(), verdict);
    }
}
