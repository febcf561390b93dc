//! Tests the output of `danlu data` in both languages.

mod common;

use std::fs;

use common::{Scene, record};

fn scene() -> Scene {
    let scene = Scene::new();
    let records = [
        record("你好。", "臣妾给皇上请安。"),
        record("今晚吃什么？", "莲子羹。"),
        record("你好。", "臣妾给皇上请安。"),
        record("今晚吃什么？", "燕窝。"),
    ];
    scene.write("four.jsonl", &(records.join("\n") + "\n"));
    scene
}

#[test]
fn preview_marks_what_is_trained_without_colour() {
    let ran = scene().ok("data preview four.jsonl -n 1 --base base");
    let expected = "\
four.jsonl:1 (record 1) · alpaca · 29 tokens, 7 trained
<|begin_of_text|><|start_header_id|>user<|end_header_id|>↵
↵
你好。<|eot_id|><|start_header_id|>assistant<|end_header_id|>↵
↵
⟦臣妾给皇上请安。<|eot_id|>⟧
ids 8182 8184 84 82 5638 8185 198 198 1052 261 8186 8184 64 82 82 72 7886 5811
    83 8185 198 198 ⟦1098 2236 651 6044 5262 261 8186⟧

";
    assert_eq!(ran.out, expected);
    assert_eq!(
        ran.err,
        "text in ⟦ ⟧ is trained, the rest is context\n1 of 4 records shown (-n N shows more)\n"
    );
}

#[test]
fn preview_speaks_chinese() {
    let ran = scene().ok("data preview four.jsonl -n 1 --lang zh");
    let err = "没有给出 --base：用内置 base-8m 的分词器与模板\n⟦ ⟧ 内是训练的部分（计入损失），其余只作上下文\n共 4 条，显示了 1 条（-n N 显示更多）\n";
    assert_eq!(ran.err, err);
    assert!(ran.out.starts_with("four.jsonl:1（第 1 条）· alpaca · "), "{}", ran.out);
}

#[test]
fn preview_marks_what_is_trained_in_colour() {
    let ran = scene().ok("data preview four.jsonl -n 1 --base base --color always");
    assert!(ran.out.contains("\u{1b}[32m臣妾给皇上请安。<|eot_id|>\u{1b}[0m"), "{}", ran.out);
    assert!(!ran.out.contains('⟦'));
}

#[test]
fn check_counts_in_english() {
    let ran = scene().ok("data check four.jsonl --base base");
    let expected = "\
four.jsonl · alpaca · 311 B
records            4
length in tokens   min 29, median 29, mean 29, max 30
tokens             117, 23 of them trained (20%)
shortened          0
dropped            0
duplicates         1
same question      1
unknown keys       0
special tokens     0
bad                0

lengths in tokens: how many records
  29–29 ██████████████████████████████████████████████████████ 3
  30–30 ██████████████████ 1

duplicates
  four.jsonl:3 (record 3) repeats four.jsonl:1 (record 1)

same question, another answer (often intended)
  four.jsonl:4 (record 4) asks what four.jsonl:2 (record 2) asks
";
    assert_eq!(ran.out, expected);
    assert_eq!(
        ran.err,
        "\nno bad records, 4 records to train on. Next:\n  danlu train --base base --data four.jsonl --output out/four\n"
    );
}

#[test]
fn check_counts_in_chinese() {
    let ran = scene().ok("data check four.jsonl --base base --lang zh");
    let expected = "\
four.jsonl · alpaca · 311 B
记录               4
长度（词元）       最短 29，中位 29，平均 29，最长 30
词元               117，其中 23 个计损失（20%）
截断               0
丢弃               0
重复               1
同问异答           1
未知的键           0
特殊词元           0
坏记录             0

长度分布（词元）：条数
  29–29 ██████████████████████████████████████████████████████ 3
  30–30 ██████████████████ 1

重复
  four.jsonl:3（第 3 条）与 four.jsonl:1（第 1 条）相同

同一个问题，另一个答案（可能是有意的）
  four.jsonl:4（第 4 条）与 four.jsonl:2（第 2 条）同问
";
    assert_eq!(ran.out, expected);
    assert_eq!(
        ran.err,
        "\n没有坏记录，可以训练：4 条。接下来：\n  danlu train --base base --data four.jsonl --output out/four\n"
    );
}

#[test]
fn check_names_bad_records_and_fails() {
    let scene = scene();
    scene.write("bad.jsonl", &format!("{}\n{}\n", record("问", "答"), record("问", "")));
    let ran = scene.run("data check bad.jsonl --base base");
    assert_eq!(ran.code, 1);
    assert!(
        ran.out.ends_with(
            "\nbad records\n  bad.jsonl:2 (record 2): found an empty `output`, expected an answer\n"
        ),
        "{}",
        ran.out
    );
    let err =
        "error: 1 of 2 records is bad\n\nhint: correct them, or skip them with `danlu train --skip-bad`\n";
    assert_eq!(ran.err, err);
}

#[test]
fn check_of_a_broken_array_names_one_record_and_keeps_the_others() {
    let scene = scene();
    let whole = "  {\n    \"instruction\": \"问\",\n    \"output\": \"答\"\n  }";
    let broken = "  {\n    \"instruction\": \"问\",\n    \"output\": \"答\"\n";
    scene.write("array.json", &format!("[\n{whole},\n{broken}  ,\n{whole}\n]\n"));
    let ran = scene.run("data check array.json --base base");
    assert_eq!(ran.code, 1);
    let bad = "\nbad records\n  array.json:6:3 (record 2): found no end of this record before the next one, on line 10, \
               expected `}`\n";
    assert!(ran.out.ends_with(bad), "{}", ran.out);
    assert!(ran.err.starts_with("error: 1 of 3 records is bad\n"), "{}", ran.err);
    let ran = scene.ok("data preview array.json --base base");
    assert!(ran.out.contains("\narray.json:10 (record 3) · alpaca"), "{}", ran.out);
    assert!(
        ran.err.ends_with("warning: 1 bad record is not shown: danlu data check array.json\n"),
        "{}",
        ran.err
    );
}

