//! Compares every operation on the device with the reference. Without a GPU, the tests print a message and
//! are skipped.

mod attention;
mod elementwise;
mod four_bit;
mod four_bit_fused;
mod gemv;
mod operations;
mod product;
mod recording;
mod rows;
mod training;

use std::sync::Arc;
use std::{env, fs};

use super::default_dtype;
use super::device::{Allocation, Device, DeviceInfo, DevicePtr, describe};
use super::driver::Driver;
use super::error::CudaError;
use super::ops::Rows;
use crate::rng::Stream;
use crate::{DType, from_f32, to_f32};

/// Environment variable. If it is set, the tests fail without a GPU.
const REQUIRE: &str = "DANLU_REQUIRE_GPU";

/// Environment variable with a folder of PTX for compute capability 7.5. If it is set, the tests run this PTX
/// instead of the device's own kernels.
const PTX_FOLDER: &str = "DANLU_TEST_PTX";
/// Bytes of shared memory per block at compute capability 7.5.
const SHARED_BYTES_75: u32 = 64 << 10;

/// Opens the first device. If [`PTX_FOLDER`] is set, it is opened as a device of compute capability 7.5.
fn open_first() -> Result<Arc<Device>, CudaError> {
    let driver = Driver::open()?;
    let Some(folder) = env::var_os(PTX_FOLDER) else { return Device::open(driver, 0) };
    let info = DeviceInfo { capability: (7, 5), shared: SHARED_BYTES_75, ..describe(&driver, 0)? };
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let images: Vec<Vec<u8>> = files.map(|path| fs::read(path).unwrap()).collect();
    Device::with_kernels(driver, info, &images)
}

/// Opens the first device. Returns `None` if there is no GPU.
///
/// Each test opens its own device, because operations of concurrent tests would otherwise share one
/// workspace.
fn device() -> Option<Arc<Device>> {
    match open_first() {
        Ok(device) => Some(device),
        Err(error) => {
            assert!(env::var_os(REQUIRE).is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

/// All types of stored values.
const DTYPES: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

/// Returns the activation types that a device supports.
fn dtypes(device: &Device) -> impl Iterator<Item = DType> {
    let has_bf16 = default_dtype(device.info.capability) == DType::Bf16;
    DTYPES.into_iter().filter(move |&dtype| has_bf16 || dtype != DType::Bf16)
}

/// Returns the largest accepted relative error. It allows for the rounding of inputs and outputs.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-5,
        DType::F16 => 2e-3,
        DType::Bf16 => 1e-2,
    }
}

/// Values of type `dtype` on the device.
struct Values {
    device: Arc<Device>,
    memory: Allocation,
    dtype: DType,
    len: usize,
}

impl Values {
    fn new(device: &Arc<Device>, dtype: DType, values: &[f32]) -> Self {
        let mut bytes = vec![0; values.len() * dtype.size()];
        from_f32(dtype, values, &mut bytes);
        let memory = upload(device, &bytes);
        Self { device: device.clone(), memory, dtype, len: values.len() }
    }

    /// Returns an output whose elements are NaN.
    fn poisoned(device: &Arc<Device>, dtype: DType, len: usize) -> Self {
        Self::new(device, dtype, &vec![f32::NAN; len])
    }

    fn ptr(&self) -> DevicePtr {
        self.memory.address()
    }

    fn read(&self) -> Vec<f32> {
        let mut bytes = vec![0; self.len * self.dtype.size()];
        self.device.download(&mut bytes, self.ptr()).unwrap();
        let mut values = vec![0.0; self.len];
        to_f32(self.dtype, &bytes, &mut values);
        values
    }
}

fn upload(device: &Arc<Device>, bytes: &[u8]) -> Allocation {
    let memory = device.allocate(bytes.len() as u64).unwrap();
    device.upload(memory.address(), bytes);
    memory
}

/// Uploads `u32` values.
fn words(device: &Arc<Device>, values: &[u32]) -> Allocation {
    upload(device, &values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>())
}

/// Returns random values that are rounded to `dtype`, so that the device and the reference get equal inputs.
fn rounded(stream: &mut Stream, dtype: DType, len: usize) -> Vec<f32> {
    let values: Vec<f32> = (0..len).map(|_| 2.0 * stream.next_uniform() - 1.0).collect();
    let mut bytes = vec![0; len * dtype.size()];
    from_f32(dtype, &values, &mut bytes);
    let mut out = vec![0.0; len];
    to_f32(dtype, &bytes, &mut out);
    out
}

/// Returns `‖found - expected‖ / ‖expected‖`. Returns NaN if any element is NaN.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let error: f64 = found.iter().zip(expected).map(|(&f, &e)| square(f as f64 - e as f64)).sum();
    let norm: f64 = expected.iter().map(|&e| square(e as f64)).sum();
    (error / norm.max(1e-30)).sqrt()
}

/// Panics if the relative error exceeds the tolerance of `dtype`.
fn assert_near(found: &[f32], expected: &[f32], dtype: DType, what: &str) {
    let error = relative_error(found, expected);
    assert!(error <= tolerance(dtype), "{what} in {dtype:?}: relative error {error:.2e}");
}
