use super::*;
use std::fs;

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m");
const SHARED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared");

/// Returns the path of a file in `shared/` next to the checkout. Prints a note if the file does not exist.
fn shared(path: &str) -> Option<PathBuf> {
    let path = Path::new(SHARED).join(path);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: `{}` is not here", path.display());
    None
}

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Returns a folder with the tokenizer files of the embedded base. Some files are replaced. A file is removed
/// if its new text is empty.
fn folder_with(changes: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"] {
        fs::copy(Path::new(BASE).join(name), folder.path().join(name)).unwrap();
    }
    for (name, text) in changes {
        match text.is_empty() {
            true => fs::remove_file(folder.path().join(name)).unwrap(),
            false => fs::write(folder.path().join(name), text).unwrap(),
        }
    }
    folder
}

#[test]
fn ids_are_the_original_tokenizers() {
    let Some(cases) = shared("golden/tokenizer_cases.json") else { return };
    let cases = json_of(&cases);
    for (name, folder) in [("tiny", "golden/tiny"), ("llama3", "tokenizers/llama3")] {
        let tokenizer = Tokenizer::read(&shared(folder).unwrap()).unwrap();
        let cases = cases[name].as_array().unwrap();
        assert_eq!(cases.len(), 200);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let expected: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{name}: {text:?}");
            assert_eq!(tokenizer.decode(&expected, false), text, "{name}");
        }
    }
}

#[test]
fn streamed_pieces_are_whole_characters_and_join_to_the_text() {
    let tokenizer = Tokenizer::read(Path::new(BASE)).unwrap();
    let text = "甄嬛，龘靐𠮷 naïve 👩‍👩‍👧 ok<|eot_id|>\n\n龘";
    let ids = tokenizer.encode(text).unwrap();
    assert!(ids.len() > text.chars().count(), "rare characters must be split for this to test anything");
    for skip_special in [false, true] {
        let mut stream = tokenizer.decode_stream(skip_special);
        let mut joined = String::new();
        for &id in &ids {
            if let Some(piece) = stream.push(id) {
                assert!(!piece.contains('\u{fffd}'), "{piece:?}");
                joined.push_str(&piece);
            }
        }
        joined.extend(stream.finish());
        assert_eq!(joined, tokenizer.decode(&ids, skip_special));
    }
}

#[test]
fn bytes_that_never_become_a_character_come_at_the_end() {
    let tokenizer = Tokenizer::read(Path::new(BASE)).unwrap();
    let ids = tokenizer.encode("ok 龘").unwrap();
    let cut = &ids[..ids.len() - 1];
    let mut stream = tokenizer.decode_stream(false);
    let mut joined: String = cut.iter().filter_map(|&id| stream.push(id)).collect();
    assert!(joined.starts_with("ok"));
    joined.extend(stream.finish());
    assert_eq!(joined, tokenizer.decode(cut, false));
    assert!(joined.ends_with('\u{fffd}'));
}

#[test]
fn offsets_are_bytes_of_the_text() {
    let tokenizer = Tokenizer::read(Path::new(BASE)).unwrap();
    let text = "<|start_header_id|>娘娘 hello";
    let pairs = tokenizer.encode_with_offsets(text).unwrap();
    assert_eq!(pairs.iter().map(|(id, _)| *id).collect::<Vec<_>>(), tokenizer.encode(text).unwrap());
    assert_eq!(&text[pairs[0].1.clone()], "<|start_header_id|>");
    assert!(pairs.iter().all(|(_, range)| text.get(range.clone()).is_some()));
    assert_eq!(pairs.last().unwrap().1.end, text.len());
}

