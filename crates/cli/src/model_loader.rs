//! A loader for use at a terminal, which prints notices, shows progress, and stops after Ctrl-C.

use std::cell::{OnceCell, RefCell};
use std::io::{self, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use danlu_hub::{FetchScope, Hub, HubError, HubSettings, RepoName};
use danlu_loader::{
    AdapterFiles, CheckDepth, DataRef, FolderKind, HubSource, LoadError, Loader, ModelDirs, ModelFiles,
    ModelRef, Notice, Progress, TokenCheck, check_base, check_explicit,
};

use crate::commands::hub::{pauses, pull};
use crate::diagnostic::{Diagnostic, Result};
use crate::embedded_base;
use crate::interrupt::{self, ExitMessage};
use crate::notices;
use crate::printer::Printer;

/// A Hub client that is opened on first use, with the settings of the environment.
pub struct LazyHub<'a> {
    printer: Option<&'a Printer>,
    hub: OnceCell<Hub>,
}

impl<'a> LazyHub<'a> {
    /// Creates a client that shows the remaining time while it pauses before a retry.
    pub fn new(printer: &'a Printer) -> Self {
        Self { printer: Some(printer), hub: OnceCell::new() }
    }

    /// Creates a client that only reads the cache.
    pub fn of_cache() -> Self {
        Self { printer: None, hub: OnceCell::new() }
    }
}

impl HubSource for LazyHub<'_> {
    fn hub(&self) -> Result<&Hub, HubError> {
        if let Some(hub) = self.hub.get() {
            return Ok(hub);
        }
        let hub = Hub::new(HubSettings::from_env()?);
        let hub = match self.printer {
            Some(printer) => hub.on_wait(pauses(printer)),
            None => hub,
        };
        Ok(self.hub.get_or_init(|| hub))
    }
}

/// A loader that prints notices and shows progress.
pub struct ModelLoader<'a> {
    printer: &'a Printer,
    hub: LazyHub<'a>,
    /// The text to print if a signal ends the process during a transfer.
    exit_message: RefCell<Option<ExitMessage>>,
    /// The texts that the user typed for a model or a data set, unless they start with `hf:`. A download of
    /// such a name needs a confirmation, because the name may be a mistyped path.
    typed: RefCell<Vec<PathBuf>>,
    /// An error of the progress callback, which the loader itself cannot return.
    failure: RefCell<Option<Diagnostic>>,
}

impl<'a> ModelLoader<'a> {
    /// Creates a loader that prints to `printer`.
    pub fn new(printer: &'a Printer) -> Self {
        Self {
            printer,
            hub: LazyHub::new(printer),
            exit_message: RefCell::default(),
            typed: RefCell::default(),
            failure: RefCell::default(),
        }
    }

    /// Runs `load`, then prints the notices that it collected.
    ///
    /// # Errors
    /// Returns the errors of `load`.
    pub fn run<T>(
        &self,
        load: impl FnOnce(Loader<'_>, &mut Vec<Notice>) -> Result<T, LoadError>,
    ) -> Result<T> {
        let observer = |progress: Progress<'_>| self.show(progress);
        let mut collected = Vec::new();
        let loaded = load(Loader::new(&self.hub, &observer), &mut collected);
        self.printer.clear_live();
        collected.iter().for_each(|notice| notices::print(notice, self.printer));
        match self.failure.take() {
            Some(failure) => Err(failure),
            None => Ok(loaded?),
        }
    }

    /// Resolves the base `path` to a folder, as [`Loader::base_folder`] does.
    ///
    /// # Errors
    /// Returns the errors of [`Loader::base_folder`].
    pub fn base_folder(&self, path: &Path, scope: FetchScope) -> Result<std::path::PathBuf> {
        self.typed.replace(vec![path.to_owned()]);
        let path = &*embedded_base::resolve(path)?;
        self.run(|loader, notices| loader.base_folder(path, scope, notices))
    }

    /// Resolves the adapter `path` to a folder, and reads its configuration.
    ///
    /// # Errors
    /// If there is no adapter, or its configuration is invalid.
    pub fn adapter_files(&self, path: &Path) -> Result<AdapterFiles> {
        self.typed.replace(vec![path.to_owned()]);
        let reference = ModelRef::parse(path);
        self.run(|loader, notices| {
            let folder = loader.resolve(&reference, FetchScope::Full, notices)?;
            match FolderKind::of(&folder) {
                FolderKind::Adapter => AdapterFiles::open(&folder),
                _ => Err(LoadError::no_model(&folder)),
            }
        })
    }

    /// Resolves a model and opens its files. Warns if the base differs from the base that the adapter was
    /// trained on.
    ///
    /// # Errors
    /// If `path` contains no model, or a file is invalid.
    pub fn open(&self, path: &Path, base: Option<&Path>) -> Result<ModelFiles> {
        self.typed.replace([Some(path), base].into_iter().flatten().map(Path::to_owned).collect());
        let path = &*embedded_base::resolve(path)?;
        let base = base.map(embedded_base::resolve).transpose()?;
        let dirs = self.run(|loader, notices| loader.model_dirs(path, base.as_deref(), notices))?;
        self.open_dirs(dirs)
    }

    /// Opens the files of resolved folders, as [`ModelLoader::open`] does.
    ///
    /// # Errors
    /// If a file is invalid.
    pub fn open_dirs(&self, dirs: ModelDirs) -> Result<ModelFiles> {
        let files = self.run(|_, _| ModelFiles::open(dirs))?;
        self.check_base(&files)?;
        Ok(files)
    }

    /// Warns if the base differs from the base that the adapter was trained on.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn check_base(&self, files: &ModelFiles) -> Result<()> {
        self.run(|_, notices| match files.adapter() {
            Some(adapter) => check_base(adapter, files.base(), CheckDepth::Sample, notices).map(drop),
            None => Ok(()),
        })
    }

