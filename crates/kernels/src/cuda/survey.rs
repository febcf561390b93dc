//! Lists the driver, the devices and the libraries for `danlu doctor`.

use std::path::PathBuf;

use super::blas::{self, Blas};
use super::device::{self, DeviceInfo};
use super::driver::Driver;
use super::error::CudaError;

/// An opened library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LibraryFile {
    /// Path of the mapped file.
    pub path: PathBuf,
    /// Version number of the library, such as 130100 for 13.1.
    pub version: usize,
}

/// The driver, the devices and the libraries of this machine.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The driver and its version, such as 13000 for CUDA 13.0.
    pub driver: LibraryFile,
    /// Every device. The number of free bytes is given if the device can be opened.
    pub devices: Vec<(DeviceInfo, Option<u64>)>,
    /// The cuBLASLt library. Without it, danlu's own slower kernels compute matrix products.
    pub cublaslt: Option<LibraryFile>,
}

impl Survey {
    /// Command that installs cuBLASLt.
    pub const CUBLASLT_INSTALL: &str = blas::INSTALL_COMMAND;
}

/// Returns the number of devices in this machine.
///
/// # Errors
/// If the driver is missing or fails.
pub fn device_count() -> Result<usize, CudaError> {
    match Driver::open() {
        // The driver returns this error on a machine whose device was removed.
        Err(CudaError::Call { code, .. }) if code == "CUDA_ERROR_NO_DEVICE" => Ok(0),
        driver => driver?.device_count(),
    }
}

/// Returns the compute capability of a device, such as `(9, 0)`.
///
/// # Errors
/// If the driver or the device is missing, or if it fails.
pub fn capability(index: usize) -> Result<(u32, u32), CudaError> {
    let devices = device::list(&Driver::open()?)?;
    let count = devices.len();
    devices.get(index).map(|info| info.capability).ok_or(CudaError::NoDevice { index, count })
}

/// Returns the free bytes of a device, measured while a context is open, because the context itself occupies
/// memory.
///
/// # Errors
/// If the driver or the device is missing, or if it fails.
pub fn free_memory(index: usize) -> Result<u64, CudaError> {
    let driver = Driver::open()?;
    let count = driver.device_count()?;
    if index >= count {
        return Err(CudaError::NoDevice { index, count });
    }
    let handle = driver.device(index)?;
    let free = driver.retain_context(handle).and_then(|context| {
        driver.set_context(context)?;
        Ok(driver.memory_info()?.0)
    });
    driver.release_context(handle);
    free
}

/// Lists the driver, the devices and the libraries. A context is opened and closed on each device.
///
/// # Errors
/// If the driver is missing or fails.
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
