//! The settings of a run, from flags and a configuration file.

use std::path::{Path, PathBuf};

use clap::{ArgMatches, Args, Command, FromArgMatches};
use danlu_adapter::{CONFIG_FILE, LoraConfig, RUN_FILE};
use danlu_data::{Columns, ReadOptions, Roles};
use danlu_hub::{DatasetRef, FetchScope, RepoName, parse_snapshot_path};
use danlu_loader::{DataRef, explicit_dataset, relative_path, with_full_commit};
use danlu_model::{ModelConfig, Tokenizer};
use danlu_train::TrainSettings;

use super::args::TrainArgs;
use super::prepare::DEFAULT_VAL_SIZE;
use super::run_log::ReportTo;
use crate::args::ComputeArgs;
use crate::args::adapter::AdapterArgs;
use crate::args::compute::{DTypeChoice, DTypeReason, ResolvedDType, check_context};
use crate::args::home_paths::expand_home;
use crate::args::{CardArgs, NotesArgs};
use crate::clap_error::usage;
use crate::config_file::ConfigFile;
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::model_loader::{ModelLoader, hub_hint, hub_name};
use crate::printer::Printer;
use crate::terminal_text;

/// The settings of a run. Flags override the configuration file, and the file overrides the defaults.
#[derive(Clone, Debug)]
pub struct RunConfig {
    pub files: RunFiles,
    /// Settings that affect the result.
    pub settings: TrainSettings,
    /// The device, the threads and the memory that the run may use.
    pub limits: RunLimits,
    /// The author's additions to the card.
    pub card: CardOptions,
}

/// The files that a run reads and writes.
#[derive(Clone, Debug, Default)]
pub struct RunFiles {
    /// Folder of the base. Before [`RunFiles::resolve_base`], this may be a Hub name.
    pub base: PathBuf,
    /// The Hub name, if the base has one.
    pub on_hub: Option<RepoName>,
    /// The adapter that the run continues from: a folder or a Hub name.
    pub init_adapter: Option<PathBuf>,
    /// The given settings of the adapter. They must not contradict `init_adapter`.
    pub adapter_args: AdapterArgs,
    /// Data files, and data sets of the Hub as `hf:org/name`.
    pub data: Vec<PathBuf>,
    pub reading: ReadOptions,
    /// Chat template that replaces the base's template: a known name or a file.
    pub chat_template: Option<String>,
    /// Whether bad records are skipped.
    pub skip_bad: bool,
    /// Whether the number of records determines how many records are held out, because `--val-size` is not
    /// given.
    pub splits_by_default: bool,
    pub output: PathBuf,
    pub report_to: ReportTo,
    /// Whether to open the report in a browser during the run.
    pub opens_report: bool,
    /// `Some` if the run resumes. The inner value is the checkpoint that the user named, or `None` for the
    /// newest.
    pub resume: Option<Option<PathBuf>>,
    /// The configuration file, which diagnostics quote.
    pub config: Option<ConfigFile>,
}

/// The device, the threads and the memory that a run may use.
#[derive(Clone, Debug, Default)]
pub struct RunLimits {
    pub compute: ComputeArgs,
    /// The reason for the `dtype` of the run.
    pub dtype_reason: DTypeReason,
    /// Limit on memory, in bytes.
    pub memory: Option<u64>,
    /// The GPU memory that the plan assumes.
    pub gpu_memory: GpuMemory,
}

/// The GPU memory for which a run is planned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GpuMemory {
    /// The free memory of the GPU that computes.
    #[default]
    Free,
    /// The free memory if this machine has the GPU. If not, the memory is unlimited.
    FreeOrUnlimited,
    /// The memory of an idle GPU that has this many bytes in total.
    Total(u64),
}

/// The author's additions to the card of a run.
#[derive(Clone, Debug, Default)]
pub struct CardOptions {
    pub args: CardArgs,
    /// The flags on this command line, which replace the values of an earlier card. Flags of the
    /// configuration file do not count.
    pub given: CardArgs,
    /// The file of notes. `run.toml` omits this flag, because the card in the output folder stores the text.
    pub notes: NotesArgs,
}

