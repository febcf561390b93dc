//! Flag names of TRL, PEFT, axolotl, LLaMA-Factory, Unsloth and mlx-lm.
//!
//! A name with the same meaning as a danlu flag is translated before clap parses the command line. For any
//! other known name, the error names the flag to use, or the reason why danlu has no such flag.

use std::ffi::OsString;

use clap::Command;

use crate::diagnostic::{Diagnostic, Result};

/// The meaning of another tool's flag in danlu.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerFlag {
    /// danlu flags with the same meaning. The name is translated to the first of these flags that the command
    /// has.
    Same(&'static [&'static str]),
    /// A switch that becomes these arguments.
    Switch(&'static str),
    /// danlu has no such flag. This text is the hint.
    Advice(&'static str),
}

use PeerFlag::{Advice, Same, Switch};

/// Largest number of letters in which a suggestion may differ from the typed word.
const MAX_EDITS: usize = 2;

const TABLE: &[(&[&str], PeerFlag)] = &[
    (&["lr"], Same(&["learning-rate"])),
    (&["epochs", "num-epochs", "n-epochs", "train-epochs"], Same(&["num-train-epochs"])),
    (&["iters", "steps", "max-train-steps", "num-steps"], Same(&["max-steps", "steps"])),
    (
        &["batch-size", "micro-batch-size", "per-gpu-train-batch-size", "train-batch-size"],
        Same(&["per-device-train-batch-size"]),
    ),
    (
        &["grad-accum", "grad-accumulation-steps", "gradient-accumulation", "accumulation-steps"],
        Same(&["gradient-accumulation-steps"]),
    ),
    (
        &[
            "max-seq-length",
            "max-seq-len",
            "seq-length",
            "sequence-len",
            "cutoff-len",
            "block-size",
            "model-max-length",
        ],
        Same(&["max-length", "context"]),
    ),
    (&["output-dir", "out-dir", "save-path", "save-dir", "export-dir"], Same(&["output"])),
    (&["base-model", "model-name-or-path", "model-name", "model-path", "pretrained-model"], Same(&["base"])),
    (&["model"], Same(&["base"])),
    (&["train-file", "data-path", "dataset-path", "dataset-name", "train-data", "datasets"], Same(&["data"])),
    (&["rank", "r", "lora-rank", "lora-dim"], Same(&["lora-r"])),
    (&["alpha"], Same(&["lora-alpha"])),
    (&["dropout"], Same(&["lora-dropout"])),
    (&["lora-target", "lora-target-modules", "lora-modules", "target"], Same(&["target-modules"])),
    (&["rslora", "use-lora-rs"], Same(&["use-rslora"])),
    (&["lr-scheduler", "scheduler", "lr-schedule"], Same(&["lr-scheduler-type"])),
    (&["wd"], Same(&["weight-decay"])),
    (&["max-norm", "clip-grad", "gradient-clipping", "grad-clip"], Same(&["max-grad-norm"])),
    (&["test-size", "val-set-size", "eval-ratio", "validation-split", "val-split"], Same(&["val-size"])),
    (&["sample-packing", "pack"], Same(&["packing"])),
    (&["train-on-inputs", "train-on-input"], Same(&["train-on-prompt"])),
    (&["save-every"], Same(&["save-steps"])),
    (&["steps-per-eval", "eval-every"], Same(&["eval-steps"])),
    (&["steps-per-report", "log-every"], Same(&["logging-steps"])),
    (&["resume-from-checkpoint"], Same(&["resume"])),
    (&["template"], Same(&["chat-template"])),
    (&["temp"], Same(&["temperature"])),
    (&["max-tokens", "max-gen-toks", "num-predict"], Same(&["max-new-tokens"])),
    (&["system-prompt", "default-system-prompt"], Same(&["system", "default-system"])),
    (&["bnb-4bit-quant-type", "quantize", "quantization"], Same(&["quant", "to"])),
    (&["export-size", "shard-size"], Same(&["max-shard-size"])),
    (&["torch-dtype", "out-dtype", "outtype"], Same(&["dtype"])),
    (&["token-limit", "ctx-size", "num-ctx"], Same(&["context"])),
    (&["load-in-4bit", "use-4bit", "qlora", "load-4bit"], Switch("--quant=nf4")),
    (&["bf16"], Switch("--dtype=bf16")),
    (&["fp32", "no-half", "float32"], Switch("--dtype=f32")),
    (&["cpu", "no-cuda", "use-cpu"], Switch("--device=cpu")),
    (&["gpu", "cuda"], Switch("--device=cuda")),
    (&["no-shuffle", "disable-shuffling"], Switch("--shuffle-dataset=false")),
    (&["fp16"], Advice("use `--dtype f16`, which needs a GPU, or `--dtype bf16`")),
    (&["tf32"], Advice("danlu has no tf32: use `--dtype bf16` or `--dtype f32`")),
    (
        &["load-in-8bit", "use-8bit"],
        Advice("danlu has no 8-bit weights: use `--quant nf4`, or omit it for 16 bits"),
    ),
    (&["quantization-bit", "bits"], Advice("use `--quant nf4` for 4 bits; danlu has no other width")),
    (
        &["bnb-4bit-use-double-quant", "use-nested-quant", "double-quantization"],
        Advice("omit it: double quantization is the default, and `--no-double-quant` switches it off"),
    ),
    (&["bnb-4bit-compute-dtype"], Advice("use `--dtype bf16` or `--dtype f32`")),
    (
        &[
            "gradient-checkpointing",
            "use-gradient-checkpointing",
            "grad-checkpoint",
            "activation-checkpointing",
        ],
        Advice(
            "danlu has no switch for it: layers recompute as much as the memory needs; set `--memory-limit 8GiB`",
        ),
    ),
    (
        &["optim", "optimizer"],
        Advice("danlu has no choice of optimizers: omit it, training uses AdamW in f32"),
    ),
    (&["dora"], Same(&["use-dora"])),
    (
        &["modules-to-save", "additional-target"],
        Advice("danlu has no fully trained modules, only LoRA matrices: omit it"),
    ),
    (&["bias", "lora-bias"], Advice("danlu has no bias training: omit it, biases stay frozen")),
    (
        &["init-lora-weights", "pissa-init"],
        Advice("danlu has no other initialization than PEFT's default: omit it"),
    ),
    (
        &["loraplus-lr-ratio"],
        Advice("danlu has no LoRA+, one learning rate fits all matrices: use `--learning-rate`"),
    ),
    (
        &["neftune-noise-alpha"],
        Advice("danlu has no NEFTune noise: use `--lora-dropout` against overfitting"),
    ),
    (
        &["num-layers", "lora-layers"],
        Advice(
            "choose layers by a regular expression, such as `--target-modules '.*layers\\.(2[4-9]|3[01])\\..*proj'`",
        ),
    ),
    (
        &["warmup-steps", "num-warmup-steps", "warmup"],
        Advice("use `--warmup-ratio`, a fraction of the steps"),
    ),
    (
        &[
            "flash-attention",
            "flash-attn",
            "attn-implementation",
            "use-flash-attn",
            "sdp-attention",
            "xformers-attention",
        ],
        Advice("danlu has no choice of kernels: omit it, attention never stores its scores"),
    ),
    (
        &["torch-compile", "use-liger-kernel", "liger-kernel"],
        Advice("danlu has no compile step: omit it, kernels are fused already"),
    ),
    (
        &[
            "deepspeed",
            "fsdp",
            "num-processes",
            "nproc-per-node",
            "ddp-timeout",
            "local-rank",
            "num-gpus",
            "multi-gpu",
        ],
        Advice("danlu has no distributed training: one process trains on one device; omit it"),
    ),
    (
        &[
            "num-proc",
            "dataset-num-proc",
            "num-workers",
            "dataloader-num-workers",
            "preprocessing-num-workers",
            "dataset-processes",
        ],
        Advice("danlu has no workers: records are encoded once; `--threads` sets the threads of training"),
    ),
    (
        &["per-device-eval-batch-size", "eval-batch-size"],
        Advice("danlu has no batch size for evaluation, which needs less memory than a step: omit it"),
    ),
    (
        &["eval-strategy", "evaluation-strategy", "do-eval"],
        Advice("use `--eval-steps 50` and `--val-size 0.02`"),
    ),
    (&["save-strategy"], Advice("use `--save-steps 100`, or `--save-steps 0` to save only at the end")),
    (&["logging-strategy"], Advice("use `--logging-steps 10`")),
    (
        &["load-best-model-at-end", "early-stopping-patience", "metric-for-best-model"],
        Advice(
            "danlu has no early stopping: use `--eval-steps` and choose a checkpoint by its held-out loss",
        ),
    ),
    (
        &["assistant-only-loss", "completion-only-loss", "mask-prompt", "train-on-responses-only"],
        Advice("omit it: only answers are trained by default; `--train-on-prompt` trains questions too"),
    ),
    (
        &["group-by-length", "pad-token", "padding-side", "pad-to-multiple-of", "pad-to-sequence-len"],
        Advice("danlu has no padding, records are concatenated: omit it"),
    ),
    (
        &["overwrite-output-dir", "overwrite"],
        Advice("danlu has no overwriting: choose a new `--output`, or resume with `--resume`"),
    ),
    (&["trust-remote-code"], Advice("danlu has no remote code: it never runs code of a model; omit it")),
    (&["use-fast-tokenizer", "tokenizer-type"], Advice("omit it: tokenizer.json is always used")),
    (
        &["use-peft", "finetuning-type", "fine-tune-type", "train-type", "use-lora", "adapter-type"],
        Advice("danlu has no other method than LoRA: omit it"),
    ),
    (&["stage", "do-train", "train"], Advice("omit it: `danlu train` is supervised fine-tuning")),
    (
        &["dpo-beta", "beta", "rl", "pref-beta", "pref-loss"],
        Advice("danlu has no preference training (DPO, ORPO, KTO), only supervised fine-tuning"),
    ),
    (&["ema", "swa"], Advice("danlu has no averaging of weights: omit it")),
    (&["label-smoothing", "label-smoothing-factor"], Advice("danlu has no label smoothing: omit it")),
    (
        &["streaming", "cache-dir", "dataset-prepared-path", "overwrite-cache"],
        Advice("danlu has no data cache: records are encoded in memory; omit it"),
    ),
    (&["save-safetensors", "safe-serialization"], Advice("omit it: danlu writes safetensors only")),
    (
        &["logging-dir", "log-dir"],
        Advice("danlu has no separate log folder: logs are in `--output`; omit it"),
    ),
    (
        &["run-name", "wandb-project", "wandb-entity", "use-wandb", "swanlab-project", "mlflow-tracking-uri"],
        Advice("danlu has no uploads of logs: use `--report-to tensorboard`, or read history.jsonl"),
    ),
    (
        &["push-to-hub", "hub-model-id", "hub-token", "hub-private-repo"],
        Advice("publish afterwards: `danlu push DIR org/name`"),
    ),
    (&["merge", "merge-adapter", "fuse"], Advice("merge afterwards: `danlu merge DIR --output DIR-merged`")),
    (
        &["adapter-path", "adapter-name-or-path", "adapter", "lora", "lora-path", "peft-model-id"],
        Advice("name the adapter's folder without a flag, such as `danlu chat DIR`"),
    ),
    (
        &["max-samples", "max-train-samples"],
        Advice("danlu has no limit on records: pass a shorter file, or `--max-steps`"),
    ),
    (
        &["mixture", "interleave-probs", "mix-strategy"],
        Advice("danlu has no mixing weights: pass several files to `--data`"),
    ),
    (
        &["host", "port", "api-key"],
        Advice("danlu has no server in this command: chat in the terminal with `danlu chat`"),
    ),
    (
        &["best-of", "num-beams", "beam-size"],
        Advice("danlu has no beam search: use `--temperature 0` for the likeliest tokens"),
    ),
    (&["stop", "stop-words"], Advice("danlu has no stop words: the model's end token stops a reply")),
];

/// Commands of other tools, each with a hint that names the danlu command.
const COMMANDS: &[(&[&str], &str)] = &[
    (&["finetune", "fine-tune", "sft", "lora", "tune", "fit"], "did you mean `train`?"),
    (&["generate", "run", "infer", "inference", "talk", "predict", "complete"], "did you mean `chat`?"),
    (&["fuse", "export", "merge-lora", "merge-adapter"], "did you mean `merge`?"),
    (&["eval", "evaluate", "test", "perplexity"], "did you mean `compare`?"),
    (&["download", "fetch", "get"], "did you mean `pull`?"),
    (&["upload", "publish", "share"], "did you mean `push`?"),
    (&["preprocess", "prepare", "dataset", "inspect"], "did you mean `data`?"),
    (&["env", "info", "system", "sysinfo"], "did you mean `doctor`?"),
    (&["benchmark", "perf"], "did you mean `bench`?"),
    (&["estimate", "memory"], "did you mean `plan`?"),
    (&["completion", "complete-shell"], "did you mean `completions`?"),
    (&["server", "api", "vllm-serve", "api-server"], "did you mean `serve`?"),
    (
        &["webui", "web", "ui", "gradio"],
        "danlu has no web page: chat in the terminal with `danlu chat`, or connect a client to `danlu serve`",
    ),
    (
        &["dpo", "orpo", "kto", "grpo", "ppo", "reward"],
        "danlu has no preference training, only supervised fine-tuning: `danlu train`",
    ),
    (
        &["gguf", "convert-gguf"],
        "danlu has no GGUF: merge to safetensors, and convert the folder with llama.cpp",
    ),
];

/// Returns the meaning of another tool's flag. `name` has no leading dashes, and has `-` in place of `_`.
pub fn meaning(name: &str) -> Option<PeerFlag> {
    TABLE.iter().find(|(names, _)| names.contains(&name)).map(|(_, meaning)| *meaning)
}

/// Returns the hint for a command of another tool.
pub fn command_hint(name: &str) -> Option<&'static str> {
    let name = name.replace('_', "-");
    COMMANDS.iter().find(|(names, _)| names.contains(&name.as_str())).map(|(_, hint)| *hint)
}

