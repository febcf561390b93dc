//! Reports of work that takes long.

use std::ops::ControlFlow;

use danlu_hub::{Pulled, RepoName, Transfer};
use danlu_kernels::FourBitCode;
use danlu_model::QuantizeProgress;

/// A report of work that takes long.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// The Hub lists the files of a model that the cache lacks.
    FetchStarted {
        /// Its name.
        name: &'a RepoName,
    },
    /// Files of the model arrive.
    Fetching {
        /// Its name.
        name: &'a RepoName,
        /// Bytes so far.
        transfer: Transfer,
        /// Seconds since the start.
        seconds: f64,
    },
    /// The transfer ended.
    FetchEnded {
        /// Its name.
        name: &'a RepoName,
        /// The model in the cache; none after an error.
        pulled: Option<&'a Pulled>,
        /// Seconds since the start.
        seconds: f64,
    },
    /// Weights are quantized.
    Quantizing {
        /// The code.
        code: FourBitCode,
        /// Bytes so far.
        progress: QuantizeProgress,
    },
}

/// Receives [`Progress`].
///
/// `ControlFlow::Break` stops a quantization. A transfer from the Hub has no safe place to stop, so it goes
/// on.
pub type Observer<'a> = dyn Fn(Progress<'_>) -> ControlFlow<()> + 'a;
