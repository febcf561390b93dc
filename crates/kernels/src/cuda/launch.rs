//! Builds and runs one kernel launch.

use std::ffi::c_void;
use std::ptr;

use super::device::{Device, DevicePtr};
use super::driver::Shape;
use super::error::CudaError;
use super::recording::Kernel;
use crate::DType;
use crate::cpu::pool::lock;

/// Maximum number of parameters of a kernel.
const MAX_PARAMETERS: usize = 32;
/// Bytes of dynamic shared memory that every kernel may use. A kernel that uses more requires
/// `Driver::allow_shared`.
const DEFAULT_SHARED_BYTES: u32 = 48 << 10;

/// A launch that is being prepared. Parameters must be added in the kernel's order.
pub(super) struct KernelLaunch<'a> {
    device: &'a Device,
    name: &'static str,
    dtype: Option<DType>,
    shape: Shape,
    /// Value of each parameter, in the lowest bytes of a `u64`.
    values: [u64; MAX_PARAMETERS],
    /// Address and size of each structure parameter. The address is null for a scalar parameter.
    structures: [(*const c_void, usize); MAX_PARAMETERS],
    count: usize,
}

impl<'a> KernelLaunch<'a> {
    pub fn new(device: &'a Device, name: &'static str, dtype: Option<DType>) -> Self {
        let shape = Shape { grid: [1; 3], block: 1, shared: 0, overlaps: false };
        Self {
            device,
            name,
            dtype,
            shape,
            values: [0; MAX_PARAMETERS],
            structures: [(ptr::null(), 0); MAX_PARAMETERS],
            count: 0,
        }
    }

    /// Sets the number of blocks along each dimension.
    ///
    /// # Panics
    /// If a number does not fit in 32 bits.
    pub fn grid(mut self, x: usize, y: usize, z: usize) -> Self {
        self.shape.grid = [x, y, z].map(|n| u32::try_from(n).expect("a grid fits in 32 bits"));
        self
    }

    pub fn block(mut self, threads: u32) -> Self {
        self.shape.block = threads;
        self
    }

    pub fn shared(mut self, bytes: usize) -> Self {
        self.shape.shared = bytes as u32;
        self
    }

    /// On devices of compute capability 9, 10 and 12, lets the kernel start before the previous kernel of the
    /// stream has ended. The kernel must call `overlap_kernels` of `prelude.cuh`.
    pub fn overlapping(mut self) -> Self {
        // Only cubins for these devices contain the instruction that blocks until the previous kernel has
        // ended. PTX for later devices does not.
        self.shape.overlaps = matches!(self.device.info.capability.0, 9 | 10 | 12);
        self
    }

    fn value(mut self, bits: u64) -> Self {
        self.values[self.count] = bits;
        self.count += 1;
        self
    }

    pub fn ptr(self, address: DevicePtr) -> Self {
        self.value(address.0)
    }

    /// Adds an `int` parameter.
    ///
    /// # Panics
    /// If the value exceeds the range of `int`.
    pub fn int(self, value: usize) -> Self {
        let value = i32::try_from(value).expect("a size fits in an int");
        self.value(value as u32 as u64)
    }

    pub fn long(self, value: usize) -> Self {
        self.value(value as u64)
    }

    pub fn float(self, value: f32) -> Self {
        self.value(value.to_bits() as u64)
    }

    /// Adds a structure parameter by value. `T` must be `repr(C)`, must have the kernel's layout, and must
    /// have no padding.
    pub fn structure<T: Copy>(mut self, value: &'a T) -> Self {
        self.structures[self.count] = (ptr::from_ref(value).cast(), size_of::<T>());
        self.count += 1;
        self
    }

    /// Launches the kernel, or records it for a later launch. Does nothing if the device has failed or if the
    /// grid is empty.
    pub fn run(self) {
        if self.shape.grid.contains(&0) || self.device.has_failed() {
            return;
        }
        let device = self.device;
        device.count_launch();
        device.record(self.launch());
    }

    fn launch(self) -> Result<(), CudaError> {
        let Device { driver, stream, .. } = self.device;
        self.device.activate()?;
        let function = self.device.function(self.name, self.dtype).ok_or_else(|| CudaError::Call {
            operation: self.name.to_owned(),
            code: "CUDA_ERROR_NOT_FOUND".to_owned(),
            message: "no module of this architecture has the kernel".to_owned(),
        })?;
        if self.shape.shared > DEFAULT_SHARED_BYTES {
            driver.allow_shared(function, self.shape.shared)?;
        }
        let values =
            self.values.each_ref().map(|value| (ptr::from_ref(value).cast::<c_void>(), size_of::<u64>()));
        let parameters = values.into_iter().zip(self.structures).take(self.count);
        let parameters =
            parameters.map(|(value, structure)| if structure.0.is_null() { value } else { structure });
        let kernel = Kernel { name: self.name, function, shape: self.shape };
        // SAFETY: a parameter is a number, or a structure that the launch borrows.
        if unsafe { lock(&self.device.recorder).take_kernel(kernel, parameters.clone()) } {
            return Ok(());
        }
        let mut arguments = [ptr::null_mut(); MAX_PARAMETERS];
        for (argument, (address, _)) in arguments.iter_mut().zip(parameters) {
            *argument = address.cast_mut();
        }
        // SAFETY: each argument points to a value of its parameter's type, and each operation has checked the
        // shapes of its buffers.
        driver.check(self.name, unsafe { driver.launch(function, self.shape, *stream, &mut arguments) })
    }
}
