//! What `danlu data` shows, in both languages.

mod common;

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
record 1 of 4 · four.jsonl:1 · alpaca · 29 tokens, 7 trained
<|begin_of_text|><|start_header_id|>user<|end_header_id|>↵
↵
你好。<|eot_id|><|start_header_id|>assistant<|end_header_id|>↵
↵
⟦臣妾给皇上请安。<|eot_id|>⟧
ids 8182 8184 84 82 5638 8185 198 198 1052 261 8186 8184 64 82 82 72 7886 5811
    83 8185 198 198 ⟦1098 2236 651 6044 5262 261 8186⟧

";
    assert_eq!(ran.out, expected);
    assert_eq!(ran.err, "what stands in ⟦ ⟧ is trained (carries a loss), the rest is context\n");
}

#[test]
fn preview_speaks_chinese() {
    let ran = scene().ok("data preview four.jsonl -n 1 --lang zh");
    let err =
        "没有给出 --base：用内置 base-8m 的分词器与模板\n⟦ ⟧ 内是训练的部分（计入损失），其余只作上下文\n";
    assert_eq!(ran.err, err);
    assert!(ran.out.starts_with("第 1/4 条 · four.jsonl:1 · alpaca · "), "{}", ran.out);
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
shortened          0 (limit 384)
dropped            0
nothing trained    0
duplicates         1
same question      1
bad                0 (0 of them empty)

lengths in tokens
  29–29 ██████████████████████████████████████████████████████ 3
  30–30 ██████████████████ 1

duplicates
  four.jsonl:3 repeats four.jsonl:1
";
    assert_eq!(ran.out, expected);
    assert_eq!(ran.err, "\nno bad records: ready to train.\n");
}

#[test]
fn check_counts_in_chinese() {
    let ran = scene().ok("data check four.jsonl --base base --lang zh");
    let expected = "\
four.jsonl · alpaca · 311 B
记录               4
长度（词元）       最短 29，中位 29，平均 29，最长 30
词元               117，其中 23 个计损失（20%）
缩短               0（上限 384）
舍去               0
无训练词元         0
重复               1
同问异答           1
坏记录             0（其中空记录 0）

长度分布（词元）
  29–29 ██████████████████████████████████████████████████████ 3
  30–30 ██████████████████ 1

重复
  four.jsonl:3 与 four.jsonl:1 相同
";
    assert_eq!(ran.out, expected);
    assert_eq!(ran.err, "\n没有坏记录，可以训练。\n");
}

#[test]
fn check_names_bad_records_and_fails() {
    let scene = scene();
    scene.write("bad.jsonl", &format!("{}\n{}\n", record("问", "答"), record("问", "")));
    let ran = scene.run("data check bad.jsonl --base base");
    assert_eq!(ran.code, 1);
    assert!(
        ran.out.ends_with("\nbad records\n  bad.jsonl:2: found an empty `output`, expected an answer\n"),
        "{}",
        ran.out
    );
    let err =
        "error: 1 of 2 records is bad\n\nhint: mend them, or let `danlu train --skip-bad` leave them out\n";
    assert_eq!(ran.err, err);
}
