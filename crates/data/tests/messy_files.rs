//! Tests files as users have them: tables, compressed files, lists inside an object, and other names for keys
//! and roles.

use std::{io::Write, path::Path};

use danlu_data::{DataError, Dataset, EncodeOptions, ReadOptions, RecordContent, encode, read_from};
use danlu_model::Tokenizer;

fn options(columns: &str, roles: &str) -> ReadOptions {
    let mut options = ReadOptions::default();
    if !columns.is_empty() {
        options.columns = columns.parse().unwrap();
    }
    if !roles.is_empty() {
        options.roles = roles.parse().unwrap();
    }
    options
}

fn parse(bytes: &[u8]) -> Result<Dataset, DataError> {
    read_from(bytes, Path::new("data"), &ReadOptions::default())
}

/// Formats good records as `line role: content | …`, and bad records as their message. Bad records are last.
fn lines(dataset: &Dataset) -> Vec<String> {
    let record = |record: &danlu_data::Record| match &record.content {
        RecordContent::Text(text) => format!("{} {text}", record.source.line),
        RecordContent::Chat(chat) => {
            let turns = chat.messages.iter().map(|turn| format!("{}: {}", turn.role, turn.content));
            format!("{} {}", record.source.line, turns.collect::<Vec<_>>().join(" | "))
        }
    };
    let good = dataset.records.iter().map(record);
    good.chain(dataset.bad.iter().map(ToString::to_string)).collect()
}

fn shown(text: &str) -> Vec<String> {
    lines(&parse(text.as_bytes()).unwrap())
}

fn refusal(bytes: &[u8]) -> String {
    let error = parse(bytes).unwrap_err();
    format!("{error}; {}", error.hint().unwrap_or_default())
}

#[test]
fn tables_are_read_with_their_lines() {
    let comma = "\u{feff}instruction,input,output\r\n你是谁？,,\"我是甄嬛，\"\"家父\"\"在。\"\r\n\"翻译\n成英文\",皇上,the Emperor\r\na,b\r\n";
    let expected = [
        "2 user: 你是谁？ | assistant: 我是甄嬛，\"家父\"在。",
        "3 user: 翻译\n成英文\n皇上 | assistant: the Emperor",
        "data:5 (record 3): found a row of 2 cells, \
         expected 3 cells as in the header; a cell with the delimiter needs `\"`",
    ];
    assert_eq!(shown(comma), expected);
    let (tab, semicolon) = ("prompt\tcompletion\na, b\tc\n", "prompt;completion\na, b;c\n");
    assert_eq!((shown(tab), shown(semicolon)), (vec!["2 user: a, b | assistant: c".into()], shown(tab)));
    assert_eq!(shown("text\n\"one, two\"\nthree\n"), ["2 one, two", "3 three"]);
    let messages = "id,messages\n1,\"[{\"\"role\"\": \"\"user\"\", \"\"content\"\": \"\"a\"\"}, \
                    {\"\"role\"\": \"\"assistant\"\", \"\"content\"\": \"\"b\"\"}]\"\n";
    assert_eq!(shown(messages), ["2 user: a | assistant: b"]);
}

#[test]
fn a_gbk_table_names_its_encoding() {
    // Source of the bytes: `printf 'prompt,completion\n你好，甄嬛。,好\n' | iconv -t GBK`.
    let table = b"prompt,completion\n\xc4\xe3\xba\xc3\xa3\xac\xd5\xe7\x8b\xd6\xa1\xa3,\xba\xc3\n";
    let dataset = read_from(&table[..], Path::new("data"), &ReadOptions::default()).unwrap_err();
    assert!(dataset.hint().unwrap().contains("GB18030"), "{dataset}");
}

#[test]
fn compressed_files_are_read_through() {
    let text = b"{\"prompt\": \"a\", \"completion\": \"b\"}\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(&text[..], 1).unwrap();
    for compressed in [&gzip, &zstd] {
        let dataset = parse(compressed).unwrap();
        assert_eq!(lines(&dataset), ["1 user: a | assistant: b"]);
        assert_eq!(dataset.fingerprint.bytes, compressed.len() as u64);
    }
    assert!(refusal(&gzip[..gzip.len() - 9]).starts_with("cannot read `data`"));
    let bomb = zstd::encode_all(std::io::repeat(b' ').take_bytes(400 << 20), 1).unwrap();
    assert!(refusal(&bomb).contains("grows more than"));
}

trait TakeBytes: std::io::Read + Sized {
    fn take_bytes(self, count: u64) -> std::io::Take<Self> {
        self.take(count)
    }
}

impl<R: std::io::Read> TakeBytes for R {}

