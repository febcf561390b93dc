//! Splits records into a training part and a held-out part.

use std::collections::HashMap;
use std::hash::Hash;
use std::{fmt, str::FromStr};

use danlu_kernels::rng;
use serde::{Deserialize, Serialize};

/// Key of the random stream that selects held-out records. The key makes this stream independent of other
/// streams with the same seed.
const SPLIT_STREAM: u64 = 0x0073_706c_6974;

/// The size of the held-out part. A size below 1 is a share of the records, and any other size is a number of
/// records. scikit-learn and LLaMA-Factory have the same rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub enum ValSize {
    /// No records are held out.
    #[default]
    None,
    /// A share between 0 and 1, excluding 0 and 1.
    Share(f64),
    /// A number of records.
    Count(usize),
}

/// An invalid held-out size.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("a held-out size of {found}, expected 0, a share such as 0.05, or a whole number of records")]
pub struct ValSizeError {
    /// The invalid value.
    pub found: String,
}

impl ValSize {
    /// Returns how many of `records` to hold out. A share is rounded up. At least one record is always used
    /// for training.
    pub fn of(self, records: usize) -> usize {
        self.wanted(records).min(records.saturating_sub(1))
    }

    /// Returns the requested number of held-out records, even if no record remains for training.
    pub fn wanted(self, records: usize) -> usize {
        match self {
            Self::None => 0,
            Self::Share(share) => (share * records as f64).ceil() as usize,
            Self::Count(count) => count,
        }
    }
}

impl TryFrom<f64> for ValSize {
    type Error = ValSizeError;

    fn try_from(size: f64) -> Result<Self, ValSizeError> {
        match size {
            0.0 => Ok(Self::None),
            share if share > 0.0 && share < 1.0 => Ok(Self::Share(share)),
            // Above 2^53 an f64 cannot represent every integer.
            count if count >= 1.0 && count.fract() == 0.0 && count <= (1u64 << 53) as f64 => {
                Ok(Self::Count(count as usize))
            }
            other => Err(ValSizeError { found: other.to_string() }),
        }
    }
}

impl From<ValSize> for f64 {
    fn from(size: ValSize) -> f64 {
        match size {
            ValSize::None => 0.0,
            ValSize::Share(share) => share,
            ValSize::Count(count) => count as f64,
        }
    }
}

impl FromStr for ValSize {
    type Err = ValSizeError;

    fn from_str(text: &str) -> Result<Self, ValSizeError> {
        let size: f64 = text.trim().parse().map_err(|_| ValSizeError { found: format!("`{text}`") })?;
        size.try_into()
    }
}

impl fmt::Display for ValSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f64::from(*self).fmt(f)
    }
}

/// Splits `items` into a training part and a held-out part. The order of the items is preserved in both
/// parts.
///
/// The selection depends on the seed, the number of items, and which items have equal `content`. Items with
/// equal content are always in the same part, so the held-out part may be smaller than requested, or empty.
pub fn split<T, K: Eq + Hash + ?Sized>(
    items: Vec<T>,
    size: ValSize,
    seed: u64,
    content: impl Fn(&T) -> &K,
) -> (Vec<T>, Vec<T>) {
    let mut room = size.of(items.len());
    let mut order: Vec<usize> = (0..items.len()).collect();
    rng::Stream::new(rng::key(&[seed, SPLIT_STREAM])).shuffle(&mut order);
    let mut copies: HashMap<&K, Vec<usize>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        copies.entry(content(item)).or_default().push(index);
    }
    let mut chosen = vec![false; items.len()];
    for index in order {
        let copies = &copies[content(&items[index])];
        if !chosen[index] && copies.len() <= room {
            room -= copies.len();
            copies.iter().for_each(|&copy| chosen[copy] = true);
        }
    }
    drop(copies);
    let (mut train, mut held) = (Vec::new(), Vec::new());
    for (item, chosen) in items.into_iter().zip(chosen) {
        if chosen { held.push(item) } else { train.push(item) }
    }
    (train, held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_share_or_a_count() {
        assert_eq!("0".parse(), Ok(ValSize::None));
        assert_eq!("0.05".parse(), Ok(ValSize::Share(0.05)));
        assert_eq!("20".parse(), Ok(ValSize::Count(20)));
        for wrong in ["-1", "1.5", "NaN", "inf", "half"] {
            assert!(wrong.parse::<ValSize>().is_err(), "{wrong}");
        }
        assert_eq!(ValSize::Share(0.1).of(25), 3);
        assert_eq!(ValSize::Share(0.99).of(2), 1);
        assert_eq!(ValSize::Count(9).of(5), 4, "one is left to train on");
        assert_eq!(ValSize::Count(1).of(0), 0);
    }

    #[test]
    fn copies_are_never_on_both_sides() {
        for seed in 0..50 {
            let items = vec!["a", "b", "a", "c", "d", "b", "a", "e"];
            let (train, held) = split(items, ValSize::Count(3), seed, |item: &&str| *item);
            assert!((1..=3).contains(&held.len()) && train.len() + held.len() == 8, "{train:?} {held:?}");
            assert!(held.iter().all(|item| !train.contains(item)), "{train:?} {held:?}");
        }
        let (train, held) = split(vec!["a"; 40], ValSize::Count(10), 1, |item: &&str| *item);
        assert_eq!((train.len(), held.len()), (40, 0));
    }

    #[test]
    fn every_item_is_on_one_side_in_its_order() {
        let split = |seed| split((0..100).collect(), ValSize::Count(20), seed, |i: &i32| i);
        let (train, held) = split(7);
        assert_eq!((train.len(), held.len()), (80, 20));
        assert!(train.is_sorted() && held.is_sorted());
        let mut all = [train, held.clone()].concat();
        all.sort();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        assert_eq!(split(7).1, held, "one seed, one choice");
        assert_ne!(split(8).1, held);
    }
}
