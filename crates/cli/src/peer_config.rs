//! Translates configuration files of axolotl, LLaMA-Factory, TRL and mlx-lm to danlu's flags.
//!
//! A key becomes a flag, becomes a flag whose effect differs, or is ignored for a stated reason. A file for a
//! different kind of training, such as DPO, is rejected.

use std::fmt;

use clap::Command;
use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, Result};
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
        let mut translation = Self { tool, rows };
        translation.settle_length();
        translation.add_defaults();
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
    fn add_defaults(&mut self) {
        let mut missing = Vec::new();
        let defaults = self.tool.defaults().iter().filter(|(flag, _)| !self.has(flag));
        for &(flag, value) in defaults {
            let is_other_length = flag == "num-train-epochs" && self.has("max-steps")
                || flag == "max-steps" && self.has("num-train-epochs");
            if !is_other_length {
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
                printer.status_labeled(&label, &row.right());
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
        let flags = |flags: &[Flag]| {
            let shown = flags.iter().map(|(flag, values)| format!("--{flag} {}", values.join(" ")));
            shown.collect::<Vec<_>>().join(" ")
        };
        match &self.outcome {
            Outcome::Taken(taken) => flags(taken),
            Outcome::Ignored(why) => why.clone(),
            Outcome::Differs(taken, how) if taken.is_empty() => how.clone(),
            Outcome::Differs(taken, how) => format!("{} ({how})", flags(taken)),
        }
    }
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
            "finetuning_type" | "fine_tune_type" => &["lora"],
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
        Some(match (key, text.as_deref()) {
            ("stage" | "finetuning_type" | "fine_tune_type" | "do_train" | "train" | "use_peft", _) => {
                ignored("danlu train is supervised fine-tuning with LoRA")
            }
            ("adapter", Some("qlora")) => taken("quant", "nf4"),
            ("adapter", _) => ignored("danlu always trains LoRA"),
            ("lora_target_linear", _) if on => taken("target-modules", "all-linear"),
            ("lora_target", Some("all")) => taken("target-modules", "all-linear"),
            ("quantization_bit", Some("4")) => taken("quant", "nf4"),
            ("quantization_bit" | "load_in_8bit", _) if on => {
                differs("danlu has 4 bits (--quant nf4) or 16 bits: 16 bits are used")
            }
            ("fp16", _) if on => differs("fp16 is for GPUs without bf16, where it is the default of --dtype"),
            ("optimizer" | "optim", Some(name)) if name.starts_with("adam") || name.contains("_adamw") => {
                ignored("danlu uses AdamW in f32")
            }
            ("optimizer" | "optim", Some(name)) => differs(format!("danlu has no {name}: AdamW is used")),
            ("lr_scheduler" | "lr_scheduler_type", Some(name)) => scheduler(name),
            ("max_steps", _) if number(value)? <= 0.0 => ignored("no limit on steps"),
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
            ("data", Some(folder)) if self.tool == Tool::MlxLm => Outcome::Differs(
                vec![("data".to_owned(), vec![format!("{folder}/train.jsonl")])],
                "valid.jsonl and test.jsonl are not read; --val-size holds out records".to_owned(),
            ),
            ("adapter_path", Some(folder)) if self.tool == Tool::MlxLm => taken("output", folder),
            ("mask_prompt", _) => taken("train-on-prompt", (!on).to_string()),
            ("use_dora" | "peft_use_dora", _) => taken("use-dora", on.to_string()),
            ("num_layers" | "lora_layers", Some("-1")) => ignored("all layers, as by default"),
            ("num_layers" | "lora_layers", _) => differs(
                "all layers get an adapter; choose layers by a regular expression in --target-modules",
            ),
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
            ("datasets", Value::Array(items)) => Some(axolotl_data(items)),
            ("lora_parameters", Value::Object(fields)) => Some(mlx_lora(fields)),
            ("lr_schedule", Value::Object(fields)) => Some(scheduler(&scalar(fields.get("name")?)?)),
            (_, Value::Array(items)) if key == "data" || key == "dataset_name" => {
                Some(Outcome::Taken(vec![("data".to_owned(), items.iter().filter_map(scalar).collect())]))
            }
            (_, Value::Array(_) | Value::Object(_)) => Some(ignored("danlu has no such setting")),
            _ => None,
        }
    }

    /// Translates a key that is the name of a danlu flag, or another tool's name for the flag.
    fn by_name(&self, key: &str, value: &Value) -> Outcome {
        let name = key.replace('_', "-");
        let text = scalar(value).unwrap_or_default();
        let has = |flag: &str| self.command.get_arguments().any(|arg| arg.get_long() == Some(flag));
        if has(&name) && !["config", "resume"].contains(&name.as_str()) {
            return taken(&name, text);
        }
        match peer_flags::meaning(&name) {
            Some(PeerFlag::Same(flags)) => match flags.iter().find(|flag| has(flag) && **flag != "resume") {
                Some(flag) => taken(flag, text),
                None => ignored("danlu has no such setting in a file"),
            },
            Some(PeerFlag::Switch(args)) if !is_off(value) => {
                let (flag, set) = args.trim_start_matches("--").split_once('=').unwrap_or((args, "true"));
                taken(flag, set)
            }
            Some(PeerFlag::Switch(_)) => ignored("off, as by default"),
            Some(PeerFlag::Advice(_)) if is_off(value) => ignored("off, as by default"),
            Some(PeerFlag::Advice(hint)) => ignored(hint),
            None => ignored("danlu has no such setting"),
        }
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
        let mut names = names.split(',').map(str::trim);
        let first = names.next().unwrap_or_default();
        let flags = vec![file, ("dataset".to_owned(), vec![first.to_owned()])];
        match names.collect::<Vec<_>>().join(", ") {
            rest if rest.is_empty() => Outcome::Taken(flags),
            rest => Outcome::Differs(
                flags,
                format!("danlu reads one entry: {rest} is left out; pass files to --data instead"),
            ),
        }
    }
}

fn scheduler(name: &str) -> Outcome {
    match name {
        "linear" | "cosine" | "constant" | "constant_with_warmup" => taken("lr-scheduler-type", name),
        "cosine_decay" => taken("lr-scheduler-type", "cosine"),
        "linear_schedule" => taken("lr-scheduler-type", "linear"),
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

fn axolotl_data(items: &[Value]) -> Outcome {
    let field = |item: &Value, name: &str| item.get(name).and_then(scalar);
    let mut paths = Vec::new();
    let mut kinds: Vec<String> = items.iter().filter_map(|item| field(item, "type")).collect();
    for item in items {
        match item.get("data_files") {
            Some(Value::Array(files)) => paths.extend(files.iter().filter_map(scalar)),
            Some(file) => paths.extend(scalar(file)),
            None => paths.extend(field(item, "path")),
        }
    }
    kinds.dedup();
    let data = ("data".to_owned(), paths);
    let format = match kinds.as_slice() {
        [] => return Outcome::Taken(vec![data]),
        [kind] if kind == "alpaca" => "alpaca",
        [kind] if kind.starts_with("sharegpt") => "sharegpt",
        [kind] if kind == "completion" => "text",
        [kind] if kind == "chat_template" => return Outcome::Taken(vec![data]),
        _ => {
            let how = format!("the format is detected, not {}; set --format", kinds.join(" and "));
            return Outcome::Differs(vec![data], how);
        }
    };
    Outcome::Taken(vec![data, ("format".to_owned(), vec![format.to_owned()])])
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
            ("dtype", "bf16"),
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
            ("dataset", "identity"),
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
        assert!(why(&found, "dataset").contains("alpaca is left out"));
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
    fn other_kinds_of_training_are_refused() {
        for file in [
            json!({"base_model": "m", "rl": "dpo"}),
            json!({"model_name_or_path": "m", "stage": "dpo", "template": "x"}),
            json!({"model_name_or_path": "m", "finetuning_type": "full"}),
            json!({"model": "m", "fine_tune_type": "dora"}),
        ] {
            let error = translated(file).unwrap_err().render(false);
            assert!(error.starts_with("error: cannot translate this "), "{error}");
        }
        let own = json!({"base": "m", "lora_r": 4});
        assert_eq!(Tool::recognize(own.as_object().unwrap()), None);
    }
}
