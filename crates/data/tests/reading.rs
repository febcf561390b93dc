//! Tests which records and errors are read from a file.

use std::{io::Read, path::Path};

use danlu_data::{Charset, DataError, Dataset, Format, ReadOptions, RecordContent, read, read_from};

fn parse(bytes: &[u8], format: Option<Format>) -> Result<Dataset, DataError> {
    read_from(bytes, Path::new("folder/chat.json"), &format.into())
}

/// Formats good records as `line role: content | …`, and bad records as their message.
fn lines(dataset: &Dataset) -> Vec<String> {
    let mut seen: Vec<(usize, String)> = Vec::new();
    for record in &dataset.records {
        let text = match &record.content {
            RecordContent::Text(text) => text.clone(),
            RecordContent::Chat(chat) => {
                let turns: Vec<String> =
                    chat.messages.iter().map(|turn| format!("{}: {}", turn.role, turn.content)).collect();
                turns.join(" | ")
            }
        };
        seen.push((record.source.index, format!("{} {text}", record.source.line)));
    }
    seen.extend(dataset.bad.iter().map(|bad| (bad.source.index, bad.to_string())));
    seen.sort();
    seen.into_iter().map(|(_, line)| line).collect()
}

fn shown(text: &str) -> Vec<String> {
    lines(&parse(text.as_bytes(), None).unwrap())
}

fn refusal(text: &str) -> String {
    let error = parse(text.as_bytes(), None).unwrap_err();
    assert!(error.hint().is_some(), "{error}");
    error.to_string()
}

