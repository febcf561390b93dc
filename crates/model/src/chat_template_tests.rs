use super::*;
use crate::Tokenizer;
use std::fs;

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m");
const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");

const CHATML: &str = "\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
";

const INST: &str = "\
{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('roles must alternate') }}
{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] | trim + eos_token }}{% endif %}
{% endfor %}";

const GEMMA: &str = "\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message.role == 'assistant' else message.role %}
{{ '<start_of_turn>' + role + '\n' + message.content.strip() + '<end_of_turn>\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";

const MARKED: &str = "\
{% for message in messages %}
{% if message.role == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message.content }}<|im_end|>{% endgeneration +%}
{% else %}
{{ '<|im_start|>' ~ message.role ~ '\n' ~ message.content ~ '<|im_end|>\n' }}
{%- endif %}
{% endfor %}";

/// A template like Qwen3's, which writes thoughts only in the last turn.
const THINKING: &str = "\
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' and not loop.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- elif message.role == 'assistant' %}
        {%- set content = '<think>\\n\\n</think>\\n\\n' + content %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

fn template(source: &str) -> ChatTemplate {
    let variables = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let variables = variables.map(|(name, token)| (name.to_owned(), token.to_owned())).into();
    let special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"];
    ChatTemplate::new(Path::new("t.jinja"), source, variables, &special.map(str::to_owned)).unwrap()
}

fn dialogue(contents: &[&str]) -> Vec<Message> {
    let roles = ["user", "assistant"].into_iter().cycle();
    roles.zip(contents).map(|(role, content)| Message::new(role, *content)).collect()
}

/// Renders the text and puts each span in guillemets.
fn marked(template: &ChatTemplate, messages: &[Message]) -> String {
    let Rendered { text, spans } = template.assistant_spans(messages).unwrap();
    assert_eq!(text, template.render(messages, false).unwrap());
    let mut out = String::new();
    let mut at = 0;
    for span in spans {
        out.push_str(&format!("{}«{}»", &text[at..span.start], &text[span.clone()]));
        at = span.end;
    }
    out + &text[at..]
}

#[test]
fn chatml_trains_content_and_end_of_turn_but_not_the_line_break() {
    let template = template(CHATML);
    assert_eq!(template.end_of_turn(), Some("<|im_end|>"));
    assert_eq!(template.default_system(), Some("Be brief."));
    assert_eq!(
        marked(&template, &dialogue(&["a", "b\n", "c", "<|im_end|>d"])),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n\
         «b\n<|im_end|>»\n<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«<|im_end|>d<|im_end|>»\n"
    );
}

#[test]
fn inst_begins_the_span_where_generation_begins() {
    let template = template(INST);
    assert_eq!((template.end_of_turn(), template.default_system()), (Some("</s>"), None));
    assert_eq!(
        marked(&template, &dialogue(&["a", " b ", "c", "d"])),
        "<s>[INST] a [/INST]« b</s>»[INST] c [/INST]« d</s>»"
    );
}

#[test]
fn a_rejection_by_the_template_has_its_message() {
    let template = template(GEMMA);
    assert_eq!(template.default_system(), None);
    let error = template.render(&[Message::new("system", "a"), Message::new("user", "b")], true).unwrap_err();
    assert!(error.to_string().ends_with("System role not supported"), "{error}");
    assert!(matches!(error, ModelError::Refused { .. }));
    assert_eq!(
        marked(&template, &dialogue(&["a", "b"])),
        "<s><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n«b<end_of_turn>»\n"
    );
}

#[test]
fn a_marked_part_takes_the_end_of_turn_behind_it() {
    let outside =
        MARKED.replace("<|im_end|>{% endgeneration +%}", "{% endgeneration %}<|im_end|>{{ '\\n' }}");
    let rendered = template(&outside).assistant_spans(&dialogue(&["a", "b", "c", "d"])).unwrap();
    let parts: Vec<_> = rendered.spans.iter().map(|span| &rendered.text[span.clone()]).collect();
    assert!(!parts.is_empty() && parts.iter().all(|part| part.ends_with("<|im_end|>")), "{parts:?}");
}

#[test]
fn a_marked_part_excludes_header_and_line_break() {
    // The structure of SmolLM3's template, which marks whole turns.
    let source = "\
{% for message in messages %}
{% if message.role == 'assistant' %}
{% generation %}{{ '<|im_start|>assistant\\n' ~ message.content ~ '<|im_end|>\\n' }}{% endgeneration %}
{% else %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
    let found = marked(&template(source), &dialogue(&["a", "b", "c", "d"]));
    assert_eq!(found.matches("assistant\n«b<|im_end|>»\n").count(), 1, "{found}");
    assert_eq!(found.matches("assistant\n«d<|im_end|>»\n").count(), 1, "{found}");
}

#[test]
fn the_token_of_the_next_turn_ends_an_answer_without_an_end() {
    // The structure of GLM-4's template.
    let source = "[gMASK]{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}{% endfor %}\
        {% if add_generation_prompt %}<|assistant|>\n{% endif %}";
    let special = ["</s>", "<|user|>", "<|assistant|>", "<|tool|>"].map(str::to_owned);
    let variables = BTreeMap::from([("eos_token".to_owned(), "</s>".to_owned())]);
    let template = ChatTemplate::new(Path::new("t.jinja"), source, variables, &special).unwrap();
    assert_eq!(template.turn_starts(), ["<|user|>", "<|tool|>"]);
    assert_eq!((template.end_of_turn(), template.added_end()), (Some("<|user|>"), None));
    let turn = |role: &str, text: &str| Message::new(role, text);
    let messages = [turn("user", "a"), turn("assistant", "b"), turn("tool", "c"), turn("assistant", "d")];
    assert_eq!(
        marked(&template, &messages),
        "[gMASK]<|user|>\na<|assistant|>\n«b<|tool|>»\nc<|assistant|>\n«d<|user|>»"
    );
    assert!(template.render(&messages[..1], true).unwrap().ends_with("<|assistant|>\n"));
}

#[test]
fn a_leading_blank_belongs_to_the_answer_beside_a_system_message() {
    // Like the template of Mistral v0.3, this one writes the system text only before the last question.
    let source = "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] \
        {% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n{% endif %}{{ m.content }}[/INST]\
        {% elif m.role == 'assistant' %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}";
    let mut messages = dialogue(&["a", "b"]);
    messages.insert(0, Message::new("system", "s"));
    assert_eq!(marked(&template(source), &messages), "<s>[INST] a[/INST]« b</s>»");
}

#[test]
fn the_date_changes_no_fingerprint_and_can_be_stopped() {
    let dated = CHATML.replace("Be brief.", "Today is ' + strftime_now('%d %b %Y') + '.");
    let template = template(&dated);
    assert!(template.asks_for_date() && !self::template(CHATML).asks_for_date());
    assert_eq!(template.default_system(), Some("Today is 01 Jan 1970."));
    template.stop_clock(1_709_212_500);
    let text = template.render(&[Message::new("user", "a")], false).unwrap();
    assert!(text.contains("Today is 29 Feb 2024."), "{text}");
}

#[test]
fn generation_tags_decide_where_they_are() {
    let template = template(MARKED);
    assert_eq!(template.end_of_turn(), Some("<|im_end|>"));
    assert_eq!(
        marked(&template, &dialogue(&["a", "b", "c", "甄\u{f0000}\u{f0001}"])),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«甄\u{f0000}\u{f0001}<|im_end|>»\n"
    );
}

#[test]
fn a_turn_that_later_turns_change_is_found_by_its_content() {
    assert_eq!(
        marked(&template(THINKING), &dialogue(&["a", "<think>hm</think>\n\nb", "c", "d"])),
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n«b<|im_end|>»\n\
         <|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nd<|im_end|>»\n"
    );
}

#[test]
fn a_turn_that_cannot_be_found_is_an_error_with_its_reason() {
    for (source, reason) in [
        (
            "{% for m in messages %}{{ loop.length }}{{ m.content }}{{ m.content }}{% endfor %}",
            "more than once",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ loop.length }}{{ m.content }}{{ messages | length }}{% endfor %}",
            "leaves its content out",
        ),
    ] {
        let error = template(source).assistant_spans(&dialogue(&["a", "b", "c", "d"])).unwrap_err();
        assert!(matches!(error, ModelError::NoMask { index: 1, .. }), "{error:?}");
        assert!(error.to_string().contains(reason), "{error}");
        assert!(error.hint().is_some());
    }
}

#[test]
fn eos_ends_each_answer_where_the_template_ends_none() {
    let source = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}\
        {% if add_generation_prompt %}assistant: {% endif %}";
    let with_eos = template(source);
    assert_eq!((with_eos.end_of_turn(), with_eos.added_end()), (Some("</s>"), Some("</s>")));
    assert_eq!(
        marked(&with_eos, &dialogue(&["a", "b", "c", "d"])),
        "user: a\nassistant: «b</s>»\nuser: c\nassistant: «d</s>»\n"
    );
    let switched_off = with_eos.without_added_end();
    assert_eq!((switched_off.end_of_turn(), switched_off.added_end()), (None, None));
    let without = ChatTemplate::new(Path::new("t.jinja"), source, BTreeMap::new(), &[]).unwrap();
    assert_eq!((without.end_of_turn(), without.added_end()), (None, None));
    assert_eq!(
        marked(&without, &dialogue(&["a", "b", "c", "d"])),
        "user: a\nassistant: «b\n»user: c\nassistant: «d\n»"
    );
}

