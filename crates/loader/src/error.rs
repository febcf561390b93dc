//! Errors of resolving and loading a model.

use std::path::{Path, PathBuf};

use danlu_adapter::{AdapterError, CONFIG_FILE, OtherAdapterFile};
use danlu_hub::{HubError, TokenFault};
use danlu_model::{FileError, ModelError, files, shell_word};

use crate::FolderKind;

/// Hint for an unreachable Hub. A push does not show this hint, because the mirror would then receive the
/// user's access token.
const MIRROR: &str = "in China, use a mirror: HF_ENDPOINT=https://hf-mirror.com";

/// Hint for an adapter whose base is unknown.
pub(crate) const NAME_BASE: &str = "name its folder with `--base DIR`";

/// The reason why a model cannot be resolved or loaded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The path contains neither a model nor an adapter.
    #[error("{}", no_model(path, kind))]
    NoModel {
        /// The path.
        path: PathBuf,
        /// What the path is.
        kind: FolderKind,
    },
    /// The path is an adapter, but a base is required.
    #[error("cannot use `{}` as a base: it is an adapter", path.display())]
    BaseIsAdapter {
        /// The path.
        path: PathBuf,
    },
    /// `--base` was given, but the model is not an adapter and needs no base.
    #[error("cannot use `--base` with `{}`: it is a whole model, and `--base` is `{}`", model.display(), base.display())]
    BaseOfModel {
        /// The path of the model.
        model: PathBuf,
        /// The path of the base.
        base: PathBuf,
    },
    /// The path is a whole model, but an adapter is required.
    #[error("cannot use `{}` as an adapter: it is a whole model", path.display())]
    NotAnAdapter {
        /// The path.
        path: PathBuf,
    },
    /// `adapter_config.json` names no base.
    #[error("cannot find the base of `{}`: `base_model_name_or_path` is missing", path.display())]
    UnnamedBase {
        /// The file.
        path: PathBuf,
    },
    /// The base that an adapter names is neither a local model folder nor a repository on the Hub.
    #[error("cannot find the base of `{}`: its base `{base}` is no model folder here", adapter.display())]
    BaseNotFound {
        /// Folder of the adapter.
        adapter: PathBuf,
        /// Name of the base in the adapter.
        base: String,
    },
    /// The base that an adapter names cannot be fetched from the Hub.
    #[error("cannot fetch the base of `{}`, `{base}`: {source}", adapter.display())]
    BaseNotFetched {
        /// Folder of the adapter.
        adapter: PathBuf,
        /// Name of the base in the adapter.
        base: String,
        /// The error of the download.
        source: Box<LoadError>,
        /// A second hint, which names a different way to load the adapter.
        alternative: &'static str,
    },
    /// The adapter was trained on a 4-bit base with some modules in 16 bits, and the given base is not stored
    /// in 4 bits.
    #[error(
        "cannot quantize as in training: the adapter's base had {} in 16 bits, and `{}` is a 16-bit base",
        counted(skipped.len(), "projection"),
        base.display()
    )]
    SkippedModules {
        /// Folder of the base.
        base: PathBuf,
        /// The modules that were in 16 bits.
        skipped: Vec<String>,
    },
    /// The adapter replaces tensors of a base that other adapters use too.
    #[error("cannot share the base with `{}`: the adapter replaces tensors of the base, such as the embedding table", adapter.display())]
    ChangesBase {
        /// Folder of the adapter.
        adapter: PathBuf,
    },
    /// The tokenizer or the template differs from that of the training.
    #[error("{summary}")]
    TokenMismatch {
        /// A sentence that names the folders whose tokens differ.
        summary: String,
        /// One sentence for each difference.
        differences: Vec<String>,
        /// The next step for the user.
        hint: &'static str,
    },
    /// The quantization of the base or the start of a download was stopped.
    #[error("stopped while weights were quantized to 4 bits")]
    Stopped,
    /// The Hub or its cache failed.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file of an adapter is invalid.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A file of a model is invalid.
    #[error(transparent)]
    Model(ModelError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),
    /// An error to which a caller added a hint.
    #[error("{source}")]
    Hinted {
        /// The error.
        source: Box<LoadError>,
        /// The hint.
        hint: String,
        /// Whether the hint replaces the error's own hint. If false, both hints are shown.
        replaces: bool,
    },
}