const FIVE: [(&str, Format, &str); 5] = [
    (r#"{"instruction": "a", "input": "", "output": "b"}"#, Format::Alpaca, "user: a | assistant: b"),
    (
        r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
        Format::Messages,
        "user: a | assistant: b",
    ),
    (
        r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#,
        Format::ShareGpt,
        "user: a | assistant: b",
    ),
    (r#"{"prompt": "a", "completion": "b"}"#, Format::PromptCompletion, "user: a | assistant: b"),
    (r#"{"text": "a"}"#, Format::Text, "a"),
];

#[test]
fn every_format_is_recognised_by_its_content_as_array_and_as_lines() {
    for (record, format, said) in FIVE {
        let array = format!("[\n  {record},\n  {record}\n]\n");
        let dataset = parse(array.as_bytes(), None).unwrap();
        assert_eq!(dataset.format, format);
        assert_eq!(lines(&dataset), [format!("2 {said}"), format!("3 {said}")]);

        let jsonl = format!("{record}\n\n{record}");
        let dataset = parse(jsonl.as_bytes(), None).unwrap();
        assert_eq!(dataset.format, format);
        assert_eq!(lines(&dataset), [format!("1 {said}"), format!("3 {said}")]);
    }
}

#[test]
fn a_byte_order_mark_and_windows_line_ends_change_nothing() {
    let plain = "[\n {\"text\": \"甄嬛\"},\n {\"text\": \"b\"}\n]\n";
    let windows = format!("\u{feff}{}", plain.replace('\n', "\r\n"));
    assert_eq!(shown(&windows), shown(plain));
    let plain = "{\"text\": \"甄嬛\"}\n\n{\"text\": \"b\"}\n";
    let windows = format!("\u{feff}{}", plain.replace('\n', "\r\n"));
    assert_eq!(shown(&windows), shown(plain));
}

#[test]
fn one_broken_line_is_one_bad_record() {
    assert_eq!(
        shown(
            "{\"text\": \"a\"}\n{\"text\": \"b\"\n\n{\"text\": \"娘娘\" \"c\"}\n[1]\n{\"text\": 5}\n{\"text\": \"d\"}\n"
        ),
        [
            "1 a",
            "folder/chat.json:2:12 (record 2): found no end of an object, expected `}`",
            "folder/chat.json:4:15 (record 3): found `\"`, expected `,` or `}` after a value",
            "folder/chat.json:5 (record 4): found a list of 1, expected a record, which is a JSON object",
            "folder/chat.json:6 (record 5): found the number 5 in `text`, expected a text",
            "7 d",
        ]
    );
}

#[test]
fn a_fault_inside_an_element_is_placed_in_the_file() {
    assert_eq!(
        shown("[\n  {\"text\": \"a\"},\n  {\"text\": \"b\",\n   \"娘\": tru}\n, {\"text\": \"c\"}]"),
        [
            "2 a",
            "folder/chat.json:4:12 (record 2): found `}`, expected a value: a text in double quotes, a number, \
             `true`, `false`, `null`, `[` or `{`",
            "5 c",
        ]
    );
}

#[test]
fn an_array_broken_in_the_middle_costs_what_is_broken() {
    assert_eq!(
        shown("[\n{\"text\": \"a\"},\n{\"text\": \"b\"}\n{\"text\": \"c\"}\n]"),
        ["2 a", "3 b", "4 c", "folder/chat.json:4:1: found `{`, expected `,` or `]` after a record"]
    );
    assert_eq!(
        shown("[\n{\"text\": \"a\"},\n{\"text\": \"b\",\n{\"text\": \"c\"}\n]"),
        [
            "2 a",
            "folder/chat.json:3:1 (record 2): found no end of this record before the next one, on line 4, expected `}`",
            "4 c",
        ]
    );
    let dataset = parse(b"[\n{\"text\": \"a\"}, oops]", None).unwrap();
    assert_eq!(dataset.bad.len(), 1);
    let dataset = parse(b"[\n{\"text\": \"a\"} oops {\"txt\": 3}]", None).unwrap();
    assert!(
        dataset.bad[0].rest_unread && dataset.bad[0].to_string().ends_with("; what follows was not read")
    );
}

#[test]
fn records_on_one_line_are_told_apart_by_their_number() {
    assert_eq!(
        shown("[{\"text\": \"a\"}, {\"text\": 5}, {\"text\": \"c\"}, {\"txt\": \"d\"}]"),
        [
            "1 a",
            "folder/chat.json:1 (record 2): found the number 5 in `text`, expected a text",
            "1 c",
            "folder/chat.json:1 (record 4): found the key `txt`, expected `text` of the text format; \
             did you mean `text` instead of `txt`?",
        ]
    );
}

#[test]
fn keys_that_are_not_read_are_counted_with_what_was_meant() {
    let record = |extra: &str| format!("{{\"instruction\": \"a\", \"output\": \"b\"{extra}}}\n");
    let text =
        [record(""), record(", \"sytem\": \"s\""), record(", \"sytem\": \"s\", \"id\": 3, \"tools\": []")]
            .concat();
    let dataset = parse(text.as_bytes(), None).unwrap();
    let keys: Vec<_> =
        dataset.unknown_keys.iter().map(|k| (k.key.as_str(), k.count, k.first.line, k.meant)).collect();
    assert_eq!(keys, [("sytem", 2, 2, Some("system")), ("id", 1, 3, None)]);
}

#[test]
fn a_misspelt_first_record_asks_what_was_meant() {
    let error = parse(br#"{"instuction": "a", "output": "b"}"#, None).unwrap_err();
    assert_eq!(error.hint().unwrap(), "did you mean `instruction` instead of `instuction`?");
    let long = format!("{{\"{}\": 1}}", "x".repeat(1 << 20));
    assert!(
        parse(long.as_bytes(), None)
            .unwrap_err()
            .hint()
            .unwrap()
            .starts_with("use the keys of a known format")
    );
}

#[test]
fn bytes_that_are_no_utf8_are_one_bad_record() {
    let dataset =
        parse(b"{\"text\": \"a\"}\n{\"text\": \"\xe5\xa8\x98\xff\"}\n{\"text\": \"c\"}\n", None).unwrap();
    assert_eq!(
        lines(&dataset),
        ["1 a", "folder/chat.json:2:12 (record 2): found the byte 0xff, expected UTF-8", "3 c",]
    );
    assert_eq!(dataset.encoding, None, "the rest is UTF-8");
}

#[test]
fn another_encoding_is_named_with_its_conversion() {
    let hint = |bytes: &[u8]| {
        let error = parse(bytes, None).unwrap_err();
        (error.to_string(), error.hint().unwrap())
    };
    let refused = "cannot read `folder/chat.json`: it is UTF-16, expected UTF-8".to_owned();
    let convert = |from: &str| format!("iconv -f {from} -t UTF-8 folder/chat.json > folder/chat.utf8.json");
    for (text, from) in [("\u{feff}[]", "UTF-16"), ("[{}]", "UTF-16LE")] {
        let utf16: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        assert_eq!(hint(&utf16), (refused.clone(), format!("convert the file with {}", convert(from))));
        let (first, rest) = utf16.split_at(1);
        let piped = read_from(first.chain(rest), Path::new("folder/chat.json"), &ReadOptions::default());
        assert_eq!(piped.unwrap_err().to_string(), refused, "a pipe may give one byte first");
    }
    // Source of the bytes: `printf '{"text": "你好"}' | iconv -t GB18030`.
    let (error, next) = hint(b"{\"text\": \"\xc4\xe3\xba\xc3\"}\n");
    assert!(
        error.starts_with("cannot read `folder/chat.json`: every record is invalid; the first: "),
        "{error}"
    );
    assert_eq!(next, format!("the file looks like GB18030 (GBK); convert it with {}", convert("GB18030")));
    let mixed = parse(b"{\"text\": \"ok\"}\n{\"text\": \"caf\xe9\"}\n", None).unwrap();
    assert_eq!((mixed.records.len(), mixed.encoding), (1, Some(Charset::Windows1252)));
}

#[test]
fn a_record_of_another_format_than_the_first_is_bad() {
    assert_eq!(
        shown("{\"text\": \"a\"}\n{\"prompt\": \"a\", \"completion\": \"b\"}\n"),
        [
            "1 a",
            "folder/chat.json:2 (record 2): found the keys `prompt`, `completion`, expected `text` of the text format",
        ]
    );
}

#[test]
fn format_forces_what_the_keys_leave_open() {
    let both = r#"{"instruction": "a", "input": "", "output": "b", "text": "a b"}"#;
    assert_eq!(
        refusal(both),
        "cannot read `folder/chat.json:1` (record 1): a record with the keys `instruction`, `input`, `output`, `text` \
         matches several formats: `alpaca`, `text`"
    );
    assert_eq!(lines(&parse(both.as_bytes(), Some(Format::Alpaca)).unwrap()), ["1 user: a | assistant: b"]);
    assert_eq!(lines(&parse(both.as_bytes(), Some(Format::Text)).unwrap()), ["1 a b"]);
}

#[test]
fn what_is_no_data_file_is_refused_whole() {
    assert_eq!(refusal(""), "cannot read `folder/chat.json`: it contains no records");
    assert_eq!(refusal(" [ ] "), "cannot read `folder/chat.json`: it contains no records");
    assert_eq!(
        refusal(r#"{"chosen": "a", "rejected": "b"}"#),
        "cannot read `folder/chat.json:1` (record 1): a record with the keys `chosen`, `rejected` matches no known format"
    );
    assert_eq!(
        refusal("{\n  \"data\": []\n}"),
        "cannot read `folder/chat.json`: found one JSON object over several lines from line 1, \
         expected a JSON array or one record per line"
    );
    assert!(
        refusal("Once upon a time\n")
            .starts_with("cannot read `folder/chat.json`: every record is invalid; the first: ")
    );
    assert!(
        refusal(&"x\n".repeat(1_000_000))
            .starts_with("cannot read `folder/chat.json`: stopped after 100000 invalid records")
    );
    let missing = read(Path::new("/nowhere/chat.json"), &ReadOptions::default()).unwrap_err();
    assert_eq!(missing.to_string(), "cannot read `/nowhere/chat.json`: it does not exist");
    assert!(missing.hint().is_some());
    let folder = read(Path::new(env!("CARGO_MANIFEST_DIR")), &ReadOptions::default()).unwrap_err();
    assert!(folder.to_string().ends_with("it is a folder"), "{folder}");
}

#[test]
fn a_depth_bomb_is_a_bad_record() {
    let bomb = format!("{{\"text\": \"a\"}}\n{{\"text\": {}\n{{\"text\": \"b\"}}\n", "[".repeat(5_000_000));
    let dataset = parse(bomb.as_bytes(), None).unwrap();
    assert_eq!((dataset.records.len(), dataset.bad.len()), (2, 1));
    assert!(dataset.bad[0].found.contains("brackets 128 deep"), "{}", dataset.bad[0]);
}

#[test]
fn the_fingerprint_names_the_bytes_and_no_folder() {
    let dataset = parse(b"{\"text\": \"a\"}\n{}\n", None).unwrap();
    assert_eq!(dataset.fingerprint.name, "chat.json");
    // Expected checksum: `printf '{"text": "a"}\n{}\n' | sha256sum`.
    assert_eq!(
        dataset.fingerprint.sha256,
        "0c90a0a7b7f4f698aa83053f569ab5ddcb6643af00148f9ed1f7ebd1732e455f"
    );
    assert_eq!((dataset.fingerprint.bytes, dataset.fingerprint.records), (17, 1));
    assert_eq!(dataset.fingerprint.bad_records, 1);
    // If reading stops in the middle of a file, the checksum must still include the whole file.
    let whole = parse(b"[{\"text\": \"a\"}}, and more", None).unwrap();
    assert_eq!(whole.fingerprint.bytes, 25);
}

#[test]
fn the_tutorial_data_reads_without_a_complaint() {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data/huanhuan.json"));
    if !file.exists() {
        eprintln!("skipped: {} is absent", file.display());
        return;
    }
    let dataset = read(file, &ReadOptions::default()).unwrap();
    assert_eq!((dataset.records.len(), dataset.bad.len()), (3729, 0));
    assert_eq!(dataset.format, Format::Alpaca);
    assert_eq!((dataset.records[0].source.line, dataset.records[1].source.line), (2, 7));
}
