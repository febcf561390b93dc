//! Turns a name, a folder or a training run into a loaded model.
//!
//! ```text
//! ModelRef::parse ─► Loader::model_dirs ─► ModelFiles::open ─► Loader::load ─► LoadedModel
//! ```
//!
//! - [`ModelRef`] is a local folder or a repository on the Hub.
//! - [`DataRef`] is a local data file or a data set on the Hub.
//! - [`ModelDirs`] contains the folder of a base and, for an adapter, the folder of the adapter.
//!   [`FolderKind`] distinguishes adapters, models and stopped runs.
//! - [`ModelFiles`] contains `config.json`, `adapter_config.json`, `danlu.json` and the mapped weights. Each
//!   file is opened once.
//! - [`LoadedModel`] contains the decoder, the adapter and the tokenizer.
//!
//! A server loads a base once as a [`LoadedBase`], and loads each adapter with [`LoadedAdapter::load`].
//!
//! The crate prints nothing. Functions return a [`Notice`] for each fact that a user should see, and errors
//! as [`LoadError`] with a hint. Long operations are reported as [`Progress`].

mod check_base;
mod data_ref;
mod error;
mod folder_kind;
mod generation_config;
mod loaded_model;
mod model_dirs;
mod model_files;
mod model_ref;
mod model_tokens;
mod notice;
mod progress;
pub mod relative_path;
mod resolve;
mod resolve_base;

pub use check_base::{
    CheckDepth, check_base, identify_base, trained_on_unquantized_base, training_quantization,
};
pub use data_ref::{DataRef, check_explicit, explicit_dataset};
pub use error::LoadError;
pub use folder_kind::FolderKind;
pub use generation_config::GenerationConfig;
pub use loaded_model::{
    LoadOptions, LoadedAdapter, LoadedBase, LoadedModel, QuantChoice, choose_quantization,
};
pub use model_dirs::{AdapterDir, ModelDirs, folder_name};
pub use model_files::{AdapterFiles, BaseFiles, ModelFiles};
pub use model_ref::{ModelRef, explicit_name, is_known_name, parse_name, with_full_commit};
pub use model_tokens::{ModelTokens, TokenCheck};
pub use notice::Notice;
pub use progress::{Observer, Progress};
pub use resolve::{HubSource, Loader, adapters_below, fetch_optional_files};
