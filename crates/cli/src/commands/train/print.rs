//! Prints the output of a run before the first step and after the last step.

use std::path::Path;

use danlu_model::{ModelConfig, Quantization};
use danlu_report::{DataSummary, Language, RunSummary, Verdict};
use danlu_train::Trainer;

use super::forecast;
use super::progress::draw_loss;
use super::run_config::RunFiles;
use crate::args::compute::DTypeReason;
use crate::commands::quantization_progress::stored_code;
use crate::evaluation::held_out_file;
use crate::lesson;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub fn print_plan(
    files: &RunFiles,
    trainer: &Trainer,
    config: &ModelConfig,
    (stored, reason): (Option<Quantization>, DTypeReason),
    data: &DataSummary,
    printer: &Printer,
) {
    let trainable = trainer.adapter().num_parameters() as u64;
    let all = config.num_parameters() + trainable;
    let percent = 100.0 * trainable as f64 / all as f64;
    // PEFT's `print_trainable_parameters` prints the same line.
    let (t, a) = (terminal_text::thousands(trainable), terminal_text::thousands(all));
    printer.status(&format!("trainable params: {t} || all params: {a} || trainable%: {percent:.4}"));
    printer.teach(lesson::TRAINABLE_PARAMETERS);

    let row = |zh: &str, en: &str, value: String| row(zh, en, &value, printer);
    let s = trainer.settings();
    row(
        "基座",
        "base",
        format!(
            "{} · {}{}",
            files.base_shown(),
            printer.backend(&trainer.decoder().backend().name()),
            reason.note(s.dtype, printer)
        ),
    );
    print_data(files, data, s.max_length, printer);
    printer.teach(lesson::TRAINED_TOKENS);
    let (batch, accumulation, steps) =
        (s.per_device_train_batch_size, s.gradient_accumulation_steps, trainer.total_steps());
    row(
        "步数",
        "steps",
        printer.pick(
            format!("{steps} 步，每步 {batch} × {accumulation} 条"),
            format!("{steps}, each {batch} × {accumulation} records"),
        ),
    );
    printer.teach(lesson::BATCH);
    let shown = [
        "lora_r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "learning_rate",
        "lr_scheduler_type",
        "dtype",
        "quant",
        "seed",
    ];
    let settings = s.entries().into_iter().filter(|(name, _)| shown.contains(&name.as_str()));
    let settings: Vec<_> = settings
        .map(|(name, value)| match stored.filter(|_| name == "quant") {
            Some(stored) => format!("{name} {}", stored_code(stored, printer)),
            None => format!("{name} {}", plain(&value)),
        })
        .collect();
    row("设置", "settings", settings.join(", "));
    printer.teach(lesson::SETTINGS);
    row("输出", "output", files.output.display().to_string());
}

fn row(zh: &str, en: &str, value: &str, printer: &Printer) {
    let label = printer.paint_status(Style::Dim, &terminal_text::pad(printer.pick(zh, en), 10));
    printer.status_labeled(&format!("{label} "), value);
}

/// Prints the rows about the data.
fn print_data(files: &RunFiles, data: &DataSummary, max_length: usize, printer: &Printer) {
    let row = |zh: &str, en: &str, value: String| row(zh, en, &value, printer);
    let n = |n: u64| terminal_text::thousands(n);
    let held = data.held_out_records;
    let names: Vec<_> = data.files.iter().map(|f| format!("{} ({})", f.name, f.format)).collect();
    let counts = printer.pick(
        format!(
            "{} 条训练，{held} 条留出，{} 词元，其中 {} 计损失",
            n(data.training_records),
            n(data.tokens),
            n(data.trained_tokens)
        ),
        format!(
            "{}, {held} held out, {} tokens, {} of them trained",
            terminal_text::counted(data.training_records, "record"),
            n(data.tokens),
            n(data.trained_tokens)
        ),
    );
    row("数据", "data", format!("{} · {counts}", names.join(", ")));
    for path in files.data_found_elsewhere() {
        row("", "", path.display().to_string());
    }
    let (short, dropped, max) = (data.shortened, data.dropped, max_length);
    if short + dropped > 0 {
        row("截断", "truncated", printer.pick(
            format!("{short} 条截断到 {max} 词元（从问题开头截），{dropped} 条因答案放不下而丢弃"),
            format!(
                "{} truncated to {max} tokens (at the start of the question), {dropped} dropped because the answer does not fit",
                terminal_text::counted(short, "record")
            ),
        ));
    }
}

/// Formats a JSON value without quotation marks.
fn plain(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        serde_json::Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("+"),
        other => other.to_string(),
    }
}

/// Prints the result of a run.
pub fn conclude(output_folder: &Path, summary: &RunSummary, printer: &Printer) {
    draw_loss(printer, &summary.steps, &summary.evaluations);
    let output = output_folder.display();
    if let Some((first, last)) = summary.train_loss() {
        printer.data(&printer.pick(
            format!("训练损失    {first:.4} → {last:.4}（最初与最后十分之一的步）"),
            format!("training loss   {first:.4} → {last:.4} (first and last tenth of the steps)"),
        ));
    }
    if let Some((first, last)) = summary.held_out() {
        let (p0, p1) = (first.exp(), last.exp());
        printer.data(&printer.pick(
            format!("留出集损失  {first:.4} → {last:.4}（困惑度 {p0:.2} → {p1:.2}）"),
            format!("held-out loss   {first:.4} → {last:.4} (perplexity {p0:.2} → {p1:.2})"),
        ));
    }
    let verdict = Verdict::of(summary);
    let language = printer.pick(Language::Zh, Language::En);
    if let [outcome, others @ ..] = verdict.findings() {
        others.iter().for_each(|finding| printer.warn(&finding.text(language)));
        printer.data_labeled(printer.pick("结论        ", "verdict         "), &outcome.text(language));
        printer.teach(lesson::VERDICT);
    }
    let time = terminal_text::duration(summary.seconds());
    let speed = summary.tokens_per_second().unwrap_or(0.0);
    printer.data(&printer.pick(
        format!("用时        {time}，{speed:.0} 词元/秒"),
        format!("time            {time}, {speed:.0} tok/s"),
    ));
    if let Some(line) = summary.memory.as_ref().and_then(|memory| forecast::peak_line(memory, printer)) {
        printer.data(&line);
    }
    printer.data(&printer.pick(format!("适配器      {output}"), format!("adapter         {output}")));
    printer.data(
        &printer.pick(
            format!("报告        {output}/report.html"),
            format!("report          {output}/report.html"),
        ),
    );
    if summary.data.held_out_records > 0 && output_folder.join(held_out_file::HELD_OUT_FILE).is_file() {
        printer.data(&printer.pick(
            format!("留出的记录  {output}/{}", held_out_file::HELD_OUT_FILE),
            format!("held out        {output}/{}", held_out_file::HELD_OUT_FILE),
        ));
    }
    printer.status(&format!("\n{}", printer.pick("接下来：", "next:")));
    let merged = terminal_text::shell_word(&format!("{output}-merged"));
    let output = terminal_text::shell_path(output_folder);
    let compare =
        output_folder.join(held_out_file::HELD_OUT_FILE).is_file().then(|| format!("danlu compare {output}"));
    let merge = verdict.is_usable().then(|| format!("danlu merge {output} --output {merged}"));
    for command in [Some(format!("danlu chat {output}")), compare, merge].into_iter().flatten() {
        printer.status(&format!("  {}", printer.paint_status(Style::Cyan, &command)));
    }
}
