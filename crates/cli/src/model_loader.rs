//! The loader at the terminal: it prints notices, shows progress and stops after Ctrl-C.

use std::cell::{OnceCell, RefCell};
use std::ops::ControlFlow;
use std::path::Path;

use danlu_hub::{FetchScope, Hub, HubError, HubSettings, RepoName};
use danlu_loader::{
    CheckDepth, HubSource, LoadError, Loader, ModelDirs, ModelFiles, ModelRef, Notice, Progress, TokenCheck,
    check_base,
};

use crate::commands::hub::{pauses, pull};
use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt::{self, ExitMessage};
use crate::notices;
use crate::printer::Printer;

/// The Hub that the environment configures, opened when a name needs it.
pub struct LazyHub<'a> {
    printer: Option<&'a Printer>,
    hub: OnceCell<Hub>,
}

impl<'a> LazyHub<'a> {
    /// A Hub that announces its pauses to `printer`.
    pub fn new(printer: &'a Printer) -> Self {
        Self { printer: Some(printer), hub: OnceCell::new() }
    }

    /// A Hub that is asked for nothing but its cache.
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

/// A loader that talks to the user.
pub struct ModelLoader<'a> {
    printer: &'a Printer,
    hub: LazyHub<'a>,
    /// Printed if a signal ends the process during a transfer.
    exit_message: RefCell<Option<ExitMessage>>,
    /// An error of this side, which the loader cannot carry.
    failure: RefCell<Option<Diagnostic>>,
}

impl<'a> ModelLoader<'a> {
    /// A loader that prints to `printer`.
    pub fn new(printer: &'a Printer) -> Self {
        Self {
            printer,
            hub: LazyHub::new(printer),
            exit_message: RefCell::default(),
            failure: RefCell::default(),
        }
    }

    /// Runs `load`, then prints the notices it collected.
    ///
    /// # Errors
    /// As `load`.
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

    /// Resolves the base `path` to a folder: see [`Loader::base_folder`].
    ///
    /// # Errors
    /// As [`Loader::base_folder`].
    pub fn base_folder(&self, path: &Path, scope: FetchScope) -> Result<std::path::PathBuf> {
        self.run(|loader, notices| loader.base_folder(path, scope, notices))
    }

    /// Resolves a model and opens its files; warns if its base is not the one of its training.
    ///
    /// # Errors
    /// If there is no model, or a file has a fault.
    pub fn open(&self, path: &Path, base: Option<&Path>) -> Result<ModelFiles> {
        let dirs = self.run(|loader, notices| loader.model_dirs(path, base, notices))?;
        self.open_dirs(dirs)
    }

    /// As [`ModelLoader::open`], of folders that are resolved.
    ///
    /// # Errors
    /// If a file has a fault.
    pub fn open_dirs(&self, dirs: ModelDirs) -> Result<ModelFiles> {
        let files = self.run(|_, _| ModelFiles::open(dirs))?;
        self.check_base(&files)?;
        Ok(files)
    }

    /// Warns if the base of a model is not the one of its training.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn check_base(&self, files: &ModelFiles) -> Result<()> {
        self.run(|_, notices| match files.adapter() {
            Some(adapter) => check_base(adapter, files.base(), CheckDepth::Sample, notices).map(drop),
            None => Ok(()),
        })
    }

    fn show(&self, progress: Progress<'_>) -> ControlFlow<()> {
        let printer = self.printer;
        match progress {
            Progress::FetchStarted { name } => {
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

/// The name on the Hub that `path` is, if it is one.
pub fn hub_name(path: &Path) -> Option<RepoName> {
    ModelRef::parse(path).hub_name(&LazyHub::of_cache()).cloned()
}

/// How to name a model on the Hub where `path` is read as a path.
pub fn hub_hint(path: &Path) -> Option<String> {
    ModelRef::parse(path).hub_hint(&LazyHub::of_cache())
}

/// What `--allow-template-mismatch` asks for.
pub fn token_check(allow_mismatch: bool) -> TokenCheck {
    if allow_mismatch { TokenCheck::Warn } else { TokenCheck::Require }
}
