use super::*;

/// Formats a record as `line:column text`, and a flaw as `line:column found, expected`. A `-` marks a flaw
/// between two records, and a `!` marks a fatal flaw.
fn split(input: &[u8]) -> Vec<String> {
    let Some(mut splitter) = Splitter::new(input).unwrap() else { return vec!["no records".into()] };
    let mut seen = Vec::new();
    while let Some(next) = splitter.next().unwrap() {
        seen.push(match next {
            Ok(Piece { at, bytes }) => {
                format!("{}:{} {}", at.line, at.column, String::from_utf8_lossy(&bytes))
            }
            Err(Flaw { at, found, expected, is_record, fatal }) => {
                let mark = if fatal { "!" } else { "" };
                let mark = if is_record { mark.to_owned() } else { format!("-{mark}") };
                format!("{}:{}{mark} found {found}, expected {expected}", at.line, at.column)
            }
        });
    }
    assert!(splitter.next().unwrap().is_none(), "the end is the end");
    seen
}

#[test]
fn arrays_are_cut_at_their_elements() {
    assert_eq!(
        split(b"[{\"a\": 1},\r\n  {\"b\": [2, {}]} , 3]"),
        ["1:2 {\"a\": 1}", "2:3 {\"b\": [2, {}]}", "2:20 3"]
    );
    assert_eq!(split(b" \n [ ] \n"), [""; 0]);
    assert_eq!(split(b""), ["no records"]);
    assert_eq!(split(b"\xef\xbb\xbf\n"), ["no records"]);
}

