//! Errors of model folders.

use std::path::PathBuf;

use crate::files::FileError;
use crate::format_bytes;

/// The reason why a model folder cannot be used, or why a conversation cannot be rendered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] FileError),

    /// A device failed.
    #[error(transparent)]
    Backend(#[from] danlu_kernels::BackendError),

    /// A JSON file is malformed.
    #[error("cannot parse `{}:{line}:{column}`: {message}", path.display())]
    Json {
        /// Path of the file.
        path: PathBuf,
        /// Line of the fault. The first line is 1.
        line: usize,
        /// Column of the fault. The first column is 1. At the end of a file, the column is 0.
        column: usize,
        /// The parser's message.
        message: String,
    },

    /// A field is missing or has an impossible value.
    #[error("cannot use `{}`: `{field}` is {found}, expected {expected}", path.display())]
    Field {
        /// Path of the file.
        path: PathBuf,
        /// Name of the field. The name of a nested field contains dots.
        field: String,
        /// JSON value of the field, or `missing`.
        found: String,
        /// Accepted values.
        expected: String,
    },

    /// A field has a valid value that danlu does not support.
    #[error("cannot use `{}`: `{field}` is {found}, supported: {supported}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Name of the field. The name of a nested field contains dots.
        field: String,
        /// JSON value of the field.
        found: String,
        /// Supported values.
        supported: String,
    },

    /// danlu does not support this model family.
    #[error("cannot use `{}`: danlu does not support `{family}` models: {reason}", path.display())]
    Family {
        /// Path of the file.
        path: PathBuf,
        /// `model_type`.
        family: String,
        /// The feature that danlu lacks.
        reason: &'static str,
        /// The most similar model that danlu supports.
        nearest: &'static str,
    },

    /// The back end lacks an operation that the model needs.
    #[error("cannot run a `{family}` model on {backend}: the back end has no kernel for {operation}")]
    MissingOperation {
        /// `model_type`.
        family: String,
        /// Name of the back end.
        backend: String,
        /// The operation.
        operation: danlu_kernels::FamilyOperation,
    },

    /// The folder has no weights in a supported format.
    #[error("cannot load `{}`: it has neither `model.safetensors` nor `model.safetensors.index.json`{}", folder.display(),
        other.as_ref().map(|o| format!(", only `{o}`")).unwrap_or_default())]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// Name of a weight file in another format, if the folder contains one.
        other: Option<String>,
    },

    /// A safetensors file is shorter or longer than its header requires.
    #[error("cannot read `{}`: it has {found} bytes, expected {expected}", path.display())]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Length that the header requires.
        expected: u64,
        /// Length of the file.
        found: u64,
    },

    /// A safetensors header is invalid.
    #[error("cannot read `{}`: it is not a valid safetensors file: {message}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Reason.
        message: String,
    },

    /// A shard index is invalid.
    #[error("cannot read `{}`: {message}", path.display())]
    Index {
        /// The index file.
        path: PathBuf,
        /// Reason.
        message: String,
    },

    /// A shard index names a file that is missing.
    #[error("cannot read `{}`: {message}", path.display())]
    NoShard {
        /// The index file.
        path: PathBuf,
        /// The missing file, and the number of tensors that it should contain.
        message: String,
    },

    /// A tensor has an element type that is not supported.
    #[error("cannot read `{}`: tensor `{tensor}` is {dtype}, expected F32, BF16 or F16", path.display())]
    DType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Element type of the tensor, as safetensors spells it.
        dtype: String,
    },

    /// A part of a 4-bit weight is missing or inconsistent.
    #[error("cannot read `{}`: 4-bit weight `{tensor}`: {message}", path.display())]
    FourBit {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// The value that was found, and the value that was expected.
        message: String,
    },

    /// The model that should be quantized is already in 4 bits.
    #[error("cannot quantize `{}`: `{tensor}` is in 4 bits already", folder.display())]
    AlreadyFourBit {
        /// The folder.
        folder: PathBuf,
        /// The first weight of the model that is in 4 bits.
        tensor: String,
    },

    /// A torch file is damaged, or contains objects that are not tensors.
    #[error("cannot read `{}`: {message}", path.display())]
    Pickle {
        /// The file.
        path: PathBuf,
        /// The fault.
        message: String,
    },

    /// A module that should not be quantized does not exist.
    #[error("cannot leave `{module}` unquantized: `{}` has no such module", folder.display())]
    NoModule {
        /// The folder.
        folder: PathBuf,
        /// The name that the user requested.
        module: String,
    },

    /// The user excluded every projection from quantization.
    #[error("cannot quantize `{}`: without `{skipped}`, no projection is left", folder.display())]
    AllSkipped {
        /// The folder.
        folder: PathBuf,
        /// The name that the user requested.
        skipped: String,
    },

    /// A weight that should be quantized contains a value that is not finite.
    #[error("cannot quantize `{}`: element {element} of tensor `{tensor}` is {value}", path.display())]
    NotFinite {
        /// The file.
        path: PathBuf,
        /// The weight.
        tensor: String,
        /// The value.
        value: f32,
        /// Index of the value in row-major order.
        element: usize,
    },

    /// A tensor is missing.
    #[error("cannot load `{}`: tensor `{tensor}` is missing", path.display())]
    NoTensor {
        /// The folder or file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
    },

    /// The shape of a tensor differs from the shape in the configuration.
    #[error("cannot load `{}`: tensor `{tensor}` has shape {found:?}, expected {expected:?}", path.display())]
    Shape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The shape that `config.json` requires.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },

    /// The tokenizer cannot be built, or cannot encode a text.
    #[error("cannot use `{}`: {message}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// The message of the tokenizers library.
        message: String,
    },

    /// danlu cannot read the files of this tokenizer.
    #[error("cannot read the tokenizer of `{}`: it is in `{found}`, and there is no `tokenizer.json`", folder.display())]
    OtherTokenizer {
        /// The folder.
        folder: PathBuf,
        /// Names of the tokenizer files that danlu cannot read.
        found: String,
    },

    /// The model has no chat template.
    #[error(
        "cannot find a chat template in `{}`: it has no `chat_template.jinja`, and no `chat_template` in `tokenizer_config.json`",
        folder.display()
    )]
    NoTemplate {
        /// The folder.
        folder: PathBuf,
    },

    /// A chat template cannot be parsed, or fails on a conversation.
    #[error("cannot use the chat template of `{}`{}: {message}", path.display(), line.map(|l| format!(", line {l}")).unwrap_or_default())]
    Template {
        /// Path of the template's file.
        path: PathBuf,
        /// Line in the template. The first line is 1.
        line: Option<usize>,
        /// Reason.
        message: String,
    },

    /// The template rejects a conversation: it calls `raise_exception`.
    #[error("cannot render the conversation: the chat template rejects it: {message}")]
    Refused {
        /// Message of the template.
        message: String,
    },

    /// The assistant's span in the rendered text cannot be found.
    #[error("cannot find message {index} in the rendered conversation: {reason}")]
    NoMask {
        /// Index of the assistant's message. The first message is 0.
        index: usize,
        /// Reason.
        reason: String,
    },

    /// The tensors do not match the configuration.
    #[error("cannot load `{}`: the weights do not match config.json{}", path.display(), listing(problems))]
    Incomplete {
        /// The folder or file.
        path: PathBuf,
        /// One sentence for each tensor that is missing, misshaped or unknown.
        problems: Vec<String>,
    },

    /// The output head differs from the embedding table, but the configuration declares them as tied.
    #[error(
        "`{}`: `lm_head.weight` differs from `model.embed_tokens.weight`, and `tie_word_embeddings` is true",
        folder.display()
    )]
    OwnHead {
        /// The folder.
        folder: PathBuf,
    },

    /// The disk has too little free space to write the model.
    #[error(
        "cannot write `{}`: the model needs {}, the disk has {} free",
        path.display(),
        format_bytes(*needed),
        format_bytes(*available)
    )]
    Space {
        /// The folder.
        path: PathBuf,
        /// Bytes to write.
        needed: u64,
        /// Free bytes on the disk.
        available: u64,
    },

    /// The caller stopped a long operation.
    #[error("stopped before the end")]
    Stopped,

    /// A token id has no row in the embedding table.
    #[error("cannot read token id {id}: the model's vocabulary has {vocab_size} tokens")]
    TokenOutOfRange {
        /// The id.
        id: u32,
        /// Number of rows of the embedding table.
        vocab_size: usize,
    },

    /// The caller passed no tokens, or more tokens than the slot has room for.
    #[error("cannot append {added} tokens: the slot holds {held} of {capacity}")]
    CacheFull {
        /// Tokens in the slot.
        held: usize,
        /// Tokens to add.
        added: usize,
        /// Capacity of the slot.
        capacity: usize,
    },
}

