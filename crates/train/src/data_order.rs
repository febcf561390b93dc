//! Selects the records of each micro-batch from the seed and the step.
//!
//! The order depends only on the seed and the step, so a checkpoint stores no random state.

use danlu_kernels::rng;
use serde::{Deserialize, Serialize};

use crate::TrainSettings;

/// Key of the random stream that shuffles the records.
const ORDER_STREAM: u64 = 0x6f72_6465_7200;

/// A position in the training data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataPosition {
    /// Number of completed epochs.
    pub epoch: u64,
    /// Number of completed optimizer steps in the current epoch.
    pub step_in_epoch: u64,
}

#[derive(Debug)]
pub(crate) struct DataOrder {
    /// The units that micro-batches consist of: single records, or packs of records.
    units: Vec<Vec<usize>>,
    batch_size: usize,
    accumulation: usize,
    seed: u64,
    shuffle: bool,
    /// The order in the most recently used epoch.
    ordered: Option<(u64, Vec<usize>)>,
}

impl DataOrder {
    /// Creates the order for records of these lengths.
    pub fn new(lengths: &[usize], settings: &TrainSettings) -> Self {
        let (seed, shuffle) = (settings.seed, settings.shuffle_dataset);
        let units = if settings.packing {
            // Records are packed only once, so every epoch has the same number of steps.
            let order = order(lengths.len(), shuffle, rng::key(&[seed, ORDER_STREAM]));
            pack(&order, lengths, settings.max_length)
        } else {
            (0..lengths.len()).map(|i| vec![i]).collect()
        };
        let (batch_size, accumulation) =
            (settings.per_device_train_batch_size, settings.gradient_accumulation_steps);
        Self { units, batch_size, accumulation, seed, shuffle, ordered: None }
    }

    /// Returns the records of each unit. A micro-batch consists of `per_device_train_batch_size` units.
    pub fn units(&self) -> &[Vec<usize>] {
        &self.units
    }

    /// Returns the number of micro-batches per epoch.
    pub fn micro_batches(&self) -> usize {
        self.units.len().div_ceil(self.batch_size)
    }

    fn steps_per_epoch(&self) -> u64 {
        self.micro_batches().div_ceil(self.accumulation).max(1) as u64
    }

    /// Returns the position after `done` steps.
    pub fn position(&self, done: u64) -> DataPosition {
        let steps = self.steps_per_epoch();
        DataPosition { epoch: done / steps, step_in_epoch: done % steps }
    }

    /// Returns the number of epochs after `done` steps, including a fraction. As in transformers, the
    /// fraction counts micro-batches.
    pub fn epochs(&self, done: u64) -> f64 {
        let DataPosition { epoch, step_in_epoch } = self.position(done);
        epoch as f64 + (step_in_epoch * self.accumulation as u64) as f64 / self.micro_batches().max(1) as f64
    }

    /// Returns the records of each micro-batch in step `step`. Steps start at 1. The last step of an epoch
    /// may have fewer micro-batches than other steps.
    pub fn step(&mut self, step: u64) -> Vec<Vec<usize>> {
        let DataPosition { epoch, step_in_epoch } = self.position(step - 1);
        if self.ordered.as_ref().is_none_or(|(e, _)| *e != epoch) {
            let key = rng::key(&[self.seed, ORDER_STREAM, epoch]);
            self.ordered = Some((epoch, order(self.units.len(), self.shuffle, key)));
        }
        let order = self.ordered.as_ref().map_or(&[][..], |(_, order)| order);
        order
            .chunks(self.batch_size)
            .skip(step_in_epoch as usize * self.accumulation)
            .take(self.accumulation)
            .map(|units| units.iter().flat_map(|&u| self.units[u].iter().copied()).collect())
            .collect()
    }
}

fn order(len: usize, shuffle: bool, key: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..len).collect();
    if shuffle {
        rng::Stream::new(key).shuffle(&mut order);
    }
    order
}

/// Packs records greedily: each record is added to the first pack that has enough room. A pack has at most
/// `capacity` tokens.
fn pack(order: &[usize], lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut packs: Vec<(usize, Vec<usize>)> = Vec::new();
    // Packs before `first_open` have no room for the shortest record.
    let (mut first_open, shortest) = (0, lengths.iter().copied().min().unwrap_or(0));
    for &record in order {
        let len = lengths[record];
        match packs[first_open..].iter_mut().find(|(used, _)| used + len <= capacity) {
            Some((used, records)) => {
                *used += len;
                records.push(record);
            }
            None => packs.push((len, vec![record])),
        }
        while packs.get(first_open).is_some_and(|(used, _)| used + shortest > capacity) {
            first_open += 1;
        }
    }
    packs.into_iter().map(|(_, records)| records).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data_order(records: usize, batch: usize, accumulation: usize) -> DataOrder {
        let settings = TrainSettings {
            per_device_train_batch_size: batch,
            gradient_accumulation_steps: accumulation,
            ..TrainSettings::default()
        };
        DataOrder::new(&vec![5; records], &settings)
    }

    #[test]
    fn an_epoch_shows_every_record_once_in_an_order_of_its_own() {
        let mut data = data_order(11, 2, 2);
        assert_eq!((data.micro_batches(), data.steps_per_epoch()), (6, 3));
        let mut epoch = |first: u64| (first..first + 3).flat_map(|s| data.step(s)).collect::<Vec<_>>();
        let (one, two) = (epoch(1), epoch(4));
        assert_eq!(one.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2, 2, 2, 1]);
        assert_ne!(one, two);
        for epoch in [one, two] {
            let mut records = epoch.concat();
            records.sort();
            assert_eq!(records, (0..11).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_step_does_not_depend_on_those_before() {
        let mut straight = data_order(10, 2, 2);
        let all: Vec<_> = (1..=9).map(|s| straight.step(s)).collect();
        for step in [9, 1, 5] {
            assert_eq!(data_order(10, 2, 2).step(step), all[step as usize - 1]);
        }
    }

    #[test]
    fn epochs_count_micro_batches() {
        let data = data_order(6, 2, 2);
        // There are three micro-batches per epoch, and the second step of an epoch has only one.
        assert_eq!([0, 1, 2, 3].map(|done| data.epochs(done)), [0.0, 2.0 / 3.0, 1.0, 1.0 + 2.0 / 3.0]);
        assert_eq!(data.position(3), DataPosition { epoch: 1, step_in_epoch: 1 });
    }

    #[test]
    fn packs_hold_every_record_and_never_too_much() {
        let lengths: Vec<usize> = (0..200).map(|i| 1 + i * 37 % 90).collect();
        let packs = pack(&order(200, true, 7), &lengths, 100);
        let mut records = packs.concat();
        records.sort();
        assert_eq!(records, (0..200).collect::<Vec<_>>());
        let used = |pack: &Vec<usize>| pack.iter().map(|&r| lengths[r]).sum::<usize>();
        assert!(packs.iter().all(|pack| used(pack) <= 100));
        let total: usize = lengths.iter().sum();
        assert!(packs.len() <= total.div_ceil(100) * 11 / 10, "{} packs for {total} tokens", packs.len());
    }
}
