//! Facts that a user should see even if the model was loaded successfully.

use std::path::PathBuf;

use danlu_adapter::{Adapter, AdapterNote};
use danlu_hub::RepoName;
use danlu_kernels::FourBitCode;
use danlu_model::{Quantization, Tokenizer};

/// A fact that a user should see even if the model was loaded successfully. The caller writes the text for
/// each fact.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// Optional files are missing in the cache and could not be downloaded.
    IncompleteCache {
        /// Repository of the model.
        name: RepoName,
        /// Names of the files.
        files: Vec<&'static str>,
        /// The reason why the files could not be downloaded, such as `HF_HUB_OFFLINE`.
        reason: String,
    },
    /// The base is quantized with the quantization of the adapter's training.
    QuantizedAsTrained {
        /// Name of the adapter.
        name: String,
        /// 4-bit type of the quantization.
        code: FourBitCode,
    },
    /// The adapter names a 4-bit repository, so the base is quantized with the default settings of
    /// bitsandbytes.
    QuantizedAsNamed {
        /// The 4-bit repository.
        named: String,
        /// Folder of the 16-bit base.
        base: PathBuf,
    },
    /// The quantization of the stored base differs from the quantization in the adapter's training.
    OtherQuantization {
        /// Name of the adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// Quantization of the base in training.
        trained: Quantization,
        /// Quantization of the stored base.
        stored: Quantization,
    },
    /// The adapter was trained on an unquantized base, but the given base is stored in 4 bits.
    TrainedUnquantized {
        /// Name of the adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// 4-bit type of the stored base.
        code: FourBitCode,
    },
    /// The base is not the one on which the adapter was trained.
    OtherBase {
        /// Name of the adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// SHA-256 of the base that was used in training.
        trained: String,
        /// SHA-256 of the base in the folder.
        found: String,
        /// `owner/name@commit` of the base that was used in training, if known.
        trained_on: Option<String>,
    },
    /// The tokenizer and the template next to the adapter are used, and they differ from those of the base.
    AdapterTokens {
        /// One sentence for each difference.
        differences: Vec<String>,
    },
    /// The adapter was found in a subfolder. No other subfolder contains an adapter.
    AdapterInSubfolder {
        /// The subfolder.
        folder: PathBuf,
    },
    /// A note about the loaded adapter, such as a difference between its files and those that PEFT writes.
    Adapter {
        /// Name of the adapter.
        name: String,
        /// The note.
        note: AdapterNote,
    },
    /// The tokenizer file requests BPE dropout, which danlu does not apply.
    IgnoredDropout {
        /// Path of the tokenizer file.
        file: PathBuf,
        /// Share of the merges that the file tells the tokenizer to skip.
        dropout: f32,
    },
    /// The tokenizer or the template differs from that of the training, but the caller allows the difference.
    TokenMismatch {
        /// A sentence that names the folders whose tokens differ.
        summary: String,
        /// One sentence for each difference.
        differences: Vec<String>,
    },
}

impl Notice {
    /// Returns a notice for each note of a loaded adapter.
    pub fn of_adapter(name: &str, adapter: &Adapter) -> impl Iterator<Item = Self> {
        adapter.notes().iter().map(|note| Self::Adapter { name: name.to_owned(), note: note.clone() })
    }

    /// Returns a notice if the tokenizer file sets a dropout. danlu ignores this setting.
    pub fn ignored_dropout(tokenizer: &Tokenizer) -> Option<Self> {
        let dropout = tokenizer.ignored_dropout()?;
        Some(Self::IgnoredDropout { file: tokenizer.path().to_owned(), dropout })
    }
}