impl RunConfig {
    /// Resolves a command line. With `--resume` and without `--config`, the settings come from the `run.toml`
    /// in the output folder. Flags override these settings.
    ///
    /// # Errors
    /// If the file is invalid, a path is missing, or a setting is out of range.
    pub fn resolve(matches: &ArgMatches) -> Result<Self> {
        let missing = |flag: &str, what: &str| {
            let diagnostic = Diagnostic::input(format!("`--{flag}` is missing: {what}"));
            diagnostic.with_hint(match matches.get_one::<PathBuf>("config") {
                Some(file) => {
                    format!("danlu train --config {} --{flag} ...", terminal_text::shell_path(file))
                }
                None => "danlu train --base DIR --data FILE --output DIR".to_owned(),
            })
        };
        let run = Self::merge_sources(matches)?;
        if run.files.data.is_empty() {
            let entry = matches.get_one::<String>("dataset").filter(|entry| Path::new(entry).exists());
            return Err(match entry {
                Some(file) => missing("data", "the file to train on").with_hint(format!(
                    "write `--data {}`: `--dataset` names an entry of dataset_info.json",
                    terminal_text::shell_word(file)
                )),
                None => missing("data", "the file to train on"),
            });
        }
        if run.files.base.as_os_str().is_empty() {
            return Err(missing("base", "the model to train"));
        }
        if run.files.output.as_os_str().is_empty() {
            return Err(missing("output", "the folder to write the adapter to"));
        }
        Ok(run)
    }

    /// Resolves a command line as [`RunConfig::resolve`] does, for `danlu plan`. The data and the output may
    /// be missing. `base` replaces `--base`.
    ///
    /// # Errors
    /// Returns the errors of [`RunConfig::resolve`].
    pub fn resolve_plan(matches: &ArgMatches, base: Option<&Path>) -> Result<Self> {
        let mut run = Self::merge_sources(matches)?;
        if let Some(base) = base {
            run.files.base = base.to_owned();
        }
        if run.files.base.as_os_str().is_empty() {
            let diagnostic = Diagnostic::input("`--base` is missing: the model to plan for");
            return Err(diagnostic.with_hint("danlu plan --base DIR [--data FILE], or --shape NAME"));
        }
        Ok(run)
    }

