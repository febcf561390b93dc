//! Finds the batches with the highest memory use from the lengths and prefixes of the records.

use std::ops::Range;
use std::slice;

#[cfg(doc)]
use danlu_model::Batch;
use danlu_model::{LabeledSequence, ModelConfig, find_shared_prefixes};

use crate::TrainSettings;
use crate::data_order::DataOrder;
use crate::fused_batch::{PassGrouping, cut, groups, parts};
use crate::trainer::evaluation_groups;

/// Maximum number of steps that are examined. For a run with more steps, an upper bound is added.
const MAX_PLANNED_STEPS: u64 = 200_000;

/// Length and prefix of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordSize<'a> {
    /// Number of tokens.
    pub tokens: usize,
    /// Number of tokens that have a loss.
    pub trained: usize,
    /// The first tokens of the record. Several records may [share](find_shared_prefixes) these tokens.
    pub prefix: &'a [u32],
}

impl<'a> RecordSize<'a> {
    /// Returns the size of `sequence`.
    pub fn of(sequence: &'a LabeledSequence) -> Self {
        let trained = sequence.trained_tokens();
        Self { tokens: sequence.ids.len(), trained, prefix: sequence.beginning() }
    }

    /// Returns the size of `sequence` for the model of `config`. If `unshared` is true, the record shares no
    /// prefix. See [`Batch::for_model`].
    pub fn for_model(config: &ModelConfig, unshared: bool, sequence: &'a LabeledSequence) -> Self {
        match unshared || config.rope.depends_on_length() {
            true => Self { prefix: &[], ..Self::of(sequence) },
            false => Self::of(sequence),
        }
    }

    /// Returns the size after truncation to `max_length`.
    pub fn cut(self, max_length: usize) -> Self {
        let tokens = self.tokens.min(max_length);
        let trained = self.trained.min(tokens.saturating_sub(1));
        let prefix = self.prefix.len().min(tokens.saturating_sub(1) - trained);
        Self { tokens, trained, prefix: &self.prefix[..prefix] }
    }

