//! Facts about a successful load that a user should see.

use std::path::PathBuf;

use danlu_adapter::{Adapter, AdapterNote};
use danlu_hub::RepoName;
use danlu_kernels::FourBitCode;
use danlu_model::{Quantization, Tokenizer};

/// A fact about a successful load. The caller words it.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// Optional files are missing in the cache, and the Hub could not be reached.
    IncompleteCache {
        /// Repository of the model.
        name: RepoName,
        /// Names of the files.
        files: Vec<&'static str>,
        /// Why the Hub could not be reached.
        reason: String,
    },
    /// The base is quantized as in the adapter's training.
    QuantizedAsTrained {
        /// Name of the adapter.
        name: String,
        /// Code of the quantization.
        code: FourBitCode,
    },
    /// The adapter names a 4-bit repository. The base is quantized with bitsandbytes' defaults.
    QuantizedAsNamed {
        /// The 4-bit repository.
        named: String,
        /// Folder of the 16-bit base.
        base: PathBuf,
    },
    /// The stored quantization of the base differs from that of the adapter's training.
    OtherQuantization {
        /// Name of the adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// Quantization in training.
        trained: Quantization,
        /// Quantization in the folder.
        stored: Quantization,
    },
    /// The adapter was trained on a 16-bit base, and this base is stored in 4 bits.
    TrainedUnquantized {
        /// Name of the adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// Code of the base.
        code: FourBitCode,
    },
    /// The base differs from that of the adapter's training.
    OtherBase {
        /// Name of the adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// SHA-256 of the base in training.
        trained: String,
        /// SHA-256 of the base in the folder.
        found: String,
        /// `owner/name@commit` of the base in training, if known.
        trained_on: Option<String>,
    },
    /// The tokenizer and template next to the adapter differ from those of the base, and are used.
    AdapterTokens {
        /// The differences, one sentence each.
        differences: Vec<String>,
    },
    /// The adapter is in the only subfolder that contains one.
    AdapterInSubfolder {
        /// The subfolder.
        folder: PathBuf,
    },
    /// The adapter's files differ from those that PEFT writes.
    Adapter {
        /// The adapter.
        name: String,
        /// In what.
        note: AdapterNote,
    },
    /// The tokenizer file requests BPE dropout, which danlu does not apply.
    IgnoredDropout {
        /// `tokenizer.json`.
        file: PathBuf,
        /// The share of merges.
        dropout: f32,
    },
    /// The tokens differ from those of the training, and the caller allows that.
    TokenMismatch {
        /// The files that differ.
        summary: String,
        /// The differences, one sentence each.
        differences: Vec<String>,
    },
}

impl Notice {
    /// A notice for each note of an adapter that was loaded.
    pub fn of_adapter(name: &str, adapter: &Adapter) -> impl Iterator<Item = Self> {
        adapter.notes().iter().map(|note| Self::Adapter { name: name.to_owned(), note: note.clone() })
    }

    /// Returns a notice if the tokenizer's file sets a dropout, which danlu ignores.
    pub fn ignored_dropout(tokenizer: &Tokenizer) -> Option<Self> {
        let dropout = tokenizer.ignored_dropout()?;
        Some(Self::IgnoredDropout { file: tokenizer.path().to_owned(), dropout })
    }
}