    /// Merges the flags, the file and the defaults. A missing path is empty.
    fn merge_sources(matches: &ArgMatches) -> Result<Self> {
        let mut args = TrainArgs::from_arg_matches(matches).map_err(|error| usage(&error))?;
        let card_given = args.card.clone();
        let holds_run = args.output.as_ref().is_some_and(|output| output.join(RUN_FILE).is_file());
        if args.resume_or_start && holds_run {
            args.resume = Some(None);
        }
        let resume = args.resume.clone();
        let own = match (&args.resume, &args.output) {
            (Some(_), Some(output)) => Some(output.join(RUN_FILE)),
            _ => None,
        };
        if own.as_ref().is_some_and(|path| !path.is_file()) {
            let output = args.output.unwrap_or_default();
            let diagnostic = Diagnostic::input(format!("`{}` holds no run to resume", output.display()));
            return Err(diagnostic.with_hint("omit `--resume` to start one"));
        }
        let is_own = args.config.is_none() && own.is_some();
        let config = match args.config.clone().or(own) {
            None => None,
            Some(path) => {
                let command = expand_home(TrainArgs::augment_args(Command::new("train")));
                // A resumed run must have the type that it started with, so `--dtype auto` does not override
                // the file.
                let keeps_dtype = resume.is_some() && args.settings.dtype == Some(DTypeChoice::Auto);
                let is_replaced =
                    |flag: &str| was_on_command_line(matches, flag) && !(keeps_dtype && flag == "dtype");
                let config = ConfigFile::read(&path, &command)?.without(is_replaced);
                check_one_length(&config)?;
                let file = command.no_binary_name(true).try_get_matches_from(config.args());
                let file = file.map_err(|error| usage(&error))?;
                args = TrainArgs::from_arg_matches(&file).map_err(|error| usage(&error))?;
                let dtype = args.settings.dtype;
                args.update_from_arg_matches(matches).map_err(|error| usage(&error))?;
                if keeps_dtype {
                    args.settings.dtype = dtype;
                }
                Some(config)
            }
        };

        let mut settings = args.settings.settings();
        let ResolvedDType { precision, reason: dtype_reason } = args.compute.dtype(args.settings.dtype)?;
        settings.dtype = precision;
        let splits_by_default = args.settings.val_size.is_none();
        if splits_by_default {
            settings.val_size = DEFAULT_VAL_SIZE;
        }
        check_settings(&settings, config.as_ref(), matches)?;
        let is_base = |folder: &Path| folder.join("config.json").is_file();
        let base = args.base.map(|path| found(config.as_ref(), is_own, "base", path, is_base)).transpose()?;
        let data =
            args.data.into_iter().map(|path| found(config.as_ref(), is_own, "data", path, Path::is_file));
        let files = RunFiles {
            base: base.unwrap_or_default(),
            on_hub: None,
            init_adapter: args.init_adapter.map(|path| found_adapter(config.as_ref(), is_own, path)),
            adapter_args: args.settings.adapter,
            data: data.collect::<Result<_>>()?,
            reading: args.reading.options(),
            chat_template: args.chat_template,
            skip_bad: args.skip_bad.unwrap_or(false),
            splits_by_default,
            output: args.output.unwrap_or_default(),
            report_to: args.report_to.unwrap_or_default(),
            opens_report: args.open,
            resume: resume.or(args.resume),
            config,
        };
        let (compute, memory) = (args.compute, args.memory_limit);
        let limits = RunLimits { compute, dtype_reason, memory, ..RunLimits::default() };
        let card = CardOptions { args: args.card, given: card_given, notes: args.notes };
        Ok(Self { files, settings, limits, card })
    }

    /// Returns a configuration file that repeats the run. Paths are written as the user gave them.
    pub fn to_toml(&self) -> String {
        let mut table = toml::Table::new();
        let files = &self.files;
        table.insert("base".into(), files.base_as_named().into());
        table.insert("data".into(), files.data_as_named().into());
        if let Some(adapter) = files.init_adapter_as_named() {
            table.insert("init_adapter".into(), adapter.into());
        }
        let ReadOptions { format, columns, roles, dataset, .. } = &files.reading;
        if let Some(format) = format {
            table.insert("format".into(), format.name().into());
        }
        if let Some(template) = &files.chat_template {
            table.insert("chat_template".into(), template.clone().into());
        }
        if let Some(dataset) = dataset {
            table.insert("dataset".into(), dataset.clone().into());
        }
        if *columns != Columns::default() {
            table.insert("columns".into(), columns.to_string().into());
        }
        if *roles != Roles::default() {
            table.insert("roles".into(), roles.to_string().into());
        }
        if files.skip_bad {
            table.insert("skip_bad".into(), true.into());
        }
        if files.report_to != ReportTo::None {
            table.insert("report_to".into(), files.report_to.name().into());
        }
        if let Some(limit) = self.limits.memory {
            table.insert("memory_limit".into(), byte_size(limit).into());
        }
        let CardArgs { card_lang, license, base_id, dataset_id } = &self.card.args;
        let datasets = (!dataset_id.is_empty()).then(|| dataset_id.join(","));
        for (name, value) in [
            ("card_lang", card_lang.map(|lang| lang.name().to_owned())),
            ("license", license.clone()),
            ("base_id", base_id.clone()),
            ("dataset_id", datasets),
        ] {
            table.extend(value.map(|value| (name.to_owned(), value.into())));
        }
        for (name, value) in self.settings.entries() {
            // Epochs and steps exclude each other. A null value means that a setting is not set.
            let idle = name == "num_train_epochs" && self.settings.max_steps.is_some();
            if !idle && !value.is_null() {
                // `TrainSettings::validate` rejects numbers that TOML cannot represent.
                table.insert(name, toml::Value::try_from(value).expect("a valid setting is a TOML value"));
            }
        }
        format!(
            "# Every setting of this run: `danlu train --config {RUN_FILE} --output OTHER` repeats it in another folder.\n{table}"
        )
    }
}