/// Returns the known word closest to `word`. At most two letters may differ, and at least two letters must be
/// equal.
pub fn close<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = MAX_EDITS.min(word.chars().count().saturating_sub(2));
    let ranked = known.into_iter().map(|known| (danlu_data::edit_distance(word, known), known));
    ranked.filter(|(edits, _)| *edits <= limit).min().map(|(_, known)| known)
}

/// Translates the flags of a command line. In the name of a flag, `_` becomes `-`. Flags of other tools
/// become danlu's flags.
///
/// # Errors
/// If a flag of another tool has no equivalent in danlu. The hint names an alternative.
pub fn translate(root: &Command, line: Vec<OsString>) -> Result<Vec<OsString>> {
    let mut command = root;
    let mut words = line.into_iter().peekable();
    let mut out: Vec<OsString> = words.next().into_iter().collect();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else {
            out.push(word);
            continue;
        };
        if text == "--" || command.get_name() == "login" {
            out.push(word);
            out.extend(words);
            return Ok(out);
        }
        let Some(body) = text.strip_prefix("--").filter(|body| !body.is_empty()) else {
            command = command.get_subcommands().find(|sub| sub.get_name() == text).unwrap_or(command);
            out.push(word);
            continue;
        };
        let (name, value) = body.split_once('=').map_or((body, None), |(name, value)| (name, Some(value)));
        let name = name.replace('_', "-");
        let value = value.map(str::to_owned);
        let own = flag_of(root, command, &name);
        match own.map_or_else(|| translated(root, command, &name), |_| Translation::Flag(name.clone())) {
            Translation::Flag(flag) => {
                out.push(value.map_or_else(|| format!("--{flag}"), |v| format!("--{flag}={v}")).into());
            }
            Translation::Switch(args) => {
                let mut next =
                    || words.next_if(|next| next.to_str().is_some_and(|next| switch(next).is_some()));
                let value = value.or_else(|| next().and_then(|next| next.into_string().ok()));
                if value.as_deref().and_then(switch).unwrap_or(true) {
                    out.push(args.into());
                }
            }
            Translation::Advice(hint) => {
                return Err(Diagnostic::input(format!("unknown flag `--{name}`")).with_hint(hint));
            }
            Translation::Unknown => out.push(word),
        }
    }
    Ok(out)
}

