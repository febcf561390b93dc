//! CPU.
pub(crate) mod pool;