impl RunFiles {
    /// Resolves the base to a folder. Downloads the base if the cache lacks it.
    ///
    /// # Errors
    /// Returns the errors of [`danlu_loader::Loader::base_folder`].
    pub fn resolve_base(&self, scope: FetchScope, loader: &ModelLoader<'_>) -> Result<Self> {
        let on_hub = hub_name(&self.base);
        let base = loader.base_folder(&self.base, scope)?;
        let on_hub = on_hub.map(|name| with_full_commit(name, &base));
        Ok(Self { base, on_hub, ..self.clone() })
    }

    /// Resolves each data set of the Hub in `data` to a commit. Downloads the data sets that the cache lacks.
    ///
    /// # Errors
    /// Returns the errors of [`ModelLoader::data_path`].
    pub fn resolve_data(&self, loader: &ModelLoader<'_>) -> Result<Self> {
        let data = self.data.iter().map(|path| loader.data_path(path)).collect::<Result<_>>()?;
        Ok(Self { data, ..self.clone() })
    }

    /// Returns the adapter that the run continues from, under the name that the user gave when the run
    /// started. A Hub name includes the commit.
    fn init_adapter_as_named(&self) -> Option<String> {
        let adapter = self.init_adapter.as_ref()?;
        let named = self.config.as_ref().and_then(|config| config.values("init-adapter").first().copied());
        let named = named.filter(|_| hub_name(adapter).is_none());
        Some(named.map_or_else(|| adapter.display().to_string(), str::to_owned))
    }

    /// Returns the data sets of the Hub in `data`.
    pub fn datasets(&self) -> Vec<DatasetRef> {
        self.data.iter().filter_map(|path| explicit_dataset(path)).collect()
    }

    /// Returns the data under the names that the user gave when the run started. The name of a data set of
    /// the Hub includes its commit.
    fn data_as_named(&self) -> Vec<String> {
        let named = self.config.as_ref().map(|config| config.values("data")).unwrap_or_default();
        let name = |(i, path): (usize, &PathBuf)| match named.get(i) {
            Some(named) if explicit_dataset(path).is_none() => (*named).to_owned(),
            _ => path.display().to_string(),
        };
        self.data.iter().enumerate().map(name).collect()
    }

    pub fn print_translation(&self, printer: &Printer) {
        if let Some(translation) = self.config.as_ref().and_then(ConfigFile::translation) {
            translation.print(printer);
        }
    }

    /// Returns the value of `--val-size`, or `None` if the default depends on the number of records.
    pub fn val_size(&self, settings: &TrainSettings) -> Option<f64> {
        (!self.splits_by_default).then_some(settings.val_size)
    }

    /// Returns the data files whose paths differ from the paths in the configuration file, because they were
    /// found in a different folder.
    pub fn data_found_elsewhere(&self) -> impl Iterator<Item = &Path> {
        let named = self.config.as_ref().map(|config| config.values("data")).unwrap_or_default();
        let data = self.data.iter().map(PathBuf::as_path);
        data.filter(move |path| {
            let is_named = named.is_empty() || named.iter().any(|named| Path::new(named) == *path);
            !is_named && explicit_dataset(path).is_none()
        })
    }

    /// Returns the base under the name that the user gave when the run started.
    pub fn base_as_named(&self) -> String {
        if let Some(name) = &self.on_hub {
            return name.to_string();
        }
        let named = self.config.as_ref().and_then(|config| config.values("base").first().copied());
        // Other programs cannot resolve the name of the embedded base, so files name its folder instead.
        let named = named.filter(|named| !embedded_base::is_demo(Path::new(named)));
        named.map_or_else(|| self.base.display().to_string(), str::to_owned)
    }

