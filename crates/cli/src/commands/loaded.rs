//! A model at a path: a base, a merged model, or an adapter on its base.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use danlu_adapter::{Adapter, CONFIG_FILE, LoraConfig};
use danlu_hub::{FetchScope, parse_snapshot_path};
use danlu_kernels::Backend;
use danlu_model::sidecar_files::generation_folder;
use danlu_model::{Decoder, LoraSource, ModelConfig, Tokenizer};

use super::tokens::ModelTokens;
use super::{hub, nearby};
use crate::commands::no_model;
use crate::diagnostic::{Diagnostic, Result};
use crate::printer::Printer;

/// How repositories end that hold bitsandbytes' 4 bits.
pub const FOUR_BIT_NAME: &str = "-bnb-4bit";

/// The folders of a model: its base, and its adapter if it has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelDirs {
    /// Folder of `config.json` and the weights.
    pub base: PathBuf,
    /// Folder of `adapter_config.json`.
    pub adapter: Option<PathBuf>,
}

impl ModelDirs {
    /// Finds out what lies at `path`, a folder or a name on the Hub; `base` overrules the base that an adapter names.
    ///
    /// # Errors
    /// If there is no model, or an adapter's base is not where it says.
    pub fn find(path: &Path, base: Option<&Path>, printer: &Printer) -> Result<Self> {
        let path = &hub::folder(path, FetchScope::Full, printer)?;
        if path.join(CONFIG_FILE).is_file() {
            let base = match base {
                Some(base) => no_model::base(base, FetchScope::Full, printer)?,
                None => named_base(path, printer)?,
            };
            return Ok(Self { base, adapter: Some(path.to_owned()) });
        }
        if path.join("config.json").is_file() {
            if let Some(base) = base {
                let text =
                    format!("`{}` is a whole model, and `--base` is `{}`", path.display(), base.display());
                return Err(Diagnostic::input(text).with_hint("`--base` goes with an adapter; leave it out"));
            }
            return Ok(Self { base: path.to_owned(), adapter: None });
        }
        Err(no_model::at(path))
    }

    /// Loads the adapter for a base of this shape.
    ///
    /// # Errors
    /// If there is none, a file of it has a fault, or it was made for another base, which is then told apart by name.
    pub fn load_adapter(&self, model: &ModelConfig, backend: &dyn Backend) -> Result<Adapter> {
        let Some(folder) = &self.adapter else {
            return Err(Diagnostic::input(format!(
                "`{}` is a whole model, expected an adapter",
                self.base.display()
            )));
        };
        Adapter::load(folder, model, backend).map_err(|error| {
            let named = LoraConfig::read(folder).ok().and_then(|config| config.base_model_name_or_path);
            match named {
                Some(named) if error.is_of_another_base() => {
                    let base = self.base.display();
                    let hint = format!(
                        "the adapter was trained on `{named}` (`base_model_name_or_path`), and the base here is `{base}`: \
                         give the one it was trained on with `--base DIR`, or put `adapter_config.json` back if it was edited"
                    );
                    Diagnostic::from(error).with_hint(hint)
                }
                _ => error.into(),
            }
        })
    }

    /// The folder whose `generation_config.json` says how tokens are chosen, as in a merged model.
    pub fn generation_folder(&self) -> &Path {
        generation_folder(&self.base, self.adapter.as_deref())
    }

    /// The name to show: the folder's.
    pub fn name(&self) -> String {
        folder_name(self.adapter.as_ref().unwrap_or(&self.base))
    }
}

/// The folder's last name, with `.` and `..` resolved; of a folder in the Hub's cache, the model's.
pub fn folder_name(path: &Path) -> String {
    let resolved = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some((id, _)) = parse_snapshot_path(&resolved) {
        return id.rsplit('/').next().unwrap_or(&id).to_owned();
    }
    resolved.file_name().unwrap_or(resolved.as_os_str()).to_string_lossy().into_owned()
}

