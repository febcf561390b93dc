//! Errors of adapters and merges.

use std::path::PathBuf;

use danlu_model::ModelError;
use danlu_model::files::FileError;

use crate::OtherAdapterFile;
use crate::other_files::is_of_image_model;

/// Why an adapter cannot be built, read or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),

    /// A device failed.
    #[error(transparent)]
    Backend(#[from] danlu_kernels::BackendError),

    /// The base model has a fault.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An error in a file.
    #[error("cannot use `{}`: {source}", path.display())]
    InFile {
        /// Path of the file.
        path: PathBuf,
        /// The error.
        source: Box<AdapterError>,
    },

    /// Malformed JSON.
    #[error("line {line}, column {column}: {message}")]
    Json {
        /// Line of the fault, from 1.
        line: usize,
        /// Column of the fault, from 1; 0 at the end of a file.
        column: usize,
        /// The parser's message.
        message: String,
    },

    /// A setting with an impossible value.
    #[error("`{key}` is {found}, expected {expected}")]
    Value {
        /// The setting, as PEFT names it.
        key: String,
        /// Its value as JSON, or `missing`.
        found: String,
        /// Accepted values.
        expected: String,
    },

    /// A setting of PEFT that changes results and is not supported.
    #[error("`{key}` is {found}, which is not supported")]
    Unsupported {
        /// The setting, as PEFT names it.
        key: String,
        /// Its value as JSON.
        found: String,
        /// What to do instead.
        advice: String,
    },

    /// An invalid regular expression, or one that takes too long to match.
    #[error("cannot use the pattern `{pattern}` of `{key}`: {message}")]
    Pattern {
        /// The setting.
        key: String,
        /// The pattern.
        pattern: String,
        /// Message of the regular expression engine.
        message: String,
    },

    /// A target that matches no module of the base.
    #[error("cannot adapt `{target}`: it matches no module of the base model")]
    NoSuchTarget {
        /// The name or regular expression.
        target: String,
        /// Module names of the base.
        available: Vec<String>,
    },

    /// A target that matches a module without LoRA support.
    #[error("cannot adapt `{target}`: it matches `{module}`, which {reason}")]
    NotAdaptable {
        /// The name or regular expression.
        target: String,
        /// A module that it matches.
        module: String,
        /// Reason, which completes the sentence.
        reason: &'static str,
    },

    /// The exclusions remove every module.
    #[error("cannot choose modules: `target_modules` matches {removed}, and all are excluded")]
    NothingTargeted {
        /// Number of modules before exclusion.
        removed: usize,
    },

    /// A layer number beyond the model's last layer.
    #[error(
        "cannot adapt layer {layer} of `layers_to_transform`: the base model has {layers} layers, from 0"
    )]
    NoSuchLayer {
        /// The layer number.
        layer: i64,
        /// Number of layers of the base.
        layers: usize,
    },

    /// A rank or alpha that applies to no adapted module.
    #[error("cannot use the key `{pattern}` of `{key}`: it matches no adapted module")]
    UnusedPattern {
        /// `rank_pattern` or `alpha_pattern`.
        key: &'static str,
        /// The key within it.
        pattern: String,
    },

    /// A rank larger than the sides of the weight.
    #[error("cannot adapt `{module}`: rank {rank} exceeds the sides of its weight, {d_out} x {d_in}")]
    RankTooLarge {
        /// Path of the module.
        module: String,
        /// Rank of the module.
        rank: usize,
        /// Rows of the weight.
        d_out: usize,
        /// Columns of the weight.
        d_in: usize,
    },

    /// A folder without a supported weight file.
    #[error("cannot load `{}`: it has no `adapter_model.safetensors`{}", folder.display(),
        other.as_ref().map(|o| format!(", only `{o}`")).unwrap_or_default())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Weight file in another format, if the folder has one.
        other: Option<String>,
    },

    /// A file that is not valid safetensors.
    #[error("it is not a valid safetensors file: {message}")]
    Header {
        /// Reason.
        message: String,
    },

    /// An unsupported element type.
    #[error("tensor `{name}` is {found}, expected F32, BF16 or F16")]
    DType {
        /// The tensor.
        name: String,
        /// Its type, as safetensors spells it.
        found: String,
    },

    /// A tensor with a wrong shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape that the base and the rank imply.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },

    /// A tensor without elements.
    #[error("tensor `{name}` is empty: its shape is {shape:?}")]
    EmptyTensor {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },

    /// A pickle that is no file of tensors.
    #[error("cannot read the pickle: {message}")]
    Pickle {
        /// The fault.
        message: String,
    },

    /// Tensors and configuration do not match.
    #[error(
        "the tensors do not match adapter_config.json and the base model{}{}",
        listing("bind to nothing", unbound),
        listing("are missing", missing)
    )]
    Binding {
        /// Tensors in the file that belong to no adapted projection.
        unbound: Vec<String>,
        /// Tensors of adapted projections that the file lacks.
        missing: Vec<String>,
    },

    /// A token of `trainable_token_indices` beyond the table, and a token before it without values.
    #[error("token {token} has no row: the table has {rows}, and `trainable_token_indices` leaves it out")]
    NoRow {
        /// The token.
        token: usize,
        /// Rows of the table.
        rows: usize,
    },

    /// Infinity or not-a-number.
    #[error("element {element} of tensor `{name}` is {value}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The first such value.
        value: f32,
        /// Index, row-major.
        element: usize,
    },

    /// A value outside the range of the output's element type.
    #[error("cannot write tensor `{name}`: element {element} is {value:e}, beyond the range of {dtype}")]
    Overflow {
        /// The tensor.
        name: String,
        /// The value in f32.
        value: f32,
        /// Index, row-major.
        element: usize,
        /// The requested type.
        dtype: &'static str,
    },

    /// The disk is too small for the merged model.
    #[error("cannot merge into `{}`: the model needs {needed} bytes, the disk has {available} free", path.display())]
    Space {
        /// The output folder.
        path: PathBuf,
        /// Bytes to write.
        needed: u64,
        /// Free bytes on the disk.
        available: u64,
    },

    /// Base and merged model have different vocabularies.
    #[error("cannot compare the models: the base has {base} tokens, the merged model {merged}")]
    Vocabulary {
        /// Vocabulary size of the base.
        base: usize,
        /// Vocabulary size of the merged model.
        merged: usize,
    },

    /// There is no text to measure on.
    #[error("cannot measure the merge: there is no held-out text")]
    NothingToMeasure,

    /// An invalid `danlu.json`.
    #[error("cannot read `{}`: {reason}", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// Message of the parser.
        reason: String,
    },

    /// A text that is not a size such as `2GB`.
    #[error("cannot read `{found}`: it is not a size")]
    Size {
        /// The text.
        found: String,
    },
}

