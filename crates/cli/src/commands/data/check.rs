//! `danlu data check`: reports counts, lengths, and every fault with its line.

use std::path::PathBuf;

use clap::Args;
use danlu_data::{BadRecord, Check, Dataset, Format, RecordSource, UnknownKey, check};
use danlu_model::Tokenizer;
use serde_json::json;

use super::{DEFAULT_MAX_LENGTH, DataArgs, data_paths, place, warnings};
use crate::diagnostic::{Diagnostic, Result};
use crate::evaluation::held_out::read_entries;
use crate::lesson;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// Number of bars in the histogram.
const BARS: usize = 10;

/// Number of records that are listed for each kind of fault without `--all`.
const MAX_LISTED: usize = 10;

#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Data files, or data sets on the Hub such as hf:org/name:train
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// List every faulty record, not only the first ten of each kind
    #[arg(long)]
    pub all: bool,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

/// Checks every record.
///
/// # Errors
/// If a file cannot be read, a record is bad, or no record remains. `train` would reject a bad record.
pub fn run(args: &CheckArgs, printer: &Printer) -> Result<()> {
    let args = &CheckArgs { files: data_paths(&args.files, printer)?, ..args.clone() };
    let mut reading = args.data.reading.options();
    let read_next = |file: &PathBuf| read_entries(file, &mut reading);
    let datasets = args.files.iter().map(read_next).collect::<Result<Vec<Vec<Dataset>>>>()?.concat();
    let tokenizer = args.data.tokenizer(printer)?;
    if datasets.iter().any(|dataset| dataset.format != Format::Text) {
        // A missing template is a fault of the base, so it is reported once and not for each record.
        tokenizer.template()?;
    }
    let total: usize = datasets.iter().map(|dataset| dataset.records.len()).sum();
    let found = check(&datasets, &tokenizer, &args.data.options(), &mut |done| {
        if done % 64 == 0 {
            printer
                .live(&printer.pick(format!("检查 {done}/{total}"), format!("checking {done} of {total}")));
        }
    });
    printer.clear_live();
    print_counts(&found, args, printer);
    print_histogram(&found, printer);
    let limit = if args.all { usize::MAX } else { MAX_LISTED };
    print_warnings(&datasets, &found, (&tokenizer, args.data.options().add_eos_token), printer);
    list_places(&found, limit, printer);
    list_bad(&found.bad, limit, printer);
    printer.event("data_check", || summary(&found));
    verdict(args, &datasets, &found, printer)
}

/// Returns the counts of a check as JSON.
fn summary(found: &Check) -> serde_json::Value {
    let files = found.files.iter().map(|file| {
        json!({"name": file.name, "format": file.format.name(), "bytes": file.bytes, "bad_records": file.bad_records})
    });
    let bad = found.bad.iter().map(|bad| {
        let source = &bad.source;
        json!({
            "file": source.file.display().to_string(), "line": source.line, "record": source.index + 1,
            "found": bad.found, "expected": bad.expected,
        })
    });
    json!({
        "files": files.collect::<Vec<_>>(), "records": all_records(found), "tokens": found.tokens,
        "trained_tokens": found.trained_tokens, "longest": found.lengths.max(),
        "shortened": found.shortened.len(), "dropped": found.dropped.len(),
        "duplicates": found.duplicates.len(), "same_question": found.same_question.len(),
        "unknown_keys": found.unknown_keys.len(), "special_tokens": found.specials.len(), "foreign_marks": found.foreign.len(),
        "bad": bad.collect::<Vec<_>>(),
    })
}

fn row(printer: &Printer, zh: &str, en: &str, value: String) {
    printer.data_labeled(&terminal_text::pad(printer.pick(zh, en), 19), &value);
}

fn print_counts(found: &Check, args: &CheckArgs, printer: &Printer) {
    for file in &found.files {
        let (name, format, size) =
            (terminal_text::printable(&file.name), file.format.name(), terminal_text::bytes(file.bytes));
        printer.data(&printer.paint_data(Style::Bold, &format!("{name} · {format} · {size}")));
    }
    let n = |n: usize| terminal_text::thousands(n as u64);
    row(printer, "记录", "records", n(all_records(found)));
    let lengths = &found.lengths;
    let (min, median, mean, max) = (lengths.min(), lengths.quantile(0.5), lengths.mean(), lengths.max());
    row(
        printer,
        "长度（词元）",
        "length in tokens",
        printer.pick(
            format!("最短 {min}，中位 {median}，平均 {mean:.0}，最长 {max}"),
            format!("min {min}, median {median}, mean {mean:.0}, max {max}"),
        ),
    );
    printer.teach(lesson::LENGTHS);
    let share = 100.0 * found.trained_share();
    row(
        printer,
        "词元",
        "tokens",
        printer.pick(
            format!("{}，其中 {} 个计损失（{share:.0}%）", n(found.tokens), n(found.trained_tokens)),
            format!("{}, {} of them trained ({share:.0}%)", n(found.tokens), n(found.trained_tokens)),
        ),
    );
    printer.teach(lesson::TRAINED_TOKENS);
    let max = args.data.max_length;
    let limit = printer.pick(
        format!("（长于 --max-length {max}，从问题开头截）"),
        format!(" (longer than --max-length {max}: the start of the question is cut)"),
    );
    let limit = if found.shortened.is_empty() { String::new() } else { limit };
    row(printer, "截断", "shortened", format!("{}{limit}", n(found.shortened.len())));
    let limit = printer.pick(
        format!("（答案在 --max-length {max} 以内放不下）"),
        format!(" (the answer does not fit in --max-length {max})"),
    );
    let limit = if found.dropped.is_empty() { String::new() } else { limit };
    row(printer, "丢弃", "dropped", format!("{}{limit}", n(found.dropped.len())));
    row(printer, "重复", "duplicates", n(found.duplicates.len()));
    row(printer, "同问异答", "same question", n(found.same_question.len()));
    row(printer, "未知的键", "unknown keys", n(found.unknown_keys.len()));
    row(printer, "特殊词元", "special tokens", n(found.specials.len()));
    let empty = printer.pick(
        format!("（其中空记录 {}）", n(found.empty())),
        format!(" ({} of them empty)", n(found.empty())),
    );
    let empty = if found.empty() == 0 { String::new() } else { empty };
    row(printer, "坏记录", "bad", format!("{}{empty}", n(found.bad.len())));
}

