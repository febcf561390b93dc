//! Errors of the device, each with the operation that met it.

use std::fmt;
use std::path::PathBuf;

/// Why a device cannot be opened, or stopped working.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CudaError {
    /// The driver's library is not on this machine.
    NoDriver,
    /// A library has no function of this name.
    MissingFunction {
        /// The file that was opened.
        library: PathBuf,
        /// The function.
        name: &'static str,
    },
    /// There are fewer devices than the number asked for.
    NoDevice {
        /// The number asked for.
        index: usize,
        /// Devices on this machine.
        count: usize,
    },
    /// No kernels were built for this architecture, or the driver rejects them.
    NoKernels {
        /// Compute capability.
        capability: (u32, u32),
        /// The driver's version, such as 13000.
        driver: u32,
    },
    /// The device's memory does not suffice.
    OutOfMemory {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes free on the device.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// A function of the driver or of a library failed.
    Call {
        /// What ran: a kernel, or a function of the driver.
        operation: String,
        /// The name of the error, such as `CUDA_ERROR_ECC_UNCORRECTABLE`.
        code: String,
        /// The driver's sentence about it.
        message: String,
    },
}

impl CudaError {
    /// The next step, as an imperative.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::NoDriver => "install NVIDIA's driver, or run with `--device cpu`",
            Self::MissingFunction { .. } => "update NVIDIA's driver or the library named above",
            Self::NoDevice { .. } => "run `nvidia-smi -L` to list the devices, or run with `--device cpu`",
            Self::NoKernels { .. } => "update NVIDIA's driver, or run with `--device cpu`",
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