#[test]
fn check_names_keys_that_are_not_read() {
    let scene = scene();
    let record = r#"{"instruction": "问", "output": "答", "sytem": "你是甄嬛。"}"#;
    scene.write("keys.jsonl", &format!("{record}\n"));
    let ran = scene.ok("data check keys.jsonl --base base");
    let listed = "\nignored unknown keys\n  \
                  `sytem` in 1 record, first keys.jsonl:1 (record 1); did you mean `system`?\n";
    assert!(ran.out.contains(listed), "{}", ran.out);
    let ran = scene.ok("data check keys.jsonl --base base --lang zh");
    assert!(
        ran.out
            .contains("  `sytem` 出现在 1 条记录中，最早在 keys.jsonl:1（第 1 条）；是否应为 `system`？\n"),
        "{}",
        ran.out
    );
}

#[test]
fn check_fails_where_nothing_would_be_left() {
    let ran = scene().run("data check four.jsonl --base base --max-length 5");
    assert_eq!(ran.code, 1);
    let err = "error: no record is left to train on: 4 records dropped, since no answer fits in `--max-length` 5\n\n\
               hint: raise `--max-length`: the shortest record has 29 tokens, the longest 30\n";
    assert_eq!(ran.err, err);
}

#[test]
fn another_encoding_is_recognised() {
    let scene = scene();
    // Source: printf '{"instruction": "你好", "output": "甄嬛"}' | iconv -f UTF-8 -t GB18030
    let gbk = b"{\"instruction\": \"\xc4\xe3\xba\xc3\", \"output\": \"\xd5\xe7\x8b\xd6\"}\n";
    std::fs::write(scene.path("gbk.json"), gbk).unwrap();
    let ran = scene.run("data check gbk.json --base base");
    let hint = "\n\nhint: the file looks like GB18030 (GBK); convert it with \
                iconv -f GB18030 -t UTF-8 gbk.json > gbk.utf8.json\n";
    assert!(ran.err.ends_with(hint), "{}", ran.err);
    std::fs::write(
        scene.path("some.json"),
        [b"{\"instruction\": \"a\", \"output\": \"b\"}\n", &gbk[..]].concat(),
    )
    .unwrap();
    let ran = scene.run("data check some.json --base base");
    assert!(
        ran.err.contains("hint: `some.json`: the file looks like GB18030 (GBK); convert it with iconv"),
        "{}",
        ran.err
    );
}

#[test]
fn output_that_cannot_be_written_is_said_and_a_closed_pipe_is_not() {
    let scene = scene();
    let mut command = scene.command(&["data", "check", "four.jsonl", "--base", "base"]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ran = common::Ran::of(command.stdout(full).output().unwrap());
    assert_eq!(
        (ran.code, ran.err.as_str()),
        (1, "error: cannot write to standard output: the disk is full\n")
    );

    let mut child = scene
        .command(&["data", "check", "four.jsonl", "--base", "base"])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let ran = common::Ran::of(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
}

#[test]
fn a_missing_file_in_an_existing_folder_is_no_download() {
    let scene = Scene::new();
    fs::create_dir(scene.path("me")).unwrap();
    let hint =
        "hint: check the path for a typing mistake; if it is a data set on the Hub, write `hf:me/palace`\n";
    for line in [
        "data check me/palace --base base",
        "data preview me/palace --base base",
        "train --base base --data me/palace --output out",
    ] {
        scene.refuses(line, &format!("error: cannot read `me/palace`: it does not exist\n\n{hint}"));
    }
    scene.refuses(
        "data check me/palace.json --base base",
        "error: cannot read `me/palace.json`: it does not exist\n\nhint: check the path for a typing mistake\n",
    );
}

#[test]
fn convert_writes_any_form_as_any_other() {
    let scene = scene();
    scene.write("table.csv", "question,answer\n\"a, b\",c\nd,\"e\nf\"\n");
    let ran = scene.ok("data convert table.csv --output a.parquet");
    assert_eq!(
        ran.err,
        "warning: table.csv: `question` → `instruction`, `answer` → `output` (--columns changes it)\n\
         a.parquet: 2 records, messages\n"
    );
    scene.ok("data convert a.parquet --to alpaca --output b.tsv.gz");
    let shown = |file: &str| {
        let ran = scene.ok(&format!("data preview {file} --base base"));
        ran.out.lines().filter(|line| !line.contains("record")).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(shown("b.tsv.gz"), shown("table.csv"));
    let again = scene.run("data convert a.parquet --output b.tsv.gz");
    assert_eq!(again.code, 1);
    assert!(again.err.contains("cannot write `b.tsv.gz`: it exists already"), "{}", again.err);
}

#[test]
fn a_named_template_is_the_one_of_the_adapter_too() {
    let scene = scene();
    let preview = scene.ok("data preview four.jsonl -n 1 --base base --chat-template alpaca");
    assert!(preview.out.contains("### Response:↵\n⟦臣妾给皇上请安。"), "{}", preview.out);
    scene.ok("train --base base --data four.jsonl --output out --max-steps 1 --chat-template alpaca");
    let template = String::from_utf8(scene.read("out/chat_template.jinja")).unwrap();
    assert!(template.contains("### Instruction:"));
}
