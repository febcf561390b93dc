//! Errors of the driver, of the libraries and of the device.

use std::fmt;
use std::path::PathBuf;

/// An error that occurred while a device was opened or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaError {
    /// The driver's library is not installed.
    NoDriver,
    /// A library does not contain a function.
    MissingFunction {
        /// Path of the opened library.
        library: PathBuf,
        /// Name of the function.
        name: &'static str,
    },
    /// There is no device with the requested index.
    NoDevice {
        /// The requested index.
        index: usize,
        /// Number of devices in this machine.
        count: usize,
    },
    /// The danlu binary has no kernels for this architecture, or the driver rejects them.
    NoKernels {
        /// Compute capability of the device.
        capability: (u32, u32),
        /// Driver version, such as 13000 for CUDA 13.0.
        driver: u32,
    },
    /// The device does not support bf16.
    NoBf16 {
        /// Name of the device.
        name: String,
        /// Compute capability of the device.
        capability: (u32, u32),
    },
    /// The device has too little free memory.
    OutOfMemory {
        /// Requested bytes.
        wanted: u64,
        /// Free bytes on the device.
        free: u64,
        /// Total bytes of the device.
        total: u64,
    },
    /// A call of the driver or of a library failed.
    Call {
        /// Name of the kernel or function.
        operation: String,
        /// Name of the error, such as `CUDA_ERROR_ECC_UNCORRECTABLE`.
        code: String,
        /// The driver's description of the error.
        message: String,
    },
}

impl CudaError {
    /// Returns a hint for the user, as an imperative.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDriver => "install NVIDIA's driver, or run with `--device cpu`",
            Self::MissingFunction { .. } => "update NVIDIA's driver or the library named above",
            Self::NoDevice { .. } => "run `nvidia-smi -L` to list the devices, or run with `--device cpu`",
            Self::NoKernels { .. } => "update NVIDIA's driver, or run with `--device cpu`",
            Self::NoBf16 { .. } => "use `--dtype f16`",
            Self::OutOfMemory { .. } => "lower `--memory-limit`, or end other programs that use the device",
            Self::Call { .. } => "run `nvidia-smi` to see whether the device still answers",
        }
    }
}

impl fmt::Display for CudaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: &u64| *bytes as f64 / (1u64 << 30) as f64;
        match self {
            Self::NoDriver => write!(f, "cannot open `libcuda.so.1`: this machine has no NVIDIA driver"),
            Self::MissingFunction { library, name } => {
                write!(f, "cannot use `{}`: it has no function `{name}`", library.display())
            }
            Self::NoDevice { index, count } => {
                write!(f, "cannot open device {index}: this machine has {count} NVIDIA devices")
            }
            Self::NoKernels { capability: (major, minor), driver } => write!(
                f,
                "cannot load kernels for compute capability {major}.{minor} with driver {}.{}",
                driver / 1000,
                driver % 1000 / 10
            ),
            Self::NoBf16 { name, capability: (major, minor) } => {
                write!(
                    f,
                    "cannot compute in bf16 on `{name}`: compute capability {major}.{minor} has no bf16"
                )
            }
            Self::OutOfMemory { wanted, free, total } => write!(
                f,
                "cannot allocate {:.2} GiB on the device: {:.2} of {:.2} GiB are free",
                gib(wanted),
                gib(free),
                gib(total)
            ),
            Self::Call { operation, code, message } => {
                write!(f, "cannot run `{operation}` on the device: {message} ({code})")
            }
        }
    }
}

impl std::error::Error for CudaError {}