/// Part of the problem of an empty tensor.
const EMPTY: &str = "` is empty";

/// Lists the first problems. The others are only counted.
fn listing(problems: &[String]) -> String {
    const MAX_SHOWN: usize = 8;
    let mut text = String::new();
    for problem in problems.iter().take(MAX_SHOWN) {
        text.push_str("\n  ");
        text.push_str(problem);
    }
    if problems.len() > MAX_SHOWN {
        text.push_str(&format!("\n  and {} more", problems.len() - MAX_SHOWN));
    }
    text
}

const FETCH_AGAIN: &str = "fetch config.json and the weights again, from one model";

/// Returns the next step for a folder without safetensors that contains the file `other`.
fn other_format_hint(other: &str) -> &'static str {
    match other {
        _ if other.ends_with(".gguf") => {
            "take the model that the GGUF file was made from, as safetensors: danlu reads no GGUF"
        }
        "consolidated.safetensors" => {
            "download the model's other files too, or convert Mistral's file once with transformers' \
             `convert_mistral_weights_to_hf.py`"
        }
        _ if other.starts_with("global_step") => {
            "run DeepSpeed's `zero_to_fp32.py` in the folder, which writes the whole weights"
        }
        _ if other.ends_with(".distcp") || other.starts_with("pytorch_model_fsdp") => {
            "join the shards of FSDP first, with `accelerate merge-weights FOLDER OUTPUT`"
        }
        _ if other.starts_with("consolidated.") => {
            "convert Meta's files once with transformers' `convert_llama_weights_to_hf.py`, or download the model \
             in transformers' form"
        }
        _ => {
            "convert the weights to safetensors once with \
             transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        }
    }
}