impl From<ModelError> for LoadError {
    fn from(error: ModelError) -> Self {
        match error {
            ModelError::Stopped => Self::Stopped,
            error => Self::Model(error),
        }
    }
}

impl From<TokenFault> for LoadError {
    fn from(fault: TokenFault) -> Self {
        HubError::from(fault).into()
    }
}

impl LoadError {
    /// Returns the error for a path that holds neither a model nor an adapter.
    pub fn no_model(path: &Path) -> Self {
        Self::NoModel { path: path.to_owned(), kind: FolderKind::of(path) }
    }

    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::NoModel { path, kind } => return Some(no_model_hint(path, kind)),
            Self::BaseIsAdapter { .. } => "name the folder of the model that it was trained on",
            Self::BaseOfModel { .. } => "leave `--base` out",
            Self::NotAnAdapter { .. } => "name the folder of an adapter",
            Self::UnnamedBase { .. } | Self::BaseNotFound { .. } => NAME_BASE,
            Self::BaseNotFetched { source, alternative, .. } => {
                return joined(source.hint(), alternative, false);
            }
            Self::SkippedModules { skipped, .. } => {
                return Some(format!(
                    "name the base it was trained on with `--base DIR`; `danlu quantize ORIGINAL --skip-modules {} \
                     --output DIR` makes it",
                    skipped.join(",")
                ));
            }
            Self::TokenMismatch { hint, .. } => hint,
            Self::ChangesBase { .. } => "merge it with `danlu merge`, and use the merged model",
            Self::Stopped => return None,
            Self::Hub(error @ HubError::Connect { .. }) => return joined(error.hint(), MIRROR, false),
            Self::Hub(error) => return error.hint(),
            Self::Adapter(error) => return error.hint(),
            Self::Model(error) => return error.hint(),
            Self::File(error) => return error.hint(),
            Self::Hinted { source, hint, replaces } => return joined(source.hint(), hint, *replaces),
        };
        Some(hint.to_owned())
    }

    /// Returns lines to print below the message.
    pub fn details(&self) -> &[String] {
        match self {
            Self::TokenMismatch { differences, .. } => differences,
            Self::Hinted { source, .. } => source.details(),
            _ => &[],
        }
    }

    /// Appends a hint to the error's own hint.
    pub(crate) fn and_hint(self, hint: impl Into<String>) -> Self {
        Self::Hinted { source: Box::new(self), hint: hint.into(), replaces: false }
    }

    /// Replaces the error's hint.
    pub(crate) fn with_hint(self, hint: impl Into<String>) -> Self {
        Self::Hinted { source: Box::new(self), hint: hint.into(), replaces: true }
    }
}

fn joined(first: Option<String>, second: &str, replaces: bool) -> Option<String> {
    Some(match first.filter(|_| !replaces) {
        Some(first) => format!("{first}; {second}"),
        None => second.to_owned(),
    })
}

fn no_model(path: &Path, kind: &FolderKind) -> String {
    let path = path.display();
    match kind {
        FolderKind::StoppedRun { .. } => {
            format!("cannot load `{path}`: it is a stopped run without an adapter")
        }
        FolderKind::Missing => format!("cannot load `{path}`: it does not exist"),
        FolderKind::File => format!("cannot load `{path}`: it is a file, expected a folder"),
        _ => format!("cannot load `{path}`: it has neither `{CONFIG_FILE}` nor `config.json`"),
    }
}

fn no_model_hint(path: &Path, kind: &FolderKind) -> String {
    match kind {
        FolderKind::StoppedRun { newest } => {
            let resume = format!("danlu train --output {} --resume", shell_word(&path.display().to_string()));
            match newest {
                Some(newest) => {
                    format!("use its newest checkpoint, `{}`, or finish the run: {resume}", newest.display())
                }
                None => format!("finish the run: {resume}"),
            }
        }
        FolderKind::File if path.extension().is_some_and(|ending| ending == "gguf") => GGUF.to_owned(),
        FolderKind::File => match path.parent().map(|parent| (parent, FolderKind::of(parent))) {
            Some((parent, FolderKind::Adapter | FolderKind::Model)) if !parent.as_os_str().is_empty() => {
                format!("name the folder of this file: `{}`", parent.display())
            }
            _ => "name the folder that holds `config.json`".to_owned(),
        },
        FolderKind::Other => other_hint(path),
        FolderKind::Missing => match similar_folder(path) {
            Some(similar) => format!("did you mean `{}`?", similar.display()),
            None => missing_hint(path),
        },
        _ => NAME_FOLDER.to_owned(),
    }
}