#[test]
fn named_tokens_and_stops_come_from_every_file() {
    let tokenizer = Tokenizer::read(Path::new(BASE)).unwrap();
    assert_eq!(
        (tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()),
        (Some(8182), Some(8186), Some(8187))
    );
    assert_eq!(tokenizer.stop_ids().iter().copied().collect::<Vec<_>>(), [8186]);
    assert_eq!(tokenizer.vocab_size(), 8192);
    tokenizer.limit_ids(&ModelConfig::read(Path::new(BASE)).unwrap());

    // The EOS token of the tokenizer is `<|end_of_text|>`, but the template ends a turn with `<|eot_id|>`.
    let config = json_of(&Path::new(BASE).join("tokenizer_config.json"));
    let config = serde_json::json!({
        "eos_token": {"content": "<|end_of_text|>", "lstrip": false}, "chat_template": config["chat_template"],
    });
    let folder = folder_with(&[
        ("tokenizer_config.json", &config.to_string()),
        ("special_tokens_map.json", r#"{"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}"#),
        ("generation_config.json", r#"{"eos_token_id": [5, 7]}"#),
        ("config.json", r#"{"eos_token_id": 9}"#),
    ]);
    let tokenizer = Tokenizer::read(folder.path()).unwrap();
    assert_eq!(tokenizer.stop_ids().iter().copied().collect::<Vec<_>>(), [5, 7, 9, 8183, 8186]);
    assert_eq!(tokenizer.named("bos_token"), Some("<|begin_of_text|>"));
    assert_eq!(tokenizer.pad_id(), None);
}

#[test]
fn the_template_file_goes_before_the_configuration() {
    let named =
        r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    let folder = folder_with(&[("tokenizer_config.json", named)]);
    let template = Tokenizer::read(folder.path()).unwrap().template().unwrap().clone();
    assert_eq!(template.source(), "D");
    assert_eq!(template.with_tools(&[serde_json::json!({})]).source(), "T");
    fs::write(folder.path().join("chat_template.jinja"), "J").unwrap();
    let template = Tokenizer::read(folder.path()).unwrap().template().unwrap().clone();
    assert_eq!(template.with_tools(&[serde_json::json!({})]).source(), "J");
    fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
    fs::write(folder.path().join("additional_chat_templates/tool_use.jinja"), "U").unwrap();
    let template = Tokenizer::read(folder.path()).unwrap().template().unwrap().clone();
    assert_eq!((template.source(), template.with_tools(&[serde_json::json!({})]).source()), ("J", "U"));
}

#[test]
fn a_folder_without_template_encodes_and_says_so() {
    let folder =
        folder_with(&[("tokenizer_config.json", ""), ("generation_config.json", ""), ("config.json", "")]);
    let tokenizer = Tokenizer::read(folder.path()).unwrap();
    assert!(!tokenizer.encode("皇上").unwrap().is_empty());
    assert!(matches!(tokenizer.template(), Err(ModelError::NoTemplate { .. })));
    assert!(tokenizer.stop_ids().is_empty());
}

#[test]
fn damaged_files_are_named() {
    for (name, text, message) in [
        ("tokenizer.json", "{}", "tokenizer.json`: "),
        (
            "tokenizer_config.json",
            "{\n,}",
            "tokenizer_config.json:2:1`: found `,`, expected a key in double quotes",
        ),
        ("tokenizer_config.json", r#"{"chat_template": 3}"#, "`chat_template` is 3, expected a string"),
        (
            "tokenizer_config.json",
            r#"{"chat_template": "{% if %}"}"#,
            "tokenizer_config.json`, line 1: syntax error",
        ),
        (
            "generation_config.json",
            "{\n  \"eos_token_id\": 七\n}",
            "generation_config.json:2:19`: found `七`, expected a value: ",
        ),
        (
            "generation_config.json",
            "{\n  \"a\": 1",
            "generation_config.json:2:8`: found no end of an object, expected `}`",
        ),
        ("generation_config.json", r#"{"eos_token_id": "x"}"#, "`eos_token_id` is \"x\""),
    ] {
        let error = Tokenizer::read(folder_with(&[(name, text)]).path()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn a_fingerprint_does_not_depend_on_the_layout_of_the_file() {
    let here = Tokenizer::read(Path::new(BASE)).unwrap().fingerprint();
    let compact = json_of(&Path::new(BASE).join("tokenizer.json")).to_string();
    let folder = folder_with(&[("tokenizer.json", &compact)]);
    let there = Tokenizer::read(folder.path()).unwrap().fingerprint();
    assert_eq!(here, there);
    assert_eq!(here.stop, ["<|eot_id|>"]);
    fs::write(folder.path().join("chat_template.jinja"), "J").unwrap();
    let there = Tokenizer::read(folder.path()).unwrap().fingerprint();
    assert_eq!(here.difference(&there, ["here", "there"]).len(), 1);
}

#[test]
fn an_adapter_replaces_only_the_files_it_has() {
    let base = Path::new(BASE);
    let plain = Tokenizer::read(base).unwrap();
    let adapter = tempfile::tempdir().unwrap();
    let config = ConfigJson::read(base).unwrap();
    let read_with = |adapter: &Path| Tokenizer::read_with(base, Some(adapter), &config).unwrap();
    assert!(!Tokenizer::is_brought_by(adapter.path()));
    assert_eq!(read_with(adapter.path()).fingerprint(), plain.fingerprint());

    let own = "{% for m in messages %}{{ m.content }}{% endfor %}";
    fs::write(adapter.path().join("chat_template.jinja"), own).unwrap();
    assert!(Tokenizer::is_brought_by(adapter.path()));
    let over = read_with(adapter.path());
    assert_eq!(over.template().unwrap().source(), own);
    assert_eq!(over.fingerprint().tokenizer_sha256, plain.fingerprint().tokenizer_sha256);

    // The end tokens come from the adapter's file and from the base's `config.json`. A merge would copy the
    // adapter's file.
    let adapter = tempfile::tempdir().unwrap();
    fs::write(adapter.path().join("generation_config.json"), r#"{ "eos_token_id": 7 }"#).unwrap();
    assert!(Tokenizer::is_brought_by(adapter.path()));
    let over = read_with(adapter.path());
    assert!(over.stop_ids().contains(&7) && plain.stop_ids().is_subset(over.stop_ids()), "{over:?}");
    let copied = crate::sidecar_files::choose(base, Some(adapter.path()), &[]).unwrap();
    assert!(copied.iter().any(|f| f.source == adapter.path().join("generation_config.json")));
}

/// Returns a folder with the embedded tokenizer, in which one field is replaced.
fn changed(pointer: &str, value: serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(Path::new(BASE).join("tokenizer.json")).unwrap();
    let mut file: serde_json::Value = serde_json::from_str(&text).unwrap();
    *file.pointer_mut(pointer).unwrap() = value;
    fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    folder
}

#[test]
fn dropout_is_switched_off() {
    let folder = changed("/model/dropout", serde_json::json!(0.5));
    let tokenizer = Tokenizer::read(folder.path()).unwrap();
    assert_eq!(tokenizer.ignored_dropout(), Some(0.5));
    let sound = Tokenizer::read(Path::new(BASE)).unwrap();
    let text = "臣妾做不到啊。The quick brown fox jumps over the lazy dog.";
    for _ in 0..8 {
        assert_eq!(tokenizer.encode(text).unwrap(), sound.encode(text).unwrap());
    }
    assert_eq!(tokenizer.fingerprint().tokenizer_sha256, sound.fingerprint().tokenizer_sha256);
}

#[test]
fn a_panic_of_the_library_is_an_error_that_names_the_file() {
    // `Strip` counts backwards from the end of an empty text.
    let strip = serde_json::json!({ "type": "Strip", "content": "a", "start": 0, "stop": 9 });
    let tokenizer = Tokenizer::read(changed("/decoder", strip).path()).unwrap();
    assert_eq!(tokenizer.decode(&[], false), "");
    let split = serde_json::json!({ "type": "FixedLength", "length": 0 });
    let fault = Tokenizer::read(changed("/pre_tokenizer", split).path()).unwrap_err().to_string();
    assert!(fault.contains("tokenizer.json") && fault.contains("`length` is 0"), "{fault}");
}

#[test]
fn tokens_of_the_files_beside_are_added_as_transformers_adds_them() {
    let folder = folder_with(&[
        ("special_tokens_map.json", r#"{"pad_token": "<|new_pad|>"}"#),
        ("added_tokens.json", r#"{"<|second|>": 100001, "<|first|>": 100000}"#),
    ]);
    let config = folder.path().join("tokenizer_config.json");
    let mut value = json_of(&config);
    value["extra_special_tokens"] = serde_json::json!({ "image_token": "<|image|>" });
    value.as_object_mut().unwrap().remove("pad_token");
    value.as_object_mut().unwrap().remove("added_tokens_decoder");
    fs::write(&config, value.to_string()).unwrap();
    let tokenizer = Tokenizer::read(folder.path()).unwrap();
    let sound = Tokenizer::read(Path::new(BASE)).unwrap();
    let first = sound.vocab_size() as u32;
    assert_eq!(tokenizer.encode("<|first|><|second|>").unwrap(), [first, first + 1]);
    assert_eq!(tokenizer.named("image_token"), Some("<|image|>"));
    assert_eq!(tokenizer.pad_id().unwrap(), tokenizer.token_id("<|new_pad|>").unwrap());
    assert!(tokenizer.special_in("an <|image|>").is_some() && tokenizer.special_in("a <|first|>").is_none());
}

#[test]
fn a_long_added_token_is_refused() {
    let folder =
        folder_with(&[("tokenizer_config.json", &format!(r#"{{"pad_token": "<{}>"}}"#, "x".repeat(5000)))]);
    let fault = Tokenizer::read(folder.path()).unwrap_err().to_string();
    assert!(fault.contains("tokenizer_config.json") && fault.contains("a token of 5002 bytes"), "{fault}");
}

#[test]
fn a_tokenizer_in_other_files_is_named() {
    let folder = folder_with(&[("tokenizer.json", "")]);
    fs::write(folder.path().join("vocab.json"), "{}").unwrap();
    let fault = Tokenizer::read(folder.path()).unwrap_err();
    assert!(fault.to_string().contains("it is in `vocab.json`"), "{fault}");
    assert!(fault.hint().unwrap().contains("AutoTokenizer"));
}
