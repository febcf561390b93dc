//! Translates configuration files of axolotl, LLaMA-Factory, TRL and mlx-lm to danlu's flags.
//!
//! A key becomes a flag, becomes a flag whose effect differs, or is ignored for a stated reason. A file for a
//! different kind of training, such as DPO, is rejected.

mod axolotl;

use std::fmt;
use std::path::Path;

use clap::Command;
use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Result};
use crate::message_zh;
use crate::peer_flags::{self, PeerFlag};
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// A tool with a recognised file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    Axolotl,
    LlamaFactory,
    Trl,
    MlxLm,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Axolotl => "axolotl",
            Self::LlamaFactory => "LLaMA-Factory",
            Self::Trl => "TRL",
            Self::MlxLm => "mlx-lm",
        })
    }
}

impl Tool {
    /// Recognizes the tool from the keys of a file. Returns `None` if the keys are danlu's own.
    pub fn recognize(file: &Map<String, Value>) -> Option<Self> {
        let any = |keys: &[&str]| keys.iter().any(|key| file.contains_key(*key));
        if any(&["base_model"]) {
            return Some(Self::Axolotl);
        }
        if any(&["model_name_or_path"]) {
            let is_factory =
                any(&["stage", "finetuning_type", "cutoff_len", "template", "lora_rank", "lora_target"]);
            return Some(if is_factory { Self::LlamaFactory } else { Self::Trl });
        }
        let is_mlx =
            any(&["iters", "lora_parameters", "lora_layers", "num_layers", "fine_tune_type", "adapter_path"]);
        (any(&["model"]) && is_mlx).then_some(Self::MlxLm)
    }

    /// Returns the keys without which, or with `false` for which, the tool trains more or less than danlu.
    fn all_by_default(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Axolotl => {
                &[("adapter", "axolotl trains all weights without this key, danlu trains a LoRA adapter")]
            }
            Self::Trl => &[
                ("use_peft", "TRL trains all weights without this key, danlu trains a LoRA adapter"),
                (
                    "assistant_only_loss",
                    "TRL trains every token of `messages` without this key, danlu trains the answers, or with \
                     --train-on-prompt all tokens",
                ),
            ],
            Self::MlxLm => &[(
                "num_layers",
                "mlx-lm adapts the last 16 layers without this key, danlu adapts all layers",
            )],
            Self::LlamaFactory => &[],
        }
    }

    /// Returns the tool's defaults that differ from danlu's defaults, by danlu's flags.
    fn defaults(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Axolotl => &[
                ("lr-scheduler-type", "cosine"),
                ("lora-dropout", "0"),
                ("max-length", "512"),
                ("per-device-train-batch-size", "1"),
                ("gradient-accumulation-steps", "1"),
                ("val-size", "0"),
                ("warmup-ratio", "0.03"),
            ],
            Self::LlamaFactory => &[
                ("learning-rate", "5e-5"),
                ("num-train-epochs", "3"),
                ("per-device-train-batch-size", "8"),
                ("gradient-accumulation-steps", "1"),
                ("lora-dropout", "0"),
                ("max-length", "2048"),
                ("val-size", "0"),
            ],
            Self::Trl => &[
                ("learning-rate", "2e-5"),
                ("num-train-epochs", "3"),
                ("per-device-train-batch-size", "8"),
                ("gradient-accumulation-steps", "1"),
                ("lora-r", "16"),
                ("lora-dropout", "0.05"),
                ("target-modules", "q_proj,v_proj"),
                ("max-length", "1024"),
                ("val-size", "0"),
            ],
            Self::MlxLm => &[
                ("learning-rate", "1e-5"),
                ("max-steps", "1000"),
                ("per-device-train-batch-size", "4"),
                ("gradient-accumulation-steps", "1"),
                ("lr-scheduler-type", "constant"),
                ("lora-alpha", "160"),
                ("lora-dropout", "0"),
                ("max-length", "2048"),
                ("train-on-prompt", "true"),
                ("val-size", "0"),
            ],
        }
    }
}

/// A danlu flag with its values.
type Flag = (String, Vec<String>);

/// The outcome of the translation of one key.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Taken(Vec<Flag>),
    /// The key has no effect, for this reason.
    Ignored(String),
    /// The flags that are set, and how their effect differs.
    Differs(Vec<Flag>, String),
}

/// One key of the file, with its outcome.
#[derive(Clone, Debug)]
pub struct Row {
    pub key: String,
    pub value: String,
    pub outcome: Outcome,
}

/// A translated file.
#[derive(Clone, Debug)]
pub struct Translation {
    pub tool: Tool,
    pub rows: Vec<Row>,
}

