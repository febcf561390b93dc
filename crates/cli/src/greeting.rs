//! The greeting that `danlu` without a command prints.

use crate::lang::Lang;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// The commands of the greeting, each with its purpose in Chinese and English.
const COMMANDS: [(&str, &str, &str); 3] = [
    (
        "danlu demo",
        "用内置的小模型走完全程，约一分钟",
        "train a first adapter on a built-in model, in about a minute",
    ),
    ("danlu new", "回答五个问题，训练自己的角色", "answer five questions, and train your own character"),
    ("danlu explain", "微调术语，每个一屏讲清楚", "learn the terms of fine-tuning, one screen each"),
];

pub fn print(printer: &Printer) {
    let version = env!("CARGO_PKG_VERSION");
    let title = printer.pick(
        format!("丹炉 danlu {version}：在自己的机器上微调语言模型"),
        format!("danlu {version}: fine-tune language models on your own machine"),
    );
    printer.data(&format!("{}\n", printer.paint_data(Style::Bold, &title)));
    for (command, zh, en) in COMMANDS {
        let command = printer.paint_data(Style::Cyan, &terminal_text::pad(command, 15));
        printer.data(&format!("  {command}{}", printer.pick(zh, en)));
    }
    let other = match printer.lang {
        Lang::Zh => "danlu --help 列出所有命令。English: danlu --lang en",
        Lang::En => "danlu --help lists all commands. 中文：danlu --lang zh",
    };
    printer.data(&format!("\n{other}"));
}