#[test]
fn a_list_in_an_object_is_the_records() {
    let file = "{\"version\": 1,\n \"train\": [\n  {\"text\": \"a\"},\n  {\"txt\": \"b\"}\n ],\n \"test\": [{\"text\": \"c\"}], \"n\": \"[\"}\n";
    let dataset = parse(file.as_bytes()).unwrap();
    assert_eq!(
        lines(&dataset),
        [
            "3 a",
            "data:4 (record 2): found the key `txt`, expected `text` of the text format; did you mean `text` instead of `txt`?"
        ]
    );
    assert_eq!(dataset.unread_lists, ["test"]);
    assert_eq!(shown(r#"{"rows": [{"row_idx": 0, "row": {"text": "a"}, "truncated_cells": []}]}"#), ["1 a"]);
    assert!(shown("{\"data\": [{\"text\": \"a\"}").last().unwrap().contains("the end of the file"));
}

#[test]
fn an_array_of_turns_is_a_conversation() {
    let turns = r#"[{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]"#;
    let openai = r#"[{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]"#;
    let expected = ["1 user: a | assistant: b"];
    assert_eq!(shown(turns), expected);
    assert_eq!(shown(&format!("[{turns}]")), expected);
    assert_eq!(shown(&format!("{turns}\n{turns}\n")), [expected[0], "2 user: a | assistant: b"]);
    assert_eq!(shown(&format!("{openai}\n{openai}\n")).len(), 2);
    assert!(
        refusal(b"{\"role\": \"user\", \"content\": \"a\"}\n")
            .contains("put the messages of each conversation")
    );
}

#[test]
fn keys_of_other_names_are_mapped_by_flag_or_plain_meaning() {
    let file = br#"{"Frage": "a", "Antwort": "b"}"#;
    let mapped =
        read_from(&file[..], Path::new("data"), &options("instruction=Frage,output=Antwort", "")).unwrap();
    assert_eq!(lines(&mapped), ["1 user: a | assistant: b"]);
    assert!(refusal(file).contains("matches no known format"));
    let aliased = parse(br#"{"question": "a", "answer": "b", "context": "c"}"#).unwrap();
    assert_eq!(lines(&aliased), ["1 user: a | assistant: b"]);
    let pairs: Vec<_> = aliased.aliases.pairs().collect();
    assert_eq!(pairs, [("instruction", "question"), ("output", "answer")]);
    assert_eq!(aliased.unknown_keys[0].key, "context");
    assert_eq!(
        shown(r#"{"instruction": "a", "context": "c", "response": "b", "category": "qa"}"#),
        ["1 user: a\nc | assistant: b"]
    );
    let turns = r#"{"messages": [{"who": "皇上", "said": "a"}, {"who": "甄嬛", "said": "b"}]}"#.as_bytes();
    let own = options("role=who,content=said", "皇上=user,甄嬛=assistant");
    assert_eq!(lines(&read_from(turns, Path::new("data"), &own).unwrap()), ["1 user: a | assistant: b"]);
    assert!(refusal(br#"{"prompt": "a", "chosen": "b", "rejected": "c"}"#).contains("preference data"));
}

#[test]
fn other_kinds_of_files_are_called_by_their_name() {
    assert!(refusal(b"PK\x03\x04....xl/workbook.xml").contains("Excel workbook"));
    assert!(refusal(b"<!DOCTYPE html><html>").contains("raw file"));
    assert!(refusal(b"\xff\xfei\0n\0").contains("UTF-16"));
}

#[test]
fn unread_keys_of_messages_are_counted() {
    let file = br#"{"messages": [{"role": "user", "content": "a", "speaker": "x"}, {"role": "assistant", "content": "b", "trian": false}]}"#;
    let dataset = parse(file).unwrap();
    let keys: Vec<_> = dataset.unknown_keys.iter().map(|key| (key.key.as_str(), key.meant)).collect();
    assert_eq!(keys, [("speaker (in messages)", None), ("trian (in messages)", Some("train"))]);
}

#[test]
fn masked_turns_carry_no_loss() {
    let tokenizer =
        Tokenizer::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m"))).unwrap();
    let learnt = |answer: &str, all: bool| {
        let file = format!(
            r#"{{"messages": [{{"role": "user", "content": "q"}}, {{"role": "assistant", "content": "wrong", "train": false}},
                {{"role": "user", "content": "no"}}, {{"role": "assistant", "content": "right"{answer}}}]}}"#
        )
        .replace('\n', " ");
        let dataset = parse(file.as_bytes()).unwrap();
        let options = EncodeOptions { train_on_prompt: all, ..EncodeOptions::default() };
        let sequence = encode(&dataset.records[0], &tokenizer, &options).unwrap().sequence;
        let trained = sequence.ids.iter().zip(&sequence.trained).filter(|(_, trained)| **trained);
        tokenizer.decode(&trained.map(|(id, _)| *id).collect::<Vec<_>>(), false)
    };
    assert_eq!(learnt("", false), "right<|eot_id|>");
    let parts = r#", "train_detail": [{"begin_offset": 0, "end_offset": 1, "train": true}]"#;
    assert!("right".starts_with(&learnt(parts, false)), "{}", learnt(parts, false));
    let with_prompt = learnt("", true);
    assert!(
        with_prompt.contains("right<|eot_id|>")
            && with_prompt.contains('q')
            && !with_prompt.contains("wrong")
    );
}

#[test]
fn characters_outside_texts_are_a_fault_of_the_record() {
    let good = r#"{"instruction": "a", "output": "b"}"#;
    for bad in ["{\"a\": 甄嬛}", "{甄: 1}", "Lɯ\u{e}", "[NaN, 娘]", "{\"a\": \u{1f375}NaN}"] {
        let seen = shown(&format!("{good}\n{bad}\n{good}\n"));
        assert_eq!(seen.len(), 3, "{bad}: {seen:?}");
        assert!(seen[2].starts_with("data:2:"), "{bad}: {seen:?}");
    }
}

#[test]
fn a_record_of_very_many_values_is_refused_before_it_is_parsed() {
    let good = r#"{"instruction": "a", "output": "b"}"#;
    let seen = shown(&format!("{good}\n{{\"a\": [{}1]}}\n", "1,".repeat(300_000)));
    assert!(seen[1].contains("300001 values in one record, expected at most 262144"), "{seen:?}");
}