impl Translation {
    /// Translates the keys of `file` to the long flags of `command`.
    ///
    /// # Errors
    /// If the file describes a kind of training that danlu does not support.
    pub fn of(tool: Tool, file: &Map<String, Value>, command: &Command) -> Result<Self> {
        let context = Context { tool, file, command };
        let mut rows = Vec::new();
        for (key, value) in file {
            if is_unset(value) {
                continue;
            }
            context.refuse(key, value)?;
            let outcome = context.outcome(key, value);
            rows.push(Row { key: key.clone(), value: shown(value), outcome });
        }
        rows.extend(context.missing_keys());
        let mut translation = Self { tool, rows };
        translation.settle_length();
        translation.add_defaults(file);
        Ok(translation)
    }

    /// Returns each flag that is set, with the key that sets it.
    pub fn flags(&self) -> impl Iterator<Item = (&str, &Flag)> {
        self.rows.iter().flat_map(|row| {
            let flags = match &row.outcome {
                Outcome::Taken(flags) | Outcome::Differs(flags, _) => flags.as_slice(),
                Outcome::Ignored(_) => &[],
            };
            flags.iter().map(|flag| (row.key.as_str(), flag))
        })
    }

    fn has(&self, flag: &str) -> bool {
        self.flags().any(|(_, (name, _))| name == flag)
    }

    /// Ignores the number of epochs if the number of steps is given. All four tools do the same.
    fn settle_length(&mut self) {
        if !self.has("max-steps") {
            return;
        }
        for row in &mut self.rows {
            if matches!(&row.outcome, Outcome::Taken(flags) if flags.iter().any(|(flag, _)| flag == "num-train-epochs"))
            {
                row.outcome = Outcome::Ignored("the number of steps takes precedence".to_owned());
            }
        }
    }

    /// Adds the tool's defaults, so that danlu runs the file with the same settings.
    fn add_defaults(&mut self, file: &Map<String, Value>) {
        let mut missing = Vec::new();
        let defaults = self.tool.defaults().iter().filter(|(flag, _)| !self.has(flag));
        for &(flag, value) in defaults {
            let is_other_length = flag == "num-train-epochs" && self.has("max-steps")
                || flag == "max-steps" && self.has("num-train-epochs");
            let is_other_warmup = flag == "warmup-ratio" && file.contains_key("warmup_steps");
            if !is_other_length && !is_other_warmup {
                missing.push(default_row(flag, value));
            }
        }
        let rank = self
            .flags()
            .find(|(_, (flag, _))| flag == "lora-r")
            .and_then(|(_, (_, rank))| rank[0].parse::<f64>().ok());
        if self.tool == Tool::LlamaFactory && !self.has("lora-alpha") {
            missing.push(default_row("lora-alpha", &(2.0 * rank.unwrap_or(8.0)).to_string()));
        }
        self.rows.extend(missing);
    }

    /// Prints which keys became flags, which keys are ignored, and which keys differ.
    pub fn print(&self, printer: &Printer) {
        let tool = self.tool;
        printer.status(&printer.pick(format!("{tool} 的配置，已翻译："), format!("translated from {tool}:")));
        for (zh, en, kind) in [("采用", "taken", 0), ("不同", "different", 1), ("忽略", "ignored", 2)] {
            let rows: Vec<&Row> = self.rows.iter().filter(|row| row.kind() == kind).collect();
            if rows.is_empty() {
                continue;
            }
            printer.status(&printer.paint_status(Style::Bold, printer.pick(zh, en)));
            let cells = rows.iter().map(|row| terminal_text::width(&row.left())).max().unwrap_or(0).min(44);
            for row in rows {
                let label =
                    format!("  {}  ", terminal_text::pad(&terminal_text::clip(&row.left(), 44), cells));
                let right = printer.pick(row.right_in(&chinese_reason), row.right());
                printer.status_labeled(&label, &right);
            }
        }
    }
}

impl Row {
    fn kind(&self) -> usize {
        match self.outcome {
            Outcome::Taken(_) => 0,
            Outcome::Differs(..) => 1,
            Outcome::Ignored(_) => 2,
        }
    }

    /// Returns the key with its value.
    pub fn left(&self) -> String {
        format!("{}: {}", self.key, terminal_text::one_line(&self.value))
    }

    /// Returns the flags that the key sets, or the reason why it sets none.
    pub fn right(&self) -> String {
        self.right_in(&|reason: &str| reason.to_owned())
    }

