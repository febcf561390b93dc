//! The flags of `danlu train`, and their conversion to [`TrainSettings`].

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use danlu_train::{LrSchedulerType, TrainSettings};

use super::run_log::ReportTo;
use crate::args::ComputeArgs;
use crate::args::QuantArgs;
use crate::args::adapter::{AdapterArgs, memory_limit, set};
use crate::args::compute::DTypeChoice;
use crate::args::data::ReadArgs;
use crate::args::{CardArgs, NotesArgs};

pub const EXAMPLES: &str = "\
Examples:
  danlu train --base danlu-demo/base-8m --data danlu-demo/palace.json \\
    --output out/palace
  danlu train --base danlu-demo/base-8m --data danlu-demo/palace.json \\
    --output out/rank-16 --lora-r 16 --num-train-epochs 3
  danlu train --config danlu-demo/adapter/run.toml --output out/slower \\
    --learning-rate 2e-4
  danlu train --base danlu-demo/base-8m --data danlu-demo/palace.json \\
    --output out/small --memory-limit 300MiB
  danlu train --output out/palace --resume

A configuration file uses the same names, one per line:
  base = \"danlu-demo/base-8m\"
  data = [\"danlu-demo/palace.json\"]
  output = \"out/palace\"
  lora_r = 16
  target_modules = [\"q_proj\", \"v_proj\"]

Flag names of TRL, PEFT, axolotl, LLaMA-Factory, Unsloth and mlx-lm also work, such as --lr, --epochs and --load_in_4bit.

Ctrl-C finishes the step, saves a checkpoint and prints the command to resume; a second Ctrl-C exits at once.";

/// Fine-tunes a LoRA adapter on your data.
#[derive(Args, Clone, Debug, Default)]
pub struct TrainArgs {
    /// Base model: a folder or a Hub name
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub base: Option<PathBuf>,
    /// Adapter to continue from: a folder or a Hub name; its rank and modules are used
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub init_adapter: Option<PathBuf>,
    /// Training data: JSON, JSON lines, CSV, TSV, Parquet, or hf:org/name:split for a data set on the Hub
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Files")]
    pub data: Vec<PathBuf>,
    /// Output folder: new, empty, or with --resume the run to resume
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub output: Option<PathBuf>,
    /// Read flags from a file: TOML, YAML or JSON, also of axolotl, LLaMA-Factory, TRL or mlx-lm
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub config: Option<PathBuf>,
    /// Resume from the newest checkpoint of the output folder, or from the given one
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1, help_heading = "Files")]
    pub resume: Option<Option<PathBuf>>,
    /// Resume the run in the output folder, or start one if there is none; for a script that repeats a
    /// command
    #[arg(long, conflicts_with = "resume", help_heading = "Files")]
    pub resume_or_start: bool,

    /// Chat template instead of the base's: a file, or chatml, llama3, alpaca, vicuna or zephyr
    #[arg(long, value_name = "FILE|NAME", help_heading = "Data")]
    pub chat_template: Option<String>,
    #[command(flatten)]
    pub reading: ReadArgs,
    /// Skip and list bad records instead of refusing the data
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub skip_bad: Option<bool>,
    #[command(flatten)]
    pub settings: SettingsArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Memory limit, weights included, such as 8GiB or 900MB; layers recompute activations to stay below it,
    /// with equal results [default: the available memory]
    #[arg(long, value_name = "SIZE", value_parser = memory_limit, help_heading = "Machine")]
    pub memory_limit: Option<u64>,
    /// Further log of the run: tensorboard writes event files to the output folder [default: none]
    #[arg(long, value_name = "NAME", value_parser = ReportTo::from_str, help_heading = "Log and checkpoints")]
    pub report_to: Option<ReportTo>,
    /// Open report.html in a browser during the run; the page reloads itself
    #[arg(long, help_heading = "Output")]
    pub open: bool,
    /// Print JSON to stdout: one line per event of a run
    #[arg(long, help_heading = "Output")]
    pub json: bool,
    #[command(flatten)]
    pub card: CardArgs,
    #[command(flatten)]
    pub notes: NotesArgs,
}

