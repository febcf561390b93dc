//! `danlu plan`: predicts the memory and the time of a run, and which activations the layers store.

use std::str::FromStr;

use clap::{ArgMatches, Args};
use danlu_adapter::TrainingIdentity;
use danlu_adapter::targets;
use danlu_hub::FetchScope;
use danlu_model::{ModelConfig, Preset, Quantization, Tokenizer, Weights, files};
use danlu_train::memory::display;
use danlu_train::{MemoryPlan, TrainSettings, open_weights};

use crate::args::adapter::memory_limit;
use crate::args::chat_template::with_chat_template;
use crate::commands::quantization_progress::stored_code;
use crate::commands::train::forecast::{self, Forecast, MemoryBaseline};
use crate::commands::train::prepare::{self, Prepared};
use crate::commands::train::time_forecast::TimeForecast;
use crate::commands::train::{self, GpuMemory, REPLIES, RunConfig, RunFiles, RunLimits, TrainArgs};
use crate::diagnostic::{Diagnostic, Result};
use crate::lesson;
use crate::model_loader::ModelLoader;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

pub const EXAMPLES: &str = "\
Examples:
  danlu plan --base danlu-demo/base-8m --data danlu-demo/palace.json
  danlu plan --shape llama-3.2-1b --max-length 2048 --memory-limit 8GiB
  danlu plan --shape llama-3-8b --quant nf4 --device cuda --device-memory 15GiB
  danlu plan --config danlu-demo/adapter/run.toml --json

Without --data, every record is assumed to be as long as --max-length. The base folder needs only config.json. \
The time is measured with one layer of random weights, on the processor.";

/// The flags of `danlu plan`: those of `danlu train`, with --output optional. `--json` prints the plan in
/// bytes.
#[derive(Args, Clone, Debug)]
pub struct PlanArgs {
    #[command(flatten)]
    pub train: TrainArgs,
    /// Plan for a known shape instead of a base: base-8m, base-28m, llama-125m, llama-3.2-1b, llama-3-8b,
    /// qwen3-0.6b, gemma-3-1b or phi-4-mini
    #[arg(long, value_name = "NAME", value_parser = Preset::from_str, conflicts_with_all = ["base", "data"], help_heading = "Files")]
    pub shape: Option<Preset>,
    /// Plan for an idle GPU with this much memory, such as 15GiB; the GPU need not exist
    #[arg(long, value_name = "SIZE", value_parser = memory_limit, requires = "device", help_heading = "Machine")]
    pub device_memory: Option<u64>,
}

/// The prediction for a run.
pub struct Prediction {
    /// The name of the base that is printed.
    pub name: String,
    pub config: ModelConfig,
    pub settings: TrainSettings,
    /// The quantization of the stored base, if the base is stored in 4 bits.
    pub stored: Option<Quantization>,
    pub forecast: Forecast,
    /// The predicted time, if the training speed can be measured.
    pub time: Option<TimeForecast>,
}

/// Prints the plan.
///
/// # Errors
/// If an input is invalid, or the run does not fit.
pub fn run(args: &PlanArgs, matches: &ArgMatches, printer: &Printer) -> Result<()> {
    let prediction = match args.shape {
        None => predict(&RunConfig::resolve_plan(matches, None)?, args.device_memory, printer)?,
        Some(shape) => {
            let folder = tempfile::tempdir()
                .map_err(|error| Diagnostic::io("write to", &std::env::temp_dir(), error))?;
            files::write_atomic(&folder.path().join("config.json"), &shape.config().to_json())?;
            let run = RunConfig::resolve_plan(matches, Some(folder.path()))?;
            Prediction { name: shape.to_string(), ..predict(&run, args.device_memory, printer)? }
        }
    };
    match args.train.json {
        true => print_json(&prediction, printer),
        false => print_table(&prediction, printer),
    }
    Ok(())
}

