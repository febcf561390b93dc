//! `danlu data preview`: shows records as the model receives them.

use std::path::PathBuf;

use clap::Args;
use danlu_data::{PreviewToken, Truncation, encode, preview};

use super::{DataArgs, place};
use crate::clap_error::at_least_one;
use crate::diagnostic::{Diagnostic, Result};
use crate::evaluation::held_out::read;
use crate::lesson;
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// The flags of `danlu data preview`.
#[derive(Args, Clone, Debug)]
pub struct PreviewArgs {
    /// Data file, or a data set on the Hub such as hf:org/name:train
    pub file: PathBuf,
    /// Records to show
    #[arg(short = 'n', long, value_name = "N", default_value_t = 3, value_parser = at_least_one)]
    pub records: usize,
    #[command(flatten)]
    pub data: DataArgs,
}

/// Shows the first records.
///
/// # Errors
/// If the file or the tokenizer is invalid.
pub fn run(args: &PreviewArgs, printer: &Printer) -> Result<()> {
    let args = &PreviewArgs { file: ModelLoader::new(printer).data_path(&args.file)?, ..args.clone() };
    let dataset = read(&args.file, &args.data.reading.options())?;
    let tokenizer = args.data.tokenizer(printer)?;
    let (total, format) = (dataset.records.len(), dataset.format.name());
    if dataset.records.is_empty() {
        let details = dataset.bad.iter().take(3).map(ToString::to_string).collect();
        return Err(Diagnostic::input(format!("`{}` has no good record to show", args.file.display()))
            .with_details(details));
    }
    for record in dataset.records.iter().take(args.records) {
        let encoded = match encode(record, &tokenizer, &args.data.options()) {
            Ok(encoded) => encoded,
            Err(bad) => {
                printer.warn(&format!("{bad}\n"));
                continue;
            }
        };
        let tokens = preview(&encoded, &tokenizer);
        let (n, trained, source) =
            (tokens.len(), encoded.sequence.trained_tokens(), place(&record.source, printer));
        let title = printer.pick(
            format!("{source}· {format} · {n} 词元，训练 {trained} 个"),
            format!("{source} · {format} · {}, {trained} trained", terminal_text::counted(n as u64, "token")),
        );
        printer.data(&printer.paint_data(Style::Bold, &title));
        print_tokens(&tokens, printer);
        let max = args.data.max_length;
        match encoded.truncation {
            Truncation::None => {}
            Truncation::Shortened { tokens } => printer.warn(&printer.pick(
                format!("原长 {tokens} 词元，截断到 {max} 以内"),
                format!("truncated from {tokens} tokens to at most {max}"),
            )),
            Truncation::Dropped { tokens } => printer.warn(&printer.pick(
                format!("原长 {tokens} 词元，答案在 {max} 以内放不下：训练时会丢弃"),
                format!("{tokens} tokens; the answer does not fit in {max}, so training drops the record"),
            )),
        }
        printer.data("");
    }
    legend(printer);
    let shown = args.records.min(total);
    if shown < total {
        let (shown, total) = (terminal_text::thousands(shown as u64), terminal_text::thousands(total as u64));
        printer.status_bilingual(
            &format!("共 {total} 条，显示了 {shown} 条（-n N 显示更多）"),
            &format!("{shown} of {total} records shown (-n N shows more)"),
        );
    }
    if !dataset.bad.is_empty() {
        let (n, file) = (dataset.bad.len(), terminal_text::shell_path(&args.file));
        let verb = if n == 1 { "is" } else { "are" };
        printer.warn(&printer.pick(
            format!("另有 {n} 条坏记录：danlu data check {file}"),
            format!(
                "{} {verb} not shown: danlu data check {file}",
                terminal_text::counted(n as u64, "bad record")
            ),
        ));
    }
    Ok(())
}

/// Prints the rendered text, then the ids. Trained tokens are green. Without colour, trained tokens are
/// between ⟦ and ⟧ instead.
pub fn print_tokens(tokens: &[PreviewToken], printer: &Printer) {
    let mut shown = String::new();
    let mut ids = String::new();
    for run in tokens.chunk_by(|a, b| a.trained == b.trained) {
        let trained = run[0].trained;
        let content: String = run.iter().map(|token| token.text.replace('↵', "↵\n")).collect();
        let numbers: Vec<_> = run.iter().map(|token| token.id.to_string()).collect();
        shown += &mark(trained, &content, printer);
        if !ids.is_empty() {
            ids.push(' ');
        }
        ids += &mark(trained, &numbers.join(" "), printer);
    }
    printer.data(&shown);
    for line in wrap_ids(&ids, printer.width()) {
        printer.data(&line);
    }
}

fn mark(trained: bool, content: &str, printer: &Printer) -> String {
    match (trained, printer.data_color()) {
        (true, true) => printer.paint_data(Style::Green, content),
        (true, false) => format!("⟦{content}⟧"),
        (false, _) => printer.paint_data(Style::Dim, content),
    }
}

/// Wraps the text at the blanks between ids, and repeats the colour on the next line.
fn wrap_ids(ids: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::from("ids")];
    let mut used = 3;
    let mut color = "";
    for id in ids.split(' ') {
        let plain = id.replace("\x1b[32m", "").replace("\x1b[2m", "").replace("\x1b[0m", "");
        let cells = terminal_text::width(&plain) + 1;
        if used + cells > width {
            let reset = if color.is_empty() { "" } else { "\x1b[0m" };
            lines.last_mut().expect("begins with one line").push_str(reset);
            lines.push(format!("   {color}"));
            used = 3;
        }
        for code in ["\x1b[32m", "\x1b[2m"] {
            if id.contains(code) {
                color = code;
            }
        }
        if id.contains("\x1b[0m") {
            color = "";
        }
        let line = lines.last_mut().expect("begins with one line");
        line.push(' ');
        line.push_str(id);
        used += cells;
    }
    lines
}

fn legend(printer: &Printer) {
    let how = match (printer.data_color(), printer.lang.pick(true, false)) {
        (true, true) => "绿色是训练的部分（计入损失），其余只作上下文",
        (true, false) => "green text is trained, the rest is context",
        (false, true) => "⟦ ⟧ 内是训练的部分（计入损失），其余只作上下文",
        (false, false) => "text in ⟦ ⟧ is trained, the rest is context",
    };
    printer.status(how);
    printer.teach(lesson::PREVIEW);
}