    /// Returns [`Row::right`] with a translated reason.
    fn right_in(&self, translate: &dyn Fn(&str) -> String) -> String {
        let flags = |flags: &[Flag]| {
            let shown = flags.iter().map(|(flag, values)| format!("--{flag} {}", values.join(" ")));
            shown.collect::<Vec<_>>().join(" ")
        };
        match &self.outcome {
            Outcome::Taken(taken) => flags(taken),
            Outcome::Ignored(why) => translate(why),
            Outcome::Differs(taken, how) if taken.is_empty() => translate(how),
            Outcome::Differs(taken, how) => format!("{} ({})", flags(taken), translate(how)),
        }
    }
}

fn chinese_reason(reason: &str) -> String {
    message_zh::hint(reason).unwrap_or_else(|| reason.to_owned())
}

fn default_row(flag: &str, value: &str) -> Row {
    let outcome = Outcome::Taken(vec![(flag.to_owned(), vec![value.to_owned()])]);
    Row { key: "default".to_owned(), value: flag.replace('-', "_"), outcome }
}

fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty() || text == "null" || text == "None",
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn shown(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    terminal_text::clip(&text, 60)
}

/// Formats a scalar as the value of a flag.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(switch) => Some(switch.to_string()),
        _ => None,
    }
}

fn is_off(value: &Value) -> bool {
    scalar(value)
        .is_some_and(|text| peer_flags::switch(&text) == Some(false) || text == "none" || text == "no")
}

fn number(value: &Value) -> Option<f64> {
    scalar(value)?.parse().ok()
}

fn taken(flag: &str, value: impl Into<String>) -> Outcome {
    Outcome::Taken(vec![(flag.to_owned(), vec![value.into()])])
}

fn ignored(why: impl Into<String>) -> Outcome {
    Outcome::Ignored(why.into())
}

fn differs(how: impl Into<String>) -> Outcome {
    Outcome::Differs(Vec::new(), how.into())
}

struct Context<'a> {
    tool: Tool,
    file: &'a Map<String, Value>,
    command: &'a Command,
}

