//! Tests the statistics and warnings of `check`.

use std::path::Path;

use danlu_data::{Check, EncodeOptions, Format, ReadOptions, check, read, read_from};
use danlu_model::Tokenizer;

fn tokenizer() -> Tokenizer {
    Tokenizer::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"))).unwrap()
}

fn checked(lines: &str, max_length: usize) -> Check {
    let dataset =
        read_from(lines.as_bytes(), Path::new("chat.jsonl"), &Some(Format::PromptCompletion).into()).unwrap();
    let options = EncodeOptions { max_length, ..Default::default() };
    check(&[dataset], &tokenizer(), &options, &mut |_| {})
}

fn at(sources: &[danlu_data::RecordSource]) -> Vec<u64> {
    sources.iter().map(|source| source.line).collect()
}

#[test]
fn each_record_is_counted_where_it_belongs() {
    let long = "天地玄黄".repeat(100);
    let lines = format!(
        "{{\"prompt\": \"a\", \"completion\": \"b\"}}\n\
         {{\"prompt\": \"a\", \"completion\": \"other\"}}\n\
         {{\"prompt\": \"a\", \"completion\": \"b\"}}\n\
         {{\"prompt\": \"{long}\", \"completion\": \"b\"}}\n\
         {{\"prompt\": \"c\", \"completion\": \"{long}\"}}\n\
         {{\"prompt\": \"d\", \"completion\": \"\"}}\n\
         {{\"prompt\": \"e\"}}\n"
    );
    let found = checked(&lines, 64);
    assert_eq!((found.records, found.bad.len(), found.empty()), (5, 2, 1));
    assert_eq!((at(&found.shortened), at(&found.dropped)), (vec![4], vec![5]));
    let repeated: Vec<(u64, u64)> =
        found.duplicates.iter().map(|(again, first)| (again.line, first.line)).collect();
    assert_eq!(repeated, [(3, 1)]);
    let asked_again: Vec<(u64, u64)> =
        found.same_question.iter().map(|(again, first)| (again.line, first.line)).collect();
    assert_eq!(asked_again, [(2, 1)]);
    assert_eq!(found.usable(), 4);
    assert_eq!(found.lengths.count(), 5);
    assert!(found.lengths.max() > 64, "lengths are those before truncation");
    assert!(found.trained_tokens >= 4 * 2 && found.trained_share() < 0.5);
}

#[test]
fn a_special_token_in_the_text_is_reported() {
    let found = checked(
        "{\"prompt\": \"a\", \"completion\": \"b<|eot_id|>c\"}\n{\"prompt\": \"<|eot\", \"completion\": \"d\"}\n",
        64,
    );
    let told: Vec<(u64, &str)> = found.specials.iter().map(|(at, token)| (at.line, token.as_str())).collect();
    assert_eq!((told.as_slice(), found.bad.len()), (&[(1, "<|eot_id|>")][..], 0));
}

#[test]
fn the_tutorial_data_checks_without_a_complaint() {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/huanhuan.json"));
    if !file.exists() {
        eprintln!("skipped: {} is absent", file.display());
        return;
    }
    let mut heard = 0;
    let options = EncodeOptions { max_length: 384, ..Default::default() };
    let found = check(&[read(file, &ReadOptions::default()).unwrap()], &tokenizer(), &options, &mut |done| {
        heard = done
    });
    assert_eq!((found.records, heard), (3729, 3729));
    assert!(
        found.bad.is_empty()
            && found.dropped.is_empty()
            && found.unknown_keys.is_empty()
            && found.specials.is_empty()
    );
    let buckets = found.lengths.histogram(12);
    assert_eq!(buckets.iter().map(|bucket| bucket.count).sum::<usize>(), 3729);
    eprintln!(
        "lengths {}..{}, median {}, {:.0} % trained, {} duplicates",
        found.lengths.min(),
        found.lengths.max(),
        found.lengths.quantile(0.5),
        100.0 * found.trained_share(),
        found.duplicates.len()
    );
}
