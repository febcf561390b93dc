//! An open device, with its context, stream, kernels and memory.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use super::arena::Arena;
use super::driver::{Driver, Handle, attribute};
use super::error::CudaError;
use super::image;
use super::launch::KernelLaunch;
use super::recording::Recorder;
use super::staging::Staging;
use crate::DType;
use crate::cpu::pool::lock;

/// Bytes of scratch memory that each operation may use while it runs.
pub(super) const WORKSPACE_BYTES: u64 = 64 << 20;

/// A device address.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct DevicePtr(pub u64);

impl DevicePtr {
    /// The null address, for an optional kernel operand that is absent.
    pub const NULL: Self = Self(0);

    /// Returns the address that is `bytes` bytes later.
    pub fn plus(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Properties of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Index of the device.
    pub index: usize,
    /// Name of the device, such as `NVIDIA H200`.
    pub name: String,
    /// Compute capability of the device, such as `(9, 0)`.
    pub capability: (u32, u32),
    /// Number of streaming multiprocessors.
    pub multiprocessors: u32,
    /// Total memory in bytes.
    pub memory: u64,
    /// Maximum number of bytes of shared memory per block.
    pub shared: u32,
    /// Driver version, such as 13000 for CUDA 13.0.
    pub driver: u32,
}

/// Loaded kernels, by name and element type. The value is `None` if the device does not have this kernel.
type Functions = HashMap<(&'static str, Option<DType>), Option<Handle>>;

/// One open device. Operations on it run in launch order.
///
/// All launches use the same workspace, so only one thread at a time may run operations.
pub(super) struct Device {
    pub driver: Driver,
    pub info: DeviceInfo,
    pub stream: Handle,
    context: Handle,
    handle: i32,
    modules: Vec<Handle>,
    functions: Mutex<Functions>,
    arena: Mutex<Arena>,
    staging: Mutex<Staging>,
    pub recorder: Mutex<Recorder>,
    /// The first error of the device. After an error, no kernel is launched.
    fault: Mutex<Option<CudaError>>,
    workspace: DevicePtr,
    launches: AtomicU64,
    uploads: AtomicU64,
}

// SAFETY: the driver accepts its handles on any thread. `activate` binds the context to the calling thread
// before each use.
unsafe impl Send for Device {}
// SAFETY: the driver accepts its handles on any thread. Mutexes guard all mutable state.
unsafe impl Sync for Device {}

/// Returns the properties of every device in this machine.
pub(super) fn list(driver: &Driver) -> Result<Vec<DeviceInfo>, CudaError> {
    (0..driver.device_count()?).map(|index| describe(driver, index)).collect()
}

/// Reads the properties of a device.
pub(super) fn describe(driver: &Driver, index: usize) -> Result<DeviceInfo, CudaError> {
    let device = driver.device(index)?;
    let read = |which| driver.attribute(device, which);
    Ok(DeviceInfo {
        index,
        name: driver.device_name(device)?,
        capability: (read(attribute::CAPABILITY_MAJOR)?, read(attribute::CAPABILITY_MINOR)?),
        multiprocessors: read(attribute::MULTIPROCESSORS)?,
        memory: driver.device_memory(device)?,
        shared: read(attribute::MAX_SHARED_BYTES)?,
        driver: driver.version()?,
    })
}

/// Returns the suffix of kernel names for an activation type.
fn suffix(dtype: DType) -> &'static str {
    match dtype {
        DType::Bf16 => "bf16",
        DType::F16 => "f16",
        DType::F32 => "f32",
    }
}

impl Device {
    /// Opens device `index` and loads its kernels.
    pub fn open(driver: Driver, index: usize) -> Result<Arc<Self>, CudaError> {
        let count = driver.device_count()?;
        if index >= count {
            return Err(CudaError::NoDevice { index, count });
        }
        let info = describe(&driver, index)?;
        let images = image::for_device(info.capability, info.driver)?;
        Self::with_kernels(driver, info, &images)
    }

