//! Files that a new model copies from its base or from its adapter: tokenizer, template and generation
//! settings.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use danlu_kernels::DType;
use serde_json::{Map, Value, json};

use crate::Tokenizer;
use crate::files::{self, AtomicFile, FileError};

/// Files of a tokenizer. All files are copied from the same folder, because they refer to each other. The
/// template may be copied from another folder.
const TOKENIZER: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];
pub(crate) const TEMPLATE: &str = "chat_template.jinja";
/// The template for conversations with tools. transformers writes it beside [`TEMPLATE`].
pub(crate) const TOOL_TEMPLATE: &str = "additional_chat_templates/tool_use.jinja";
const GENERATION: &str = "generation_config.json";
/// Settings of a vision tower, copied from the base.
const VISION: [&str; 2] = ["preprocessor_config.json", "processor_config.json"];
const CONFIG: &str = "config.json";
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A file that is copied without changing its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarFile {
    /// Name of the file.
    pub name: String,
    /// Path from which the file is copied.
    pub source: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
}

impl SidecarFile {
    /// Copies the file to `to`. The file gets its name only after all bytes are on the disk.
    ///
    /// # Errors
    /// If the file cannot be read, or the disk is full.
    pub fn copy(&self, to: &Path) -> Result<(), FileError> {
        let source = &self.source;
        let mut input = files::open_regular(source)?;
        if let Some(folder) = to.parent() {
            fs::create_dir_all(folder).map_err(|e| FileError::new("create", folder, e))?;
        }
        let mut output = AtomicFile::create(to)?;
        io::copy(&mut input, &mut output).map_err(|e| FileError::new("copy", source, e))?;
        output.commit()
    }
}

/// Returns the names of the files that define a tokenizer and its chat template.
pub fn tokenizer_names() -> impl Iterator<Item = &'static str> {
    TOKENIZER.iter().copied().chain([TEMPLATE, TOOL_TEMPLATE])
}

/// Returns the names of all sidecar files.
pub fn names() -> impl Iterator<Item = &'static str> {
    tokenizer_names().chain([GENERATION]).chain(VISION)
}

/// Returns the files to copy. [`Tokenizer::read_with`] reads the same tokenizer and template, so the merged
/// model renders the same prompts as the adapter. `also` lists additional files of the adapter.
///
/// # Errors
/// If the size of a file cannot be read.
pub fn choose(base: &Path, adapter: Option<&Path>, also: &[String]) -> Result<Vec<SidecarFile>, FileError> {
    let [tokenizer, template] = Tokenizer::folders(base, adapter.unwrap_or(base));
    let mut chosen: Vec<(&Path, &str)> = TOKENIZER.iter().map(|name| (tokenizer, *name)).collect();
    chosen.extend([TEMPLATE, TOOL_TEMPLATE].map(|name| (template, name)));
    chosen.push((generation_folder(base, adapter), GENERATION));
    chosen.extend(VISION.map(|name| (base, name)));
    for name in also {
        chosen.extend(adapter.map(|a| (a, name.as_str())));
    }
    let mut files: Vec<SidecarFile> = Vec::new();
    for (folder, name) in chosen {
        let source = folder.join(name);
        // If a name contained a folder, the file could be written outside the output folder.
        let plain = name == TOOL_TEMPLATE || Path::new(name).file_name().is_some_and(|n| n == name);
        if !plain || !source.is_file() || files.iter().any(|f| f.name == name) {
            continue;
        }
        let bytes = fs::metadata(&source).map_err(|e| FileError::new("read", &source, e))?.len();
        files.push(SidecarFile { name: name.to_owned(), source, bytes });
    }
    Ok(files)
}

/// Returns the folder with `generation_config.json`. The adapter's folder is returned if it contains the
/// file, and otherwise the base's folder.
pub fn generation_folder<'a>(base: &'a Path, adapter: Option<&'a Path>) -> &'a Path {
    adapter.filter(|folder| folder.join(GENERATION).is_file()).unwrap_or(base)
}

/// Changes to `config.json` for a new model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigChange {
    /// New element type, or `None` for no change.
    pub dtype: Option<DType>,
    /// New `quantization_config`, if there is one.
    pub quantization: Option<Value>,
    /// New size of the vocabulary, or `None` for no change.
    pub vocab_size: Option<usize>,
    /// Whether the embedding table is also the output head. `None` for no change.
    pub tie_word_embeddings: Option<bool>,
}

/// Returns the base's `config.json` with these changes. If nothing changes, or if the file is not JSON,
/// returns the bytes of the file. A `quantization_config` is removed unless `change` contains a new one.
///
/// # Errors
/// If the file cannot be read.
pub fn config_json(base: &Path, change: &ConfigChange) -> Result<Vec<u8>, FileError> {
    const QUANTIZATION: &str = "quantization_config";
    let bytes = files::read_bounded(&base.join(CONFIG), MAX_CONFIG_BYTES)?;
    let Ok(mut config) = serde_json::from_slice::<Map<String, Value>>(&bytes) else { return Ok(bytes) };
    let before = config.clone();
    if let Some(dtype) = change.dtype {
        let name = json!(torch_name(dtype));
        // transformers 5 writes `dtype`, and transformers 4 wrote `torch_dtype`. Both versions read
        // `torch_dtype`.
        let present: Vec<&str> =
            ["dtype", "torch_dtype"].into_iter().filter(|k| config.contains_key(*k)).collect();
        let keys = if present.is_empty() { vec!["torch_dtype"] } else { present };
        for key in keys {
            config.insert(key.to_owned(), name.clone());
        }
    }
    if let Some(vocab_size) = change.vocab_size {
        insert_in_text(&mut config, "vocab_size", json!(vocab_size));
    }
    if let Some(tied) = change.tie_word_embeddings {
        insert_in_text(&mut config, "tie_word_embeddings", json!(tied));
    }
    match &change.quantization {
        Some(quantization) => config.insert(QUANTIZATION.to_owned(), quantization.clone()),
        None => config.remove(QUANTIZATION),
    };
    if config == before {
        return Ok(bytes);
    }
    let mut text = serde_json::to_vec_pretty(&config).expect("a JSON value has string keys");
    text.push(b'\n');
    Ok(text)
}

/// Inserts a value of the text model, whose object may be nested. An entry of the outer object is replaced.
fn insert_in_text(config: &mut Map<String, Value>, key: &str, value: Value) {
    let is_nested = config.get("text_config").is_some_and(Value::is_object);
    if !is_nested || config.contains_key(key) {
        config.insert(key.to_owned(), value.clone());
    }
    if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
        text.insert(key.to_owned(), value);
    }
}

/// Returns the name of an element type in `config.json`.
pub fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::Bf16 => "bfloat16",
        DType::F16 => "float16",
    }
}