#[test]
fn brackets_commas_and_quotes_inside_texts_do_not_count() {
    assert_eq!(
        split(br#"[{"a": "]},{[\"\\"}, "x,\\\"]"]"#),
        [r#"1:2 {"a": "]},{[\"\\"}"#, r#"1:22 "x,\\\"]""#]
    );
}

#[test]
fn columns_count_characters() {
    assert_eq!(split("[\"甄嬛\", 2]".as_bytes()), ["1:2 \"甄嬛\"", "1:8 2"]);
}

#[test]
fn lines_are_cut_at_line_ends_of_either_kind() {
    assert_eq!(
        split(b"\xef\xbb\xbf{\"a\": 1}\r\n\r\n  {\"b\": 2} \n\n{\"c\""),
        ["1:1 {\"a\": 1}", "3:3 {\"b\": 2}", "5:1 {\"c\""]
    );
}

#[test]
fn a_broken_array_gives_what_stands_before_the_break() {
    assert_eq!(
        split(b"[{},\n{\"a\": 1\n"),
        ["1:2 {}", "2:1 found no end of this record before the end of the file, on line 3, expected `}`"]
    );
    assert_eq!(split(b"[{},{\"a\": [1}]"), ["1:2 {}", "1:13! found `}`, expected `]`"]);
    assert_eq!(
        split(b"[{\"a\": \"x\ny\"}]"),
        ["1:10! found a line break inside a text, expected the `\"` that ends the text, or `\\n`"]
    );
    assert_eq!(
        split(b"[{}"),
        ["1:2 {}", "1:4- found the end of the file, expected `,` or `]` after a record"]
    );
    assert_eq!(
        split(b"[{}] x"),
        ["1:2 {}", "1:6-! found `x`, expected nothing after the `]` that ends the array"]
    );
}

#[test]
fn a_missing_comma_or_a_second_array_costs_no_record() {
    assert_eq!(
        split(b"[{}\n{}]"),
        ["1:2 {}", "2:1- found `{`, expected `,` or `]` after a record", "2:1 {}"]
    );
    assert_eq!(
        split(b"[{\"a\":1}]\n[{\"a\":2}]"),
        [
            "1:2 {\"a\":1}",
            "2:1- found `[`, expected nothing after the `]` that ends the array",
            "2:2 {\"a\":2}"
        ]
    );
}

#[test]
fn a_broken_record_costs_itself_only() {
    let file = |broken: &str| {
        let records = "{\n    \"q\": \"a\",\n    \"m\": [\n      {\n        \"r\": 1\n      }\n    ]\n  }";
        let file = format!("[\n  {records},\n  {},\n  {records},\n  {records}\n]\n", broken);
        let mut seen = split(file.as_bytes());
        assert_eq!(seen.len(), 4, "{seen:?}");
        assert!(
            seen[0].starts_with("2:3 {") && seen[2..].iter().all(|seen| seen.contains(":3 {")),
            "{seen:?}"
        );
        seen.remove(1)
    };
    let missing = "10:3 found no end of this record before the next one, on line";
    assert_eq!(file("{\n    \"q\": \"b\"\n"), format!("{missing} 13, expected `}}`"));
    assert_eq!(file("{\"q\": \"b\""), format!("{missing} 11, expected `}}`"));
    assert_eq!(file("{\n    \"m\": [\n      {\"r\": 1}\n"), format!("{missing} 14, expected `]}}`"));
    assert_eq!(
        file("{\n    \"q\": \"b\n  }"),
        "11:12 found a line break inside a text, expected the `\"` that ends the text, or `\\n`"
    );
    assert_eq!(file("{\n    \"m\": [{\"r\": 1]\n  }"), "11:18 found `]`, expected `}`");
    assert_eq!(file("{\n    \"m\": [{\"r\": 1}\n  }"), "12:3 found `}`, expected `]`");
    assert_eq!(file("{\n    \"q\": 1, {\"r\": 2}\n  }"), "11:13 found `{`, expected a key, or `}`");
}

#[test]
fn the_next_record_is_found_on_one_line_and_without_indentation_too() {
    assert_eq!(
        split(br#"[{"q": "a", "m": {"r": 1}}, {"q": "b", "m": {"r": 1}, {"q": "c"}, {"q": "d, {"q": "e"}]"#),
        [
            r#"1:2 {"q": "a", "m": {"r": 1}}"#,
            "1:29 found no end of this record before the next one, in column 55, expected `}`",
            r#"1:55 {"q": "c"}"#,
            "1:67 found no end of this record before the next one, in column 77, expected `}`",
            r#"1:77 {"q": "e"}"#,
        ]
    );
    let flat = "{\n\"q\": [\n{\n\"r\": 1\n},\n{\n\"r\": 2\n}\n]\n}";
    assert_eq!(split(format!("[\n{flat},\n{flat}\n]").as_bytes()).len(), 2);
    let broken = flat.strip_suffix("]\n}").unwrap();
    let seen = split(format!("[\n{flat},\n{broken},\n{flat}\n]").as_bytes());
    assert_eq!(seen[1], "12:1 found no end of this record before the next one, on line 21, expected `]}`");
    assert_eq!((seen.len(), seen[2].as_str()), (3, format!("21:1 {flat}").as_str()));
}

#[test]
fn a_good_line_after_a_broken_one_is_kept_whatever_its_first_key() {
    let line = |n: u32| format!(r#"{{"instruction": "{n}", "output": "b"}}"#);
    let other = r#"{"output": "b", "instruction": "4"}"#;
    let unclosed = r#"{"instruction": "3", "output": "b""#;
    assert_eq!(
        split(format!("[\n{},\n{unclosed},\n{other},\n{}\n]", line(1), line(5)).as_bytes()),
        [
            format!("2:1 {}", line(1)),
            "3:1 found no end of this record before the next one, on line 4, expected `}`".into(),
            format!("4:1 {other}"),
            format!("5:1 {}", line(5)),
        ]
    );
    let broken_first = r#"{"id": [1, "instruction":"a","output":"b"}"#;
    let seen = split(format!("[\n{broken_first},\n{},\n{}\n]", line(2), line(3)).as_bytes());
    assert_eq!(seen[1..], [format!("3:1 {}", line(2)), format!("4:1 {}", line(3))]);

    let whole = r#"{"instruction": "a", "id": [1, 2], "output": "b"}"#;
    for missing in 0..whole.len() {
        let mut broken = whole.to_owned();
        broken.remove(missing);
        let seen = split(format!("[\n{},\n{broken},\n{other},\n{}\n]", line(1), line(5)).as_bytes());
        let kept = [format!("2:1 {}", line(1)), format!("4:1 {other}"), format!("5:1 {}", line(5))];
        assert!(kept.iter().all(|kept| seen.contains(kept)), "{broken}: {seen:#?}");
    }
}

#[test]
fn a_comma_too_many_costs_no_record() {
    assert_eq!(
        split(b"[{},,{},]"),
        [
            "1:2 {}",
            "1:5 found nothing, expected a record between the commas of the array",
            "1:6 {}",
            "1:9 found nothing, expected a record between the commas of the array"
        ]
    );
}

#[test]
fn deep_nesting_ends_the_file_and_not_the_stack() {
    let bomb = [b"[{},".as_slice(), &vec![b'['; 10_000_000]].concat();
    assert_eq!(split(&bomb), ["1:2 {}", "1:132! found brackets 127 deep, expected a record"]);
}

#[test]
fn an_endless_record_is_not_kept_in_memory() {
    let long = vec![b'x'; MAX_RECORD_BYTES + 1];
    let lines = split(&[b"{}\n", long.as_slice(), b"\n{}"].concat());
    assert_eq!(
        lines,
        ["1:1 {}", "2:1 found a record of more than 128 MiB, expected a smaller one", "3:1 {}"]
    );
    let array = split(&[b"[\"", long.as_slice(), b"\",\n{}]"].concat());
    assert_eq!(array, ["1:2 found a record of more than 128 MiB, expected a smaller one", "2:1 {}"]);
    let swallowed = split(&[b"[\n{\"a\": [1,\n{\"a\": 2},\n\"", long.as_slice(), b"\"]"].concat());
    assert_eq!(
        swallowed,
        [
            "2:1 found no end of this record before the next one, on line 3, expected `]}`",
            "3:1 {\"a\": 2}",
            "4:1 found a record of more than 128 MiB, expected a smaller one"
        ]
    );
}