/// The base that an adapter names: a folder here, or beside or above the adapter, else a model on the Hub. An adapter in
/// the Hub's cache has nothing beside it.
fn named_base(adapter: &Path, printer: &Printer) -> Result<PathBuf> {
    let hint = "name its folder with `--base DIR`";
    let config = LoraConfig::read(adapter)?;
    let Some(name) = config.base_model_name_or_path.filter(|name| !name.is_empty()) else {
        let text =
            format!("`{}` does not say which base it was trained on", adapter.join(CONFIG_FILE).display());
        return Err(Diagnostic::input(text).with_hint(hint));
    };
    let path = Path::new(&name);
    let is_model = |folder: &Path| folder.join("config.json").is_file();
    let found = match fs::canonicalize(adapter).is_ok_and(|folder| parse_snapshot_path(&folder).is_some()) {
        // Whoever published it knew nothing of the folders around the cache, or around the user.
        true => {
            Some(path.to_owned()).filter(|path| (path.is_absolute() || hub::is_spelt(path)) && is_model(path))
        }
        false => nearby::find(adapter, path, is_model),
    };
    if let Some(found) = found {
        return Ok(found);
    }
    let on_hub = hub::name_of(path).map(|on_hub| match &config.revision {
        Some(revision) => on_hub.at(revision),
        None => Ok(on_hub),
    });
    let Some(on_hub) = on_hub.transpose()? else {
        let text = format!(
            "the adapter `{}` was trained on `{name}`, which is no model folder here",
            adapter.display()
        );
        let diagnostic = Diagnostic::input(text).with_hint(hint);
        return Err(match hub::hidden(path).or_else(|| hub::in_the_way(path)) {
            Some(hint) => diagnostic.and_hint(hint),
            None => diagnostic,
        });
    };
    hub::named(&on_hub, FetchScope::Full, printer).map_err(|diagnostic| {
        let or = match name.ends_with(FOUR_BIT_NAME) {
            true => "or name the folder of the original it was made from with `--base DIR`: the 4 bits are made again",
            false => "or name its folder with `--base DIR`",
        };
        let text = format!("the adapter `{}` was trained on `{name}`", adapter.display());
        diagnostic.within(&text).and_hint(or)
    })
}

/// A model ready to run, with its tokenizer.
pub struct LoadedModel {
    /// The base, computing.
    pub decoder: Arc<Decoder>,
    /// Text to ids and back, as the adapter was trained with.
    pub tokenizer: Tokenizer,
    /// The system prompt of the training data, for conversations that set none.
    pub default_system: Option<String>,
    place: ModelDirs,
    adapter: Option<Adapter>,
}

impl LoadedModel {
    /// Loads what lies at `place` on its base, which is loaded already, with the tokens that [`ModelTokens::of`] finds.
    ///
    /// # Errors
    /// If a file of the adapter or the tokenizer has a fault, or the tokens differ.
    pub fn on(
        place: ModelDirs,
        decoder: Arc<Decoder>,
        allow_mismatch: bool,
        printer: &Printer,
    ) -> Result<Self> {
        let adapter = match &place.adapter {
            Some(_) => Some(place.load_adapter(decoder.config(), &**decoder.backend())?),
            None => None,
        };
        let ModelTokens { tokenizer, default_system } = ModelTokens::of(&place, allow_mismatch, printer)?;
        tokenizer.check_fits(decoder.config())?;
        Ok(Self { decoder, tokenizer, default_system, place, adapter })
    }

    /// The adapter's name, or the model's.
    pub fn name(&self) -> String {
        self.place.name()
    }

    /// Its folders.
    pub fn place(&self) -> &ModelDirs {
        &self.place
    }

    /// The adapter as a decoder asks for it.
    pub fn lora(&self) -> Option<&dyn LoraSource> {
        self.adapter.as_ref().map(|adapter| adapter as &dyn LoraSource)
    }
}