    /// Returns the base as it is printed: a folder, or a Hub name with its commit.
    pub fn base_shown(&self) -> String {
        match self.on_hub.as_ref().and_then(|_| parse_snapshot_path(&self.base)) {
            Some((id, commit)) => format!("{id}@{}", commit.get(..8).unwrap_or(&commit)),
            None => self.base.display().to_string(),
        }
    }
}

/// Checks the ranges of settings. The error underlines the value in the configuration file.
fn check_settings(settings: &TrainSettings, config: Option<&ConfigFile>, matches: &ArgMatches) -> Result<()> {
    settings.validate().map_err(|error| match &error {
        danlu_train::TrainError::Setting { name, .. } => {
            let flag = name.replace('_', "-");
            let place = config.and_then(|c| c.snippet(&flag, ""));
            // If there is a configuration file but the value comes from the command line, the error must
            // state this origin.
            let typed = config.is_some() && was_on_command_line(matches, &flag);
            let source = typed.then(|| format!("`--{flag}` on the command line"));
            Diagnostic::from(error).with_snippet(place).with_details(source.into_iter().collect())
        }
        _ => Diagnostic::from(error),
    })
}

/// Resolves a path. A path from a configuration file is searched in the working directory and in the folder
/// of the file.
///
/// If the file is the `run.toml` of a resumed run (`is_own`), the parent folders are searched too. If this
/// search finds a wrong file, the run is rejected later, because a resume compares the contents with the
/// checkpoint.
fn found(
    config: Option<&ConfigFile>,
    is_own: bool,
    flag: &str,
    path: PathBuf,
    is_it: impl Fn(&Path) -> bool,
) -> Result<PathBuf> {
    let Some(config) = config.filter(|config| !config.values(flag).is_empty()) else { return Ok(path) };
    if flag == "data" && matches!(DataRef::parse(&path), DataRef::Hub { .. }) {
        return Ok(path);
    }
    if flag == "base" && (hub_name(&path).is_some() || embedded_base::is_demo(&path)) {
        return Ok(path);
    }
    let found = match is_own {
        true => relative_path::find_above(config.folder(), &path, is_it),
        false => relative_path::find_beside(config.folder(), &path, is_it),
    };
    found.ok_or_else(|| {
        let shown = path.display();
        let text = match flag {
            "base" => format!(
                "`{shown}` is not a model folder in the working directory or in the folder of the file"
            ),
            _ => format!("`{shown}` is not a file in the working directory or in the folder of the file"),
        };
        let place = config.snippet(flag, &path.display().to_string());
        let diagnostic =
            Diagnostic::input(text).with_snippet(place).with_hint(format!("pass its path with `--{flag}`"));
        match hub_hint(&path).filter(|_| flag == "base") {
            Some(hint) => diagnostic.and_hint(hint),
            None => diagnostic,
        }
    })
}

/// Finds an adapter that a configuration file names, as [`found`] does. If there is none, the later error
/// names the path.
fn found_adapter(config: Option<&ConfigFile>, is_own: bool, path: PathBuf) -> PathBuf {
    let Some(config) = config.filter(|config| !config.values("init-adapter").is_empty()) else {
        return path;
    };
    let is_it = |folder: &Path| folder.join(CONFIG_FILE).is_file();
    let found = match is_own {
        true => relative_path::find_above(config.folder(), &path, is_it),
        false => relative_path::find_beside(config.folder(), &path, is_it),
    };
    found.unwrap_or(path)
}

fn check_one_length(config: &ConfigFile) -> Result<()> {
    if ["max-steps", "num-train-epochs"].iter().any(|flag| config.values(flag).is_empty()) {
        return Ok(());
    }
    let diagnostic = Diagnostic::input(
        "`max_steps` and `num_train_epochs` are both given, and each sets the length of the run",
    );
    Err(diagnostic.with_snippet(config.snippet("max-steps", "")).with_hint("leave one of them out"))
}

