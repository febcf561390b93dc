//! `danlu data check`: counts, lengths, and every fault at its line.

use std::path::PathBuf;

use clap::Args;
use danlu_data::{BadRecord, Check, Dataset, Source, check, read};

use super::DataArgs;
use crate::printer::{Look, Printer};
use crate::report::{Report, Result};
use crate::text;

/// Bars of the histogram.
const BARS: usize = 10;

/// Places named of each kind, unless `--all`.
const MAX_LISTED: usize = 10;

/// The flags of `danlu data check`.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Data files
    #[arg(required = true)]
    pub files: Vec<PathBuf>,
    /// Name every record that has a fault, not only the first ten of each kind
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub data: DataArgs,
}

/// Checks every record.
///
/// # Errors
/// If a file cannot be read, or a record is bad: `train` would refuse it.
pub fn run(args: &CheckArgs, printer: &Printer) -> Result<()> {
    let datasets =
        args.files.iter().map(|file| read(file, args.data.format)).collect::<Result<Vec<Dataset>, _>>()?;
    let tokenizer = args.data.tokenizer(printer)?;
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
    list_places(&found, limit, printer);
    list_bad(&found.bad, limit, printer);
    verdict(&found, printer)
}

fn row(printer: &Printer, zh: &str, en: &str, value: String) {
    printer.out(&format!("{} {value}", text::pad(printer.pick(zh, en), 18)));
}

fn print_counts(found: &Check, args: &CheckArgs, printer: &Printer) {
    for file in &found.files {
        let (name, format, size) = (text::printable(&file.name), file.format.name(), text::bytes(file.bytes));
        printer.out(&printer.data(Look::Bold, &format!("{name} · {format} · {size}")));
    }
    let n = |n: usize| text::thousands(n as u64);
    row(printer, "记录", "records", n(found.records));
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
    let max = args.data.max_length;
    let limit = printer.pick(format!("（上限 {max}）"), format!(" (limit {max})"));
    row(printer, "缩短", "shortened", format!("{}{limit}", n(found.shortened.len())));
    row(printer, "舍去", "dropped", n(found.dropped.len()));
    row(printer, "无训练词元", "nothing trained", n(found.untrained.len()));
    row(printer, "重复", "duplicates", n(found.duplicates.len()));
    row(printer, "同问异答", "same question", n(found.same_question));
    let bad = format!(
        "{}{}",
        n(found.bad.len()),
        printer.pick(
            format!("（其中空记录 {}）", n(found.empty())),
            format!(" ({} of them empty)", n(found.empty())),
        )
    );
    row(printer, "坏记录", "bad", bad);
}

fn print_histogram(found: &Check, printer: &Printer) {
    let buckets = found.lengths.histogram(BARS);
    let Some(most) = buckets.iter().map(|bucket| bucket.count).max().filter(|_| buckets.len() > 1) else {
        return;
    };
    let digits = buckets.iter().map(|bucket| bucket.to.to_string().len()).max().unwrap_or(1);
    let cells = printer.width().min(72).saturating_sub(2 * digits + 14);
    printer.out(&format!("\n{}", printer.pick("长度分布（词元）", "lengths in tokens")));
    for bucket in buckets {
        let eighths = (bucket.count * cells * 8).div_ceil(most);
        let mut bar = "█".repeat(eighths / 8);
        bar.extend(" ▏▎▍▌▋▊▉".chars().nth(eighths % 8).filter(|c| *c != ' '));
        let (from, to, count) = (bucket.from, bucket.to, bucket.count);
        printer.out(&format!("  {from:>digits$}–{to:<digits$} {} {count}", printer.data(Look::Cyan, &bar)));
    }
}

/// Records that can be read, but that one may want to look at.
fn list_places(found: &Check, limit: usize, printer: &Printer) {
    let plain = |sources: &[Source]| sources.iter().map(ToString::to_string).collect::<Vec<_>>();
    let repeated = found.duplicates.iter().map(|(again, first)| {
        printer.pick(format!("{again} 与 {first} 相同"), format!("{again} repeats {first}"))
    });
    let kinds = [
        (printer.pick("舍去：答案放不下", "dropped, the answer does not fit"), plain(&found.dropped)),
        (printer.pick("没有可训练的词元", "nothing to train on"), plain(&found.untrained)),
        (printer.pick("重复", "duplicates"), repeated.collect()),
        (printer.pick("缩短", "shortened"), plain(&found.shortened)),
    ];
    for (name, places) in kinds {
        list(name, &places, limit, printer);
    }
}

fn list_bad(bad: &[BadRecord], limit: usize, printer: &Printer) {
    let lines: Vec<_> = bad.iter().map(ToString::to_string).collect();
    list(printer.pick("坏记录", "bad records"), &lines, limit, printer);
}

fn list(name: &str, lines: &[String], limit: usize, printer: &Printer) {
    if lines.is_empty() {
        return;
    }
    printer.out(&format!("\n{}", printer.data(Look::Bold, name)));
    for line in lines.iter().take(limit) {
        printer.out(&format!("  {}", text::printable(line)));
    }
    if lines.len() > limit {
        let more = lines.len() - limit;
        printer.out(&printer.pick(
            format!("  ……另有 {more} 处（--all 全部列出）"),
            format!("  … and {more} more (--all lists them)"),
        ));
    }
}

fn verdict(found: &Check, printer: &Printer) -> Result<()> {
    if found.bad.is_empty() {
        printer.tell("\n没有坏记录，可以训练。", "\nno bad records: ready to train.");
        return Ok(());
    }
    // A record whose template fails is counted among the readable ones too.
    let unreadable = found.files.iter().map(|file| file.bad_records).sum::<usize>();
    let (bad, all) = (found.bad.len(), found.records + unreadable);
    let noun = if bad == 1 { "records is" } else { "records are" };
    let hint = "mend them, or let `danlu train --skip-bad` leave them out";
    Err(Report::input(format!("{bad} of {all} {noun} bad")).with_hint(hint))
}