    /// Opens the device that `info` describes, and loads the kernels in `images`.
    pub fn with_kernels(
        driver: Driver,
        info: DeviceInfo,
        images: &[Vec<u8>],
    ) -> Result<Arc<Self>, CudaError> {
        let handle = driver.device(info.index)?;
        let context = driver.retain_context(handle)?;
        driver.set_context(context)?;
        let stream = driver.create_stream()?;
        let load = |image: &Vec<u8>| driver.load_module(image);
        let refused = |_| CudaError::NoKernels { capability: info.capability, driver: info.driver };
        let modules = images.iter().map(load).collect::<Result<_, _>>().map_err(refused)?;
        let staging = Staging::new(&driver)?;
        let mut arena = Arena::default();
        let workspace = DevicePtr(arena.allocate(&driver, WORKSPACE_BYTES)?);
        Ok(Arc::new(Self {
            info,
            stream,
            context,
            handle,
            modules,
            functions: Mutex::default(),
            arena: Mutex::new(arena),
            staging: Mutex::new(staging),
            recorder: Mutex::default(),
            fault: Mutex::default(),
            workspace,
            launches: AtomicU64::default(),
            uploads: AtomicU64::default(),
            driver,
        }))
    }

    /// Binds the context to the calling thread.
    pub fn activate(&self) -> Result<(), CudaError> {
        self.driver.set_context(self.context)
    }

