//! The batches that decide how much memory a run takes, found from lengths and beginnings of its records.

use danlu_model::{LabeledSequence, find_shared_prefixes};

use crate::TrainSettings;
use crate::data_order::Feed;
use crate::fused_batch::groups;
use crate::trainer::evaluation_groups;

/// Steps that are looked at one by one; of a longer run the rest is bounded from above.
const MOST_STEPS: u64 = 200_000;

/// How long a record is, and what it begins with: all that memory depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordSize<'a> {
    /// Tokens.
    pub tokens: usize,
    /// Those that carry a loss.
    pub trained: usize,
    /// The first tokens, as far as other records may [share](find_shared_prefixes) them.
    pub beginning: &'a [u32],
}

impl<'a> RecordSize<'a> {
    /// The size of `sequence`.
    pub fn of(sequence: &'a LabeledSequence) -> Self {
        let trained = sequence.trained_tokens();
        Self { tokens: sequence.ids.len(), trained, beginning: sequence.beginning() }
    }

    /// A record of that size cut to `max_length`.
    pub fn cut(self, max_length: usize) -> Self {
        let tokens = self.tokens.min(max_length);
        let trained = self.trained.min(tokens.saturating_sub(1));
        let beginning = self.beginning.len().min(tokens.saturating_sub(1) - trained);
        Self { tokens, trained, beginning: &self.beginning[..beginning] }
    }

    /// Some sequence of this size, which shares no more of its beginning.
    fn sequence(self) -> LabeledSequence {
        let Self { tokens, trained, beginning } = self;
        let mut ids = beginning.to_vec();
        ids.resize(tokens, 0);
        // The first label stands behind the beginning, the others at the end.
        let is_trained = |i| trained > 0 && (i + trained > tokens || i == beginning.len() + 1);
        LabeledSequence { ids, trained: (0..tokens).map(is_trained).collect() }
    }
}

/// The records of one micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Micro<'a> {
    records: Vec<RecordSize<'a>>,
    tokens: usize,
    /// Rows: what records begin with alike is there once.
    rows: usize,
    labels: usize,
}

impl<'a> Micro<'a> {
    fn new(records: Vec<RecordSize<'a>>) -> Self {
        let sum = |size: fn(&RecordSize<'_>) -> usize| records.iter().map(size).sum::<usize>();
        let (tokens, labels) = (sum(|record| record.tokens), sum(|record| record.trained));
        let beginnings: Vec<&[u32]> = records.iter().map(|record| record.beginning).collect();
        let shared = find_shared_prefixes(&beginnings, tokens);
        let rows = tokens - shared.iter().flatten().map(|shared| shared.tokens).sum::<usize>();
        Self { records, tokens, rows, labels }
    }

    fn longest(&self) -> usize {
        self.records.iter().map(|record| record.tokens).max().unwrap_or(0)
    }

    fn sequences(&self) -> Vec<LabeledSequence> {
        self.records.iter().map(|record| record.sequence()).collect()
    }
}

/// The steps and evaluations of a run that no other exceeds in everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load<'a> {
    steps: Vec<Vec<Micro<'a>>>,
    evaluations: Vec<Micro<'a>>,
    /// Most rows of a pass.
    pub rows: usize,
    /// Most trained tokens of a pass.
    pub labels: usize,
    /// Most tokens of a pass that shares rows.
    pub keys: usize,
}

