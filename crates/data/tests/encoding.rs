//! Tests the token ids and loss masks of records, with real tokenizers and templates.

use std::path::{Path, PathBuf};

use danlu_data::{EncodeOptions, EncodedRecord, ReadOptions, Record, Truncation, encode, preview, read_from};
use danlu_model::Tokenizer;
use proptest::prelude::*;
use serde_json::Value;

/// Returns the tokenizer of the bundled model, which has the template of Llama 3.
fn bundled() -> Tokenizer {
    Tokenizer::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"))).unwrap()
}

fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared")).join(path);
    if !path.exists() {
        eprintln!("skipped: {} is absent", path.display());
        return None;
    }
    Some(path)
}

fn record(json: &Value) -> Record {
    let line = json.to_string();
    let dataset = read_from(line.as_bytes(), Path::new("test.jsonl"), &ReadOptions::default()).unwrap();
    assert_eq!(dataset.bad, []);
    dataset.records.into_iter().next().unwrap()
}

fn alpaca(question: &str, answer: &str) -> Record {
    record(&serde_json::json!({"instruction": question, "input": "", "output": answer}))
}

fn encoded(record: &Record, tokenizer: &Tokenizer, max_length: usize) -> EncodedRecord {
    encode(record, tokenizer, &EncodeOptions { max_length, ..Default::default() }).unwrap()
}

/// Returns the text of the trained tokens.
fn learnt(encoded: &EncodedRecord, tokenizer: &Tokenizer) -> String {
    let sequence = &encoded.sequence;
    let ids: Vec<u32> = sequence
        .ids
        .iter()
        .zip(&sequence.trained)
        .filter(|(_, trained)| **trained)
        .map(|(id, _)| *id)
        .collect();
    tokenizer.decode(&ids, false)
}

#[test]
fn ids_and_labels_equal_those_of_transformers() {
    // `chat_ids.json` contains the output of transformers' `apply_chat_template` for the first 50 records of
    // the tutorial's data.
    let (Some(model), Some(golden)) = (shared("golden/tiny"), shared("golden/chat_ids.json")) else { return };
    let tokenizer = Tokenizer::read(&model).unwrap();
    let golden: Vec<Value> = serde_json::from_slice(&std::fs::read(golden).unwrap()).unwrap();
    assert_eq!(golden.len(), 50);
    for case in golden {
        let encoded = encoded(&record(&case_record(&case)), &tokenizer, 4096);
        let ids: Vec<u64> = case["input_ids"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        let trained: Vec<bool> =
            case["labels"].as_array().unwrap().iter().map(|label| label != -100).collect();
        assert_eq!(encoded.text, case["text"].as_str().unwrap());
        assert_eq!(encoded.sequence.ids.iter().map(|id| u64::from(*id)).collect::<Vec<_>>(), ids);
        assert_eq!(encoded.sequence.trained, trained);
    }
}

fn case_record(case: &Value) -> Value {
    serde_json::json!({"instruction": case["instruction"], "input": case["input"], "output": case["output"]})
}

#[test]
fn mask_covers_every_answer_with_its_end_and_nothing_else() {
    let tokenizer = bundled();
    let chat = record(&serde_json::json!({"messages": [
        {"role": "system", "content": "be brief"}, {"role": "user", "content": "你好"},
        {"role": "assistant", "content": "臣妾在。"}, {"role": "user", "content": "again"},
        {"role": "assistant", "content": "Yes."}
    ]}));
    let answers = encoded(&chat, &tokenizer, 512);
    assert_eq!(learnt(&answers, &tokenizer), "臣妾在。<|eot_id|>Yes.<|eot_id|>");

    let options = EncodeOptions { train_on_prompt: true, ..Default::default() };
    let all = encode(&chat, &tokenizer, &options).unwrap();
    assert_eq!(all.sequence.ids, answers.sequence.ids);
    assert_eq!(all.sequence.trained_tokens(), all.sequence.ids.len() - 1, "all but BOS");
}

#[test]
fn only_the_completion_of_a_prompt_is_learnt() {
    let tokenizer = bundled();
    let chat = record(&serde_json::json!({
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}]
    }));
    assert_eq!(learnt(&encoded(&chat, &tokenizer, 512), &tokenizer), "d<|eot_id|>");
    let options = EncodeOptions { default_system: Some("be brief".into()), ..Default::default() };
    assert_eq!(learnt(&encode(&chat, &tokenizer, &options).unwrap(), &tokenizer), "d<|eot_id|>");
}

