//! One sentence about a finished run: whether it learned, overfitted or diverged.

use danlu_report::RunSummary;

use crate::printer::Printer;

/// Smallest relative change of a loss that counts.
const NOTICEABLE: f64 = 0.01;

/// What the losses of a run show.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// The loss rose: held out if `held_out` is set, in training otherwise.
    Worse { first: f64, last: f64, held_out: bool },
    /// The held-out loss was lowest after `step`, and rose since.
    Overfitted { step: u64, best: f64, last: f64 },
    /// The held-out loss hardly changed.
    NoGain { first: f64, last: f64 },
    /// The held-out loss fell by this fraction.
    Learned { gain: f64 },
    /// The training loss fell, and no held-out records tell more.
    Untested { gain: f64 },
}

impl Verdict {
    /// Judges a run. Returns `None` for a run without losses to compare.
    pub fn of(summary: &RunSummary) -> Option<Self> {
        Self::judge(&summary.evaluations, summary.held_out(), summary.train_loss())
    }

    fn judge(
        evaluations: &[(u64, f64)],
        held_out: Option<(f64, f64)>,
        training: Option<(f64, f64)>,
    ) -> Option<Self> {
        let Some((first, last)) = held_out else {
            let (first, last) = training?;
            let gain = 1.0 - last / first;
            return Some(match gain > -NOTICEABLE {
                true => Self::Untested { gain },
                false => Self::Worse { first, last, held_out: false },
            });
        };
        let gain = 1.0 - last / first;
        if gain.is_nan() || gain <= -NOTICEABLE {
            return Some(Self::Worse { first, last, held_out: true });
        }
        let best = evaluations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, first));
        Some(match () {
            () if best.0 > 0 && last > best.1 * (1.0 + NOTICEABLE) => {
                Self::Overfitted { step: best.0, best: best.1, last }
            }
            () if gain < NOTICEABLE => Self::NoGain { first, last },
            () => Self::Learned { gain },
        })
    }

    /// Returns the name of the verdict, for JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Worse { .. } => "worse",
            Self::Overfitted { .. } => "overfitted",
            Self::NoGain { .. } => "no_gain",
            Self::Learned { .. } => "learned",
            Self::Untested { .. } => "untested",
        }
    }

    /// Whether a merge of the adapter is worth suggesting.
    pub fn is_usable(self) -> bool {
        !matches!(self, Self::Worse { .. })
    }

    /// The sentence, with the next step.
    pub fn text(self, printer: &Printer) -> String {
        match self {
            Self::Worse { first, last, held_out } => {
                let (zh, en) = if held_out { ("留出集", "held-out") } else { ("训练", "training") };
                printer.pick(
                    format!("模型变差了：{zh}损失从 {first:.4} 升到 {last:.4}。请降低 --learning-rate 重新训练"),
                    format!("the model got worse: the {en} loss rose from {first:.4} to {last:.4}; lower --learning-rate and train again"),
                )
            }
            Self::Overfitted { step, best, last } => printer.pick(
                format!("过拟合：留出集损失在第 {step} 步最低（{best:.4}），之后升到 {last:.4}。可用 --max-steps {step} 重新训练"),
                format!("overfitted: the held-out loss was lowest after step {step} ({best:.4}) and rose to {last:.4}; train again with --max-steps {step}"),
            ),
            Self::NoGain { first, last } => printer.pick(
                format!("几乎没有变化：留出集损失 {first:.4} → {last:.4}。可提高 --learning-rate 或 --num-train-epochs"),
                format!("hardly any change: the held-out loss went from {first:.4} to {last:.4}; raise --learning-rate or --num-train-epochs"),
            ),
            Self::Learned { gain } => {
                let percent = 100.0 * gain;
                printer.pick(
                    format!("有效：留出集损失下降了 {percent:.0}%，没有过拟合的迹象"),
                    format!("the model learned: the held-out loss fell by {percent:.0}%, with no sign of overfitting"),
                )
            }
            Self::Untested { gain } => {
                let percent = 100.0 * gain.max(0.0);
                printer.pick(
                    format!("训练损失下降了 {percent:.0}%；没有留出的记录，无法判断是否过拟合（--val-size）"),
                    format!("the training loss fell by {percent:.0}%; without held-out records (--val-size) overfitting cannot be seen"),
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_decide_the_verdict() {
        let of = |losses: &[(u64, f64)]| {
            Verdict::judge(losses, Some((losses[0].1, losses[losses.len() - 1].1)), Some((3.0, 1.0)))
        };
        assert_eq!(of(&[(0, 4.0), (10, 3.0)]), Some(Verdict::Learned { gain: 0.25 }));
        assert_eq!(
            of(&[(0, 4.0), (10, 3.0), (20, 3.5)]),
            Some(Verdict::Overfitted { step: 10, best: 3.0, last: 3.5 })
        );
        // A rise below one percent is noise.
        assert!(matches!(of(&[(0, 4.0), (10, 3.0), (20, 3.01)]), Some(Verdict::Learned { .. })));
        assert_eq!(of(&[(0, 4.0), (10, 3.99)]), Some(Verdict::NoGain { first: 4.0, last: 3.99 }));
        let worse = of(&[(0, 6.6), (3, 9.0)]).unwrap();
        assert_eq!(worse, Verdict::Worse { first: 6.6, last: 9.0, held_out: true });
        assert!(!worse.is_usable());
        assert!(matches!(of(&[(0, 4.0), (3, f64::NAN)]), Some(Verdict::Worse { .. })));
    }

    #[test]
    fn without_held_out_records_the_training_loss_decides() {
        let of = |first, last| Verdict::judge(&[], None, Some((first, last)));
        assert_eq!(of(4.0, 3.0), Some(Verdict::Untested { gain: 0.25 }));
        assert_eq!(of(4.0, 9.0), Some(Verdict::Worse { first: 4.0, last: 9.0, held_out: false }));
        assert_eq!(Verdict::judge(&[], None, None), None);
    }
}
