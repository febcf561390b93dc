//! Errors of adapters and merges.

use std::path::PathBuf;

use danlu_model::files::FileError;
use danlu_model::{ModelError, format_bytes};

use crate::OtherAdapterFile;
use crate::other_files::is_of_image_model;

/// The reason why an adapter cannot be built, read or merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),

    /// An operation on a device failed.
    #[error(transparent)]
    Backend(#[from] danlu_kernels::BackendError),

    /// The base model cannot be read or used.
    #[error(transparent)]
    Model(#[from] ModelError),

    /// An error in the contents of a file.
    #[error("cannot use `{}`: {source}", path.display())]
    InFile {
        /// Path of the file.
        path: PathBuf,
        /// The error in the contents.
        source: Box<AdapterError>,
    },

    /// Malformed JSON.
    #[error("line {line}, column {column}: {message}")]
    Json {
        /// Line of the error, starting at 1.
        line: usize,
        /// Column of the error, starting at 1. The column is 0 at the end of the file.
        column: usize,
        /// The parser's message.
        message: String,
    },

    /// A module that the settings of a run and an adapter define differently.
    #[error("cannot continue from the adapter: the settings of the run differ from it at `{module}`")]
    OtherModule {
        /// Path of the module.
        module: String,
    },

    /// Initial values that the host computes from weights, and weights that are on a device.
    #[error(
        "cannot compute the initial values of `{method}` on {backend}: they need the weights in host memory"
    )]
    WeightsOnDevice {
        /// Name of the method in PEFT.
        method: &'static str,
        /// Name of the back end.
        backend: String,
    },

    /// A setting with an invalid value.
    #[error("`{key}` is {found}, expected {expected}")]
    Value {
        /// Name of the setting in PEFT.
        key: String,
        /// Value of the setting as JSON, or `missing`.
        found: String,
        /// Accepted values.
        expected: String,
    },

    /// A setting of PEFT that changes results and is not supported.
    #[error("`{key}` is {found}, which is not supported")]
    Unsupported {
        /// Name of the setting in PEFT.
        key: String,
        /// Value of the setting as JSON.
        found: String,
        /// Advice on how to avoid the setting.
        advice: String,
    },

    /// A regular expression that is invalid or takes too long to match.
    #[error("cannot use the pattern `{pattern}` of `{key}`: {message}")]
    Pattern {
        /// The setting.
        key: String,
        /// The pattern.
        pattern: String,
        /// Message of the regular expression library.
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
        /// A module that the target matches.
        module: String,
        /// The reason. This text is the end of the error message.
        reason: &'static str,
    },

    /// All modules that match are excluded.
    #[error("cannot choose modules: `target_modules` matches {removed}, and all are excluded")]
    NothingTargeted {
        /// Number of modules that were excluded.
        removed: usize,
    },

    /// A layer number that is larger than the number of the model's last layer.
    #[error(
        "cannot adapt layer {layer} of `layers_to_transform`: the base model has {layers} layers, from 0"
    )]
    NoSuchLayer {
        /// The layer number.
        layer: i64,
        /// Number of layers of the base.
        layers: usize,
    },

    /// A rank or alpha pattern that matches no adapted module.
    #[error("cannot use the key `{pattern}` of `{key}`: it matches no adapted module")]
    UnusedPattern {
        /// `rank_pattern` or `alpha_pattern`.
        key: &'static str,
        /// The pattern that matches no module.
        pattern: String,
    },

    /// A rank that is larger than both dimensions of the weight.
    #[error("cannot adapt `{module}`: rank {rank} exceeds both dimensions of its weight, {d_out} x {d_in}")]
    RankTooLarge {
        /// Path of the module.
        module: String,
        /// Rank of the module.
        rank: usize,
        /// Number of rows of the weight.
        d_out: usize,
        /// Number of columns of the weight.
        d_in: usize,
    },

    /// A folder without a supported weight file.
    #[error("cannot load `{}`: it has no `adapter_model.safetensors`{}", folder.display(),
        other.as_ref().map(|o| format!(", only `{o}`")).unwrap_or_default())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Name of a weight file in another format, if the folder contains one.
        other: Option<String>,
    },

    /// A file that is not valid safetensors.
    #[error("it is not a valid safetensors file: {message}")]
    Header {
        /// The reason why the file is not valid.
        message: String,
    },

    /// An unsupported element type.
    #[error("tensor `{name}` is {found}, expected F32, BF16 or F16")]
    DType {
        /// The tensor.
        name: String,
        /// Type of the tensor, as safetensors spells it.
        found: String,
    },

    /// A tensor with a wrong shape.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Shape that follows from the base and the rank.
        expected: Vec<usize>,
        /// Shape in the file.
        found: Vec<usize>,
    },

    /// The file contains no tensors.
    #[error("it contains no tensors")]
    NoTensors,

    /// A tensor without elements.
    #[error("tensor `{name}` is empty: its shape is {shape:?}")]
    EmptyTensor {
        /// The tensor.
        name: String,
        /// Shape of the tensor.
        shape: Vec<usize>,
    },

    /// A pickle file that does not contain tensors.
    #[error("cannot read the pickle: {message}")]
    Pickle {
        /// The reason why the pickle file cannot be read.
        message: String,
    },

    /// Tensors and configuration do not match.
    #[error(
        "the tensors do not match adapter_config.json and the base model{}{}",
        listing("match nothing", unbound),
        listing("are missing", missing)
    )]
    Binding {
        /// Tensors in the file that match no adapted projection.
        unbound: Vec<String>,
        /// Tensors of adapted projections that are missing in the file.
        missing: Vec<String>,
    },

    /// A new token without values. The token is not in `trainable_token_indices` and has no row in the table.
    #[error("token {token} has no row: the table has {rows}, and `trainable_token_indices` leaves it out")]
    NoRow {
        /// The token.
        token: usize,
        /// Number of rows of the table.
        rows: usize,
    },

    /// A tensor element that is infinite or not a number.
    #[error("element {element} of tensor `{name}` is {value}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// The first value that is not finite.
        value: f32,
        /// Row-major index of the element.
        element: usize,
    },

    /// A value that is out of range for the element type of the output.
    #[error("cannot write tensor `{name}`: element {element} is {value:e}, beyond the range of {dtype}")]
    Overflow {
        /// The tensor.
        name: String,
        /// The value before conversion.
        value: f32,
        /// Row-major index of the element.
        element: usize,
        /// The requested type.
        dtype: &'static str,
    },

    /// The disk has too little free space for the merged model.
    #[error(
        "cannot merge into `{}`: the model needs {}, the disk has {} free",
        path.display(),
        format_bytes(*needed),
        format_bytes(*available)
    )]
    Space {
        /// The output folder.
        path: PathBuf,
        /// Number of bytes to write.
        needed: u64,
        /// Number of free bytes on the disk.
        available: u64,
    },

    /// The base and the merged model have different vocabularies.
    #[error("cannot compare the models: the base has {base} tokens, the merged model {merged}")]
    Vocabulary {
        /// Vocabulary size of the base.
        base: usize,
        /// Vocabulary size of the merged model.
        merged: usize,
    },

    /// There is no held-out text for the comparison.
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