#[test]
fn there_is_one_beginning_and_it_is_not_learnt() {
    let tokenizer = bundled();
    let bos = tokenizer.bos_id().unwrap();
    let document = record(&serde_json::json!({"text": "从前有座山"}));
    let marked = record(&serde_json::json!({"text": "<|begin_of_text|>从前有座山<|eot_id|>"}));
    for record in [&alpaca("a", "b"), &document, &marked] {
        let encoded = encoded(record, &tokenizer, 512);
        assert_eq!(encoded.sequence.ids.iter().filter(|id| **id == bos).count(), 1);
        assert_eq!((encoded.sequence.ids[0], encoded.sequence.trained[0]), (bos, false));
    }
    let encoded_document = encoded(&document, &tokenizer, 512);
    assert_eq!(encoded_document.sequence.ids.last().copied(), tokenizer.eos_id());
    assert_eq!(encoded_document.sequence.trained_tokens(), encoded_document.sequence.ids.len() - 1);
    assert_eq!(encoded_document.sequence, encoded(&marked, &tokenizer, 512).sequence);
}

#[test]
fn the_default_system_message_goes_only_where_there_is_none() {
    let tokenizer = bundled();
    let options = EncodeOptions { default_system: Some("你是甄嬛".into()), ..Default::default() };
    let text = |record: &Record| encode(record, &tokenizer, &options).unwrap().text;
    assert!(text(&alpaca("a", "b")).contains("system<|end_header_id|>\n\n你是甄嬛<|eot_id|>"));
    let own =
        record(&serde_json::json!({"instruction": "a", "input": "", "output": "b", "system": "be brief"}));
    assert!(text(&own).contains("be brief") && !text(&own).contains("甄嬛"));
}

#[test]
fn a_record_whose_answer_does_not_fit_is_dropped() {
    let tokenizer = bundled();
    let record = alpaca("q", &"天地玄黄".repeat(50));
    let tokens = encoded(&record, &tokenizer, 4096).sequence.ids.len();
    let short = encoded(&record, &tokenizer, tokens - 1);
    assert_eq!(short.truncation, Truncation::Dropped { tokens });
    assert!(short.sequence.ids.is_empty());
}

#[test]
fn a_document_loses_its_end() {
    let tokenizer = bundled();
    let document = record(&serde_json::json!({"text": "one two three four five six seven eight"}));
    let whole = encoded(&document, &tokenizer, 512);
    let tokens = whole.sequence.ids.len();
    let short = encoded(&document, &tokenizer, 5);
    assert_eq!(short.truncation, Truncation::Shortened { tokens });
    assert_eq!(short.sequence.ids, whole.sequence.ids[..5]);
}

