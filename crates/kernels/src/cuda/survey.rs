//! What of CUDA this machine has, for `danlu doctor`.

use std::path::PathBuf;

use super::blas::{self, Blas};
use super::device::{self, DeviceInfo};
use super::driver::Driver;
use super::error::CudaError;

/// A library that was opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryFile {
    /// The file that is mapped.
    pub path: PathBuf,
    /// Its version, as the library counts: 130100 is 13.1.0.
    pub version: usize,
}

/// Driver, devices and libraries of this machine.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The driver's file and its version: 13000 is CUDA 13.0.
    pub driver: LibraryFile,
    /// Every device, and free bytes where it can be opened.
    pub devices: Vec<(DeviceInfo, Option<u64>)>,
    /// cuBLASLt; without it products run on danlu's own kernels, at half the speed.
    pub cublaslt: Option<LibraryFile>,
}

impl Survey {
    /// The one command that installs cuBLASLt.
    pub const CUBLASLT_INSTALL: &str = blas::INSTALL_COMMAND;
}

/// Devices of this machine.
///
/// # Errors
/// If there is no driver, or it fails.
pub fn device_count() -> Result<usize, CudaError> {
    match Driver::open() {
        // The driver of a machine whose device is gone.
        Err(CudaError::Call { code, .. }) if code == "CUDA_ERROR_NO_DEVICE" => Ok(0),
        driver => driver?.device_count(),
    }
}

/// Looks for a driver, devices and libraries. Opens a context on each device, and closes it.
///
/// # Errors
/// If there is no driver, or it fails.
pub fn survey() -> Result<Survey, CudaError> {
    let driver = Driver::open()?;
    let infos = device::list(&driver)?;
    let (mut devices, mut cublaslt) = (Vec::new(), None);
    for info in infos {
        let handle = driver.device(info.index)?;
        let free = driver.retain_context(handle).and_then(|context| {
            driver.set_context(context)?;
            let free = driver.memory_info()?.0;
            if cublaslt.is_none() {
                let blas = Blas::open(info.driver)?;
                cublaslt =
                    blas.map(|blas| LibraryFile { path: blas.path().to_owned(), version: blas.version() });
            }
            Ok(free)
        });
        driver.release_context(handle);
        devices.push((info, free.ok()));
    }
    let file = LibraryFile { path: driver.path().to_owned(), version: driver.version()? as usize };
    Ok(Survey { driver: file, devices, cublaslt })
}
