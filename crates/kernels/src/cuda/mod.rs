//! The back end for NVIDIA GPUs.
//!
//! The binary links no CUDA library. It opens the driver and cuBLASLt at run time and contains its kernels as machine
//! code for each architecture (`image.rs`). All operations run on one stream in call order.

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
