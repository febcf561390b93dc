//! Every operation on the device against the reference. A machine without a GPU skips them, and says so.

mod product;

use std::env;
use std::sync::{Arc, OnceLock};

use super::device::{Allocation, Device, DevicePtr, Element};
use super::driver::Driver;
use super::error::CudaError;
use crate::rng::Stream;
use crate::{DType, from_f32, to_f32};

/// Set where a missing GPU is a failure.
const REQUIRE: &str = "DANLU_REQUIRE_GPU";

/// The first device, or `None` where there is none.
fn device() -> Option<Arc<Device>> {
    static DEVICE: OnceLock<Result<Arc<Device>, CudaError>> = OnceLock::new();
    match DEVICE.get_or_init(|| Device::open(Driver::open()?, 0)) {
        Ok(device) => Some(device.clone()),
        Err(error) => {
            assert!(env::var_os(REQUIRE).is_none(), "{error}");
            eprintln!("skipped: {error}");
            None
        }
    }
}

impl Element {
    const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::F16];

    fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
        }
    }

    /// What of a result's norm its error may be: the rounding of inputs and outputs.
    fn tolerance(self) -> f64 {
        match self {
            Self::F32 => 1e-5,
            Self::F16 => 2e-3,
            Self::Bf16 => 1e-2,
        }
    }
}

/// Values on the device, of type `element`.
struct Values {
    memory: Allocation,
    element: Element,
    len: usize,
}

impl Values {
    fn new(device: &Arc<Device>, element: Element, values: &[f32]) -> Self {
        let mut bytes = vec![0; values.len() * element.size()];
        from_f32(element.dtype(), values, &mut bytes);
        let memory = device.allocate(bytes.len() as u64).unwrap();
        device.upload(memory.address(), &bytes);
        Self { memory, element, len: values.len() }
    }

    /// Elements that no operation has written.
    fn poisoned(device: &Arc<Device>, element: Element, len: usize) -> Self {
        Self::new(device, element, &vec![f32::NAN; len])
    }

    fn ptr(&self) -> DevicePtr {
        self.memory.address()
    }

    fn read(&self) -> Vec<f32> {
        let mut bytes = vec![0; self.len * self.element.size()];
        self.memory.device().download(&mut bytes, self.ptr()).unwrap();
        let mut values = vec![0.0; self.len];
        to_f32(self.element.dtype(), &bytes, &mut values);
        values
    }
}

/// Random values as `element` rounds them: an operation and its reference begin with the same numbers.
fn rounded(stream: &mut Stream, element: Element, len: usize) -> Vec<f32> {
    let values: Vec<f32> = (0..len).map(|_| 2.0 * stream.next_uniform() - 1.0).collect();
    let mut bytes = vec![0; len * element.size()];
    from_f32(element.dtype(), &values, &mut bytes);
    let mut out = vec![0.0; len];
    to_f32(element.dtype(), &bytes, &mut out);
    out
}

/// `‖found - expected‖ / ‖expected‖`, NaN if anything is.
fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f64| x * x;
    let error: f64 = found.iter().zip(expected).map(|(&f, &e)| square(f as f64 - e as f64)).sum();
    let norm: f64 = expected.iter().map(|&e| square(e as f64)).sum();
    (error / norm.max(1e-30)).sqrt()
}

/// Fails unless `found` is as near to `expected` as `element` can be.
fn assert_near(found: &[f32], expected: &[f32], element: Element, what: &str) {
    let error = relative_error(found, expected);
    assert!(error <= element.tolerance(), "{what} in {element:?}: relative error {error:.2e}");
}