    /// Resolves the name of a data set to `hf:org/name@commit:part`, which [`read`] reads from the cache.
    /// Downloads the data set if the cache lacks it. Returns any other path as it is.
    ///
    /// # Errors
    /// If the data set does not exist, has no such part, or cannot be downloaded.
    ///
    /// [`read`]: crate::evaluation::held_out::read
    pub fn data_path(&self, path: &Path) -> Result<PathBuf> {
        check_explicit(path)?;
        let data = DataRef::parse(path);
        let Some(dataset) = data.dataset(&self.hub) else { return Ok(path.to_owned()) };
        let is_explicit = matches!(data, DataRef::Hub { is_explicit: true, .. });
        self.typed.replace(if is_explicit { Vec::new() } else { vec![path.to_owned()] });
        let found =
            self.run(|loader, _| loader.dataset(dataset)).map_err(|diagnostic| match is_explicit {
                true => diagnostic,
                false => diagnostic.and_hint(format!("there is no file `{}` here", path.display())),
            })?;
        let pinned = dataset.pinned(&found.pulled.commit, &found.part)?;
        Ok(PathBuf::from(format!("hf:{pinned}")))
    }

    /// Asks the user before a download, if `name` may be a mistyped path. Without a terminal there is nobody
    /// to ask, so such a download is refused.
    fn confirm(&self, name: &RepoName) -> Result<()> {
        let printer = self.printer;
        let may_be_path = self.typed.borrow().iter().any(|typed| may_be_path(typed, name));
        if printer.yes || !may_be_path {
            return Ok(());
        }
        let refused = || refused_download(name);
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(refused());
        }
        printer.clear_live();
        let question = match name.is_dataset() {
            true => printer.pick(
                format!("本机没有文件 `{name}`。从 Hugging Face Hub 下载这个数据集吗？[y/N] "),
                format!(
                    "there is no file `{name}`. Download this data set from the Hugging Face Hub? [y/N] "
                ),
            ),
            false => printer.pick(
                format!("本机没有文件夹 `{name}`。从 Hugging Face Hub 下载吗？[y/N] "),
                format!("there is no folder `{name}`. Download it from the Hugging Face Hub? [y/N] "),
            ),
        };
        let mut answer = String::new();
        let asked = write!(io::stderr(), "{question}").and_then(|()| io::stdin().read_line(&mut answer));
        match asked.is_ok() && matches!(answer.trim().to_lowercase().as_str(), "y" | "yes" | "是") {
            true => Ok(()),
            false => Err(refused()),
        }
    }

    fn show(&self, progress: Progress<'_>) -> ControlFlow<()> {
        let printer = self.printer;
        match progress {
            Progress::FetchStarted { name } => {
                if let Err(declined) = self.confirm(name) {
                    *self.failure.borrow_mut() = Some(declined);
                    return ControlFlow::Break(());
                }
                match interrupt::exit_message(pull::stopped(name, printer)) {
                    Ok(message) => *self.exit_message.borrow_mut() = Some(message),
                    Err(failure) => *self.failure.borrow_mut() = Some(failure),
                }
                printer.live(&printer.pick(format!("查询 {name}"), format!("asking for {name}")));
            }
            Progress::Fetching { name, transfer, seconds } => {
                let line = pull::progress(&transfer, seconds, printer);
                printer.live(&printer.pick(format!("下载 {name} {line}"), format!("fetching {name} {line}")));
            }
            Progress::FetchEnded { name, pulled, seconds } => {
                self.exit_message.replace(None);
                printer.clear_live();
                if let Some(pulled) = pulled {
                    notices::print_fetched(name, pulled, seconds, printer);
                }
            }
            Progress::Quantizing { code, progress } => notices::show_quantizing(code, progress, printer),
        }
        interrupt::check()
    }
}

/// Returns whether the user typed `name` in a form that can also be a path. The forms `hf:org/name`,
/// `org/name@main` and `org/name:train` cannot.
fn may_be_path(typed: &Path, name: &RepoName) -> bool {
    typed.as_os_str() == name.id() && name.named_revision().is_none()
}

/// Returns the error for a name that is no local path and is not downloaded.
fn refused_download(name: &RepoName) -> Diagnostic {
    let path = Path::new(name.id());
    if name.is_dataset() {
        let missing = Diagnostic::io("read", path, io::ErrorKind::NotFound.into());
        return missing.and_hint(format!("if it is a data set on the Hub, write `hf:{name}`"));
    }
    let missing = Diagnostic::from(LoadError::no_model(path));
    missing.and_hint(format!("if it is on the Hub, write `hf:{name}`, or run `danlu pull {name}` first"))
}

/// Parses `path` as a Hub name, unless a local folder of that name exists. If a local folder `org` exists,
/// `org/name` is a Hub name only if the cache contains this repository.
pub fn hub_name(path: &Path) -> Option<RepoName> {
    ModelRef::parse(path).hub_name(&LazyHub::of_cache()).cloned()
}

/// Returns whether the cache holds the model.
pub fn is_cached(name: &RepoName) -> bool {
    LazyHub::of_cache()
        .hub()
        .is_ok_and(|hub| matches!(hub.cached_folder(name, FetchScope::Full), Ok(Some(_))))
}

/// Returns a hint if `path` was used as a path but may be a Hub name.
pub fn hub_hint(path: &Path) -> Option<String> {
    ModelRef::parse(path).hub_hint(&LazyHub::of_cache())
}

/// Maps `--allow-template-mismatch` to the check that this flag controls.
pub fn token_check(allow_mismatch: bool) -> TokenCheck {
    if allow_mismatch { TokenCheck::Warn } else { TokenCheck::Require }
}