#[test]
fn broken_and_endless_templates_are_errors() {
    let new = |source: &str| ChatTemplate::new(Path::new("t.jinja"), source, BTreeMap::new(), &[]);
    let error = new("a\n{% for %}").unwrap_err().to_string();
    assert!(error.starts_with("cannot use the chat template of `t.jinja`, line 2: syntax error"), "{error}");
    assert!(new(&" ".repeat(MAX_TEMPLATE_BYTES + 1)).is_err());
    let source = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}";
    let error = new(source).unwrap().render(&[], false).unwrap_err().to_string();
    assert!(error.contains("far more work"), "{error}");
    let error = new("{% include 'x' %}").unwrap().render(&[], false).unwrap_err();
    assert!(matches!(error, ModelError::Template { .. }), "{error}");
}

#[test]
fn the_demonstration_model_trains_answer_and_end_of_turn() {
    let tokenizer = Tokenizer::read(Path::new(BASE)).unwrap();
    assert_eq!(
        marked(tokenizer.template().unwrap(), &dialogue(&[" a ", " b\n"])),
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>\
         <|start_header_id|>assistant<|end_header_id|>\n\n«b<|eot_id|>»"
    );
}

#[test]
fn text_ids_and_labels_equal_transformers() {
    let golden = Path::new(SHARED).join("golden");
    if !golden.exists() {
        eprintln!("skipped: `{}` is not here", golden.display());
        return;
    }
    let tokenizer = Tokenizer::read(&golden.join("tiny")).unwrap();
    let template = tokenizer.template().unwrap();
    let cases: Vec<serde_json::Value> =
        serde_json::from_slice(&fs::read(golden.join("chat_ids.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 50);
    for case in &cases {
        let text = |name: &str| case[name].as_str().unwrap();
        let ids = |name: &str| serde_json::from_value::<Vec<i64>>(case[name].clone()).unwrap();
        let user = text("instruction").to_owned() + text("input");
        let messages = dialogue(&[&user, text("output")]);
        let rendered = template.assistant_spans(&messages).unwrap();
        assert_eq!(rendered.text, text("text"));
        let encoded = tokenizer.encode_with_offsets(&rendered.text).unwrap();
        let [span] = rendered.spans.as_slice() else { panic!("{:?}", rendered.spans) };
        let labels: Vec<i64> = encoded
            .iter()
            .map(
                |(id, range)| {
                    if range.start >= span.start && range.end <= span.end { *id as i64 } else { -100 }
                },
            )
            .collect();
        assert_eq!(labels, ids("labels"));
        assert_eq!(encoded.iter().map(|(id, _)| *id as i64).collect::<Vec<_>>(), ids("input_ids"));
        let prompt = tokenizer.encode(&template.render(&messages[..1], true).unwrap()).unwrap();
        assert_eq!(prompt.iter().map(|&id| id as i64).collect::<Vec<_>>(), ids("prompt_ids"));
    }
}

/// Each of these templates fails with an error before it uses up the time, the memory or the stack.
#[test]
fn a_hostile_template_is_an_error() {
    let turn = "{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}";
    let nest = |body: &str| {
        format!("{{% set ns = namespace(x=[]) %}}{{% for i in range(99999) %}}{body}{{% endfor %}}{turn}")
    };
    for source in [
        "{{ '{:>4000000000}'.format(1) }}".to_owned(),
        "{{ '{:>{}}'.format(1, 4000000000) }}".to_owned(),
        "{{ '%4000000000d' | format(1) }}".to_owned(),
        format!("{{{{ '{}'.format('{}') }}}}", "{0}".repeat(20_000), "x".repeat(20_000)),
        format!("{{{{ [1] | tojson(separators=('{}', ':')) }}}}", "x".repeat(1000)),
        "{{ [[[1] * 99999] * 99999] * 99999 }}".to_owned(),
        "{{ ([[[1] * 99999] * 99999] * 99999) | tojson }}".to_owned(),
        "{{ ([[[1] * 99999] * 99999] * 99999) | string | length }}".to_owned(),
        "{{ ', '.join([[[1] * 99999] * 99999] * 99999) | length }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}".to_owned(),
        "{% set ns = namespace() %}{% macro f() %}{% endmacro %}{% set ns.x = [f] %}".to_owned(),
        nest("{% set ns.x = [ns.x] %}"),
        nest("{% set ns.x = {'a': ns.x} %}"),
        nest("{% set ns.x = ns.x + [i] %}"),
        nest("{% set ns.x = ns.x + ns.x + [1] %}"),
        nest("{% set ns.x = namespace(y=ns.x) %}"),
        nest("{% set ns.x | batch(2, ns.x) %}a{% endset %}"),
        format!("{{% macro f(x) %}}{{{{ f([x]) }}}}{{% endmacro %}}{{{{ f(1) }}}}{turn}"),
        format!("{{% for x in [1] recursive %}}{{{{ loop([[x]]) }}}}{{% endfor %}}{turn}"),
        format!("{{{{ {}1 }}}}{turn}", "not ".repeat(50_000)),
        format!("{{{{ messages{} }}}}{turn}", ".a".repeat(50_000)),
        format!("{}{turn}", "{% with x = [x] %}".repeat(5000)),
    ] {
        let path = Path::new("chat_template.jinja");
        let rendered = ChatTemplate::new(path, &source, BTreeMap::new(), &[])
            .and_then(|template| template.render(&[Message::new("user", "hi")], true));
        let shown: String = source.chars().take(120).collect();
        let Err(ModelError::Template { path, .. }) = rendered else { panic!("{shown}: {rendered:?}") };
        assert_eq!(path, Path::new("chat_template.jinja"));
    }
}

#[test]
fn a_template_that_runs_out_of_work_is_not_rendered_again() {
    let source = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let template = template(source);
    let start = std::time::Instant::now();
    let turns = [Message::new("user", "hi")];
    for _ in 0..10_000 {
        let fault = template.render(&turns, true).unwrap_err();
        assert!(fault.to_string().contains("far more work"), "{fault}");
    }
    assert!(start.elapsed().as_secs() < 60);
}

#[test]
fn a_long_conversation_gets_more_work_and_output() {
    let text = "甄嬛".repeat(1_000_000);
    let rendered = template(CHATML).render(&[Message::new("user", text.clone())], true).unwrap();
    assert!(rendered.contains(&text));
    let many: Vec<Message> = (0..20_000).map(|i| Message::new(["user", "assistant"][i % 2], "a")).collect();
    assert!(template(CHATML).render(&many, true).is_ok());
}

#[test]
fn a_namespace_keeps_lists_over_the_turns_of_a_loop() {
    let source = "{% set ns = namespace(seen=[], n=0) %}{% for m in messages %}\
        {% set ns.seen = ns.seen + [m.role] %}{% set ns.n = ns.n + 1 %}{% endfor %}\
        {% set a, b = ns.seen[0], ns.n %}{{ ns.seen | join(',') }} {{ a }} {{ b }}\
        {% macro twice(x, y='!') %}{{ x }}{{ x }}{{ y }}{% endmacro %} {{ twice('z') }}\
        {% with q = [1, 2], r = q %}{{ q }}{{ r }}{% endwith %}";
    let turns = [Message::new("user", "a"), Message::new("assistant", "b")];
    assert_eq!(template(source).render(&turns, false).unwrap(), "user,assistant user 2 zz![1, 2][1, 2]");
}

#[test]
fn line_breaks_of_windows_render_as_in_jinja() {
    // Jinja2 converts all line breaks of a template to \n before it compiles the template.
    let template = template("{% for message in messages %}\r\n{{ message.content }}</s>\r\n{% endfor %}");
    assert_eq!(template.render(&dialogue(&["a", "b"]), false).unwrap(), "a</s>\nb</s>\n");
}

#[test]
fn a_written_name_that_nothing_defines_is_an_error() {
    let compile = |source: &str| {
        ChatTemplate::new(Path::new("t.jinja"), source, Default::default(), &[])
            .map(drop)
            .map_err(|e| e.to_string())
    };
    for source in
        ["{{ assistant_name }}x", "{{- 'a' + persona -}}", "{{ sys_text | trim }}", "{{ user_token }}"]
    {
        let error = compile(source).unwrap_err();
        assert!(error.contains(", which no file of the tokenizer defines"), "{error}");
    }
    for source in [
        "{% if persona %}{{ persona }}{% endif %}",
        "{{ persona if persona is defined else 'a' }}",
        "{{ date_string | default('today') }}",
        "{% set x = y or 'z' %}{{ x }}",
        "{{ tools | tojson }}{{ bos_token }}{{ messages[0].persona }}",
        "{% set ns = namespace(a='') %}{{ ns.a }}",
        "{% macro m(q) %}{{ q }}{% endmacro %}{{ m(1) }}",
    ] {
        assert_eq!(compile(source), Ok(()), "{source}");
    }
}