#[test]
fn what_the_template_refuses_is_a_bad_record_at_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let assets = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"));
    std::fs::copy(assets.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let strict = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}\
        {{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}";
    std::fs::write(folder.path().join("chat_template.jinja"), strict).unwrap();
    let tokenizer = Tokenizer::read(folder.path()).unwrap();
    let twice = record(&serde_json::json!({"messages": [{"role": "user", "content": "a"},
        {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]}));
    let bad = encode(&twice, &tokenizer, &EncodeOptions::default()).unwrap_err().to_string();
    assert_eq!(
        bad,
        "test.jsonl:1 (record 1): found a conversation that the model's chat template refuses (roles must alternate), \
         expected one that it renders"
    );
}

#[test]
fn a_preview_shows_the_whole_text_and_no_control_character() {
    let tokenizer = bundled();
    for record in
        [alpaca("娘娘\u{1b}[31m。", "𠮷\ttab"), record(&serde_json::json!({"text": "从前\n有座山"}))]
    {
        let encoded = encoded(&record, &tokenizer, 512);
        let tokens = preview(&encoded, &tokenizer);
        assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), encoded.sequence.ids);
        let joined: String = tokens.iter().map(|token| token.text.as_str()).collect();
        assert!(joined.contains(&danlu_data::replace_controls(&encoded.text)), "{joined}");
        assert!(!joined.contains(char::is_control));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn truncation_never_drops_the_end_of_the_answer(
        turns in prop::collection::vec(("[a-z 你好，。\n]{1,40}x", "[a-z 臣妾，。\n]{1,20}y"), 1..5),
        max_length in 8..160usize,
    ) {
        let tokenizer = bundled();
        let (last, history) = turns.split_last().unwrap();
        let chat = record(&serde_json::json!({
            "instruction": last.0, "input": "", "output": last.1,
            "history": history.iter().map(|(q, a)| [q, a]).collect::<Vec<_>>(),
        }));
        let whole = encoded(&chat, &tokenizer, usize::MAX);
        let short = encoded(&chat, &tokenizer, max_length);
        let end = format!("{}<|eot_id|>", last.1.trim());
        match short.truncation {
            Truncation::None => prop_assert_eq!(&short, &whole),
            Truncation::Dropped { tokens } => {
                prop_assert!(tokens > max_length && short.sequence.ids.is_empty());
            }
            Truncation::Shortened { tokens } => {
                prop_assert_eq!(tokens, whole.sequence.ids.len());
                prop_assert!(short.sequence.ids.len() <= max_length);
                prop_assert_eq!(short.sequence.ids[0], whole.sequence.ids[0]);
                prop_assert!(learnt(&short, &tokenizer).ends_with(&end));
                prop_assert_eq!(short.sequence.ids.last(), whole.sequence.ids.last());
            }
        }
    }
}

#[test]
fn no_eos_token_is_added_if_the_option_says_so() {
    let (with, without) =
        (EncodeOptions::default(), EncodeOptions { add_eos_token: false, ..Default::default() });
    let tokenizer = bundled();
    let eos = tokenizer.eos_id().unwrap();
    let record = record(&serde_json::json!({"text": "one line"}));
    let [with, without] =
        [with, without].map(|options| encode(&record, &tokenizer, &options).unwrap().sequence.ids);
    assert_eq!((with.last(), with[..with.len() - 1].to_vec()), (Some(&eos), without));
}

/// Returns a text that is too long for the tokenizer to encode at once.
fn novel() -> String {
    (0..9000).map(|n| format!("第{n}回：甄嬛道：“臣妾做不到啊。” She said so {n} times.\n")).collect()
}

#[test]
fn a_long_document_keeps_its_start_and_is_counted_whole() {
    let (tokenizer, text) = (bundled(), novel());
    let document = record(&serde_json::json!({"text": text}));
    let whole = encoded(&document, &tokenizer, usize::MAX);
    assert_eq!(whole.truncation, Truncation::None);
    assert_eq!(whole.offsets.last().unwrap().end, text.len());
    let short = encoded(&document, &tokenizer, 200);
    assert_eq!(short.truncation, Truncation::Shortened { tokens: whole.sequence.ids.len() });
    assert_eq!(short.sequence.ids, whole.sequence.ids[..200]);
    assert_eq!(short.offsets, whole.offsets[..200]);
}

#[test]
fn a_long_question_keeps_its_end() {
    let (tokenizer, text) = (bundled(), novel());
    let question = record(&serde_json::json!({"instruction": text, "input": "", "output": "是。"}));
    let short = encoded(&question, &tokenizer, 300);
    let Truncation::Shortened { tokens } = short.truncation else { panic!("{:?}", short.truncation) };
    assert!(tokens > 100_000 && (295..=300).contains(&short.sequence.ids.len()), "{tokens}");
    assert_eq!(learnt(&short, &tokenizer), "是。<|eot_id|>");
    let end = &text[text.ceil_char_boundary(text.len() - 300)..];
    assert!(short.text.contains(end.trim_end()), "{}", short.text);
    let answer = record(&serde_json::json!({"instruction": "问", "input": "", "output": text}));
    assert!(matches!(encoded(&answer, &tokenizer, 300).truncation, Truncation::Dropped { .. }));
}
