//! Dynamic loss scaling for back ends with f16 activations.
//!
//! The loss is multiplied by a scale before the backward pass, and the update divides the gradient by the
//! same scale. Without the scale, small gradients of activations would be below the smallest f16. If a
//! gradient overflows, the scale is halved and the step is computed again. No step is skipped. Source:
//! Micikevicius et al., 2018, section 3.2.

use serde::{Deserialize, Serialize};

const INITIAL: f64 = 65_536.0;
const MAX_SCALE: f64 = 16_777_216.0;
/// Smallest scale. If a gradient overflows at this scale, the step fails with an error.
const MIN_SCALE: f64 = 1.0;
/// Number of steps without an overflow after which the scale is doubled.
const GROWTH_STEPS: u32 = 2000;

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LossScale {
    /// The scale, which is a power of two.
    factor: f64,
    /// Number of steps since the last overflow or doubling.
    good_steps: u32,
}

impl Default for LossScale {
    fn default() -> Self {
        Self { factor: INITIAL, good_steps: 0 }
    }
}

impl LossScale {
    /// Returns the factor by which the loss is multiplied.
    pub fn factor(self) -> f64 {
        self.factor
    }

    /// Returns whether danlu can have produced these values.
    pub fn is_valid(self) -> bool {
        let is_power = self.factor.is_finite() && self.factor.log2().fract() == 0.0;
        is_power && (MIN_SCALE..=MAX_SCALE).contains(&self.factor) && self.good_steps < GROWTH_STEPS
    }

    /// Halves the scale after an overflow. Returns false if the scale already has its smallest value.
    pub fn halve(&mut self) -> bool {
        if self.factor <= MIN_SCALE {
            return false;
        }
        *self = Self { factor: self.factor / 2.0, good_steps: 0 };
        true
    }

    /// Counts a step without an overflow.
    pub fn count_step(&mut self) {
        self.good_steps += 1;
        if self.good_steps == GROWTH_STEPS {
            *self = Self { factor: (2.0 * self.factor).min(MAX_SCALE), good_steps: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_halves_on_overflow_and_doubles_after_good_steps() {
        let mut scale = LossScale::default();
        assert!(scale.halve());
        assert_eq!(scale.factor(), INITIAL / 2.0);
        for _ in 0..GROWTH_STEPS - 1 {
            scale.count_step();
        }
        assert_eq!(scale.factor(), INITIAL / 2.0);
        scale.count_step();
        assert_eq!(scale, LossScale::default());
        assert!(scale.is_valid());
    }

    #[test]
    fn the_scale_stays_within_its_bounds() {
        let mut scale = LossScale::default();
        while scale.halve() {
            assert!(scale.is_valid());
        }
        assert_eq!(scale.factor(), MIN_SCALE);
        for _ in 0..40 * GROWTH_STEPS {
            scale.count_step();
        }
        assert_eq!(scale.factor(), MAX_SCALE);
        for factor in [0.5, 3.0, f64::NAN, f64::INFINITY, -2.0, 2.0 * MAX_SCALE] {
            assert!(!LossScale { factor, good_steps: 0 }.is_valid(), "{factor}");
        }
    }
}
