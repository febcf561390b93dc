//! `danlu plan`: predicts the memory of a run, and the activations its layers store.

use clap::Args;
use danlu_adapter::TrainingIdentity;
use danlu_adapter::targets;
use danlu_hub::FetchScope;
use danlu_model::{ModelConfig, Quantization, Tokenizer, Weights};
use danlu_train::memory::display;
use danlu_train::{MemoryPlan, TrainSettings, open_weights};

use crate::args::adapter::memory_limit;
use crate::args::chat_template::with_chat_template;
use crate::args::compute::DTypeReason;
use crate::commands::quantization_progress::stored_code;
use crate::commands::train::forecast::{self, Forecast, MemoryBaseline};
use crate::commands::train::{self, GpuMemory, REPLIES, RunConfig, RunLimits, TrainArgs, prepare};
use crate::diagnostic::Result;
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu plan --base danlu-demo/base-8m --data danlu-demo/palace.json
  danlu plan --base models/Llama-3.2-1B --max-length 2048 --memory-limit 8GiB
  danlu plan --base models/8B --quant nf4 --device cuda --device-memory 15GiB
  danlu plan --config out/palace/run.toml --json

Without --data, every record is assumed to be as long as --max-length. The base folder needs only config.json.";

/// The flags of `danlu plan`: those of `danlu train`, with --output optional. `--json` prints the plan in bytes.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    /// Plan for an idle GPU with this much memory, such as 15GiB; the GPU need not exist
    #[arg(long, value_name = "SIZE", value_parser = memory_limit, requires = "device", help_heading = "Machine")]
    pub device_memory: Option<u64>,
}

/// Prints the plan.
///
/// # Errors
/// If an input is invalid, or the run does not fit.
pub fn run(run: &RunConfig, device_memory: Option<u64>, json: bool, printer: &Printer) -> Result<()> {
    run.files.print_translation(printer);
    let files = &run.files.resolve_base(FetchScope::ConfigOnly, &ModelLoader::new(printer))?;
    let config = ModelConfig::read(&files.base)?;
    let weights = open_weights(&files.base)?;
    let stored = match &weights {
        Some(weights) => weights.stored_quantization()?,
        None => config.quantization,
    };
    weights.iter().for_each(Weights::release_all);
    let mut baseline = MemoryBaseline::new();
    train::check_length(&run.settings, &config, files.config.as_ref())?;
    targets::resolve(&train::lora_config(files, &run.settings), &config)?;
    let tokenizer = match files.data.is_empty() && !files.base.join("tokenizer.json").exists() {
        true => None,
        false => {
            let tokenizer = Tokenizer::read(&files.base)?;
            Some(with_chat_template(tokenizer, files.chat_template.as_deref(), printer)?)
        }
    };
    // The token identity is built before the baseline is measured, since `danlu train` holds one in memory.
    let settings = &match &tokenizer {
        Some(tokenizer) => train::pin_template_date(&run.settings, tokenizer),
        None => run.settings.clone(),
    };
    if let Some(tokenizer) = &tokenizer {
        let tokens = TrainingIdentity::new(&files.base, tokenizer, settings.default_system.clone());
        tokenizer.limit_ids(&config);
        baseline.tokenizer(&tokens);
    }
    let gpu_memory = device_memory.map_or(GpuMemory::FreeOrUnlimited, GpuMemory::Total);
    let limits = &RunLimits { gpu_memory, ..run.limits.clone() };
    let weights = weights.as_ref();
    let subject = forecast::Subject { weights, config: &config, settings, limits };
    let forecast = match tokenizer.as_ref().filter(|_| !files.data.is_empty()) {
        Some(tokenizer) => {
            let (data, reading, skip_bad) = (&files.data, &files.reading, files.skip_bad);
            let data = prepare::prepare(
                data,
                reading,
                skip_bad,
                tokenizer,
                settings,
                files.val_size(settings),
                printer,
            )?;
            let questions = data.questions(REPLIES);
            baseline.data();
            Forecast::of(&subject, Some((&data, tokenizer, &questions)), &baseline)?
        }
        None => Forecast::of(&subject, None, &baseline)?,
    };
    if json {
        print_json(&forecast, printer);
    } else {
        let name = files.base_shown();
        let reason = run.limits.dtype_reason;
        let planned = Planned { name, config: &config, settings, reason, stored, forecast: &forecast };
        print_table(&planned, printer);
    }
    Ok(())
}

/// A plan with its inputs.
struct Planned<'a> {
    name: String,
    config: &'a ModelConfig,
    settings: &'a TrainSettings,
    /// Why the settings have their `dtype`.
    reason: DTypeReason,
    /// The base's stored quantization.
    stored: Option<Quantization>,
    forecast: &'a Forecast,
}

fn print_json(forecast: &Forecast, printer: &Printer) {
    let mut value = serde_json::to_value(&forecast.plan).expect("a struct of numbers");
    value["memory_limit"] = forecast.limit.into();
    value["available"] = forecast.available.into();
    value["weights_stay_in_memory"] = (!forecast.weights_evictable).into();
    printer.data(&serde_json::to_string_pretty(&value).expect("a struct of numbers"));
}

