//! The back ends that a dry run can stand for.

use crate::cuda::{CudaOptions, CudaTarget};
use crate::{CpuOptions, Trace};

/// The options of the back end that runs a job; they decide its data types and working memory.
#[derive(Clone, Copy, Debug)]
pub enum BackendOptions {
    /// A [`Cpu`](crate::Cpu).
    Cpu(CpuOptions),
    /// A [`Cuda`](crate::cuda::Cuda).
    Cuda(CudaOptions),
}

impl BackendOptions {
    /// Returns a [`Trace`] of the back end with these options.
    ///
    /// `largest_four_bit` is the number of elements of the largest 4-bit weight, 0 without one. A device decodes it.
    ///
    /// # Panics
    /// If the options name an instruction set that this machine does not support.
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