    /// Prepares a launch of the kernel `name` for activations of type `dtype`.
    pub fn kernel(&self, name: &'static str, dtype: DType) -> KernelLaunch<'_> {
        KernelLaunch::new(self, name, Some(dtype))
    }

    /// Prepares a launch of the kernel `name`, which has no type suffix.
    pub fn exact(&self, name: &'static str) -> KernelLaunch<'_> {
        KernelLaunch::new(self, name, None)
    }

    /// Returns whether the device has the kernel `name` for `dtype`.
    pub fn has(&self, name: &'static str, dtype: DType) -> bool {
        self.function(name, Some(dtype)).is_some()
    }

    /// Returns the kernel from the first module that contains it.
    pub fn function(&self, name: &'static str, dtype: Option<DType>) -> Option<Handle> {
        *lock(&self.functions).entry((name, dtype)).or_insert_with(|| {
            let full = dtype.map_or(name.to_owned(), |dtype| format!("{name}_{}", suffix(dtype)));
            let full = CString::new(full).expect("a kernel's name has no zero byte");
            self.activate().ok()?;
            self.modules.iter().find_map(|&module| self.driver.module_function(module, &full))
        })
    }

    /// Returns the scratch memory. The next call of this function returns the same memory.
    ///
    /// # Panics
    /// If `bytes` exceeds [`WORKSPACE_BYTES`].
    pub fn workspace(&self, bytes: usize) -> DevicePtr {
        assert!(bytes as u64 <= WORKSPACE_BYTES, "an operation wants {bytes} bytes of scratch");
        self.workspace
    }

    /// Returns the number of launches since the device was opened.
    pub fn launches(&self) -> u64 {
        self.launches.load(Ordering::Relaxed)
    }

    /// Returns the number of uploads. If the number has changed, data that was computed from an uploaded list
    /// may be outdated.
    pub fn uploads(&self) -> u64 {
        self.uploads.load(Ordering::Relaxed)
    }

    pub fn count_launch(&self) {
        self.launches.fetch_add(1, Ordering::Relaxed);
    }

    /// Runs `operations` as one sequence. A sequence that equals an earlier one becomes a CUDA graph.
    pub fn run_sequence(&self, operations: &mut dyn FnMut()) {
        lock(&self.recorder).begin();
        let _clear = ClearRecorder(self);
        operations();
        if !self.has_failed() {
            self.record(self.activate().and_then(|()| lock(&self.recorder).end(self)));
        }
    }

    /// Launches recorded work. This function must be called before every driver call that must run after the
    /// recorded work.
    fn flush(&self) {
        if !self.has_failed() {
            self.record(self.activate().and_then(|()| lock(&self.recorder).flush(self)));
        }
    }

    /// Returns the number of sequences that ran as a CUDA graph.
    pub fn replays(&self) -> u64 {
        lock(&self.recorder).replays()
    }

    /// Stores the error of `result`, unless an earlier error is already stored.
    pub fn record(&self, result: Result<(), CudaError>) {
        if let Err(error) = result {
            lock(&self.fault).get_or_insert(error);
        }
    }

    /// Returns whether an error is stored.
    pub fn has_failed(&self) -> bool {
        lock(&self.fault).is_some()
    }

    /// Returns the stored error, if there is one.
    pub fn check(&self) -> Result<(), CudaError> {
        lock(&self.fault).clone().map_or(Ok(()), Err)
    }

    /// Returns the bytes that are allocated now, and their peak.
    pub fn allocated(&self) -> (u64, u64) {
        lock(&self.arena).in_use()
    }

    /// Returns the free and the total bytes of the device.
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        self.activate()?;
        self.driver.memory_info()
    }

    /// Allocates device memory without initialising it.
    pub fn allocate(self: &Arc<Self>, bytes: u64) -> Result<Allocation, CudaError> {
        self.flush();
        self.activate()?;
        let address = lock(&self.arena).allocate(&self.driver, bytes)?;
        Ok(Allocation { device: self.clone(), address: DevicePtr(address), bytes })
    }

    /// Sets `bytes` bytes to `value`. The first of these bytes is at `to`.
    pub fn fill(&self, to: DevicePtr, value: u8, bytes: usize) {
        if bytes == 0 || self.has_failed() {
            return;
        }
        if lock(&self.recorder).take_fill(to, value, bytes) {
            return;
        }
        // SAFETY: callers pass ranges inside their own allocations.
        self.record(
            self.activate().and_then(|()| unsafe { self.driver.fill(to.0, value, bytes, self.stream) }),
        );
    }

    /// Copies `bytes` bytes within the device.
    pub fn copy(&self, to: DevicePtr, from: DevicePtr, bytes: usize) {
        if bytes == 0 || self.has_failed() {
            return;
        }
        if lock(&self.recorder).take_copy(to, from, bytes) {
            return;
        }
        // SAFETY: callers pass disjoint ranges inside their own allocations.
        let copy = |()| unsafe { self.driver.copy_within(to.0, from.0, bytes, self.stream) };
        self.record(self.activate().and_then(copy));
    }

    /// Copies `bytes` to the device, in launch order.
    pub fn upload(&self, to: DevicePtr, bytes: &[u8]) {
        if self.has_failed() {
            return;
        }
        self.flush();
        self.uploads.fetch_add(1, Ordering::Relaxed);
        let upload = |()| lock(&self.staging).upload(&self.driver, self.stream, to, bytes);
        self.record(self.activate().and_then(upload));
    }

    /// Copies from the device after all earlier launches have finished.
    pub fn download(&self, to: &mut [u8], from: DevicePtr) -> Result<(), CudaError> {
        self.flush();
        self.check()?;
        let download = |()| lock(&self.staging).download(&self.driver, self.stream, to, from);
        self.record(self.activate().and_then(download));
        self.check()
    }

    fn free(&self, address: DevicePtr) {
        self.flush();
        if self.activate().is_ok() {
            lock(&self.arena).free(&self.driver, address.0);
        }
    }
}

/// Ends a sequence on drop, even if an operation panics.
struct ClearRecorder<'a>(&'a Device);

impl Drop for ClearRecorder<'_> {
    fn drop(&mut self) {
        lock(&self.0.recorder).clear();
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.activate().is_err() {
            return;
        }
        self.record(self.driver.synchronize(self.stream));
        lock(&self.recorder).release(self);
        lock(&self.staging).release(&self.driver);
        lock(&self.arena).release(&self.driver);
        // SAFETY: no kernel is launched after this.
        unsafe { self.driver.destroy_stream(self.stream) };
        self.driver.release_context(self.handle);
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({}: {})", self.info.index, self.info.name)
    }
}

/// Device memory that is freed on drop. Earlier launches may still use the memory after the drop. This is
/// safe, because later operations that reuse the memory run on the same stream, after those launches.
#[derive(Debug)]
pub(super) struct Allocation {
    device: Arc<Device>,
    address: DevicePtr,
    bytes: u64,
}

impl Allocation {
    pub fn address(&self) -> DevicePtr {
        self.address
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        self.device.free(self.address);
    }
}
