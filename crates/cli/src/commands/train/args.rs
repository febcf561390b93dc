//! The flags of `danlu train`, and how they become a [`TrainSettings`].

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use danlu_adapter::{TargetModules, parse_byte_size};
use danlu_data::Format;
use danlu_train::{LrSchedulerType, Precision, TrainSettings};

use crate::commands::ComputeArgs;
use crate::commands::data::format;
use crate::commands::nearby;
use crate::config_file::ConfigFile;
use crate::report::{Report, Result};
use crate::usage::usage;

/// Name of the file in the output folder that holds every setting of the run.
pub const RUN_FILE: &str = "run.toml";

/// Examples under `--help`.
pub const EXAMPLES: &str = "\
Examples:
  danlu train --base models/base-28m --data huanhuan.json --output out/huanhuan
  danlu train --base models/base-28m --data a.json b.jsonl --output out/ab --lora-r 16 --num-train-epochs 3
  danlu train --config run.toml --learning-rate 2e-4
  danlu train --base models/base-28m --data huanhuan.json --output out/small --memory-limit 300MiB
  danlu train --output out/huanhuan --resume

A configuration file has the same names, one per line:
  base = \"models/base-28m\"
  data = [\"huanhuan.json\"]
  output = \"out/huanhuan\"
  lora_r = 16
  target_modules = [\"q_proj\", \"v_proj\"]

Ctrl-C finishes the step, saves a checkpoint and says how to resume; a second Ctrl-C ends at once.";

/// Fine-tunes a LoRA adapter on your data.
#[derive(Args, Clone, Debug, Default)]
pub struct TrainArgs {
    /// Folder of the base model, as downloaded from Hugging Face
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub base: Option<PathBuf>,
    /// Training data: JSON or JSON lines, as `danlu data check` accepts it
    #[arg(long, value_name = "FILE", num_args = 1.., help_heading = "Files")]
    pub data: Vec<PathBuf>,
    /// Folder to write to: new, empty, or with --resume the run to go on with
    #[arg(long, value_name = "DIR", help_heading = "Files")]
    pub output: Option<PathBuf>,
    /// Read flags from a TOML file; the command line wins
    #[arg(long, value_name = "FILE", help_heading = "Files")]
    pub config: Option<PathBuf>,
    /// Go on from the newest checkpoint of the output folder, or from the one given
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1, help_heading = "Files")]
    pub resume: Option<Option<PathBuf>>,

    /// Format of the data instead of the recognised one [alpaca, messages, sharegpt, prompt-completion, text]
    #[arg(long, value_name = "FORMAT", value_parser = format, help_heading = "Data")]
    pub format: Option<Format>,
    /// Leave bad records out, and list them, instead of refusing the data
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub skip_bad: Option<bool>,
    #[command(flatten)]
    pub settings: SettingsArgs,
    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Most memory to use, weights included, such as 8GiB or 900MB: layers then keep less and compute more, with
    /// equal results [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = memory_limit, help_heading = "Machine")]
    pub memory_limit: Option<u64>,
}

/// The flags that decide numbers; each is a field of [`TrainSettings`], whose default is shown.
#[derive(Args, Clone, Debug, Default)]
pub struct SettingsArgs {
    /// Longest record in tokens; longer ones lose the front of their question [default: 384]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    pub max_length: Option<usize>,
    /// Records to hold out: a share below 1, or a number [default: 0]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub val_size: Option<f64>,
    /// Fill each row of a batch with several records, which do not see each other
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub packing: Option<bool>,
    /// Visit the records in another order in each pass; with =false in the order of the file [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub shuffle_dataset: Option<bool>,
    /// Train on the questions too, not only on the answers
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Data")]
    pub train_on_prompt: Option<bool>,

    /// System message of conversations that bring none; it stays with the adapter
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    pub default_system: Option<String>,
    /// The day that the chat template is told where it asks [default: today, kept when resumed]
    #[arg(long, value_name = "YYYY-MM-DD", hide_short_help = true, help_heading = "Data")]
    pub template_date: Option<String>,

    #[command(flatten)]
    pub adapter: AdapterArgs,