/// Lists the first names below a heading. Returns an empty text for an empty list.
fn listing(heading: &str, names: &[String]) -> String {
    const MAX_SHOWN: usize = 6;
    if names.is_empty() {
        return String::new();
    }
    let mut text = format!("\n{} {heading}:", names.len());
    for name in names.iter().take(MAX_SHOWN) {
        text.push_str(&format!("\n  {name}"));
    }
    if names.len() > MAX_SHOWN {
        text.push_str(&format!("\n  and {} more", names.len() - MAX_SHOWN));
    }
    text
}

impl AdapterError {
    /// Adds the path of the file to the error.
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            // These errors have a path already.
            Self::File(_) | Self::Model(_) | Self::InFile { .. } => self,
            source => Self::InFile { path: path.to_owned(), source: Box::new(source) },
        }
    }

    /// Adds missing tensors to a mismatch.
    pub(crate) fn and_missing(self, others: &[String]) -> Self {
        match self {
            Self::Binding { unbound, mut missing } => {
                missing.extend_from_slice(others);
                Self::Binding { unbound, missing }
            }
            error => error,
        }
    }

    /// Returns whether the adapter is valid but was made for a base with other modules or shapes.
    pub fn is_of_another_base(&self) -> bool {
        match self {
            Self::InFile { source, .. } => source.is_of_another_base(),
            Self::Shape { .. }
            | Self::Binding { .. }
            | Self::NoSuchTarget { .. }
            | Self::NoSuchLayer { .. }
            | Self::RankTooLarge { .. } => true,
            _ => false,
        }
    }

    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::File(e) => return e.hint(),
            Self::Model(e) => return e.hint(),
            Self::InFile { source, .. } => return source.hint(),
            Self::Unsupported { advice, .. } => advice,
            Self::NoSuchTarget { available, .. } => {
                let names: Vec<_> = available.iter().map(|n| format!("`{n}`")).collect();
                return Some(format!("choose from {}", names.join(", ")));
            }
            Self::NotAdaptable { .. } => "target projections of the layers; `all-linear` selects all of them",
            Self::NothingTargeted { .. } => {
                "check `exclude_modules`, `layers_to_transform` and `layers_pattern`"
            }
            Self::UnusedPattern { .. } => {
                "write the end of a module's path, such as `v_proj` or `layers.3.mlp.up_proj`"
            }
            Self::RankTooLarge { .. } => "choose a rank from 8 to 64",
            Self::EmptyTensor { .. } => {
                "save again with `stage3_gather_16bit_weights_on_model_save`, or run `zero_to_fp32.py` on the \
                 checkpoint: DeepSpeed ZeRO-3 saves empty tensors otherwise"
            }
            Self::Pickle { .. } => {
                "danlu reads tensors from a pickle and runs nothing: fetch the file again, or ask its author for \
                 `adapter_model.safetensors`"
            }
            Self::NoWeights { other: Some(other), .. } if OtherAdapterFile::of(other).is_some() => {
                OtherAdapterFile::of(other)?.hint()
            }
            Self::Binding { unbound, .. } if unbound.iter().any(|name| is_of_image_model(name)) => {
                OtherAdapterFile::Diffusers.hint()
            }
            Self::NoWeights { .. } => {
                "name the folder that holds adapter_config.json and adapter_model.safetensors"
            }
            Self::Header { .. } => "save or fetch the file again: it is damaged or incomplete",
            Self::Shape { .. } | Self::Binding { .. } => {
                "give the base that the adapter was trained on (`base_model_name_or_path`), and the \
                 `adapter_config.json` it was saved with"
            }
            Self::NoRow { .. } => "give the base with the resized tables that the adapter was trained on",
            Self::NotFinite { .. } => {
                "use an earlier checkpoint, or train with a lower learning rate: the training diverged"
            }
            Self::Overflow { .. } => "merge in bf16 or f32, whose range is larger",
            Self::Space { .. } => "free some space, choose a folder on another disk, or a smaller `--dtype`",
            Self::NothingToMeasure => "give records that were not used for training",
            Self::Identity { .. } => "copy the file from a checkpoint of the same run",
            Self::Size { .. } => "write a number of bytes with a unit: `500MB`, `2GB`, `1GiB`",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