impl Context<'_> {
    /// Rejects a file for a kind of training other than supervised fine-tuning with LoRA.
    fn refuse(&self, key: &str, value: &Value) -> Result<()> {
        let text = scalar(value).unwrap_or_default().to_lowercase();
        let allowed: &[&str] = match key {
            "stage" => &["sft"],
            "finetuning_type" => &["lora"],
            "fine_tune_type" => &["lora", "dora"],
            "adapter" => &["lora", "qlora"],
            "rl" => &[],
            "pissa_init" if text == "true" => &[],
            _ => return Ok(()),
        };
        if allowed.contains(&text.as_str()) {
            return Ok(());
        }
        let tool = self.tool;
        let diagnostic = Diagnostic::input(format!("cannot translate this {tool} file: `{key}` is `{text}`"));
        Err(diagnostic
            .with_hint("use a file for supervised fine-tuning with LoRA; danlu trains nothing else"))
    }

    fn outcome(&self, key: &str, value: &Value) -> Outcome {
        self.special(key, value)
            .or_else(|| self.nested(key, value))
            .unwrap_or_else(|| self.by_name(key, value))
    }

    /// Translates keys whose values have a different meaning in danlu.
    fn special(&self, key: &str, value: &Value) -> Option<Outcome> {
        let text = scalar(value);
        let on = text.as_deref().and_then(peer_flags::switch).unwrap_or(true);
        let by_default = self.tool.all_by_default().iter().find(|(name, _)| *name == key && !on);
        if let Some((_, how)) = by_default {
            return Some(differs(*how));
        }
        Some(match (key, text.as_deref()) {
            ("fine_tune_type", Some("dora")) => taken("use-dora", "true"),
            ("stage" | "finetuning_type" | "fine_tune_type" | "do_train" | "train" | "use_peft", _) => {
                ignored("danlu train is supervised fine-tuning with LoRA")
            }
            ("adapter", Some("qlora")) => taken("quant", "nf4"),
            ("adapter", _) => ignored("danlu always trains LoRA"),
            ("lora_target_linear", _) if on => taken("target-modules", "all-linear"),
            ("quantization_bit", Some("4")) => taken("quant", "nf4"),
            ("quantization_bit" | "load_in_8bit", _) if on => {
                differs("danlu has 4 bits (--quant nf4) or 16 bits: 16 bits are used")
            }
            ("bf16", Some("auto")) => taken("dtype", "auto"),
            ("fp16", _) if on => differs("fp16 is for GPUs without bf16, where it is the default of --dtype"),
            ("optimizer" | "optim", Some(name)) if name.starts_with("adam") || name.contains("_adamw") => {
                ignored("danlu uses AdamW in f32")
            }
            ("optimizer" | "optim", Some(name)) => differs(format!("danlu has no {name}: AdamW is used")),
            ("lr_scheduler" | "lr_scheduler_type", Some(name)) => scheduler(name),
            ("max_steps", _) if number(value)? <= 0.0 => ignored("no limit on steps"),
            ("warmup_steps", Some(share)) if (1e-9..1.0).contains(&number(value)?) => {
                taken("warmup-ratio", share)
            }
            ("warmup_steps", _) if number(value)? > 0.0 => self.warmup(number(value)?),
            ("warmup_steps", _) => ignored("no warmup, as by default"),
            ("eval_steps" | "save_steps" | "logging_steps", _) if number(value)?.fract() != 0.0 => {
                differs(format!("danlu counts steps: set --{} to a whole number", key.replace('_', "-")))
            }
            ("saves_per_epoch" | "evals_per_epoch", _) => {
                let flag = if key.starts_with("save") { "--save-steps" } else { "--eval-steps" };
                differs(format!("danlu counts steps: set {flag}"))
            }
            ("chat_template" | "template", Some(name)) => template(name),
            ("dataset", Some(names)) if self.tool == Tool::LlamaFactory => self.factory_data(names),
            ("dataset_dir", _) if self.tool == Tool::LlamaFactory => ignored("part of the path of the data"),
            ("data", Some(folder)) if self.tool == Tool::MlxLm => mlx_data(folder),
            ("dataset_name", Some(name)) if self.tool == Tool::Trl => self.trl_data(name),
            ("dataset_config" | "dataset_train_split", _) if self.tool == Tool::Trl => {
                ignored("part of the name of the data")
            }
            ("eval_strategy" | "evaluation_strategy", _) if self.file.contains_key("eval_steps") => {
                ignored("--eval-steps sets it")
            }
            ("adapter_name_or_path" | "lora_model_dir", Some(folder)) => taken("init-adapter", folder),
            // The file of mlx-lm is in the folder of the adapter.
            ("resume_adapter_file", Some(file)) => {
                let folder = Path::new(file).parent().filter(|folder| !folder.as_os_str().is_empty());
                taken("init-adapter", folder.unwrap_or(Path::new(".")).display().to_string())
            }
            ("neat_packing", _) => ignored("records of a row never attend to each other"),
            ("adapter_path", Some(folder)) if self.tool == Tool::MlxLm => taken("output", folder),
            ("mask_prompt", _) => taken("train-on-prompt", (!on).to_string()),
            ("use_dora" | "peft_use_dora", _) => taken("use-dora", on.to_string()),
            ("num_layers" | "lora_layers", Some("-1")) => ignored("all layers, as by default"),
            ("num_layers" | "lora_layers", _) => {
                differs("all layers get an adapter; choose layers with --layers-to-transform")
            }
            ("special_tokens" | "added_tokens_overrides" | "tokens", _) => differs("danlu adds no tokens"),
            _ => return None,
        })
    }

    /// Translates keys whose values are lists or tables.
    fn nested(&self, key: &str, value: &Value) -> Option<Outcome> {
        match (key, value) {
            ("lora_target_modules" | "target_modules" | "lora_target", Value::Array(names)) => {
                let names: Vec<String> = names.iter().filter_map(scalar).collect();
                Some(taken("target-modules", names.join(",")))
            }
            ("layers_to_transform" | "peft_layers_to_transform", Value::Array(numbers)) => {
                let numbers: Vec<String> = numbers.iter().filter_map(scalar).collect();
                Some(taken("layers-to-transform", numbers.join(",")))
            }
            ("exclude_modules", Value::Array(names)) => {
                let names: Vec<String> = names.iter().filter_map(scalar).collect();
                Some(taken("exclude-modules", names.join(",")))
            }
            ("rank_pattern" | "alpha_pattern", Value::Object(_)) => {
                Some(taken(&key.replace('_', "-"), value.to_string()))
            }
            ("datasets", Value::Array(items)) => Some(axolotl::data(items, self.file)),
            ("lora_parameters", Value::Object(fields)) => Some(mlx_lora(fields)),
            ("lr_schedule", Value::Object(fields)) => self.mlx_schedule(fields),
            (_, Value::Array(items)) if key == "data" || key == "dataset_name" => {
                Some(Outcome::Taken(vec![("data".to_owned(), items.iter().filter_map(scalar).collect())]))
            }
            (_, Value::Array(_) | Value::Object(_)) => {
                let known = peer_flags::meaning(&key.replace('_', "-")).is_some();
                (!known).then(|| ignored("danlu has no such setting"))
            }
            _ => None,
        }
    }

    /// Translates a key that is the name of a danlu flag, or another tool's name for the flag.
    fn by_name(&self, key: &str, value: &Value) -> Outcome {
        let name = key.replace('_', "-");
        let text = scalar(value).unwrap_or_default();
        let has = |flag: &str| self.command.get_arguments().any(|arg| arg.get_long() == Some(flag));
        if has(&name) && !["config", "resume"].contains(&name.as_str()) {
            return own(&name, text);
        }
        if peer_flags::is_without_effect(&name, &text) {
            return ignored("off, as by default");
        }
        match peer_flags::meaning(&name) {
            Some(PeerFlag::Same(flags)) => match flags.iter().find(|flag| has(flag) && **flag != "resume") {
                Some(flag) => own(flag, text),
                None => ignored("danlu has no such setting in a file"),
            },
            Some(PeerFlag::Switch(_)) if is_off(value) => ignored("off, as by default"),
            Some(PeerFlag::Switch(args)) => match args.trim_start_matches("--").split_once('=') {
                Some((flag, set)) => taken(flag, set),
                None => ignored("danlu has no such setting in a file"),
            },
            Some(PeerFlag::Advice(..)) if is_off(value) => ignored("off, as by default"),
            Some(PeerFlag::Advice(hint, _)) if changes_result(&name) => differs(hint),
            Some(PeerFlag::Advice(hint, _)) => ignored(hint),
            None => ignored("danlu has no such setting"),
        }
    }

    /// Returns rows for missing keys whose default in the tool is not danlu's behaviour.
    fn missing_keys(&self) -> Vec<Row> {
        let is_missing = |key: &str| self.file.get(key).is_none_or(is_unset);
        let missing = self.tool.all_by_default().iter().filter(|(key, _)| is_missing(key));
        let row = |(key, how): &(&str, &str)| Row {
            key: (*key).to_owned(),
            value: "missing".to_owned(),
            outcome: differs(*how),
        };
        missing.map(row).collect()
    }

    fn trl_data(&self, name: &str) -> Outcome {
        let field = |key: &str| self.file.get(key).and_then(scalar);
        let data =
            dataset_name(name, field("dataset_config").as_deref(), field("dataset_train_split").as_deref());
        taken("data", data)
    }

    fn mlx_schedule(&self, fields: &Map<String, Value>) -> Option<Outcome> {
        let schedule = scheduler(&scalar(fields.get("name")?)?);
        let Some(steps) = fields.get("warmup").and_then(number).filter(|steps| *steps > 0.0) else {
            return Some(schedule);
        };
        Some(match (schedule, self.warmup(steps)) {
            (Outcome::Taken(flags), Outcome::Taken(warmup)) => Outcome::Taken([flags, warmup].concat()),
            (Outcome::Taken(flags), Outcome::Differs(_, how)) => Outcome::Differs(flags, how),
            (schedule, _) => schedule,
        })
    }

    fn warmup(&self, steps: f64) -> Outcome {
        let total = ["max_steps", "iters"].iter().find_map(|key| number(self.file.get(*key)?));
        match total.filter(|total| *total >= steps) {
            Some(total) => taken("warmup-ratio", (steps / total).to_string()),
            None => differs(format!(
                "danlu has --warmup-ratio, a fraction of the steps: {steps} steps are not used"
            )),
        }
    }

    fn factory_data(&self, names: &str) -> Outcome {
        let folder = self.file.get("dataset_dir").and_then(scalar).unwrap_or_else(|| "data".to_owned());
        let file = ("data".to_owned(), vec![format!("{folder}/dataset_info.json")]);
        Outcome::Taken(vec![file, ("dataset".to_owned(), vec![names.to_owned()])])
    }
}

