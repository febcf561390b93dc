//! Files that a new model copies from its base or adapter: tokenizer, template, generation settings.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use danlu_kernels::DType;
use serde_json::{Map, Value, json};

use crate::Tokenizer;
use crate::files::{self, AtomicFile, FileError};

/// Files of a tokenizer. All come from one folder, because they refer to each other. The template is chosen
/// separately.
const TOKENIZER: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];
const TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";
const CONFIG: &str = "config.json";
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// A file to copy under its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SidecarFile {
    /// That name.
    pub name: String,
    /// Path to copy from.
    pub source: PathBuf,
    /// Length in bytes.
    pub bytes: u64,
}

impl SidecarFile {
    /// Copies the file to `to`. The bytes are on the disk before the file gets its name.
    ///
    /// # Errors
    /// If the file cannot be read, or the disk is full.
    pub fn copy(&self, to: &Path) -> Result<(), FileError> {
        let source = &self.source;
        let mut input = files::open_regular(source)?;
        let mut output = AtomicFile::create(to)?;
        io::copy(&mut input, &mut output).map_err(|e| FileError::new("copy", source, e))?;
        output.commit()
    }
}

/// Returns the names of all sidecar files.
pub fn names() -> impl Iterator<Item = &'static str> {
    TOKENIZER.iter().copied().chain([TEMPLATE, GENERATION])
}

/// Returns the files to copy. [`Tokenizer::read_with`] reads the same tokenizer and template, so the merged
/// model gets the adapter's prompts. `also` lists additional files of the adapter.
///
/// # Errors
/// If the size of a file cannot be read.
pub fn choose(base: &Path, adapter: Option<&Path>, also: &[String]) -> Result<Vec<SidecarFile>, FileError> {
    let [tokenizer, template] = Tokenizer::folders(base, adapter.unwrap_or(base));
    let mut chosen: Vec<(&Path, &str)> = TOKENIZER.iter().map(|name| (tokenizer, *name)).collect();
    chosen.push((template, TEMPLATE));
    chosen.push((generation_folder(base, adapter), GENERATION));
    for name in also {
        chosen.extend(adapter.map(|a| (a, name.as_str())));
    }
    let mut files: Vec<SidecarFile> = Vec::new();
    for (folder, name) in chosen {
        let source = folder.join(name);
        // A name with a folder in it could lead outside the output.
        let plain = Path::new(name).file_name().is_some_and(|n| n == name);
        if !plain || !source.is_file() || files.iter().any(|f| f.name == name) {
            continue;
        }
        let bytes = fs::metadata(&source).map_err(|e| FileError::new("read", &source, e))?.len();
        files.push(SidecarFile { name: name.to_owned(), source, bytes });
    }
    Ok(files)
}

/// Returns the folder with `generation_config.json`: the adapter's if it has one, otherwise the base's.
pub fn generation_folder<'a>(base: &'a Path, adapter: Option<&'a Path>) -> &'a Path {
    adapter.filter(|folder| folder.join(GENERATION).is_file()).unwrap_or(base)
}

/// Changes to `config.json` for a new model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConfigChange {
    /// New element type, if it changes.
    pub dtype: Option<DType>,
    /// New `quantization_config`, if any.
    pub quantization: Option<Value>,
    /// New number of tokens, if it changes.
    pub vocab_size: Option<usize>,
    /// Whether the output head is the embedding table, if that changes.
    pub tie_word_embeddings: Option<bool>,
}

/// Returns the base's `config.json`, byte for byte if nothing changes.
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
        // transformers 5 writes `dtype`, 4 wrote `torch_dtype`. Both read `torch_dtype`.
        let present: Vec<&str> =
            ["dtype", "torch_dtype"].into_iter().filter(|k| config.contains_key(*k)).collect();
        let keys = if present.is_empty() { vec!["torch_dtype"] } else { present };
        for key in keys {
            config.insert(key.to_owned(), name.clone());
        }
    }
    if let Some(vocab_size) = change.vocab_size {
        config.insert("vocab_size".to_owned(), json!(vocab_size));
    }
    if let Some(tied) = change.tie_word_embeddings {
        config.insert("tie_word_embeddings".to_owned(), json!(tied));
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

/// Returns the name of an element type in `config.json`.
pub fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::Bf16 => "bfloat16",
        DType::F16 => "float16",
    }
}
