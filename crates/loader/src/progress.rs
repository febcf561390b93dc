//! Progress of long operations.

use std::ops::ControlFlow;

use danlu_hub::{Pulled, RepoName, Transfer};
use danlu_kernels::FourBitCode;
use danlu_model::QuantizeProgress;

/// Progress of long operations.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'a> {
    /// The loader is about to request the list of the repository's files from the Hub.
    FetchStarted {
        /// Repository of the model.
        name: &'a RepoName,
    },
    /// The files of the model are being downloaded.
    Fetching {
        /// Repository of the model.
        name: &'a RepoName,
        /// Number of bytes so far.
        transfer: Transfer,
        /// Seconds since the download started.
        seconds: f64,
    },
    /// The download succeeded or failed.
    FetchEnded {
        /// Repository of the model.
        name: &'a RepoName,
        /// The model in the cache, or `None` if there was an error.
        pulled: Option<&'a Pulled>,
        /// Seconds since the download started.
        seconds: f64,
    },
    /// Weights are being quantized.
    Quantizing {
        /// 4-bit type of the quantization.
        code: FourBitCode,
        /// Number of bytes so far.
        progress: QuantizeProgress,
    },
}

/// A function that receives the [`Progress`] of a [`Loader`](crate::Loader).
///
/// `ControlFlow::Break` stops a quantization. As an answer to [`Progress::FetchStarted`], `Break` prevents
/// the download. A download that has started cannot be stopped.
pub type Observer<'a> = dyn Fn(Progress<'_>) -> ControlFlow<()> + 'a;