const NAME_FOLDER: &str = "name the folder of an adapter, a merged model or a base";

/// Maximum number of folder entries whose names are compared with the name of a missing folder.
const MAX_COMPARED: usize = 1000;

/// Returns an existing model with a name like the missing `path`. For `out/kiwi`, examples are `out/kiwo`
/// (one character differs) and `out/run/kiwi` (one folder deeper).
fn similar_folder(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folders = |parent: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten().take(MAX_COMPARED);
        entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
    };
    let is_model = |path: &PathBuf| matches!(FolderKind::of(path), FolderKind::Adapter | FolderKind::Model);
    let beside = folders(parent);
    let is_similar = |path: &&PathBuf| {
        path.file_name().and_then(|other| other.to_str()).is_some_and(|other| differs_in_one(name, other))
    };
    let below = || beside.iter().map(|folder| folder.join(name)).find(is_model);
    let elsewhere = || files::similar_path(path).filter(is_model);
    let found = beside.iter().filter(is_similar).find(|path| is_model(path)).cloned();
    let found = found.or_else(below).or_else(elsewhere)?;
    Some(found.strip_prefix("./").map_or(found.clone(), Path::to_owned))
}

/// Maximum number of folders that a hint names.
const MAX_NAMED: usize = 4;

/// Returns the hint for a missing folder without a similar name: the models beside it.
fn missing_hint(path: &Path) -> String {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let entries = parent.and_then(|parent| std::fs::read_dir(parent).ok()).into_iter().flatten().flatten();
    let folders = entries.take(MAX_COMPARED).map(|entry| entry.path());
    let is_model = |path: &PathBuf| matches!(FolderKind::of(path), FolderKind::Adapter | FolderKind::Model);
    let mut models: Vec<String> =
        folders.filter(is_model).map(|path| format!("`{}`", path.display())).collect();
    models.sort();
    models.truncate(MAX_NAMED);
    match models.is_empty() {
        true => NAME_FOLDER.to_owned(),
        false => format!("name one of the models beside it: {}", models.join(", ")),
    }
}

/// Returns whether two names differ in one character, or in two neighbouring characters that are swapped.
fn differs_in_one(a: &str, b: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let start = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[start..], &b[start..]);
    let end = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    // Without this rule, any two short names would be similar.
    if start + end < 2 {
        return false;
    }
    match (&a[..a.len() - end], &b[..b.len() - end]) {
        ([], [_]) | ([_], []) | ([_], [_]) => true,
        ([a, b], [c, d]) => a == d && b == c,
        _ => false,
    }
}

const GGUF: &str = "take the model that the GGUF file was made from, as safetensors: danlu reads no GGUF";

/// Returns the hint for a folder whose format danlu does not read.
fn other_hint(path: &Path) -> String {
    let names = files::names_in(path).unwrap_or_default();
    let has = |is_it: &dyn Fn(&str) -> bool| names.iter().any(|name| is_it(name));
    let adapter = names
        .iter()
        .find_map(|name| OtherAdapterFile::of(name).filter(|&kind| kind != OtherAdapterFile::Gguf));
    match adapter {
        Some(kind) => kind.hint().to_owned(),
        None if has(&|name| name.ends_with(".gguf")) => GGUF.to_owned(),
        None if has(&|name| name == "params.json" || name.starts_with("consolidated.")) => {
            "convert Meta's files once with transformers' `convert_llama_weights_to_hf.py`, or download the model in \
             transformers' form"
                .to_owned()
        }
        None => "name the folder of an adapter, a merged model or a base".to_owned(),
    }
}

fn counted(n: usize, noun: &str) -> String {
    if n == 1 { format!("{n} {noun}") } else { format!("{n} {noun}s") }
}