    /// Highest learning rate [default: 1e-4]
    #[arg(long, value_name = "RATE", help_heading = "Training")]
    pub learning_rate: Option<f64>,
    /// Passes over the data [default: 1]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub num_train_epochs: Option<f64>,
    /// Steps to take, instead of passes over the data
    #[arg(long, value_name = "STEPS", conflicts_with = "num_train_epochs", help_heading = "Training")]
    pub max_steps: Option<u64>,
    /// Records per micro-batch; with --packing, rows of --max-length tokens [default: 2]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub per_device_train_batch_size: Option<usize>,
    /// Micro-batches per step [default: 2]
    #[arg(long, value_name = "N", help_heading = "Training")]
    pub gradient_accumulation_steps: Option<usize>,
    /// Share of the steps over which the learning rate rises [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Training")]
    pub warmup_ratio: Option<f64>,
    /// Shape of the learning rate: linear, cosine, constant or constant_with_warmup [default: linear]
    #[arg(long, value_name = "TYPE", value_parser = LrSchedulerType::from_str, help_heading = "Training")]
    pub lr_scheduler_type: Option<LrSchedulerType>,
    /// Decoupled weight decay of AdamW [default: 0]
    #[arg(long, value_name = "DECAY", help_heading = "Training")]
    pub weight_decay: Option<f64>,
    /// The gradient is scaled down to this norm; 0 leaves it [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Training")]
    pub max_grad_norm: Option<f64>,
    /// Decay of AdamW's first moment [default: 0.9]
    #[arg(long, value_name = "BETA", hide_short_help = true, help_heading = "Training")]
    pub adam_beta1: Option<f64>,
    /// Decay of AdamW's second moment [default: 0.999]
    #[arg(long, value_name = "BETA", hide_short_help = true, help_heading = "Training")]
    pub adam_beta2: Option<f64>,
    /// Added to the root of AdamW's second moment [default: 1e-8]
    #[arg(long, value_name = "EPS", hide_short_help = true, help_heading = "Training")]
    pub adam_epsilon: Option<f64>,
    /// Seed of the adapter, the order of records and dropout [default: 42]
    #[arg(long, value_name = "SEED", help_heading = "Training")]
    pub seed: Option<u64>,
    /// What products with the base are computed in: f32 or bf16 [default: f32]
    #[arg(long, value_name = "TYPE", value_parser = Precision::from_str, help_heading = "Training")]
    pub dtype: Option<Precision>,

    /// Steps between two lines of the log [default: 10]
    #[arg(long, value_name = "STEPS", help_heading = "Log and checkpoints")]
    pub logging_steps: Option<u64>,
    /// Steps between two checkpoints; 0 saves only at the end [default: 100]
    #[arg(long, value_name = "STEPS", help_heading = "Log and checkpoints")]
    pub save_steps: Option<u64>,
    /// Keep only the newest checkpoints [default: all]
    #[arg(long, value_name = "N", help_heading = "Log and checkpoints")]
    pub save_total_limit: Option<usize>,
    /// Steps between two measurements on the held-out records [default: before and after only]
    #[arg(long, value_name = "STEPS", help_heading = "Log and checkpoints")]
    pub eval_steps: Option<u64>,
}

/// The flags that decide the adapter.
#[derive(Args, Clone, Debug, Default)]
pub struct AdapterArgs {
    /// Rank of the adapter [default: 8]
    #[arg(long, value_name = "R", help_heading = "Adapter")]
    pub lora_r: Option<u32>,
    /// The adapter is scaled by alpha / rank [default: 32]
    #[arg(long, value_name = "ALPHA", help_heading = "Adapter")]
    pub lora_alpha: Option<f64>,
    /// Probability of dropping an input of the adapter while training [default: 0.1]
    #[arg(long, value_name = "P", help_heading = "Adapter")]
    pub lora_dropout: Option<f64>,
    /// Projections that get an adapter: all-linear, names between commas, or a regular expression
    /// [default: all-linear]
    #[arg(long, value_name = "NAMES", value_parser = TargetModules::from_str, help_heading = "Adapter")]
    pub target_modules: Option<TargetModules>,
    /// Scale by alpha / sqrt(rank) instead
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = "Adapter")]
    pub use_rslora: Option<bool>,
}

impl AdapterArgs {
    /// Sets what was given.
    pub fn apply(&self, settings: &mut TrainSettings) {
        set(&mut settings.lora_r, &self.lora_r);
        set(&mut settings.lora_alpha, &self.lora_alpha);
        set(&mut settings.lora_dropout, &self.lora_dropout);
        set(&mut settings.target_modules, &self.target_modules);
        set(&mut settings.use_rslora, &self.use_rslora);
    }
}