/// Returns the number of records in the files, good and bad.
fn all_records(found: &Check) -> usize {
    // `found.records` includes the records that the template rejects, so these are not added again.
    found.records + found.files.iter().map(|file| file.bad_records).sum::<usize>()
}

fn print_histogram(found: &Check, printer: &Printer) {
    let buckets = found.lengths.histogram(BARS);
    let Some(most) = buckets.iter().map(|bucket| bucket.count).max().filter(|_| buckets.len() > 1) else {
        return;
    };
    let digits = buckets.iter().map(|bucket| bucket.to.to_string().len()).max().unwrap_or(1);
    let cells = printer.width().min(72).saturating_sub(2 * digits + 14);
    printer.data(&format!(
        "\n{}",
        printer.pick("长度分布（词元）：条数", "lengths in tokens: how many records")
    ));
    for bucket in buckets {
        let eighths = (bucket.count * cells * 8).div_ceil(most);
        let mut bar = "█".repeat(eighths / 8);
        bar.extend(" ▏▎▍▌▋▊▉".chars().nth(eighths % 8).filter(|c| *c != ' '));
        let (from, to, count) = (bucket.from, bucket.to, bucket.count);
        printer.data(&format!(
            "  {from:>digits$}–{to:<digits$} {} {count}",
            printer.paint_data(Style::Cyan, &bar)
        ));
    }
}

/// Prints warnings about the files and the chat template.
fn print_warnings(
    datasets: &[Dataset],
    found: &Check,
    (tokenizer, adds_eos): (&Tokenizer, bool),
    printer: &Printer,
) {
    let mut lines: Vec<String> =
        datasets.iter().flat_map(|dataset| warnings::of_file(dataset, printer)).collect();
    let is_chat = datasets.iter().any(|dataset| dataset.format != Format::Text);
    lines.extend(warnings::added_eos(tokenizer, adds_eos, printer).filter(|_| is_chat));
    lines.extend(warnings::of_template(&found.template, found.records, printer));
    list(printer.pick("注意", "notes"), &lines, usize::MAX, printer);
}

/// Lists valid records that the user should examine.
fn list_places(found: &Check, limit: usize, printer: &Printer) {
    let at = |source: &RecordSource| place(source, printer);
    let plain = |sources: &[RecordSource]| sources.iter().map(at).collect::<Vec<_>>();
    let repeated = found.duplicates.iter().map(|(again, first)| {
        let (again, first) = (at(again), at(first));
        printer.pick(format!("{again}与 {first}相同"), format!("{again} repeats {first}"))
    });
    let asked = found.same_question.iter().map(|(again, first)| {
        let (again, first) = (at(again), at(first));
        printer.pick(format!("{again}与 {first}同问"), format!("{again} asks what {first} asks"))
    });
    let unknown = found.unknown_keys.iter().map(|unknown| describe_key(unknown, printer));
    let special = found.specials.iter().map(|(source, token)| format!("{} `{token}`", at(source)));
    let rendered = found.rendered.iter().map(at).collect::<Vec<_>>();
    let foreign = found.foreign.iter().map(|(source, mark)| format!("{} `{mark}`", at(source)));
    let kinds = [
        (
            printer.pick(
                "文字里写着对话模板的标记，这个分词器当作普通文字",
                "texts with marks of a chat template, which this tokenizer encodes as ordinary text",
            ),
            foreign.collect::<Vec<_>>(),
        ),
        (
            printer.pick(
                "文本是已经渲染好的对话：全部词元都参与训练，问题也在内",
                "documents that look like rendered conversations: all tokens are trained, questions too",
            ),
            rendered,
        ),
        (
            printer.pick(
                "文字里写着特殊词元：会当作控制符，不当作文字",
                "special tokens written in the text, which act as control tokens",
            ),
            special.collect::<Vec<_>>(),
        ),
        (printer.pick("未知的键：不会读取", "ignored unknown keys"), unknown.collect::<Vec<_>>()),
        (printer.pick("丢弃：答案放不下", "dropped, the answer does not fit"), plain(&found.dropped)),
        (printer.pick("重复", "duplicates"), repeated.collect()),
        (
            printer.pick(
                "同一个问题，另一个答案（可能是有意的）",
                "same question, another answer (often intended)",
            ),
            asked.collect(),
        ),
        (printer.pick("截断", "shortened"), plain(&found.shortened)),
    ];
    for (name, places) in kinds {
        list(name, &places, limit, printer);
    }
}

