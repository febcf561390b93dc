//! Collects statistics and warnings about data before training.

use std::collections::{HashMap, hash_map::Entry};

use danlu_kernels::rng;
use danlu_model::Tokenizer;
use serde_json::Value;

use crate::{
    DataFileFingerprint, Dataset, EncodeOptions, EncodedRecord, TemplateAudit, TemplateFinding, Truncation,
    UnknownKey, encode, foreign_mark, is_rendered,
    record::{BadRecord, Record, RecordContent, RecordFault, RecordSource},
};

/// The result of [`check`].
#[derive(Clone, Debug, Default)]
pub struct Check {
    /// Format, checksum and counts of each file.
    pub files: Vec<DataFileFingerprint>,
    /// Number of records that could be read.
    pub records: usize,
    /// Lengths of the records before truncation.
    pub lengths: Lengths,
    /// Number of tokens in one epoch, after truncation.
    pub tokens: usize,
    /// Number of tokens in one epoch that have a loss.
    pub trained_tokens: usize,
    /// Records that were shortened to `max_length`.
    pub shortened: Vec<RecordSource>,
    /// Records that were dropped because no shortened version fits in `max_length`.
    pub dropped: Vec<RecordSource>,
    /// Exact copies of an earlier record, as pairs `(copy, first)`.
    pub duplicates: Vec<(RecordSource, RecordSource)>,
    /// Records with the same question as an earlier record and a different answer, as pairs `(later, first)`.
    /// Such records are often intended.
    pub same_question: Vec<(RecordSource, RecordSource)>,
    /// Records whose text contains a special token, together with the token. The tokenizer encodes this text
    /// as the special token and not as ordinary text.
    pub specials: Vec<(RecordSource, String)>,
    /// Documents that contain an end-of-turn token before the end. Such a document is a conversation that
    /// another program rendered. All tokens of the document are trained, including the questions.
    pub rendered: Vec<RecordSource>,
    /// Records with a mark of a chat template, such as `<|im_start|>`, that the tokenizer encodes as ordinary
    /// text, together with the mark.
    pub foreign: Vec<(RecordSource, &'static str)>,
    /// Effects of the chat template on messages.
    pub template: Vec<TemplateFinding>,
    /// Keys that danlu does not read.
    pub unknown_keys: Vec<UnknownKey>,
    /// Records that cannot be trained on.
    pub bad: Vec<BadRecord>,
}

impl Check {
    /// Returns the number of records to train on.
    pub fn usable(&self) -> usize {
        self.lengths.count() - self.dropped.len()
    }

    /// Returns the number of records with an empty question, answer or text.
    pub fn empty(&self) -> usize {
        self.bad.iter().filter(|bad| bad.fault == RecordFault::Empty).count()
    }

    /// Returns the share of all tokens that have a loss, or 0 if there are no tokens.
    pub fn trained_share(&self) -> f64 {
        self.trained_tokens as f64 / self.tokens.max(1) as f64
    }
}

/// Encodes every record in the same way as training, and collects statistics. `progress` receives the number
/// of finished records.
pub fn check(
    datasets: &[Dataset],
    tokenizer: &Tokenizer,
    options: &EncodeOptions,
    progress: &mut dyn FnMut(usize),
) -> Check {
    let mut found = Check::default();
    let mut lengths = Vec::new();
    let mut seen = Seen::default();
    let mut audit = TemplateAudit::new(tokenizer);
    for dataset in datasets {
        found.files.push(dataset.fingerprint.clone());
        found.bad.extend(dataset.bad.iter().cloned());
        found.unknown_keys.extend(dataset.unknown_keys.iter().cloned());
        for record in &dataset.records {
            found.records += 1;
            seen.take(record, &mut found);
            found.record_specials(record, tokenizer);
            match encode(record, tokenizer, options) {
                Ok(encoded) => {
                    if !options.train_on_prompt {
                        audit.add(record, &encoded);
                    }
                    lengths.extend(found.count(record, &encoded));
                }
                Err(bad) => found.bad.push(*bad),
            }
            progress(found.records);
        }
    }
    found.lengths = Lengths::of(lengths);
    found.template = audit.into_findings();
    found
}

impl Check {
    /// Records conversations that contain special tokens, documents that contain an end-of-turn token, and
    /// texts that were rendered for another model.
    fn record_specials(&mut self, record: &Record, tokenizer: &Tokenizer) {
        let mark = record.content.texts().find_map(|text| foreign_mark(text, tokenizer));
        self.foreign.extend(mark.map(|mark| (record.source.clone(), mark)));
        let chat = match &record.content {
            RecordContent::Chat(chat) => chat,
            RecordContent::Text(text) => {
                if is_rendered(text, tokenizer) {
                    self.rendered.push(record.source.clone());
                }
                return;
            }
        };
        let spelt = chat.messages.iter().find_map(|message| tokenizer.special_in(&message.content));
        self.specials.extend(spelt.map(|token| (record.source.clone(), token.to_owned())));
    }

