//! The back end for NVIDIA GPUs.
//!
//! The binary is not linked with any CUDA library. It opens the driver and cuBLASLt at run time. The binary
//! contains its kernels as machine code for several architectures, and as PTX for all others (`image.rs`).
//! All operations run on one stream, in call order.

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
mod recording;
mod staging;
mod survey;
mod target;
#[cfg(test)]
mod tests;
mod weight;

pub use backend::{Cuda, CudaOptions, default_dtype};
pub use device::DeviceInfo;
pub use error::CudaError;
pub use library::PATH_VARIABLE;
pub use survey::{LibraryFile, Survey, capability, device_count, free_memory, survey};
pub(crate) use target::CudaTarget;
pub use target::{HOST_BYTES, HOST_GRAPH_BYTES, placed_bytes, usable_bytes, usable_bytes_of};