/// Returns the next step for weights with these problems.
fn incomplete_hint(problems: &[String]) -> &'static str {
    let has = |text: &str| problems.iter().any(|problem| problem.contains(text));
    let starts = |text: &str| problems.iter().any(|problem| problem.starts_with(text));
    match () {
        () if has(EMPTY) => {
            "save again with `stage3_gather_16bit_weights_on_model_save`, or run `zero_to_fp32.py` on the \
             checkpoint: DeepSpeed ZeRO-3 saves empty tensors otherwise"
        }
        () if has(".lora_") => {
            "merge the adapter first, with the program that saved it: the weights hold its matrices beside the base"
        }
        () if starts("`score.") || starts("`classifier.") => {
            "use a language model: this one is a classifier or a reward model"
        }
        () => FETCH_AGAIN,
    }
}

impl ModelError {
    /// Returns the next step for the user, if there is one.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::File(e) => return e.hint(),
            Self::Family { nearest, .. } => return Some(format!("use {nearest}")),
            Self::Pickle { .. } => {
                "danlu reads tensors from a pickle and runs nothing: fetch the file again, or take the model's safetensors"
            }
            Self::MissingOperation { .. } => "run it on the processor with `--device cpu`",
            Self::NoWeights { other: Some(other), .. } => other_format_hint(other),
            Self::NoWeights { other: None, .. } => {
                "name the folder that holds config.json and model.safetensors, as downloaded"
            }
            Self::FileSize { expected, found, .. } if found < expected => {
                "fetch the file again: it ends early, as after an interrupted download"
            }
            Self::Header { message, .. } if message.contains("version https://git-lfs") => {
                "run `git lfs pull` in its folder: the file is a Git LFS pointer"
            }
            Self::Json { .. } => "correct the file, or fetch it again",
            Self::FileSize { .. } | Self::Header { .. } => "fetch the file again: it is damaged",
            Self::DType { .. } => "use the model's original weights, in bf16, f16 or f32",
            Self::Incomplete { problems, .. } => incomplete_hint(problems),
            Self::NoShard { .. } => "fetch the missing file, or the whole model again",
            Self::Shape { .. } | Self::NoTensor { .. } => FETCH_AGAIN,
            Self::OwnHead { .. } => {
                "set `tie_word_embeddings` to false in config.json to use the head, or remove the head from the weights"
            }
            Self::NotFinite { .. } => "fetch the base again: it is damaged",
            Self::NoModule { .. } | Self::AllSkipped { .. } => {
                "name modules as in the weight files, without `.weight`, whole or by their end: `down_proj`, \
                 `model.layers.0.mlp.down_proj`"
            }
            Self::AlreadyFourBit { .. } => "leave `--quant` out to use the base as it is",
            Self::FourBit { .. } => {
                "fetch the file again, or quantize the original with `danlu quantize BASE --to nf4 --output DIR`"
            }
            Self::TokenOutOfRange { .. } => "take tokenizer.json and the weights from one model",
            Self::OtherTokenizer { .. } => {
                "convert it once with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
            }
            Self::NoTemplate { .. } => {
                "name a template with `--chat-template`, such as `--chat-template chatml`, or use an instruct model"
            }
            Self::Space { .. } => "free some space, or choose a folder on another disk",
            Self::NoMask { .. } => {
                "mark the assistant's part in the template with {% generation %} and {% endgeneration %}, or train on \
                 the whole conversation"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