/// Returns `heading` followed by the first names. Returns an empty text for an empty list.
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
    pub(crate) fn in_file(self, path: &std::path::Path) -> Self {
        match self {
            // These errors already contain a path.
            Self::File(_) | Self::Model(_) | Self::InFile { .. } => self,
            source => Self::InFile { path: path.to_owned(), source: Box::new(source) },
        }
    }

    pub(crate) fn and_missing(self, others: &[String]) -> Self {
        match self {
            Self::Binding { unbound, mut missing } => {
                missing.extend_from_slice(others);
                Self::Binding { unbound, missing }
            }
            error => error,
        }
    }

    /// Returns whether the adapter is valid but belongs to a base with other modules or shapes.
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
            Self::NoSuchLayer { .. } => "count the layers of `layers_to_transform` from 0",
            Self::NothingTargeted { .. } => {
                "check `exclude_modules`, `layers_to_transform` and `layers_pattern`"
            }
            Self::UnusedPattern { .. } => {
                "write the end of a module's path, such as `v_proj` or `layers.3.mlp.up_proj`"
            }
            Self::RankTooLarge { .. } => "choose a rank from 8 to 64",
            Self::OtherModule { .. } => "omit the settings of the adapter's modules",
            Self::WeightsOnDevice { .. } => "train on the processor with `--device cpu`",
            Self::EmptyTensor { .. } => {
                "save again with `stage3_gather_16bit_weights_on_model_save`, or run `zero_to_fp32.py` on the \
                 checkpoint: DeepSpeed ZeRO-3 saves empty tensors otherwise"
            }
            Self::NoTensors => {
                "save the adapter again with `save_pretrained`, or use an earlier checkpoint: the program that wrote the \
                 file saved no weights"
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