/// Flags that affect the result. Each flag sets the field of the same name in [`TrainSettings`], and its help
/// shows the default of the field.
#[derive(Args, Clone, Debug, Default)]
pub struct SettingsArgs {
    /// Longest record in tokens; longer ones lose the start of their question [default: 384]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    pub max_length: Option<usize>,
    /// Records to hold out: a fraction below 1, or a count; 0 for none [default: 0.02 from 50 records on]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub val_size: Option<f64>,
    /// Pack several records into each row of a batch; attention stays within a record
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub packing: Option<bool>,
    /// Shuffle the records in each epoch; =false keeps the order of the file [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub shuffle_dataset: Option<bool>,
    /// Train on questions too, not only on answers
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub train_on_prompt: Option<bool>,
    /// Add the EOS token to documents, and to answers if the template has no end token; =false adds none
    /// [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub add_eos_token: Option<bool>,

    /// System message for conversations without one; stored with the adapter
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    pub default_system: Option<String>,
    /// The date for a chat template that uses one [default: today; a resumed run keeps its date]
    #[arg(long, value_name = "YYYY-MM-DD", hide_short_help = true, help_heading = "Data")]
    pub template_date: Option<String>,

    #[command(flatten)]
    pub adapter: AdapterArgs,

    /// Peak learning rate [default: 1e-4]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// Ratio of the learning rate of B to that of A, such as 16 (LoRA+) [default: 1]
    #[arg(long, value_name = "RATIO", help_heading = "Training")]
    pub loraplus_lr_ratio: Option<f64>,
    /// Noise on the embeddings against overfitting, such as 5 (NEFTune) [default: none]
    #[arg(long, value_name = "ALPHA", help_heading = "Training")]
    pub neftune_noise_alpha: Option<f64>,
    /// Epochs: passes over the data [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub num_train_epochs: Option<f64>,
    /// Number of optimizer steps, instead of epochs
    #[arg(long, value_name = "STEPS", conflicts_with = "num_train_epochs", help_heading = "Training")]
    pub max_steps: Option<u64>,
    /// Records per micro-batch, or with --packing rows of --max-length tokens; a prefix that records share is
    /// computed once [default: 2]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub per_device_train_batch_size: Option<usize>,
    /// Micro-batches per step [default: 2]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub gradient_accumulation_steps: Option<usize>,
    /// Fraction of the steps with a rising learning rate [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    pub warmup_ratio: Option<f64>,
    /// Learning rate schedule: linear, cosine, constant or constant_with_warmup [default: linear]
    #[arg(long, value_name = "TYPE", value_parser = LrSchedulerType::from_str, help_heading = "Training")]
    pub lr_scheduler_type: Option<LrSchedulerType>,
    /// Weight decay of AdamW, decoupled [default: 0]
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// Gradient norm limit; 0 for none [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub max_grad_norm: Option<f64>,
    /// Decay of AdamW's first moment [default: 0.9]
    #[arg(long, value_name = "BETA", hide_short_help = true, help_heading = "Training")]
    pub adam_beta1: Option<f64>,
    /// Decay of AdamW's second moment [default: 0.999]
    #[arg(long, value_name = "BETA", hide_short_help = true, help_heading = "Training")]
    pub adam_beta2: Option<f64>,
    /// Epsilon of AdamW [default: 1e-8]
    #[arg(long, value_name = "EPS", hide_short_help = true, help_heading = "Training")]
    pub adam_epsilon: Option<f64>,
    /// Random seed of the adapter, the record order and dropout [default: 42]
    #[arg(long, value_name = "SEED", help_heading = "Training")]
    pub seed: Option<u64>,
    #[command(flatten)]
    pub quant: QuantArgs,
    /// Number type of matrix multiplications: auto (the faster of bf16 and f32), bf16, f32, or f16 (GPU only) [default: auto]
    #[arg(long, value_name = "TYPE", value_parser = DTypeChoice::from_str, help_heading = "Training")]
    pub dtype: Option<DTypeChoice>,

    /// Steps between two log lines [default: 10]
    #[arg(long, value_name = "STEPS", help_heading = "Log and checkpoints")]
    pub logging_steps: Option<u64>,
    /// Steps between two checkpoints; 0 saves only at the end [default: 100]
    #[arg(long, value_name = "STEPS", help_heading = "Log and checkpoints")]
    pub save_steps: Option<u64>,
    /// Number of checkpoints to keep: only the newest stay [default: all]
    #[arg(long, value_name = "N", help_heading = "Log and checkpoints")]
    pub save_total_limit: Option<usize>,
    /// Steps between two evaluations on held-out records [default: only before and after training]
    #[arg(long, value_name = "STEPS", help_heading = "Log and checkpoints")]
    pub eval_steps: Option<u64>,
}

