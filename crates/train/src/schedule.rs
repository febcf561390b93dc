//! Learning rate schedules that equal the schedules of `transformers.get_scheduler`.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The type of schedule. The names are the same as in `transformers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedulerType {
    /// The learning rate rises during the warmup, and then falls linearly to zero.
    #[default]
    Linear,
    /// The learning rate rises during the warmup, and then falls to zero along half a cosine.
    Cosine,
    /// The learning rate is constant, without a warmup.
    Constant,
    /// The learning rate rises during the warmup, and is then constant.
    ConstantWithWarmup,
}

impl LrSchedulerType {
    /// All schedule types.
    pub const ALL: [Self; 4] = [Self::Linear, Self::Cosine, Self::Constant, Self::ConstantWithWarmup];

    /// Returns the name in flags and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Cosine => "cosine",
            Self::Constant => "constant",
            Self::ConstantWithWarmup => "constant_with_warmup",
        }
    }
}

impl fmt::Display for LrSchedulerType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for LrSchedulerType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.map(Self::name);
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| format!("`{name}` is no schedule; there are {}", known.join(", ")))
    }
}

/// The learning rate as a function of the step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    /// Type of the schedule.
    pub kind: LrSchedulerType,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Number of warmup steps.
    pub warmup_steps: u64,
    /// Number of steps in the run.
    pub total_steps: u64,
}

impl Schedule {
    /// Creates a schedule with a warmup of `ceil(warmup_ratio · total_steps)` steps.
    pub fn new(kind: LrSchedulerType, learning_rate: f64, warmup_ratio: f64, total_steps: u64) -> Self {
        let warmup_steps = (total_steps as f64 * warmup_ratio).ceil() as u64;
        Self { kind, learning_rate, warmup_steps, total_steps }
    }

    /// Returns the learning rate of step `step`. Steps start at 1.
    pub fn at(&self, step: u64) -> f64 {
        self.learning_rate * self.factor(step.saturating_sub(1))
    }

    /// Returns the share of the peak learning rate after `done` steps.
    fn factor(&self, done: u64) -> f64 {
        let (warmup, total) = (self.warmup_steps, self.total_steps);
        if self.kind != LrSchedulerType::Constant && done < warmup {
            return done as f64 / warmup as f64;
        }
        let falling = total.saturating_sub(warmup).max(1) as f64;
        match self.kind {
            LrSchedulerType::Linear => total.saturating_sub(done) as f64 / falling,
            LrSchedulerType::Cosine => {
                let progress = done.saturating_sub(warmup) as f64 / falling;
                (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
            }
            LrSchedulerType::Constant | LrSchedulerType::ConstantWithWarmup => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are `param_groups[0]["lr"]` before each `optimizer.step()`, with
    /// `get_scheduler(kind, SGD(lr=1e-4), warmup, total)` of transformers 5.23.0 on torch 2.15.0.
    #[test]
    fn every_shape_equals_transformers() {
        use LrSchedulerType::*;
        let cases: [(LrSchedulerType, u64, &[f64]); 6] = [
            (
                Linear,
                0,
                &[
                    0.0001,
                    8.571428571428571e-05,
                    7.142857142857143e-05,
                    5.714285714285714e-05,
                    4.2857142857142856e-05,
                    2.857142857142857e-05,
                    1.4285714285714285e-05,
                ],
            ),
            (Linear, 2, &[0.0, 5e-05, 0.0001, 8e-05, 6e-05, 4e-05, 2e-05]),
            (
                Cosine,
                0,
                &[
                    0.0001,
                    9.504844339512095e-05,
                    8.117449009293668e-05,
                    6.112604669781572e-05,
                    3.887395330218429e-05,
                    1.8825509907063327e-05,
                    4.951556604879048e-06,
                ],
            ),
            (
                Cosine,
                3,
                &[
                    0.0,
                    3.3333333333333335e-05,
                    6.666666666666667e-05,
                    0.0001,
                    8.535533905932738e-05,
                    5e-05,
                    1.4644660940672627e-05,
                ],
            ),
            (Constant, 0, &[0.0001, 0.0001, 0.0001]),
            (ConstantWithWarmup, 2, &[0.0, 5e-05, 0.0001, 0.0001, 0.0001]),
        ];
        for (kind, warmup_steps, expected) in cases {
            let total_steps = expected.len() as u64;
            let schedule = Schedule { kind, learning_rate: 1e-4, warmup_steps, total_steps };
            for (step, &expected) in (1..).zip(expected) {
                let found = schedule.at(step);
                // Both sides compute the same formula in f64. Only the order of two multiplications may
                // differ.
                assert!(
                    (found - expected).abs() <= 1e-15 * 1e-4_f64.max(expected),
                    "{kind} {step}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn warmup_rounds_up() {
        assert_eq!(Schedule::new(LrSchedulerType::Linear, 1.0, 0.03, 101).warmup_steps, 4);
        assert_eq!(Schedule::new(LrSchedulerType::Linear, 1.0, 0.0, 101).warmup_steps, 0);
        assert_eq!(Schedule::new(LrSchedulerType::Linear, 1.0, 0.1, 10).warmup_steps, 1);
    }

    #[test]
    fn no_step_has_a_negative_or_undefined_rate() {
        for kind in LrSchedulerType::ALL {
            for (warmup_steps, total_steps) in [(0, 0), (5, 5), (0, 1), (9, 3)] {
                let schedule = Schedule { kind, learning_rate: 1.0, warmup_steps, total_steps };
                assert!((0..20).all(|step| (0.0..=1.0).contains(&schedule.at(step))), "{schedule:?}");
            }
        }
    }

    #[test]
    fn names_survive_the_trip() {
        for kind in LrSchedulerType::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        assert!("polynomial".parse::<LrSchedulerType>().unwrap_err().contains("linear"));
    }
}