    /// Creates a sequence with this size and this prefix.
    fn sequence(self) -> LabeledSequence {
        let Self { tokens, trained, prefix } = self;
        let mut ids = prefix.to_vec();
        ids.resize(tokens, 0);
        // A shared prefix ends before the row that predicts the first trained token, so one untrained token
        // follows the prefix. The other trained tokens are at the end.
        let is_trained = |i| trained > 0 && (i + trained > tokens || i == prefix.len() + 1);
        LabeledSequence { ids, trained: (0..tokens).map(is_trained).collect() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct MicroBatch<'a> {
    records: Vec<RecordSize<'a>>,
    tokens: usize,
    /// Number of token rows. A shared prefix is counted once.
    rows: usize,
    labels: usize,
}

impl<'a> MicroBatch<'a> {
    fn new(records: Vec<RecordSize<'a>>) -> Self {
        let sum = |size: fn(&RecordSize<'_>) -> usize| records.iter().map(size).sum::<usize>();
        let (tokens, labels) = (sum(|record| record.tokens), sum(|record| record.trained));
        let prefixes: Vec<&[u32]> = records.iter().map(|record| record.prefix).collect();
        let shared = find_shared_prefixes(&prefixes, tokens);
        let rows = tokens - shared.iter().flatten().map(|shared| shared.tokens).sum::<usize>();
        Self { records, tokens, rows, labels }
    }

    /// Splits the micro-batch into parts of at most `max_rows` rows. The parts share no prefix.
    fn cut(&self, max_rows: usize) -> Vec<Self> {
        let lengths: Vec<usize> = self.records.iter().map(|record| record.tokens).collect();
        let part = |records: Range<usize>| {
            let unshared = |record: &RecordSize<'a>| RecordSize { prefix: &[], ..*record };
            Self::new(self.records[records].iter().map(unshared).collect())
        };
        cut(&lengths, max_rows).into_iter().map(part).collect()
    }

    fn longest(&self) -> usize {
        self.records.iter().map(|record| record.tokens).max().unwrap_or(0)
    }

    fn sequences(&self) -> Vec<LabeledSequence> {
        self.records.iter().map(|record| record.sequence()).collect()
    }
}

/// The steps and evaluations with the largest values of all quantities that affect memory, such as the number
/// of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorstSteps<'a> {
    steps: Vec<Vec<MicroBatch<'a>>>,
    evaluations: Vec<MicroBatch<'a>>,
    /// Maximum number of token rows in a pass.
    pub rows: usize,
    /// Maximum number of trained tokens in a pass.
    pub labels: usize,
    /// Maximum number of tokens in a pass that shares a prefix.
    pub keys: usize,
}

impl<'a> WorstSteps<'a> {
    pub fn of(
        records: &[RecordSize<'a>],
        held_out: &[RecordSize<'a>],
        settings: &TrainSettings,
        grouping: PassGrouping,
    ) -> Self {
        let lengths: Vec<usize> = records.iter().map(|record| record.tokens).collect();
        let mut order = DataOrder::new(&lengths, settings);
        let total = settings.total_steps(order.micro_batches());
        let mut worst = WorstFinder::new(grouping);
        for step in 1..=total.min(MAX_PLANNED_STEPS) {
            let micro = |micro: Vec<usize>| {
                MicroBatch::new(micro.into_iter().map(|record| records[record]).collect())
            };
            worst.add(order.step(step).into_iter().map(micro).collect());
        }
        let mut keys_beyond = 0;
        if total > MAX_PLANNED_STEPS {
            // A step has at most as many micro-batches as one epoch.
            let micros = settings.gradient_accumulation_steps.min(order.micro_batches());
            let bound = vec![bound(records, settings); micros];
            // In a step that was not examined, records may share a prefix. Attention then copies the keys of
            // all tokens in the pass.
            keys_beyond = most_of_a_pass(&bound, grouping, tokens);
            worst.add(bound);
        }
        let steps = worst.into_kept();
        let mut worst = WorstFinder::new(PassGrouping::default());
        for group in evaluation_groups(held_out, |record| record.tokens, settings.max_length) {
            worst.add(vec![MicroBatch::new(group.to_vec())]);
        }
        let most = |size: fn(&[MicroBatch<'_>]) -> usize| {
            steps.iter().map(|step| most_of_a_pass(step, grouping, size)).max().unwrap_or(0)
        };
        let (rows, labels, keys) = (most(rows), most(labels), most(keys).max(keys_beyond));
        let evaluations = worst.into_kept().into_iter().flatten().collect();
        Self { evaluations, rows, labels, keys, steps }
    }

    /// Iterates over the steps. Each step is a list of micro-batches, and each micro-batch is a list of
    /// records.
    pub fn steps(&self) -> impl Iterator<Item = Vec<Vec<LabeledSequence>>> + '_ {
        self.steps.iter().map(|step| step.iter().map(MicroBatch::sequences).collect())
    }

    /// Iterates over the evaluations. Each evaluation is the list of records in one batch.
    pub fn evaluations(&self) -> impl Iterator<Item = Vec<LabeledSequence>> + '_ {
        self.evaluations.iter().map(MicroBatch::sequences)
    }
}

fn tokens(micros: &[MicroBatch<'_>]) -> usize {
    micros.iter().map(|micro| micro.tokens).sum()
}

fn rows(micros: &[MicroBatch<'_>]) -> usize {
    micros.iter().map(|micro| micro.rows).sum()
}

fn labels(micros: &[MicroBatch<'_>]) -> usize {
    micros.iter().map(|micro| micro.labels).sum()
}

/// Returns the number of attention keys that are copied if these micro-batches run in one pass. The keys of
/// all tokens are copied if records share a prefix. Otherwise, no key is copied.
fn keys(micros: &[MicroBatch<'_>]) -> usize {
    let shares = micros.iter().any(|micro| micro.rows < micro.tokens);
    if shares { tokens(micros) } else { 0 }
}

/// Returns the largest `size` of a pass in a step.
fn most_of_a_pass(
    step: &[MicroBatch<'_>],
    grouping: PassGrouping,
    size: fn(&[MicroBatch<'_>]) -> usize,
) -> usize {
    let rows: Vec<usize> = step.iter().map(|micro| micro.rows).collect();
    let largest_part = |pass: Range<usize>| {
        let micro = &step[pass.start];
        match parts(pass.len(), micro.rows, micro.tokens, grouping) {
            None => size(&step[pass]),
            Some(most) => micro.cut(most).iter().map(|part| size(slice::from_ref(part))).max().unwrap_or(0),
        }
    };
    groups(&rows, grouping.fuse).into_iter().map(largest_part).max().unwrap_or(0)
}

/// Returns a micro-batch that is at least as large as any micro-batch of the run.
fn bound(records: &[RecordSize<'_>], settings: &TrainSettings) -> MicroBatch<'static> {
    let longest = match settings.packing {
        true => RecordSize { tokens: settings.max_length, trained: settings.max_length, prefix: &[] },
        false => RecordSize {
            tokens: records.iter().map(|record| record.tokens).max().unwrap_or(0),
            trained: records.iter().map(|record| record.trained).max().unwrap_or(0),
            prefix: &[],
        },
    };
    MicroBatch::new(vec![longest; settings.per_device_train_batch_size.min(records.len())])
}

/// Finds the largest step for each quantity that affects memory, such as the number of rows. Smaller steps do
/// not affect the peak, because buffers never shrink.
struct WorstFinder<'a> {
    grouping: PassGrouping,
    kept: [Option<(usize, Vec<MicroBatch<'a>>)>; 8],
}

impl<'a> WorstFinder<'a> {
    fn new(grouping: PassGrouping) -> Self {
        Self { grouping, kept: Default::default() }
    }

    fn add(&mut self, step: Vec<MicroBatch<'a>>) {
        let most = |size: fn(&MicroBatch<'_>) -> usize| step.iter().map(size).max().unwrap_or(0);
        let pass = |size: fn(&[MicroBatch<'_>]) -> usize| most_of_a_pass(&step, self.grouping, size);
        let measures = [
            pass(keys),
            pass(rows),
            pass(tokens),
            pass(labels),
            most(|micro| micro.rows),
            most(|micro| micro.longest()),
            rows(&step),
            labels(&step),
        ];
        for (kept, measure) in self.kept.iter_mut().zip(measures) {
            if measure > kept.as_ref().map_or(0, |(most, _)| *most) {
                *kept = Some((measure, step.clone()));
            }
        }
    }

    fn into_kept(self) -> Vec<Vec<MicroBatch<'a>>> {
        let mut steps: Vec<Vec<MicroBatch<'a>>> = Vec::new();
        for (_, step) in self.kept.into_iter().flatten() {
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use danlu_model::Batch;

    use super::*;

    const FUSED: PassGrouping = PassGrouping { fuse: true, max_rows: None, unshared: false };

    fn record(tokens: usize, trained: usize) -> RecordSize<'static> {
        RecordSize { tokens, trained, prefix: &[] }
    }

    #[test]
    fn a_made_up_sequence_has_the_size_it_was_made_for() {
        for size in [record(2, 1), record(9, 8), record(30, 4)] {
            for prefix in [&[][..], &[7, 8, 9]] {
                let prefix = &prefix[..prefix.len().min(size.tokens - 1 - size.trained)];
                let size = RecordSize { prefix, ..size };
                assert_eq!(RecordSize::of(&size.sequence()), size);
            }
        }
        assert_eq!(record(5, 0).sequence().trained_tokens(), 0);
        assert_eq!(record(30, 20).cut(10), record(10, 9));
        let begun = |tokens, trained, prefix| RecordSize { tokens, trained, prefix };
        assert_eq!(begun(30, 4, &[1, 2, 3, 4]).cut(7), begun(7, 4, &[1, 2]));
    }

    #[test]
    fn the_largest_batches_of_the_real_order_are_found() {
        let records: Vec<_> = (0..101).map(|i| record(10 + i * 37 % 90, 1 + i * 13 % 9)).collect();
        let held_out = [record(200, 3), record(400, 5), record(90, 60)];
        for packing in [false, true] {
            let settings = TrainSettings { max_length: 120, packing, ..TrainSettings::default() };
            let worst = WorstSteps::of(&records, &held_out, &settings, PassGrouping::default());
            let lengths: Vec<_> = records.iter().map(|r| r.tokens).collect();
            let mut order = DataOrder::new(&lengths, &settings);
            let total = settings.total_steps(order.micro_batches());
            let sums = (1..=total).flat_map(|s| order.step(s)).map(|micro| {
                let sum =
                    |size: fn(&RecordSize) -> usize| micro.iter().map(|&r| size(&records[r])).sum::<usize>();
                (sum(|r| r.tokens), sum(|r| r.trained))
            });
            let (tokens, labels): (Vec<usize>, Vec<usize>) = sums.unzip();
            assert_eq!((Some(&worst.rows), Some(&worst.labels)), (tokens.iter().max(), labels.iter().max()));
            let micros: Vec<Vec<LabeledSequence>> = worst.steps().flatten().collect();
            let any = |size: fn(&RecordSize) -> usize, most| {
                let of = |micro: &Vec<LabeledSequence>| {
                    micro.iter().map(|s| size(&RecordSize::of(s))).sum::<usize>()
                };
                micros.iter().any(|micro| of(micro) == most)
            };
            assert!(any(|r| r.tokens, worst.rows) && any(|r| r.trained, worst.labels));
            let fused = WorstSteps::of(&records, &held_out, &settings, FUSED);
            assert!(fused.rows > worst.rows && fused.rows <= 512, "{fused:?}");
            let groups: Vec<usize> =
                worst.evaluations().map(|g| g.iter().map(|s| s.ids.len()).sum()).collect();
            assert_eq!(groups, [490], "the last two fit into 512 tokens, and exceed the first in everything");
        }
    }

    #[test]
    fn a_beginning_counts_once_in_a_micro_batch() {
        let prefix: Vec<u32> = (0..30).collect();
        let records: Vec<_> = (0..40).map(|i| RecordSize { prefix: &prefix, ..record(40 + i, 5) }).collect();
        let settings = TrainSettings { per_device_train_batch_size: 4, ..TrainSettings::default() };
        let worst = WorstSteps::of(&records, &[], &settings, PassGrouping::default());
        let batches: Vec<Batch> = worst.steps().flatten().map(|micro| Batch::new(&micro)).collect();
        assert_eq!(Some(worst.rows), batches.iter().map(Batch::rows).max());
        assert_eq!(Some(worst.keys), batches.iter().map(Batch::tokens).max());
        assert!(worst.rows < worst.keys - 3 * 29, "{worst:?}");
    }

    #[test]
    fn copies_of_keys_are_foreseen_though_a_larger_batch_has_none() {
        let prefix = [5; 24];
        let mut records = vec![record(400, 390)];
        records.extend([RecordSize { prefix: &prefix, ..record(60, 30) }; 6]);
        let settings = TrainSettings {
            packing: true,
            per_device_train_batch_size: 1,
            max_length: 400,
            ..TrainSettings::default()
        };
        for grouping in [PassGrouping::default(), FUSED] {
            let worst = WorstSteps::of(&records, &[], &settings, grouping);
            assert_eq!((worst.rows, worst.keys), (400, 360), "{grouping:?}");
            assert!(worst.steps().flatten().any(|micro| Batch::new(&micro).tokens() == 360), "{grouping:?}");
            let unknown = WorstSteps::of(&records, &records[1..], &settings, grouping);
            assert!(unknown.evaluations().any(|group| Batch::new(&group).rows() < 360));
        }
    }
}
