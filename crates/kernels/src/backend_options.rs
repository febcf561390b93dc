//! The back ends that a dry run can stand for.

use crate::{CpuOptions, Trace};

/// The options of the back end that runs a job; they decide its data types and working memory.
#[derive(Clone, Copy, Debug)]
pub enum BackendOptions {
    /// A [`Cpu`](crate::Cpu).
    Cpu(CpuOptions),
}

impl BackendOptions {
    /// Returns a [`Trace`] of the back end with these options.
    ///
    /// # Panics
    /// If the options name an instruction set that this machine does not support.
    pub fn trace(self) -> Trace {
        match self {
            Self::Cpu(options) => Trace::new(options),
        }
    }
}

impl From<CpuOptions> for BackendOptions {
    fn from(options: CpuOptions) -> Self {
        Self::Cpu(options)
    }
}