    /// Adds a record to the counts, and returns its length in tokens before truncation. A record without
    /// trained tokens is added to `bad`, and `None` is returned.
    fn count(&mut self, record: &Record, encoded: &EncodedRecord) -> Option<usize> {
        let trained = encoded.sequence.trained_tokens();
        if trained == 0 && !matches!(encoded.truncation, Truncation::Dropped { .. }) {
            self.bad.push(BadRecord::untrained(record.source.clone()));
            return None;
        }
        self.tokens += encoded.sequence.ids.len();
        self.trained_tokens += trained;
        Some(match encoded.truncation {
            Truncation::None => encoded.sequence.ids.len(),
            Truncation::Shortened { tokens } => {
                self.shortened.push(record.source.clone());
                tokens
            }
            Truncation::Dropped { tokens } => {
                self.dropped.push(record.source.clone());
                tokens
            }
        })
    }
}

/// Maps the 128-bit hash of each record, and of each question, to the first record with this hash. For a
/// million records, the probability of a collision is below 1e-26.
#[derive(Default)]
struct Seen<'a> {
    records: HashMap<u128, &'a RecordSource>,
    questions: HashMap<u128, &'a RecordSource>,
}

impl<'a> Seen<'a> {
    fn take(&mut self, record: &'a Record, found: &mut Check) {
        let (whole, question) = record_hashes(&record.content);
        if let Some(first) = self.records.get(&whole) {
            found.duplicates.push((record.source.clone(), (*first).clone()));
            return;
        }
        self.records.insert(whole, &record.source);
        match question.map(|question| self.questions.entry(question)) {
            Some(Entry::Occupied(first)) => {
                found.same_question.push((record.source.clone(), (*first.get()).clone()));
            }
            Some(Entry::Vacant(free)) => drop(free.insert(&record.source)),
            None => {}
        }
    }
}

/// Returns a hash of the whole record, and a hash of everything before the last answer of a conversation.
pub fn record_hashes(content: &RecordContent) -> (u128, Option<u128>) {
    match content {
        RecordContent::Text(text) => (hash([text.as_str()]), None),
        RecordContent::Chat(chat) => {
            let last = chat.messages.iter().rposition(|message| message.role == "assistant");
            let extra: Vec<String> =
                chat.messages.iter().map(|turn| Value::Object(turn.extra.clone()).to_string()).collect();
            let parts = |to: usize| {
                let turns = chat.messages[..to].iter().zip(&extra);
                hash(turns.flat_map(|(turn, extra)| [turn.role.as_str(), &turn.content, extra]))
            };
            (parts(chat.messages.len()), last.map(parts))
        }
    }
}

