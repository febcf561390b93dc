//! What a user should know about a load that succeeds.

use std::path::PathBuf;

use danlu_hub::RepoName;
use danlu_kernels::FourBitCode;
use danlu_model::Quantization;

/// A fact about a load that succeeds. The caller puts it into words.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// Optional files are missing from the cache, and the Hub could not be asked for them.
    IncompleteCache {
        /// The model.
        name: RepoName,
        /// Names of the files.
        files: Vec<&'static str>,
        /// Why the Hub could not be asked.
        reason: String,
    },
    /// The base is quantized as it was for the adapter's training.
    QuantizedAsTrained {
        /// The adapter.
        name: String,
        /// The code.
        code: FourBitCode,
    },
    /// The adapter names a 4-bit repository, and the base is quantized as bitsandbytes does by default.
    QuantizedAsNamed {
        /// The repository.
        named: String,
        /// Folder of the 16-bit base.
        base: PathBuf,
    },
    /// The base is stored in other 4 bits than those of the adapter's training.
    OtherQuantization {
        /// The adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// In training.
        trained: Quantization,
        /// In the folder.
        stored: Quantization,
    },
    /// The adapter was trained on a 16-bit base, and the base is stored in 4 bits.
    TrainedUnquantized {
        /// The adapter.
        name: String,
        /// Folder of the base.
        base: PathBuf,
        /// The code of the base.
        code: FourBitCode,
    },
    /// The base is not the one that the adapter was trained on.
    OtherBase {
        /// The adapter.
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
    /// The tokenizer and template beside the adapter differ from those of the base, and are used.
    AdapterTokens {
        /// The differences, one sentence each.
        differences: Vec<String>,
    },
    /// The tokens differ from those of training, and the caller allows that.
    TokenMismatch {
        /// Where.
        summary: String,
        /// The differences, one sentence each.
        differences: Vec<String>,
    },
}