fn set<T: Clone>(field: &mut T, given: &Option<T>) {
    if let Some(value) = given {
        field.clone_from(value);
    }
}

impl SettingsArgs {
    /// The settings, with defaults for what was not given.
    pub fn settings(&self) -> TrainSettings {
        let mut s = TrainSettings::default();
        set(&mut s.max_length, &self.max_length);
        set(&mut s.val_size, &self.val_size);
        set(&mut s.packing, &self.packing);
        set(&mut s.shuffle_dataset, &self.shuffle_dataset);
        set(&mut s.train_on_prompt, &self.train_on_prompt);
        self.adapter.apply(&mut s);
        set(&mut s.learning_rate, &self.learning_rate);
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
        set(&mut s.dtype, &self.dtype);
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

/// Everything `train` needs, settled: flags over file over defaults.
#[derive(Clone, Debug)]
pub struct Run {
    /// Folder of the base.
    pub base: PathBuf,
    /// Data files.
    pub data: Vec<PathBuf>,
    /// Their format, where it is forced.
    pub format: Option<Format>,
    /// Whether bad records are left out.
    pub skip_bad: bool,
    /// Output folder.
    pub output: PathBuf,
    /// Whether to go on, and from which checkpoint where one was named.
    pub resume: Option<Option<PathBuf>>,
    /// The numbers.
    pub settings: TrainSettings,
    /// Threads and such.
    pub compute: ComputeArgs,
    /// Most memory to use, bytes.
    pub memory_limit: Option<u64>,
    /// The file that flags were read from, to point into.
    pub config: Option<ConfigFile>,
}

impl Run {
    /// Settles the arguments of one command line. With `--resume` alone the run's own settings are read back
    /// from its output folder.
    ///
    /// # Errors
    /// If the file has a fault, a path is missing, or a setting is out of range.
    pub fn resolve(matches: &ArgMatches) -> Result<Self> {
        let missing = |flag: &str, what: &str| {
            let report = Report::input(format!("`--{flag}` is missing: {what}"));
            report.with_hint(match matches.get_one::<PathBuf>("config") {
                Some(file) => format!("danlu train --config {} --{flag} ...", file.display()),
                None => "danlu train --base DIR --data FILE --output DIR".to_owned(),
            })
        };
        let run = Self::settle(matches)?;
        if run.data.is_empty() {
            return Err(missing("data", "the file to train on"));
        }
        if run.base.as_os_str().is_empty() {
            return Err(missing("base", "the folder of the model to train on"));
        }
        if run.output.as_os_str().is_empty() {
            return Err(missing("output", "the folder to write the adapter to"));
        }
        Ok(run)
    }

    /// As [`Run::resolve`], for a run that is planned only: it may lack data and output, which are then empty.
    ///
    /// # Errors
    /// As [`Run::resolve`].
    pub fn resolve_plan(matches: &ArgMatches) -> Result<Self> {
        let run = Self::settle(matches)?;
        if run.base.as_os_str().is_empty() {
            let report = Report::input("`--base` is missing: the folder of the model to plan for");
            return Err(report.with_hint("danlu plan --base DIR [--data FILE]"));
        }
        Ok(run)
    }

    /// Flags over file over defaults; paths that were not given are empty.
    fn settle(matches: &ArgMatches) -> Result<Self> {
        let mut args = TrainArgs::from_arg_matches(matches).map_err(|error| usage(&error))?;
        let own = match (&args.resume, &args.output) {
            (Some(_), Some(output)) => Some(output.join(RUN_FILE)),
            _ => None,
        };
        if own.as_ref().is_some_and(|path| !path.is_file()) {
            let output = args.output.unwrap_or_default();
            let report = Report::input(format!("`{}` holds no run to go on with", output.display()));
            return Err(report.with_hint("leave `--resume` out to begin one"));
        }
        let is_own = args.config.is_none() && own.is_some();
        let config = match args.config.clone().or(own) {
            None => None,
            Some(path) => {
                let command = TrainArgs::augment_args(Command::new("train"));
                let config = ConfigFile::read(&path, &command)?.without(|flag| given(matches, flag));
                check_one_length(&config)?;
                let file = command.no_binary_name(true).try_get_matches_from(config.args());
                let file = file.map_err(|error| usage(&error))?;
                args = TrainArgs::from_arg_matches(&file).map_err(|error| usage(&error))?;
                args.update_from_arg_matches(matches).map_err(|error| usage(&error))?;
                Some(config)
            }
        };

        let settings = args.settings.settings();
        settings.validate().map_err(|error| match &error {
            danlu_train::TrainError::Setting { name, .. } => {
                let flag = name.replace('_', "-");
                let place = config.as_ref().and_then(|c| c.snippet(&flag, ""));
                // Beside a file, it is worth saying that the value is not the file's.
                let typed = config.is_some() && given(matches, &flag);
                let source = typed.then(|| format!("`--{flag}` on the command line"));
                Report::from(error).with_snippet(place).with_details(source.into_iter().collect())
            }
            _ => Report::from(error),
        })?;
        let is_base = |folder: &Path| folder.join("config.json").is_file();
        let base = args.base.map(|path| found(config.as_ref(), is_own, "base", path, is_base)).transpose()?;
        let data =
            args.data.into_iter().map(|path| found(config.as_ref(), is_own, "data", path, Path::is_file));
        Ok(Self {
            base: base.unwrap_or_default(),
            data: data.collect::<Result<_>>()?,
            format: args.format,
            skip_bad: args.skip_bad.unwrap_or(false),
            output: args.output.unwrap_or_default(),
            resume: args.resume,
            settings,
            compute: args.compute,
            memory_limit: args.memory_limit,
            config,
        })
    }

    /// The data files that were found elsewhere than they are named.
    pub fn data_found_elsewhere(&self) -> impl Iterator<Item = &Path> {
        let named = self.config.as_ref().map(|config| config.values("data")).unwrap_or_default();
        let data = self.data.iter().map(PathBuf::as_path);
        data.filter(move |path| !named.is_empty() && !named.iter().any(|named| Path::new(named) == *path))
    }

    /// The base as it was named when the run began, wherever it was found since.
    pub fn base_as_named(&self) -> String {
        let named = self.config.as_ref().and_then(|config| config.values("base").first().copied());
        named.map_or_else(|| self.base.display().to_string(), str::to_owned)
    }

    /// The run as a configuration file that repeats it. Paths stand in it as they were named.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::new();
        table.insert("base".into(), self.base_as_named().into());
        let named = self.config.as_ref().map(|config| config.values("data")).unwrap_or_default();
        let data = match named.is_empty() {
            true => self.data.iter().map(|path| path.display().to_string()).collect(),
            false => named.into_iter().map(str::to_owned).collect::<Vec<_>>(),
        };
        table.insert("data".into(), data.into());
        if let Some(format) = self.format {
            table.insert("format".into(), format.name().into());
        }
        if self.skip_bad {
            table.insert("skip_bad".into(), true.into());
        }
        if let Some(limit) = self.memory_limit {
            table.insert("memory_limit".into(), byte_size(limit).into());
        }
        for (name, value) in self.settings.entries() {
            // Epochs and steps exclude each other, and a null is a setting left alone.
            let idle = name == "num_train_epochs" && self.settings.max_steps.is_some();
            if !idle && !value.is_null() {
                // `TrainSettings::validate` keeps numbers within what TOML holds.
                table.insert(name, toml::Value::try_from(value).expect("a valid setting is a TOML value"));
            }
        }
        format!(
            "# Every setting of this run: `danlu train --config {RUN_FILE} --output OTHER` repeats it in another folder.\n{table}"
        )
    }
}

/// A path that a configuration file names, from here or from beside the file; one of the command line is taken as it
/// is. Above the file only the `run.toml` of a resumed run (`is_own`) is followed: its checkpoints know the contents,
/// and refuse others of the same name.
fn found(
    config: Option<&ConfigFile>,
    is_own: bool,
    flag: &str,
    path: PathBuf,
    is_it: impl Fn(&Path) -> bool,
) -> Result<PathBuf> {
    let Some(config) = config.filter(|config| !config.values(flag).is_empty()) else { return Ok(path) };
    let found = match is_own {
        true => nearby::find(config.folder(), &path, is_it),
        false => nearby::beside(config.folder(), &path, is_it),
    };
    found.ok_or_else(|| {
        let shown = path.display();
        let text = match flag {
            "base" => format!("`{shown}` is no model folder here, nor beside the file that names it"),
            _ => format!("`{shown}` is no file here, nor beside the file that names it"),
        };
        let place = config.snippet(flag, &path.display().to_string());
        Report::input(text).with_snippet(place).with_hint(format!("say where it is with `--{flag}`"))
    })
}

/// A file that gives both measures of a run's length contradicts itself.
fn check_one_length(config: &ConfigFile) -> Result<()> {
    if ["max-steps", "num-train-epochs"].iter().any(|flag| config.values(flag).is_empty()) {
        return Ok(());
    }
    let report =
        Report::input("`max_steps` and `num_train_epochs` are both given, and either is the whole length");
    Err(report.with_snippet(config.snippet("max-steps", "")).with_hint("leave one of them out"))
}

/// The flag's value in bytes.
fn memory_limit(text: &str) -> Result<u64, String> {
    parse_byte_size(text).map_err(|error| error.to_string())
}

/// Bytes as the flag takes them, in the largest unit that is exact.
fn byte_size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20)];
    let exact = units.into_iter().find(|(_, shift)| bytes.trailing_zeros() >= *shift);
    exact.map_or_else(|| format!("{bytes}B"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// An adapter's fault, underlined where a configuration file asked for it.
pub fn point_into_config(run: &Run, error: danlu_adapter::AdapterError) -> Report {
    let target = match &error {
        danlu_adapter::AdapterError::NoSuchTarget { target, .. } => target.clone(),
        _ => String::new(),
    };
    let place =
        run.config.as_ref().filter(|_| !target.is_empty()).and_then(|c| c.snippet("target-modules", &target));
    Report::from(error).with_snippet(place)
}

/// Whether `flag` was on the command line, itself or as its alternative.
fn given(matches: &ArgMatches, flag: &str) -> bool {
    let direct = |flag: &str| {
        let id = flag.replace('-', "_");
        matches.value_source(&id) == Some(clap::parser::ValueSource::CommandLine)
    };
    match flag {
        "max-steps" => direct(flag) || direct("num-train-epochs"),
        "num-train-epochs" => direct(flag) || direct("max-steps"),
        _ => direct(flag),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn resolve(line: &[&str]) -> Result<Run, String> {
        let command = TrainArgs::augment_args(Command::new("train"));
        let matches =
            command.no_binary_name(true).try_get_matches_from(line).map_err(|e| usage(&e).render(false))?;
        Run::resolve(&matches).map_err(|report| report.render(false))
    }

    const PATHS: [&str; 6] = ["--base", "b", "--data", "d", "--output", "o"];

    #[test]
    fn without_flags_the_defaults_hold() {
        let run = resolve(&PATHS).unwrap();
        assert_eq!(run.settings, TrainSettings::default());
        assert!(!run.skip_bad && run.resume.is_none() && run.config.is_none());
    }

    #[test]
    fn every_setting_is_a_flag() {
        let command = TrainArgs::augment_args(Command::new("train"));
        for (name, _) in TrainSettings::default().entries() {
            let flag = name.replace('_', "-");
            assert!(command.get_arguments().any(|arg| arg.get_long() == Some(&flag)), "{flag}");
        }
    }

    #[test]
    fn help_names_the_true_defaults() {
        let command = TrainArgs::augment_args(Command::new("train"));
        for (name, value) in TrainSettings::default().entries() {
            let arg = command.get_arguments().find(|arg| arg.get_id() == name.as_str()).unwrap();
            let help = arg.get_help().unwrap().to_string();
            let Some((_, shown)) = help.split_once("[default: ") else { continue };
            let shown = shown.trim_end_matches(']');
            match value.as_f64() {
                Some(number) => assert_eq!(shown.parse::<f64>().ok(), Some(number), "{name}"),
                None if value.is_null() => {}
                None => assert_eq!(value.to_string().trim_matches('"'), shown, "{name}"),
            }
        }
    }

    /// A folder in which the names of a configuration file lead somewhere.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("b")).unwrap();
        fs::write(folder.path().join("b/config.json"), "{}").unwrap();
        fs::write(folder.path().join("d"), "[]").unwrap();
        folder
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let folder = folder();
        let path = folder.path().join("run.toml");
        fs::write(
            &path,
            "base = \"b\"\ndata = \"d\"\noutput = \"o\"\nlora_r = 4\nmax_steps = 9\npacking = true\n",
        )
        .unwrap();
        let config = path.to_str().unwrap();
        let run = resolve(&["--config", config, "--lora-r", "2", "--packing=false"]).unwrap();
        assert_eq!((run.settings.lora_r, run.settings.max_steps, run.settings.packing), (2, Some(9), false));
        let run = resolve(&["--config", config, "--num-train-epochs", "3", "--data", "e", "f"]).unwrap();
        assert_eq!((run.settings.max_steps, run.settings.num_train_epochs), (None, 3.0));
        assert_eq!(run.data, [PathBuf::from("e"), PathBuf::from("f")]);
    }

    #[test]
    fn a_run_written_down_resolves_to_itself() {
        let mut line = PATHS.to_vec();
        line.extend([
            "--lora-r",
            "3",
            "--target-modules",
            "q_proj,v_proj",
            "--max-steps",
            "5",
            "--dtype",
            "bf16",
        ]);
        line.extend(["--lr-scheduler-type", "cosine", "--skip-bad", "--learning-rate", "3e-5"]);
        line.extend(["--memory-limit", "1.5GiB"]);
        let run = resolve(&line).unwrap();
        let folder = folder();
        let path = folder.path().join("run.toml");
        fs::write(&path, run.to_toml()).unwrap();
        let again = resolve(&["--config", path.to_str().unwrap(), "--output", "other"]).unwrap();
        assert_eq!(again.settings, run.settings);
        let beside = |name: &str| fs::canonicalize(folder.path()).unwrap().join(name);
        assert_eq!((&again.base, &again.data), (&beside("b"), &vec![beside("d")]));
        assert_eq!((again.base_as_named().as_str(), again.output.to_str()), ("b", Some("other")));
        assert!(again.skip_bad);
        assert_eq!(again.memory_limit, Some(3 << 29));
    }

    #[test]
    fn only_a_resumed_run_looks_above_its_folder() {
        let folder = folder();
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let path = out.join(RUN_FILE);
        fs::write(&path, "base = \"b\"\ndata = \"d\"\n").unwrap();
        let (output, config) = (out.to_str().unwrap(), path.to_str().unwrap());
        let run = resolve(&["--output", output, "--resume"]).unwrap();
        let above = |name: &str| fs::canonicalize(folder.path()).unwrap().join(name);
        assert_eq!((&run.base, &run.data), (&above("b"), &vec![above("d")]));
        assert_eq!(run.data_found_elsewhere().collect::<Vec<_>>(), [above("d")]);
        for line in [
            &["--config", config, "--output", "o"][..],
            &["--config", config, "--output", output, "--resume"],
        ] {
            let refused = resolve(line).unwrap_err();
            assert!(
                refused.starts_with("error: `b` is no model folder here, nor beside the file"),
                "{refused}"
            );
        }
        fs::write(out.join("d"), "[]").unwrap();
        let base = above("b");
        let run = resolve(&["--config", config, "--base", base.to_str().unwrap(), "--output", "o"]).unwrap();
        assert_eq!(run.data, [above("out").join("d")]);
    }

    #[test]
    fn a_size_is_written_so_that_it_reads_back() {
        for (bytes, text) in [(8 << 30, "8GiB"), (3 << 29, "1536MiB"), (900_000_000, "900000000B")] {
            assert_eq!(byte_size(bytes), text);
            assert_eq!(memory_limit(text), Ok(bytes));
        }
    }

    #[test]
    fn values_out_of_range_are_named_and_underlined() {
        let mut line = PATHS.to_vec();
        line.extend(["--lora-dropout", "1"]);
        assert_eq!(
            resolve(&line).unwrap_err(),
            "error: `lora_dropout` is 1, expected at least 0 and below 1\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.toml");
        fs::write(&path, "lora_r = 4\nlora_dropout = 1.25\n").unwrap();
        let mut line = PATHS.to_vec();
        line.extend(["--config", path.to_str().unwrap()]);
        let refused = resolve(&line).unwrap_err();
        let place = "run.toml:2:16]\n  2 │ lora_dropout = 1.25\n    ·                ────\n";
        assert!(refused.contains(place), "{refused}");
        assert!(resolve(&PATHS[..4]).unwrap_err().starts_with("error: `--output` is missing"));
    }
}