/// Hashes texts together with the boundaries between them, so that `ab, c` and `a, bc` have different hashes.
fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> u128 {
    let mut state = [1u64, 2];
    for part in parts {
        for word in part.as_bytes().chunks(8) {
            let mut bytes = [0; 8];
            bytes[..word.len()].copy_from_slice(word);
            let word = u64::from_le_bytes(bytes);
            state = state.map(|half| rng::key(&[half, word]));
        }
        state = state.map(|half| rng::key(&[half, part.len() as u64]));
    }
    (u128::from(state[0]) << 64) | u128::from(state[1])
}

/// Record lengths in tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lengths {
    sorted: Vec<usize>,
}

/// One bar of a histogram: the number of lengths in `from ..= to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Smallest length in the bar.
    pub from: usize,
    /// Largest length in the bar.
    pub to: usize,
    /// Number of lengths in the bar.
    pub count: usize,
}

impl Lengths {
    /// Creates the statistics from lengths in any order.
    pub fn of(mut lengths: Vec<usize>) -> Self {
        lengths.sort_unstable();
        Self { sorted: lengths }
    }

    /// Returns the number of lengths.
    pub fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Returns the smallest length, or 0 if there are no lengths.
    pub fn min(&self) -> usize {
        self.quantile(0.0)
    }

    /// Returns the largest length, or 0 if there are no lengths.
    pub fn max(&self) -> usize {
        self.quantile(1.0)
    }

    /// Returns the arithmetic mean, or 0 if there are no lengths.
    pub fn mean(&self) -> f64 {
        self.sorted.iter().sum::<usize>() as f64 / self.count().max(1) as f64
    }

    /// Returns the smallest length `l` such that at least a share `q` of all lengths is at most `l`. For
    /// example, `quantile(0.5)` is the median. Returns 0 if there are no lengths.
    pub fn quantile(&self, q: f64) -> usize {
        let rank = (q.clamp(0.0, 1.0) * self.count() as f64).ceil() as usize;
        self.sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }

    /// Returns at most `bars` bars that together contain all lengths. All bars have the same width: 1, 2 or 5
    /// times a power of ten.
    pub fn histogram(&self, bars: usize) -> Vec<Bucket> {
        let (Some(&min), Some(&max)) = (self.sorted.first(), self.sorted.last()) else { return Vec::new() };
        let bars = bars.max(1);
        let fits = |width: usize| max / width - min / width < bars;
        let steps = (0..19).flat_map(|power| [1, 2, 5].map(|digit| digit * 10usize.pow(power)));
        let width = steps.into_iter().find(|width| fits(*width)).unwrap_or(usize::MAX);
        let mut rest = self.sorted.as_slice();
        let bucket = |index: usize| {
            let (from, to) = (index * width, (index * width).saturating_add(width - 1));
            let (here, beyond) = rest.split_at(rest.partition_point(|length| *length <= to));
            rest = beyond;
            Bucket { from, to, count: here.len() }
        };
        (min / width..=max / width).map(bucket).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let lengths = Lengths::of(vec![9, 1, 5, 3]);
        assert_eq!((lengths.min(), lengths.quantile(0.5), lengths.max()), (1, 3, 9));
        assert_eq!((lengths.quantile(0.95), lengths.mean()), (9, 4.5));
        assert_eq!((Lengths::default().max(), Lengths::default().mean()), (0, 0.0));
        assert_eq!(Lengths::default().histogram(5), []);
    }

    #[test]
    fn hashes_depend_on_text_boundaries() {
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
        assert_ne!(hash(["a"]), hash(["a\0"]));
        assert_eq!(hash(["甄嬛", "c"]), hash(["甄嬛", "c"]));
    }

    proptest! {
        #[test]
        fn a_histogram_counts_every_length_once(
            lengths in prop::collection::vec(0..100_000usize, 1..200), bars in 1..30usize,
        ) {
            let all = lengths.len();
            let buckets = Lengths::of(lengths).histogram(bars);
            prop_assert!(buckets.len() <= bars);
            prop_assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<usize>(), all);
            prop_assert!(buckets.windows(2).all(|pair| pair[0].to + 1 == pair[1].from));
        }
    }
}