/// Predicts memory and time of a run.
///
/// # Errors
/// If an input is invalid, or the run does not fit.
pub fn predict(run: &RunConfig, device_memory: Option<u64>, printer: &Printer) -> Result<Prediction> {
    run.files.print_translation(printer);
    let loader = ModelLoader::new(printer);
    let files = &run.files.resolve_data(&loader)?.resolve_base(FetchScope::ConfigOnly, &loader)?;
    let config = ModelConfig::read(&files.base)?;
    let weights = open_weights(&files.base)?;
    let stored = match &weights {
        Some(weights) => weights.stored_quantization()?,
        None => config.quantization,
    };
    weights.iter().for_each(Weights::release_all);
    let mut baseline = MemoryBaseline::new();
    let init = train::init_adapter::resolve(files, &run.settings, &config, &loader)?;
    let settings = init.map_or_else(|| run.settings.clone(), |(_, settings)| settings);
    train::check_length(&settings, &config, files.config.as_ref())?;
    targets::resolve(&train::lora_config(files, &settings), &config)?;
    let tokenizer = match files.data.is_empty() && !files.base.join("tokenizer.json").exists() {
        true => None,
        false => {
            let tokenizer = Tokenizer::read(&files.base)?;
            Some(with_chat_template(tokenizer, files.chat_template.as_deref(), printer)?)
        }
    };
    // `TrainingIdentity` is built before the memory in use is measured, because `danlu train` has one in
    // memory too.
    let settings = match &tokenizer {
        Some(tokenizer) => train::pin_template_date(&settings, tokenizer),
        None => settings,
    };
    if let Some(tokenizer) = &tokenizer {
        let tokens = TrainingIdentity::new(&files.base, tokenizer, settings.default_system.clone());
        tokenizer.limit_ids(&config);
        baseline.tokenizer(&tokens);
    }
    let gpu_memory = device_memory.map_or(GpuMemory::FreeOrUnlimited, GpuMemory::Total);
    let limits = &RunLimits { gpu_memory, ..run.limits.clone() };
    let weights = weights.as_ref();
    let subject = forecast::Subject { weights, config: &config, settings: &settings, limits };
    let (forecast, time) = match tokenizer.as_ref().filter(|_| !files.data.is_empty()) {
        Some(tokenizer) => {
            let data = prepare_data(files, tokenizer, &settings, printer)?;
            let questions = data.questions(REPLIES);
            baseline.data();
            let forecast = Forecast::of(&subject, Some((&data, tokenizer, &questions)), &baseline)?;
            let time = TimeForecast::measure(&subject, Some(&data), &forecast.plan, printer)?;
            (forecast, time)
        }
        None => {
            let forecast = Forecast::of(&subject, None, &baseline)?;
            let time = TimeForecast::measure(&subject, None, &forecast.plan, printer)?;
            (forecast, time)
        }
    };
    Ok(Prediction { name: files.base_shown(), config, settings, stored, forecast, time })
}

fn prepare_data(
    files: &RunFiles,
    tokenizer: &Tokenizer,
    settings: &TrainSettings,
    printer: &Printer,
) -> Result<Prepared> {
    let (data, reading, skip_bad) = (&files.data, &files.reading, files.skip_bad);
    prepare::prepare(data, reading, skip_bad, tokenizer, settings, files.val_size(settings), printer)
}

fn print_json(prediction: &Prediction, printer: &Printer) {
    let forecast = &prediction.forecast;
    let mut value = serde_json::to_value(&forecast.plan).expect("a struct of numbers");
    value["memory_limit"] = forecast.limit.into();
    value["available"] = forecast.available.into();
    value["weights_stay_in_memory"] = (!forecast.weights_evictable).into();
    value["time"] = prediction.time.map(TimeForecast::to_json).into();
    printer.data(&serde_json::to_string_pretty(&value).expect("a struct of numbers"));
}

fn print_table(planned: &Prediction, printer: &Printer) {
    print_heading(planned, printer);
    let (settings, forecast) = (&planned.settings, &planned.forecast);
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
    let peak = printer.paint_data(Style::Bold, &format!("{:>10}", display(plan.total)));
    row(("峰值", "peak"), peak, bound_note(forecast, printer));
    if on_device {
        bytes(
            ("内存", "host memory"),
            plan.host,
            "分词器、数据、驱动程序，以及正在读取的权重",
            "tokenizer, data, driver, and the weights that are being read",
        );
    }
    let gigaflops = plan.step_flops as f64 / 1e9;
    let work = printer
        .pick(format!("每步最多 {gigaflops:.1} GFLOP"), format!("at most {gigaflops:.1} GFLOP per step"));
    printer.teach(lesson::PLAN_TABLE);
    printer.data(&printer.paint_data(Style::Dim, &work));
    if let Some(time) = planned.time {
        let (time, note) = time.describe(printer);
        row(("时间", "time"), time, note);
        printer.teach(lesson::PLAN_TIME);
    }
}

/// Prints the model, and the size of its largest forward pass.
fn print_heading(planned: &Prediction, printer: &Printer) {
    let Prediction { name, config, settings, stored, forecast, .. } = planned;
    let n = terminal_text::thousands;
    let mut computes = settings.dtype.to_string();
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

/// Describes the limit that applies to the peak.
fn bound_note(forecast: &Forecast, printer: &Printer) -> String {
    match (forecast.limit.map(display), forecast.available.map(display)) {
        (Some(limit), _) => printer.pick(format!("上限 {limit}"), format!("limit {limit}")),
        (None, Some(room)) => printer.pick(format!("可用 {room}"), format!("{room} available")),
        (None, None) => String::new(),
    }
}

/// Describes how many bytes of the weights are in memory or on the GPU, and how many are mapped from files.
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