/// Describes an ignored key: the number of records that contain the key, the first of these records, and a
/// similar known key.
pub fn describe_key(unknown: &UnknownKey, printer: &Printer) -> String {
    let UnknownKey { key, count, first, meant } = unknown;
    let (records, place) = (terminal_text::counted(*count as u64, "record"), place(first, printer));
    let meant = meant.map_or_else(String::new, |meant| {
        printer.pick(format!("；是否应为 `{meant}`？"), format!("; did you mean `{meant}`?"))
    });
    printer.pick(
        format!("`{key}` 出现在 {count} 条记录中，最早在 {place}{meant}"),
        format!("`{key}` in {records}, first {place}{meant}"),
    )
}

fn list_bad(bad: &[BadRecord], limit: usize, printer: &Printer) {
    let lines: Vec<_> = bad.iter().map(|bad| printer.detail(&bad.to_string())).collect();
    list(printer.pick("坏记录", "bad records"), &lines, limit, printer);
}

fn list(name: &str, lines: &[String], limit: usize, printer: &Printer) {
    if lines.is_empty() {
        return;
    }
    printer.data(&format!("\n{}", printer.paint_data(Style::Bold, name)));
    for line in lines.iter().take(limit) {
        printer.data_labeled("  ", &terminal_text::printable(line));
    }
    if lines.len() > limit {
        let more = lines.len() - limit;
        printer.data(&printer.pick(
            format!("  ……另有 {more} 处（--all 全部列出）"),
            format!("  … and {more} more (--all lists them)"),
        ));
    }
}

/// Prints whether `train` accepts the data, and the training command.
fn verdict(args: &CheckArgs, datasets: &[Dataset], found: &Check, printer: &Printer) -> Result<()> {
    let (bad, usable, dropped) = (found.bad.len(), found.usable(), found.dropped.len());
    if bad > 0 {
        let verb = if bad == 1 { "is" } else { "are" };
        let text =
            format!("{bad} of {} {verb} bad", terminal_text::counted(all_records(found) as u64, "record"));
        let wrongly_encoded = datasets.iter().zip(&args.files).find_map(|(dataset, file)| {
            dataset.encoding.map(|encoding| format!("`{}`: {}", file.display(), encoding.hint(file)))
        });
        let hint = match usable {
            0 => "correct them: no other record is left to train on".to_owned(),
            _ => "correct them, or skip them with `danlu train --skip-bad`".to_owned(),
        };
        return Err(Diagnostic::input(text).with_hint(wrongly_encoded.unwrap_or(hint)));
    }
    if usable == 0 {
        let text = format!(
            "no record is left to train on: {} dropped, since no answer fits in `--max-length` {}",
            terminal_text::counted(dropped as u64, "record"),
            args.data.max_length
        );
        let (shortest, longest) = (found.lengths.min(), found.lengths.max());
        let hint =
            format!("raise `--max-length`: the shortest record has {shortest} tokens, the longest {longest}");
        return Err(Diagnostic::input(text).with_hint(hint));
    }
    let records = terminal_text::counted(usable as u64, "record");
    printer.status_bilingual(
        &format!("\n没有坏记录，可以训练：{} 条。接下来：", terminal_text::thousands(usable as u64)),
        &format!("\nno bad records, {records} to train on. Next:"),
    );
    printer.status(&format!("  {}", printer.paint_status(Style::Cyan, &next_command(args))));
    Ok(())
}

/// Returns the command that trains on these files.
fn next_command(args: &CheckArgs) -> String {
    let base = args.data.base.as_ref().map_or_else(|| "DIR".into(), |base| terminal_text::shell_path(base));
    let files: Vec<_> = args.files.iter().map(|file| terminal_text::shell_path(file)).collect();
    let name = args.files.first().and_then(|file| file.file_stem()).unwrap_or_default().to_string_lossy();
    let output = terminal_text::shell_word(&format!("out/{name}"));
    let mut command = format!("danlu train --base {base} --data {} --output {output}", files.join(" "));
    for (flag, value) in args.data.reading.given() {
        command += &format!(" --{flag} {}", terminal_text::shell_word(&value));
    }
    if let Some(template) = &args.data.chat_template {
        command += &format!(" --chat-template {}", terminal_text::shell_word(template));
    }
    if args.data.max_length != DEFAULT_MAX_LENGTH {
        command += &format!(" --max-length {}", args.data.max_length);
    }
    command
}