enum Translation {
    Flag(String),
    Switch(&'static str),
    Advice(&'static str),
    Unknown,
}

fn translated(root: &Command, command: &Command, name: &str) -> Translation {
    let has = |flag: &&&str| flag_of(root, command, flag).is_some();
    match meaning(name) {
        Some(Same(flags)) => match flags.iter().find(has) {
            Some(flag) => Translation::Flag((*flag).to_owned()),
            None => Translation::Unknown,
        },
        Some(Switch(args)) => {
            let flag = args.trim_start_matches("--").split('=').next().unwrap_or_default();
            if has(&&flag) { Translation::Switch(args) } else { Translation::Unknown }
        }
        Some(Advice(hint)) => Translation::Advice(hint),
        None => Translation::Unknown,
    }
}

fn flag_of<'a>(root: &'a Command, command: &'a Command, name: &str) -> Option<&'a str> {
    if ["help", "version"].contains(&name) {
        return Some("");
    }
    let global = root.get_arguments().filter(|arg| arg.is_global_set());
    command.get_arguments().chain(global).filter_map(|arg| arg.get_long()).find(|long| *long == name)
}

/// Parses the value of a switch.
pub fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "auto" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::Cli;

    fn line(text: &str) -> Result<String, String> {
        let words = text.split(' ').map(OsString::from).collect();
        let words = translate(&Cli::command(), words).map_err(|error| error.render(false))?;
        Ok(words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn names_of_other_tools_become_danlu_flags() {
        for (theirs, ours) in [
            ("d train --lora_r 16 --learning_rate=2e-4", "d train --lora-r 16 --learning-rate=2e-4"),
            ("d train --lr 1e-4 --epochs 3", "d train --learning-rate 1e-4 --num-train-epochs 3"),
            ("d train --batch-size 4", "d train --per-device-train-batch-size 4"),
            ("d train --output_dir out --model_name_or_path m", "d train --output out --base m"),
            ("d train --load_in_4bit --lr 1", "d train --quant=nf4 --learning-rate 1"),
            ("d train --load_in_4bit True", "d train --quant=nf4"),
            ("d train --load_in_4bit=False", "d train"),
            ("d train --bf16 true --cutoff_len 512", "d train --dtype=bf16 --max-length 512"),
            ("d chat m --temp 0 --max-tokens 9", "d chat m --temperature 0 --max-new-tokens 9"),
            ("d merge a --out-dtype bf16 --export_dir b", "d merge a --dtype bf16 --output b"),
            ("d --lang en train -- --lr", "d --lang en train -- --lr"),
            ("d chat m --prompt a_b=c", "d chat m --prompt a_b=c"),
            ("d doctor --lr 1", "d doctor --lr 1"),
        ] {
            assert_eq!(line(theirs).as_deref(), Ok(ours));
        }
    }

    #[test]
    fn a_name_without_an_equal_is_answered() {
        let error = line("d train --gradient_checkpointing true").unwrap_err();
        assert!(error.starts_with("error: unknown flag `--gradient-checkpointing`\n"), "{error}");
        assert!(error.contains("--memory-limit"), "{error}");
        for (names, meaning) in TABLE {
            let Advice(hint) = meaning else { continue };
            let ways = ["use ", "omit", "danlu has no ", "publish", "merge", "choose", "name the"];
            assert!(ways.iter().any(|way| hint.contains(way)), "{names:?}: {hint}");
        }
    }

    #[test]
    fn the_table_points_only_to_flags_that_exist() {
        let root = Cli::command();
        fn has_flag(root: &Command, command: &Command, flag: &str) -> bool {
            flag_of(root, command, flag).is_some()
                || command.get_subcommands().any(|command| has_flag(root, command, flag))
        }
        let has = |flag: &str| has_flag(&root, &root, flag);
        let mut seen = std::collections::BTreeSet::new();
        for (names, meaning) in TABLE {
            for name in *names {
                assert!(seen.insert(*name), "{name} is listed twice");
            }
            match meaning {
                Same(flags) => flags.iter().for_each(|flag| assert!(has(flag), "{flag}")),
                Switch(args) => assert!(has(args.trim_start_matches("--").split('=').next().unwrap())),
                Advice(hint) => {
                    for word in hint.split(['`', ' ']).filter(|word| word.starts_with("--") && word.len() > 2)
                    {
                        assert!(has(word.trim_start_matches("--").trim_end_matches(',')), "{word}: {hint}");
                    }
                }
            }
        }
        assert!(seen.len() > 150, "{}", seen.len());
    }

    #[test]
    fn a_suggestion_differs_by_two_letters_at_most() {
        let flags = ["learning-rate", "lora-r", "output", "lr"];
        assert_eq!(close("lerning-rate", flags), Some("learning-rate"));
        assert_eq!(close("lerningrate", flags), Some("learning-rate"));
        assert_eq!(close("larnigrate", flags), None);
        assert_eq!(close("abcd", flags), None);
        assert_eq!(close("xx", flags), None);
    }
}