impl SettingsArgs {
    /// Returns the settings, with defaults for missing flags. `dtype` is resolved later, because it depends
    /// on the machine.
    pub fn settings(&self) -> TrainSettings {
        let mut s = TrainSettings::default();
        set(&mut s.max_length, &self.max_length);
        set(&mut s.val_size, &self.val_size);
        set(&mut s.packing, &self.packing);
        set(&mut s.shuffle_dataset, &self.shuffle_dataset);
        set(&mut s.train_on_prompt, &self.train_on_prompt);
        set(&mut s.add_eos_token, &self.add_eos_token);
        self.adapter.apply(&mut s);
        set(&mut s.learning_rate, &self.learning_rate);
        s.loraplus_lr_ratio = self.loraplus_lr_ratio.or(s.loraplus_lr_ratio);
        s.neftune_noise_alpha = self.neftune_noise_alpha.or(s.neftune_noise_alpha);
        set(&mut s.num_train_epochs, &self.num_train_epochs);
        set(&mut s.per_device_train_batch_size, &self.per_device_train_batch_size);
        set(&mut s.gradient_accumulation_steps, &self.gradient_accumulation_steps);
        set(&mut s.warmup_ratio, &self.warmup_ratio);
        set(&mut s.lr_scheduler_type, &self.lr_scheduler_type);
        set(&mut s.weight_decay, &self.weight_decay);
        set(&mut s.max_grad_norm, &self.max_grad_norm);
        set(&mut s.adam_beta1, &self.adam_beta1);
        set(&mut s.adam_beta2, &self.adam_beta2);
        set(&mut s.adam_epsilon, &self.adam_epsilon);
        set(&mut s.seed, &self.seed);
        self.quant.apply(&mut s);
        set(&mut s.logging_steps, &self.logging_steps);
        set(&mut s.save_steps, &self.save_steps);
        s.max_steps = self.max_steps.or(s.max_steps);
        s.save_total_limit = self.save_total_limit.or(s.save_total_limit);
        s.eval_steps = self.eval_steps.or(s.eval_steps);
        s.default_system.clone_from(&self.default_system);
        s.template_date.clone_from(&self.template_date);
        s
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    #[test]
    fn every_setting_is_a_flag() {
        let command = TrainArgs::augment_args(Command::new("train"));
        for (name, _) in TrainSettings::default().entries() {
            let flag = name.replace('_', "-");
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(&flag)), "{flag}");
        }
    }

    #[test]
    fn a_limit_without_a_unit_is_told_one_that_is_taken() {
        for (text, says) in [
            ("8", "`8` has no unit; write `8GiB`, or `8B` for bytes"),
            ("0.5", "`0.5` has no unit; write `0.5GiB`"),
            ("99999999999", "`99999999999` has no unit; write `99999999999B` for bytes"),
            ("inf", "`inf` is not a size; write a number with a unit, such as 8GiB or 900MB"),
        ] {
            assert_eq!(memory_limit(text).unwrap_err(), says);
        }
        for text in ["-1", "1e9", "nan", "0", "-8GiB"] {
            assert!(memory_limit(text).unwrap_err().contains("is not a size"), "{text}");
        }
        assert_eq!(memory_limit("8GiB"), Ok(8 << 30));
    }

    #[test]
    fn help_names_the_true_defaults() {
        let command = TrainArgs::augment_args(Command::new("train"));
        for (name, value) in TrainSettings::default().entries() {
            let arg = command.get_arguments().find(|arg| arg.get_id() == name.as_str()).unwrap();
            let help = arg.get_help().unwrap().to_string();
            let Some((_, shown)) = help.split_once("[default: ") else { continue };
            let shown = shown.trim_end_matches(']');
            // The command chooses these two defaults, so `TrainSettings` does not contain them.
            let of_command = [("val_size", "0.02 from 50 records on"), ("dtype", "auto")];
            if let Some((_, default)) = of_command.iter().find(|(of, _)| *of == name) {
                assert_eq!(shown, *default);
                continue;
            }
            match value.as_f64() {
                Some(number) => assert_eq!(shown.parse::<f64>().ok(), Some(number), "{name}"),
                None if value.is_null() => {}
                None => assert_eq!(value.to_string().trim_matches('"'), shown, "{name}"),
            }
        }
    }
}
