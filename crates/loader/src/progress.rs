//! Progress of long work.

use std::ops::ControlFlow;

use danlu_hub::{Pulled, RepoName, Transfer};
use danlu_kernels::FourBitCode;
use danlu_model::QuantizeProgress;

/// Progress of long work.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// The Hub lists the files of a model that the cache lacks.
    FetchStarted {
        /// Repository of the model.
        name: &'a RepoName,
    },
    /// Files of the model are transferred.
    Fetching {
        /// Repository of the model.
        name: &'a RepoName,
        /// Bytes so far.
        transfer: Transfer,
        /// Seconds since the start.
        seconds: f64,
    },
    /// The transfer ended.
    FetchEnded {
        /// Repository of the model.
        name: &'a RepoName,
        /// The model in the cache, or `None` after an error.
        pulled: Option<&'a Pulled>,
        /// Seconds since the start.
        seconds: f64,
    },
    /// Weights are quantized.
    Quantizing {
        /// Code of the quantization.
        code: FourBitCode,
        /// Bytes so far.
        progress: QuantizeProgress,
    },
}

/// Receives [`Progress`].
///
/// `ControlFlow::Break` stops a quantization. A transfer from the Hub has no safe point to stop, so it
/// continues.
pub type Observer<'a> = dyn Fn(Progress<'_>) -> ControlFlow<()> + 'a;
