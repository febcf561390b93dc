//! The back end for NVIDIA GPUs.
//!
//! Nothing of CUDA is linked: the driver and cuBLASLt are opened at run time, and the kernels travel in the binary as
//! machine code for each architecture (`image.rs`). One stream runs everything in the order of the calls.

// Operations land one by one; the back end that calls them all comes last.
#![allow(dead_code)]

mod arena;
mod backend;
mod blas;
mod device;
mod driver;
mod error;
mod image;
mod launch;
mod library;
mod memory;
mod ops;
mod product;
mod staging;
mod survey;
#[cfg(test)]
mod tests;
mod weight;

pub use backend::{Cuda, CudaOptions};
pub use device::DeviceInfo;
pub use error::CudaError;
pub use library::PATH_VARIABLE;
pub use survey::{LibraryFile, Survey, device_count, survey};
