//! Tests that the effects of a chat template on records are detected and reported.

use std::path::Path;

use danlu_data::{Check, EncodeOptions, ReadOptions, TemplateEffect, check, encode, preview, read_from};
use danlu_model::Tokenizer;

const HEADERS: &str =
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n";

/// Returns the bundled tokenizer with `template` as its chat template.
fn tokenizer(template: &str) -> Tokenizer {
    let folder = tempfile::tempdir().unwrap();
    let assets = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"));
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(assets.join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    Tokenizer::read(folder.path()).unwrap()
}

fn checked(template: &str, records: &[&str]) -> Check {
    let file = records.join("\n");
    let dataset = read_from(file.as_bytes(), Path::new("a.jsonl"), &ReadOptions::default()).unwrap();
    check(&[dataset], &tokenizer(template), &EncodeOptions::default(), &mut |_| {})
}

/// Returns each effect with the number of records, and the line of the first record.
fn effects(template: &str, records: &[&str]) -> Vec<(TemplateEffect, usize, u64)> {
    let found = checked(template, records);
    assert_eq!(found.bad, []);
    found.template.iter().map(|finding| (finding.effect, finding.count, finding.first.line)).collect()
}

const PLAIN: &str =
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
const SYSTEM: &str = r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
const THOUGHT: &str = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>\nwhy\n</think>\n\nb"}]}"#;
const BLANKS: &str =
    r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b\n"}]}"#;

#[test]
fn a_faithful_template_has_no_findings() {
    let template = format!("{HEADERS}{{{{ m.content }}}}<|eot_id|>{{% endfor %}}");
    assert_eq!(effects(&template, &[PLAIN, SYSTEM, THOUGHT, BLANKS]), []);
}

#[test]
fn dropped_repeated_and_trimmed_messages_are_counted() {
    let template = format!(
        "{HEADERS}{{% if m.role != 'system' %}}{{{{ m.content.split('</think>')[-1] | trim }}}}{{% endif %}}<|eot_id|>{{% endfor %}}"
    );
    assert_eq!(
        effects(&template, &[PLAIN, SYSTEM, THOUGHT, THOUGHT, BLANKS]),
        [
            (TemplateEffect::SystemDropped, 1, 2),
            (TemplateEffect::ThoughtDropped, 2, 3),
            (TemplateEffect::Trimmed, 1, 5),
        ]
    );
    let template =
        format!("{{{{ messages[0].content }}}}{HEADERS}{{{{ m.content }}}}<|eot_id|>{{% endfor %}}");
    assert_eq!(effects(&template, &[PLAIN]), [(TemplateEffect::Repeated, 1, 1)]);
}

#[test]
fn a_generation_prompt_that_training_never_sees_is_counted() {
    let template = format!(
        "{HEADERS}{{{{ m.content }}}}<|eot_id|>{{% endfor %}}\
         {{% if add_generation_prompt %}}<|start_header_id|>assistant<|end_header_id|>\n\n<think>\n{{% endif %}}"
    );
    assert_eq!(effects(&template, &[PLAIN, SYSTEM]), [(TemplateEffect::PromptDiffers, 2, 1)]);
}

#[test]
fn eos_follows_each_answer_where_the_template_ends_none() {
    let template = "{{ bos_token }}{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n\n{% endfor %}\
        {% if add_generation_prompt %}### assistant:\n{% endif %}";
    let tokenizer = tokenizer(template);
    let eos = tokenizer.named("eos_token").unwrap().to_owned();
    assert_eq!(tokenizer.template().unwrap().added_end(), Some(eos.as_str()));
    let file = r#"{"prompt": "a", "completion": "b", "history": 1}"#;
    let dataset = read_from(file.as_bytes(), Path::new("a.jsonl"), &ReadOptions::default()).unwrap();
    let encoded = encode(&dataset.records[0], &tokenizer, &EncodeOptions::default()).unwrap();
    assert_eq!(encoded.text, format!("<|begin_of_text|>### user:\na\n\n### assistant:\nb{eos}\n\n"));
    let trained: String = preview(&encoded, &tokenizer)
        .iter()
        .filter(|token| token.trained)
        .map(|token| token.text.clone())
        .collect();
    assert_eq!(trained, format!("b{eos}"));
    assert_eq!(effects(template, &[PLAIN]), []);
}

#[test]
fn a_rendered_document_is_reported_and_stays_unchanged() {
    let template = format!("{HEADERS}{{{{ m.content }}}}<|eot_id|>{{% endfor %}}");
    let rendered = r#"{"text": "<|begin_of_text|>user a<|eot_id|>assistant b<|eot_id|>\n"}"#;
    let plain = r#"{"text": "snow fell"}"#;
    let found = checked(&template, &[plain, rendered]);
    assert_eq!(found.rendered.iter().map(|source| source.line).collect::<Vec<_>>(), [2]);
    let tokenizer = tokenizer(&template);
    let dataset = read_from(rendered.as_bytes(), Path::new("a"), &ReadOptions::default()).unwrap();
    let encoded = encode(&dataset.records[0], &tokenizer, &EncodeOptions::default()).unwrap();
    assert_eq!(encoded.sequence.ids, tokenizer.encode(&encoded.text).unwrap());
}