/// Formats bytes in the largest unit that represents them exactly. The flag can parse the result.
fn byte_size(bytes: u64) -> String {
    let units = [("GiB", 30), ("MiB", 20)];
    let exact = units.into_iter().find(|(_, shift)| bytes.trailing_zeros() >= *shift);
    exact.map_or_else(|| format!("{bytes}B"), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// Sets the date for a template that uses a date. A resumed run keeps its date, which is in the settings.
pub fn pin_template_date(settings: &TrainSettings, tokenizer: &Tokenizer) -> TrainSettings {
    let mut settings = settings.clone();
    let Some(template) = tokenizer.template().ok().filter(|template| template.asks_for_date()) else {
        settings.template_date = None;
        return settings;
    };
    if settings.template_date.is_none() {
        settings.template_date = Some(template.today());
    }
    if let Some(seconds) = settings.template_seconds() {
        template.stop_clock(seconds);
    }
    settings
}

/// Checks that records fit the base's context.
///
/// # Errors
/// If `max_length` exceeds the context, because positions beyond the context are untrained. The error
/// underlines the value in the configuration file.
pub fn check_length(settings: &TrainSettings, config: &ModelConfig, file: Option<&ConfigFile>) -> Result<()> {
    let fits = check_context(settings.max_length, config.max_position_embeddings, "`--max-length`");
    fits.map_err(|diagnostic| diagnostic.with_snippet(file.and_then(|file| file.snippet("max-length", ""))))
}

/// Returns the configuration of the adapter. The base has the name that the user gave. A Hub name is stored
/// with its commit, because the name may later refer to a different version.
pub fn lora_config(files: &RunFiles, settings: &TrainSettings) -> LoraConfig {
    match &files.on_hub {
        Some(name) => {
            let commit = parse_snapshot_path(&files.base).map(|(_, commit)| commit);
            let revision = commit.or_else(|| name.named_revision().map(str::to_owned));
            LoraConfig { revision, ..settings.lora_config(name.id()) }
        }
        None => settings.lora_config(&files.base_as_named()),
    }
}

/// Converts an adapter's error to a diagnostic. If a target module does not exist, the diagnostic underlines
/// its name in the configuration file.
pub fn point_into_config(config: Option<&ConfigFile>, error: danlu_adapter::AdapterError) -> Diagnostic {
    let target = match &error {
        danlu_adapter::AdapterError::NoSuchTarget { target, .. } => target.clone(),
        _ => String::new(),
    };
    let place = config.filter(|_| !target.is_empty()).and_then(|c| c.snippet("target-modules", &target));
    Diagnostic::from(error).with_snippet(place)
}

/// Returns whether `flag`, or the flag that it excludes, was on the command line.
fn was_on_command_line(matches: &ArgMatches, flag: &str) -> bool {
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

    use danlu_train::Precision;

    use super::*;
    use crate::args::adapter::memory_limit;

    fn resolve(line: &[&str]) -> Result<RunConfig, String> {
        let command = TrainArgs::augment_args(Command::new("train"));
        let matches =
            command.no_binary_name(true).try_get_matches_from(line).map_err(|e| usage(&e).render(false))?;
        RunConfig::resolve(&matches).map_err(|diagnostic| diagnostic.render(false))
    }

    const PATHS: [&str; 6] = ["--base", "b", "--data", "d", "--output", "o"];

    #[test]
    fn without_flags_the_defaults_hold() {
        let run = resolve(&PATHS).unwrap();
        let val_size = DEFAULT_VAL_SIZE;
        // `dtype` depends on the machine.
        let dtype = run.settings.dtype;
        assert_eq!(run.settings, TrainSettings { val_size, dtype, ..TrainSettings::default() });
        assert_ne!(run.limits.dtype_reason, DTypeReason::Asked);
        assert_eq!(run.files.val_size(&run.settings), None);
        assert!(!run.files.skip_bad && run.files.resume.is_none() && run.files.config.is_none());
    }

    /// Creates a folder with the files that the configuration names.
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
        assert_eq!(run.files.data, [PathBuf::from("e"), PathBuf::from("f")]);
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
        line.extend(["--exclude-modules", "k_proj", "--layers-to-transform", "0,2-3"]);
        line.extend([
            "--rank-pattern",
            "v_proj=4,layers.0.self_attn.q_proj=2",
            "--alpha-pattern",
            "v_proj=8",
        ]);
        line.extend(["--init-lora-weights", "gaussian", "--loraplus-lr-ratio", "16"]);
        line.extend(["--neftune-noise-alpha", "5", "--init-adapter", "start"]);
        line.extend(["--memory-limit", "1.5GiB"]);
        line.extend([
            "--card-lang",
            "both",
            "--license",
            "mit",
            "--base-id",
            "a/b",
            "--dataset-id",
            "c/d,e/f",
        ]);
        line.extend(["--notes", "n.md"]);
        let run = resolve(&line).unwrap();
        let folder = folder();
        let path = folder.path().join("run.toml");
        fs::write(&path, run.to_toml()).unwrap();
        let again = resolve(&["--config", path.to_str().unwrap(), "--output", "other"]).unwrap();
        assert_eq!(again.settings, run.settings);
        let beside = |name: &str| fs::canonicalize(folder.path()).unwrap().join(name);
        assert_eq!((&again.files.base, &again.files.data), (&beside("b"), &vec![beside("d")]));
        assert_eq!((again.files.base_as_named().as_str(), again.files.output.to_str()), ("b", Some("other")));
        assert!(again.files.skip_bad);
        assert_eq!(again.settings.layers_to_transform, Some(vec![0, 2, 3]));
        assert_eq!(again.settings.rank_pattern[0], ("v_proj".to_owned(), 4));
        assert_eq!(again.files.init_adapter, Some(PathBuf::from("start")));
        assert_eq!(again.limits.memory, Some(3 << 29));
        assert_eq!(format!("{:?}", again.card.args), format!("{:?}", run.card.args));
        // The card in the output folder stores the notes and later manual edits, so the configuration omits
        // the file of notes.
        assert_eq!((again.card.notes.notes, run.card.notes.notes), (None, Some("n.md".into())));
    }

    #[test]
    fn a_resumed_run_keeps_its_type() {
        let folder = folder();
        let out = folder.path().join("out");
        fs::create_dir(&out).unwrap();
        let output = out.to_str().unwrap();
        for (name, precision) in [("bf16", Precision::Bf16), ("f32", Precision::F32)] {
            let text = format!("base = \"b\"\ndata = \"d\"\ndtype = \"{name}\"\n");
            fs::write(out.join(RUN_FILE), text).unwrap();
            for flags in [&[][..], &["--dtype", "auto"]] {
                let run = resolve(&[&["--output", output, "--resume"], flags].concat()).unwrap();
                let found = (run.settings.dtype, run.limits.dtype_reason);
                assert_eq!(found, (precision, DTypeReason::Asked), "{flags:?}");
            }
            let run = resolve(&["--output", output, "--resume", "--dtype", "f32"]).unwrap();
            assert_eq!(run.settings.dtype, Precision::F32);
        }
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
        assert_eq!((&run.files.base, &run.files.data), (&above("b"), &vec![above("d")]));
        assert_eq!(run.files.data_found_elsewhere().collect::<Vec<_>>(), [above("d")]);
        for line in [
            &["--config", config, "--output", "o"][..],
            &["--config", config, "--output", output, "--resume"],
        ] {
            let refused = resolve(line).unwrap_err();
            assert!(
                refused.starts_with("error: `b` is not a model folder in the working directory"),
                "{refused}"
            );
        }
        fs::write(out.join("d"), "[]").unwrap();
        let base = above("b");
        let run = resolve(&["--config", config, "--base", base.to_str().unwrap(), "--output", "o"]).unwrap();
        assert_eq!(run.files.data, [above("out").join("d")]);
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