impl<'a> Load<'a> {
    /// What a run over these records meets, with its small micro-batches `together` or not.
    pub fn of(
        records: &[RecordSize<'a>],
        held_out: &[RecordSize<'a>],
        settings: &TrainSettings,
        together: bool,
    ) -> Self {
        let lengths: Vec<usize> = records.iter().map(|record| record.tokens).collect();
        let mut feed = Feed::new(&lengths, settings);
        let total = settings.total_steps(feed.micro_batches());
        let mut worst = Worst::new(together);
        for step in 1..=total.min(MOST_STEPS) {
            let micro =
                |micro: Vec<usize>| Micro::new(micro.into_iter().map(|record| records[record]).collect());
            worst.see(feed.step(step).into_iter().map(micro).collect());
        }
        let mut keys_beyond = 0;
        if total > MOST_STEPS {
            // A step has no more of either than the data.
            let micros = settings.gradient_accumulation_steps.min(feed.micro_batches());
            let bound = vec![bound(records, settings); micros];
            // Some of its rows may be shared, or none.
            keys_beyond = most_of_a_pass(&bound, together, tokens);
            worst.see(bound);
        }
        let steps = worst.into_kept();
        let mut worst = Worst::new(false);
        for group in evaluation_groups(held_out, |record| record.tokens, settings.max_length) {
            worst.see(vec![Micro::new(group.to_vec())]);
        }
        let most = |size: fn(&[Micro<'_>]) -> usize| {
            steps.iter().map(|step| most_of_a_pass(step, together, size)).max().unwrap_or(0)
        };
        let (rows, labels, keys) = (most(rows), most(labels), most(keys).max(keys_beyond));
        let evaluations = worst.into_kept().into_iter().flatten().collect();
        Self { evaluations, rows, labels, keys, steps }
    }

    /// Those steps, each the records of its micro-batches.
    pub fn steps(&self) -> impl Iterator<Item = Vec<Vec<LabeledSequence>>> + '_ {
        self.steps.iter().map(|step| step.iter().map(Micro::sequences).collect())
    }

    /// Those evaluations, each the records of one batch.
    pub fn evaluations(&self) -> impl Iterator<Item = Vec<LabeledSequence>> + '_ {
        self.evaluations.iter().map(Micro::sequences)
    }
}

fn tokens(micros: &[Micro<'_>]) -> usize {
    micros.iter().map(|micro| micro.tokens).sum()
}

fn rows(micros: &[Micro<'_>]) -> usize {
    micros.iter().map(|micro| micro.rows).sum()
}

fn labels(micros: &[Micro<'_>]) -> usize {
    micros.iter().map(|micro| micro.labels).sum()
}

/// The tokens of these micro-batches as one pass, where any of them shares rows: all keys are then copied.
fn keys(micros: &[Micro<'_>]) -> usize {
    let shares = micros.iter().any(|micro| micro.rows < micro.tokens);
    if shares { tokens(micros) } else { 0 }
}

/// The largest pass of a step, by one measure.
fn most_of_a_pass(step: &[Micro<'_>], together: bool, size: fn(&[Micro<'_>]) -> usize) -> usize {
    let rows: Vec<usize> = step.iter().map(|micro| micro.rows).collect();
    groups(&rows, together).into_iter().map(|pass| size(&step[pass])).max().unwrap_or(0)
}

/// A micro-batch that none of a run exceeds.
fn bound(records: &[RecordSize<'_>], settings: &TrainSettings) -> Micro<'static> {
    let longest = match settings.packing {
        true => RecordSize { tokens: settings.max_length, trained: settings.max_length, beginning: &[] },
        false => RecordSize {
            tokens: records.iter().map(|record| record.tokens).max().unwrap_or(0),
            trained: records.iter().map(|record| record.trained).max().unwrap_or(0),
            beginning: &[],
        },
    };
    Micro::new(vec![longest; settings.per_device_train_batch_size.min(records.len())])
}

/// Keeps, by each measure, the largest step seen: work buffers only grow, so the others do not matter.
struct Worst<'a> {
    together: bool,
    kept: [Option<(usize, Vec<Micro<'a>>)>; 8],
}

impl<'a> Worst<'a> {
    fn new(together: bool) -> Self {
        Self { together, kept: Default::default() }
    }

    fn see(&mut self, step: Vec<Micro<'a>>) {
        let most = |size: fn(&Micro<'_>) -> usize| step.iter().map(size).max().unwrap_or(0);
        let pass = |size: fn(&[Micro<'_>]) -> usize| most_of_a_pass(&step, self.together, size);
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

    fn into_kept(self) -> Vec<Vec<Micro<'a>>> {
        let mut steps: Vec<Vec<Micro<'a>>> = Vec::new();
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

    fn record(tokens: usize, trained: usize) -> RecordSize<'static> {
        RecordSize { tokens, trained, beginning: &[] }
    }

    #[test]
    fn a_made_up_sequence_has_the_size_it_was_made_for() {
        for size in [record(2, 1), record(9, 8), record(30, 4)] {
            for beginning in [&[][..], &[7, 8, 9]] {
                let beginning = &beginning[..beginning.len().min(size.tokens - 1 - size.trained)];
                let size = RecordSize { beginning, ..size };
                assert_eq!(RecordSize::of(&size.sequence()), size);
            }
        }
        assert_eq!(record(5, 0).sequence().trained_tokens(), 0);
        assert_eq!(record(30, 20).cut(10), record(10, 9));
        let begun = |tokens, trained, beginning| RecordSize { tokens, trained, beginning };
        assert_eq!(begun(30, 4, &[1, 2, 3, 4]).cut(7), begun(7, 4, &[1, 2]));
    }

    #[test]
    fn the_largest_batches_of_the_real_order_are_found() {
        let records: Vec<_> = (0..101).map(|i| record(10 + i * 37 % 90, 1 + i * 13 % 9)).collect();
        let held_out = [record(200, 3), record(400, 5), record(90, 60)];
        for packing in [false, true] {
            let settings = TrainSettings { max_length: 120, packing, ..TrainSettings::default() };
            let load = Load::of(&records, &held_out, &settings, false);
            let lengths: Vec<_> = records.iter().map(|r| r.tokens).collect();
            let mut feed = Feed::new(&lengths, &settings);
            let total = settings.total_steps(feed.micro_batches());
            let sums = (1..=total).flat_map(|s| feed.step(s)).map(|micro| {
                let sum =
                    |size: fn(&RecordSize) -> usize| micro.iter().map(|&r| size(&records[r])).sum::<usize>();
                (sum(|r| r.tokens), sum(|r| r.trained))
            });
            let (tokens, labels): (Vec<usize>, Vec<usize>) = sums.unzip();
            assert_eq!((Some(&load.rows), Some(&load.labels)), (tokens.iter().max(), labels.iter().max()));
            let micros: Vec<Vec<LabeledSequence>> = load.steps().flatten().collect();
            let any = |size: fn(&RecordSize) -> usize, most| {
                let of = |micro: &Vec<LabeledSequence>| {
                    micro.iter().map(|s| size(&RecordSize::of(s))).sum::<usize>()
                };
                micros.iter().any(|micro| of(micro) == most)
            };
            assert!(any(|r| r.tokens, load.rows) && any(|r| r.trained, load.labels));
            let together = Load::of(&records, &held_out, &settings, true);
            assert!(together.rows > load.rows && together.rows <= 512, "{together:?}");
            let groups: Vec<usize> =
                load.evaluations().map(|g| g.iter().map(|s| s.ids.len()).sum()).collect();
            assert_eq!(groups, [490], "the last two fit into 512 tokens, and exceed the first in everything");
        }
    }

    #[test]
    fn a_beginning_counts_once_in_a_micro_batch() {
        let beginning: Vec<u32> = (0..30).collect();
        let records: Vec<_> =
            (0..40).map(|i| RecordSize { beginning: &beginning, ..record(40 + i, 5) }).collect();
        let settings = TrainSettings { per_device_train_batch_size: 4, ..TrainSettings::default() };
        let load = Load::of(&records, &[], &settings, false);
        let batches: Vec<Batch> = load.steps().flatten().map(|micro| Batch::new(&micro)).collect();
        assert_eq!(Some(load.rows), batches.iter().map(Batch::rows).max());
        assert_eq!(Some(load.keys), batches.iter().map(Batch::tokens).max());
        assert!(load.rows < load.keys - 3 * 29, "{load:?}");
    }

    #[test]
    fn copies_of_keys_are_foreseen_though_a_larger_batch_has_none() {
        let beginning = [5; 24];
        let mut records = vec![record(400, 390)];
        records.extend([RecordSize { beginning: &beginning, ..record(60, 30) }; 6]);
        let settings = TrainSettings {
            packing: true,
            per_device_train_batch_size: 1,
            max_length: 400,
            ..TrainSettings::default()
        };
        for together in [false, true] {
            let load = Load::of(&records, &[], &settings, together);
            assert_eq!((load.rows, load.keys), (400, 360), "{together}");
            assert!(load.steps().flatten().any(|micro| Batch::new(&micro).tokens() == 360), "{together}");
            let unknown = Load::of(&records, &records[1..], &settings, together);
            assert!(unknown.evaluations().any(|group| Batch::new(&group).rows() < 360));
        }
    }
}
