//! The back ends whose memory a dry run can predict.

use crate::cuda::{CudaOptions, CudaTarget};
use crate::{CpuOptions, Trace};

/// Options of the back end that runs a job. They determine the data types and the working memory.
#[derive(Clone, Copy, Debug)]
pub enum BackendOptions {
    /// Options of a [`Cpu`](crate::Cpu).
    Cpu(CpuOptions),
    /// Options of a [`Cuda`](crate::cuda::Cuda).
    Cuda(CudaOptions),
}

impl BackendOptions {
    /// Returns a [`Trace`] of the back end with these options.
    ///
    /// `largest_four_bit` is the number of elements of the largest 4-bit weight, or 0 without such weights.
    /// CUDA decodes 4-bit weights into working memory of this size.
    ///
    /// # Panics
    /// If the options contain an instruction set that this machine does not support.
    pub fn trace(self, largest_four_bit: usize) -> Trace {
        match self {
            Self::Cpu(options) => Trace::new(options),
            Self::Cuda(CudaOptions { dtype, .. }) => {
                Trace::of(Box::new(CudaTarget { dtype, largest_four_bit }))
            }
        }
    }
}

impl From<CpuOptions> for BackendOptions {
    fn from(options: CpuOptions) -> Self {
        Self::Cpu(options)
    }
}