/// Keys of settings that change the trained adapter, so that a file without them trains differently.
const CHANGE_RESULT: [&str; 22] = [
    "additional-target",
    "bias",
    "dataset-train-split",
    "early-stopping-patience",
    "label-smoothing-factor",
    "load-best-model-at-end",
    "lora-bias",
    "lora-modules-to-save",
    "loraplus-lr-embedding",
    "loss-scale",
    "lr-scheduler-kwargs",
    "mask-history",
    "max-samples",
    "min-lr",
    "mix-strategy",
    "modules-to-save",
    "roles-to-train",
    "rope-scaling",
    "shift-attn",
    "test-datasets",
    "train-on-eos",
    "trainable-token-indices",
];

fn changes_result(name: &str) -> bool {
    let starts = ["cosine-", "freeze-", "galore-", "badam-", "apollo-", "use-galore", "eos-", "new-special-"];
    CHANGE_RESULT.contains(&name) || starts.iter().any(|start| name.starts_with(start))
}

/// Returns the flag with danlu's spelling of the value.
fn own(flag: &str, value: String) -> Outcome {
    taken(flag, peer_flags::own_value(flag, &value).map_or(value, str::to_owned))
}

/// Returns the name of the data for `--data`. A name of two parts that is no local path is a data set on the
/// Hub.
fn dataset_name(name: &str, subset: Option<&str>, split: Option<&str>) -> String {
    let endings = [".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".zst"];
    let has_two_parts = name
        .split_once('/')
        .is_some_and(|(owner, repo)| !owner.is_empty() && !repo.is_empty() && !repo.contains('/'));
    let is_hub = has_two_parts
        && !name.starts_with(['.', '~'])
        && !endings.iter().any(|ending| name.ends_with(ending))
        && !Path::new(name).exists();
    if !is_hub {
        return name.to_owned();
    }
    let subset = subset.filter(|subset| *subset != "default");
    match (subset, split) {
        (None, None) => format!("hf:{name}"),
        (None, Some(split)) => format!("hf:{name}:{split}"),
        (Some(subset), split) => format!("hf:{name}:{subset}/{}", split.unwrap_or("train")),
    }
}

fn mlx_data(folder: &str) -> Outcome {
    let name = dataset_name(folder, None, Some("train"));
    if name.starts_with("hf:") {
        return taken("data", name);
    }
    let file = format!("{}/train.jsonl", folder.trim_end_matches('/'));
    Outcome::Differs(
        vec![("data".to_owned(), vec![file])],
        "valid.jsonl and test.jsonl are not read; --val-size holds out records".to_owned(),
    )
}

fn scheduler(name: &str) -> Outcome {
    match name {
        "linear" | "cosine" | "constant" | "constant_with_warmup" => taken("lr-scheduler-type", name),
        "cosine_decay" => taken("lr-scheduler-type", "cosine"),
        "linear_schedule" => taken("lr-scheduler-type", "linear"),
        _ if name.starts_with("cosine") => Outcome::Differs(
            vec![("lr-scheduler-type".to_owned(), vec!["cosine".to_owned()])],
            format!("danlu has no {name}: cosine falls to 0 once"),
        ),
        _ => differs(format!("danlu has no {name}: linear is used")),
    }
}

fn template(name: &str) -> Outcome {
    match name {
        "chatml" | "llama3" | "alpaca" | "vicuna" | "zephyr" => taken("chat-template", name),
        "tokenizer_default" | "default" | "empty" => {
            ignored("the base's own template is used, as by default")
        }
        _ => differs(format!(
            "danlu has no template `{name}`: the base's own is used; --chat-template takes a file"
        )),
    }
}

/// Translates mlx-lm's LoRA settings. mlx-lm multiplies the adapter by `scale`, and danlu by alpha / rank, so
/// alpha is `scale` times the rank.
fn mlx_lora(fields: &Map<String, Value>) -> Outcome {
    let value = |name: &str| fields.get(name).and_then(number);
    let mut flags: Vec<Flag> = Vec::new();
    let rank = value("rank").unwrap_or(8.0);
    flags.push(("lora-r".to_owned(), vec![rank.to_string()]));
    let alpha = value("alpha").unwrap_or_else(|| value("scale").unwrap_or(20.0) * rank);
    flags.push(("lora-alpha".to_owned(), vec![alpha.to_string()]));
    flags.push(("lora-dropout".to_owned(), vec![value("dropout").unwrap_or(0.0).to_string()]));
    if let Some(Value::Array(keys)) = fields.get("keys") {
        let last = |key: &Value| scalar(key)?.rsplit('.').next().map(str::to_owned);
        flags.push((
            "target-modules".to_owned(),
            vec![keys.iter().filter_map(last).collect::<Vec<_>>().join(",")],
        ));
    }
    Outcome::Taken(flags)
}

#[cfg(test)]
mod tests {
    use clap::Args as _;
    use serde_json::json;

    use super::*;
    use crate::commands::train::TrainArgs;

    fn translated(file: Value) -> Result<Translation> {
        let file = file.as_object().unwrap();
        let tool = Tool::recognize(file).expect("the tool is recognised");
        Translation::of(tool, file, &TrainArgs::augment_args(Command::new("train")))
    }

    fn flag(translation: &Translation, name: &str) -> Option<String> {
        let found = translation.flags().find(|(_, (flag, _))| flag == name);
        found.map(|(_, (_, values))| values.join(" "))
    }

    fn why(translation: &Translation, key: &str) -> String {
        translation.rows.iter().find(|row| row.key == key).unwrap().right()
    }

    #[test]
    fn an_axolotl_file_becomes_flags() {
        let found = translated(json!({
            "base_model": "meta-llama/Llama-3.2-1B", "adapter": "qlora", "load_in_4bit": true,
            "datasets": [{"path": "a.jsonl", "type": "alpaca"}], "val_set_size": 0.05, "sequence_len": 2048,
            "sample_packing": true, "lora_r": 32, "lora_alpha": 16, "lora_target_linear": true,
            "micro_batch_size": 2, "num_epochs": 1, "optimizer": "adamw_bnb_8bit", "lr_scheduler": "cosine",
            "learning_rate": 0.0002, "bf16": "auto", "gradient_checkpointing": true, "warmup_steps": 10,
            "flash_attention": true, "special_tokens": {"pad_token": "<|end_of_text|>"}, "wandb_project": null,
        }))
        .unwrap();
        assert_eq!(found.tool, Tool::Axolotl);
        for (name, value) in [
            ("base", "meta-llama/Llama-3.2-1B"),
            ("quant", "nf4"),
            ("data", "a.jsonl"),
            ("format", "alpaca"),
            ("val-size", "0.05"),
            ("max-length", "2048"),
            ("packing", "true"),
            ("lora-r", "32"),
            ("target-modules", "all-linear"),
            ("per-device-train-batch-size", "2"),
            ("gradient-accumulation-steps", "1"),
            ("num-train-epochs", "1"),
            ("learning-rate", "0.0002"),
            ("dtype", "auto"),
            ("lora-dropout", "0"),
        ] {
            assert_eq!(flag(&found, name).as_deref(), Some(value), "{name}");
        }
        assert!(why(&found, "gradient_checkpointing").contains("--memory-limit"));
        assert!(why(&found, "warmup_steps").contains("--warmup-ratio"));
        assert!(matches!(
            found.rows.iter().find(|row| row.key == "special_tokens").unwrap().outcome,
            Outcome::Differs(..)
        ));
        assert!(!found.rows.iter().any(|row| row.key == "wandb_project"));
    }

    #[test]
    fn a_llama_factory_file_becomes_flags() {
        let found = translated(json!({
            "model_name_or_path": "m", "stage": "sft", "do_train": true, "finetuning_type": "lora",
            "lora_rank": 8, "lora_target": "all", "dataset": "identity,alpaca", "dataset_dir": "d",
            "template": "llama3", "cutoff_len": 1024, "output_dir": "out", "max_steps": 20, "warmup_steps": 5,
            "num_train_epochs": 3, "quantization_bit": 4, "preprocessing_num_workers": 16,
        }))
        .unwrap();
        assert_eq!(found.tool, Tool::LlamaFactory);
        for (name, value) in [
            ("base", "m"),
            ("data", "d/dataset_info.json"),
            ("dataset", "identity,alpaca"),
            ("lora-alpha", "16"),
            ("max-steps", "20"),
            ("warmup-ratio", "0.25"),
            ("chat-template", "llama3"),
            ("learning-rate", "5e-5"),
            ("quant", "nf4"),
        ] {
            assert_eq!(flag(&found, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(flag(&found, "num-train-epochs"), None);
    }

    #[test]
    fn trl_and_mlx_files_become_flags() {
        let found = translated(json!({
            "model_name_or_path": "m", "dataset_name": "d.jsonl", "lora_r": 4, "use_peft": true,
            "learning_rate": "2e-4", "max_steps": -1, "report_to": "none", "packing": false,
        }))
        .unwrap();
        assert_eq!(found.tool, Tool::Trl);
        for (name, value) in [
            ("base", "m"),
            ("data", "d.jsonl"),
            ("lora-r", "4"),
            ("num-train-epochs", "3"),
            ("max-length", "1024"),
        ] {
            assert_eq!(flag(&found, name).as_deref(), Some(value), "{name}");
        }
        let found = translated(json!({
            "model": "m", "data": "folder", "iters": 600, "batch_size": 4, "adapter_path": "adapters", "num_layers": 16,
            "lora_parameters": {"rank": 16, "scale": 2.0, "dropout": 0.1, "keys": ["self_attn.q_proj", "self_attn.v_proj"]},
            "lr_schedule": {"name": "cosine_decay", "warmup": 10}, "mask_prompt": true, "grad_checkpoint": false,
        }))
        .unwrap();
        assert_eq!(found.tool, Tool::MlxLm);
        for (name, value) in [
            ("data", "folder/train.jsonl"),
            ("lora-alpha", "32"),
            ("target-modules", "q_proj,v_proj"),
            ("max-steps", "600"),
            ("lr-scheduler-type", "cosine"),
            ("train-on-prompt", "false"),
        ] {
            assert_eq!(flag(&found, name).as_deref(), Some(value), "{name}");
        }
        assert_eq!(why(&found, "grad_checkpoint"), "off, as by default");
    }

    #[test]
    fn every_reason_has_chinese() {
        let files = [
            json!({
                "base_model": "m", "load_in_8bit": true, "fp16": true, "optimizer": "lion", "max_steps": -1, "x": [1],
                "saves_per_epoch": 1, "eval_steps": 0.1, "lr_scheduler": "polynomial", "special_tokens": {"a": "b"},
                "chat_template": "gemma", "strict": false, "warmup_steps": 10, "adapter": "",
                "datasets": [{"path": "a", "type": "x", "field_messages": "b"}, {"path": "c", "type": {"format": "d"}}],
            }),
            json!({
                "model_name_or_path": "m", "stage": "sft", "dataset_dir": "d", "template": "default", "max_steps": 5,
                "num_train_epochs": 3, "adapter_name_or_path": "a", "neat_packing": true, "mask_history": true,
                "warmup_steps": 0, "eval_strategy": "steps", "eval_steps": 5, "num_layers": -1,
            }),
            json!({
                "model_name_or_path": "m", "dataset_name": "a/b", "dataset_config": "c", "use_peft": false,
                "lr_scheduler_type": "cosine_with_min_lr", "optim": "adamw_torch", "report_to": "none",
            }),
            json!({"model": "m", "data": "d", "iters": 5, "fine_tune_type": "lora", "resume_adapter_file": "x"}),
        ];
        for file in files {
            for row in translated(file).unwrap().rows {
                let reason = match row.outcome {
                    Outcome::Taken(_) => continue,
                    Outcome::Ignored(reason) | Outcome::Differs(_, reason) => reason,
                };
                assert!(message_zh::hint(&reason).is_some(), "{}: {reason}", row.key);
            }
        }
    }

    #[test]
    fn names_and_settings_that_change_the_result_are_told() {
        let found = translated(json!({
            "model_name_or_path": "m", "dataset_name": "org/name", "dataset_config": "zh", "dataset_train_split": "test",
            "dtype": "bfloat16", "warmup_steps": 0.03, "neftune_noise_alpha": 5, "use_peft": true,
            "label_smoothing_factor": 0.1, "layers_to_transform": [0, 3], "rank_pattern": {"v_proj": 4},
        }))
        .unwrap();
        for (name, value) in [
            ("data", "hf:org/name:zh/test"),
            ("dtype", "bf16"),
            ("warmup-ratio", "0.03"),
            ("neftune-noise-alpha", "5"),
            ("layers-to-transform", "0,3"),
            ("rank-pattern", r#"{"v_proj":4}"#),
            ("target-modules", "q_proj,v_proj"),
        ] {
            assert_eq!(flag(&found, name).as_deref(), Some(value), "{name}");
        }
        let differs = |key: &str| {
            let row = found.rows.iter().find(|row| row.key == key).unwrap();
            matches!(row.outcome, Outcome::Differs(..))
        };
        assert!(differs("label_smoothing_factor") && differs("assistant_only_loss"));
        let found = translated(json!({
            "model": "m", "iters": 100, "fine_tune_type": "dora", "lr_schedule": {"name": "cosine_decay", "warmup": 10},
        }))
        .unwrap();
        assert_eq!(flag(&found, "use-dora").as_deref(), Some("true"));
        for (data, expected) in [
            ("data/", "data/train.jsonl"),
            ("./data/mine", "./data/mine/train.jsonl"),
            ("org/set-1.0", "hf:org/set-1.0:train"),
        ] {
            let found = translated(json!({"model": "m", "iters": 5, "data": data})).unwrap();
            assert_eq!(flag(&found, "data").as_deref(), Some(expected));
        }
        assert_eq!(flag(&found, "warmup-ratio").as_deref(), Some("0.1"));
        let found = translated(json!({"base_model": "m", "learning_rate": 1e-4})).unwrap();
        assert!(why(&found, "adapter").contains("trains all weights"));
        assert_eq!(flag(&found, "warmup-ratio").as_deref(), Some("0.03"));
    }

    #[test]
    fn other_kinds_of_training_are_refused() {
        for file in [
            json!({"base_model": "m", "rl": "dpo"}),
            json!({"model_name_or_path": "m", "stage": "dpo", "template": "x"}),
            json!({"model_name_or_path": "m", "finetuning_type": "full"}),
            json!({"model": "m", "fine_tune_type": "full"}),
        ] {
            let error = translated(file).unwrap_err().render(false);
            assert!(error.starts_with("error: cannot translate this "), "{error}");
        }
        let own = json!({"base": "m", "lora_r": 4});
        assert_eq!(Tool::recognize(own.as_object().unwrap()), None);
    }
}