fn print_table(planned: &Planned<'_>, printer: &Printer) {
    print_heading(planned, printer);
    let (settings, forecast) = (planned.settings, planned.forecast);
    let plan = &forecast.plan;
    let row = |name: (&str, &str), value: String, note: String| {
        let name = terminal_text::pad(printer.pick(name.0, name.1), 13);
        let note =
            if note.is_empty() { note } else { format!("  {}", printer.paint_data(Style::Dim, &note)) };
        printer.data(&format!("{name} {value:>10}{note}"));
    };
    let bytes = |name: (&str, &str), bytes: u64, zh: &str, en: &str| {
        row(name, display(bytes), printer.pick(zh, en).to_owned());
    };
    row(("权重", "weights"), display(plan.weights), weights_note(plan, printer));
    let (rank, trained) = (settings.lora_r, terminal_text::thousands(plan.adapter / 4));
    let note =
        printer.pick(format!("秩 {rank}，{trained} 个参数"), format!("rank {rank}, {trained} parameters"));
    row(("适配器", "adapter"), display(plan.adapter), note);
    bytes(("优化器", "optimizer"), plan.optimizer, "AdamW 的两个矩", "AdamW's two moments");
    bytes(("梯度", "gradients"), plan.gradients, "", "");
    row(("激活", "activations"), display(plan.activations), forecast::layers(plan, printer));
    let scratch = &plan.scratch;
    let [products, low_rank, attention, head] =
        [scratch.products, scratch.low_rank, scratch.attention, scratch.head].map(display);
    let note = printer.pick(
        format!("词表输出 {head}，乘积 {products}，注意力 {attention}，适配器 {low_rank}"),
        format!("head {head}, products {products}, attention {attention}, adapter {low_rank}"),
    );
    row(("工作区", "scratch"), display(scratch.total()), note);
    let on_device = plan.on_device;
    bytes(
        ("临时", "transient"),
        plan.transient,
        if on_device {
            "训练后生成回复时占用"
        } else {
            "仅在写检查点或读分词器时占用"
        },
        match on_device {
            true => "while the replies are generated",
            false => "while a checkpoint is written or the tokenizer is read",
        },
    );
    if !on_device {
        bytes(("分词器", "tokenizer"), plan.tokenizer, "", "");
        bytes(("数据", "data"), plan.data, "", "");
        bytes(("程序", "program"), plan.program, "", "");
    }
    let of = match (forecast.limit, forecast.available) {
        (Some(limit), _) => {
            printer.pick(format!("上限 {}", display(limit)), format!("limit {}", display(limit)))
        }
        (None, Some(room)) => {
            printer.pick(format!("可用 {}", display(room)), format!("{} available", display(room)))
        }
        (None, None) => String::new(),
    };
    row(("峰值", "peak"), printer.paint_data(Style::Bold, &format!("{:>10}", display(plan.total))), of);
    let gigaflops = plan.step_flops as f64 / 1e9;
    let work = printer
        .pick(format!("每步最多 {gigaflops:.1} GFLOP"), format!("at most {gigaflops:.1} GFLOP per step"));
    printer.data(&printer.paint_data(Style::Dim, &work));
}

/// Prints the model, and its largest forward pass.
fn print_heading(planned: &Planned<'_>, printer: &Printer) {
    let Planned { name, config, settings, reason, stored, forecast } = planned;
    let n = terminal_text::thousands;
    let mut computes = format!("{}{}", settings.dtype, reason.note(settings.dtype, printer));
    match (settings.quantization(), *stored) {
        (Some(asked), _) => computes += &format!(" · {}", asked.quant_type),
        (None, Some(stored)) => computes += &format!(" · {}", stored_code(stored, printer)),
        (None, None) => {}
    }
    let parameters = n(config.num_parameters());
    let (tokens, labels) = (n(forecast.plan.tokens), n(forecast.plan.trained_tokens));
    let heading = printer.pick(
        format!("{name} · {parameters} 个参数 · {computes} · 最多一次 {tokens} 词元，其中 {labels} 计损失"),
        format!(
            "{name} · {parameters} parameters · {computes} · largest pass {tokens} tokens, {labels} trained"
        ),
    );
    printer.data(&printer.paint_data(Style::Bold, &heading));
}

/// Lists which weights are in memory, and which are mapped from files.
fn weights_note(plan: &MemoryPlan, printer: &Printer) -> String {
    if plan.on_device {
        return printer
            .pick("在显存里；词嵌入表留在内存里", "on the GPU; the embedding table stays in host memory")
            .to_owned();
    }
    let (held, mapped) = (display(plan.resident), display(plan.weights - plan.resident));
    match plan.resident {
        0 => printer
            .pick("映射自文件的页，系统可收回再读", "mapped from files, which the system can evict")
            .to_owned(),
        _ => printer.pick(
            format!("4 位 {held}；映射自文件 {mapped}，内存紧张时系统可释放"),
            format!("4 bits {held}; mapped from files {mapped}, which the system can evict"),
        ),
    }
}
