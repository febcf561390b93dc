//! The section about the training: a summary, and then all settings.

use std::fmt::Write as _;

use super::markdown::{line, plain};
use super::{Page, Training};
use crate::number_format::{duration, thousands};
use crate::summary::value_text;
use danlu_train::memory::display;

pub(super) fn render(page: &Page<'_>, run: Option<&Training>) -> String {
    let (card, mut out) = (page.card, page.section("训练", "Training"));
    out += page.pick("| | |\n|---|---|\n", "| | |\n|---|---|\n");
    let mut row = |zh: &str, en: &str, value: String| {
        let _ = writeln!(out, "| {} | {value} |", page.pick(zh, en));
    };
    let base = card.trained_on.as_ref().unwrap_or(&card.base);
    row("基座", "Base", plain(base.shown()));
    if let Some(revision) = &base.revision {
        row("基座版本", "Base revision", plain(revision));
    }
    if let Some(sha256) = &base.sha256 {
        let note = page.pick("（config.json 与权重的指纹）", " (fingerprint of config.json and weights)");
        row("基座 SHA-256", "Base SHA-256", format!("{}{note}", plain(sha256)));
    }
    if let Some(lora) = &card.lora {
        let scale = if lora.use_rslora { ", rsLoRA" } else { "" };
        let dropout = run.map_or(String::new(), |run| format!(", dropout {}", run.settings.lora_dropout));
        let value =
            format!("r {}, alpha {}{dropout}{scale}, {}", lora.r, lora.alpha, plain(&lora.target_modules));
        row("LoRA", "LoRA", value);
    }
    let Some(run) = run else { return out + "\n" };
    let s = &run.settings;
    if let Some(name) = &run.init_adapter {
        row("接着训练自", "Continues from", plain(name));
    }
    if let Some(quantization) = s.quantization() {
        row("基座精度", "Base precision", format!("{} (QLoRA)", quantization.quant_type));
    } else if let Some(stored) = run.stored {
        let code = stored.quant_type;
        let value = page.pick(format!("{code}，基座文件本身 (QLoRA)"), format!("{code}, as stored (QLoRA)"));
        row("基座精度", "Base precision", value);
    }
    measured(page, run, &mut row);
    row("软件", "Software", format!("danlu {}", plain(&run.version)));
    out + &settings(page, run)
}

/// Adds the measured values to the table: steps, optimizer, time, hardware and memory.
fn measured(page: &Page<'_>, run: &Training, row: &mut dyn FnMut(&str, &str, String)) {
    let s = &run.settings;
    let steps = thousands(run.steps);
    let (batch, accumulation) = (s.per_device_train_batch_size, s.gradient_accumulation_steps);
    row(
        "步数",
        "Steps",
        page.pick(
            format!("{steps} 步，每步 {batch} × {accumulation} 条记录"),
            format!("{steps}, of {batch} × {accumulation} records each"),
        ),
    );
    row(
        "优化器",
        "Optimizer",
        format!("AdamW, {}, {}", s.learning_rate, value_text(&serde_json::json!(s.lr_scheduler_type), "")),
    );
    let speed = run.tokens_per_second.unwrap_or(0.0);
    let time = duration(run.seconds);
    row(
        "用时",
        "Time",
        page.pick(format!("{time}，{speed:.0} 词元/秒"), format!("{time}, {speed:.0} tokens/s")),
    );
    let processor = run.processor.as_ref().map(|name| format!("{}; ", plain(name))).unwrap_or_default();
    let backend = page
        .pick(run.backend.replace(" threads,", " 线程,").replace(" thread,", " 线程,"), run.backend.clone());
    row("硬件", "Hardware", format!("{processor}{}", plain(&backend)));
    if let Some((peak, plan)) = run.memory {
        let (peak, plan) = (display(peak), display(plan));
        row(
            "内存峰值",
            "Peak memory",
            page.pick(format!("{peak}（预计 {plan}）"), format!("{peak} ({plan} planned)")),
        );
    }
}

fn settings(page: &Page<'_>, run: &Training) -> String {
    let (title, head) = page.pick(("全部设置", "| 设置 | 值 |"), ("All settings", "| setting | value |"));
    let mut out = format!("\n<details>\n<summary>{title}</summary>\n\n{head}\n|---|---|\n");
    for (name, value) in run.settings.entries() {
        let value = value_text(&value, page.pick("未设置", "not set"));
        let _ = writeln!(out, "| `{name}` | {} |", plain(&line(&value)));
    }
    out + "\n</details>\n\n"
}
