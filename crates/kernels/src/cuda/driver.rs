//! The functions of the driver API that danlu calls.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr;

use super::error::CudaError;
use super::library::OpenLibrary;

/// Handle of a context, stream, event, module or function of the driver.
pub(super) type Handle = *mut c_void;

/// Values of `CUdevice_attribute`.
pub(super) mod attribute {
    pub const MULTIPROCESSORS: i32 = 16;
    pub const CAPABILITY_MAJOR: i32 = 75;
    pub const CAPABILITY_MINOR: i32 = 76;
    pub const MAX_SHARED_BYTES: i32 = 97;
}

/// Value of `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_int = 8;
const SUCCESS: c_int = 0;
const OUT_OF_MEMORY: c_int = 2;
const STREAM_NON_BLOCKING: c_uint = 1;
/// Value of `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
const OVERLAP_ATTRIBUTE: c_int = 6;
/// Value of `CU_STREAM_CAPTURE_MODE_THREAD_LOCAL`.
const CAPTURE_THREAD: c_int = 1;

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($arg:ty),*);)*) => {
        /// Function pointers of the driver. Each function returns a `CUresult`.
        pub(super) struct Driver {
            library: OpenLibrary,
            $($field: unsafe extern "C" fn($($arg),*) -> c_int,)*
        }

        impl Driver {
            fn load(library: OpenLibrary) -> Result<Self, CudaError> {
                // SAFETY: the function types are copied from `cuda.h`.
                unsafe { Ok(Self { $($field: library.function($name)?,)* library }) }
            }
        }
    };
}

functions! {
    init = "cuInit": fn(c_uint);
    driver_version = "cuDriverGetVersion": fn(*mut c_int);
    device_count = "cuDeviceGetCount": fn(*mut c_int);
    device_get = "cuDeviceGet": fn(*mut c_int, c_int);
    device_name = "cuDeviceGetName": fn(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int);
    device_memory = "cuDeviceTotalMem_v2": fn(*mut usize, c_int);
    context_retain = "cuDevicePrimaryCtxRetain": fn(*mut Handle, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2": fn(c_int);
    context_set = "cuCtxSetCurrent": fn(Handle);
    memory_info = "cuMemGetInfo_v2": fn(*mut usize, *mut usize);
    memory_alloc = "cuMemAlloc_v2": fn(*mut u64, usize);
    memory_free = "cuMemFree_v2": fn(u64);
    host_alloc = "cuMemHostAlloc": fn(*mut *mut c_void, usize, c_uint);
    host_free = "cuMemFreeHost": fn(*mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2": fn(u64, *const c_void, usize, Handle);
    copy_to_host = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, u64, usize, Handle);
    copy_within = "cuMemcpyDtoDAsync_v2": fn(u64, u64, usize, Handle);
    fill_bytes = "cuMemsetD8Async": fn(u64, u8, usize, Handle);
    stream_create = "cuStreamCreate": fn(*mut Handle, c_uint);
    stream_synchronize = "cuStreamSynchronize": fn(Handle);
    stream_destroy = "cuStreamDestroy_v2": fn(Handle);
    event_create = "cuEventCreate": fn(*mut Handle, c_uint);
    event_record = "cuEventRecord": fn(Handle, Handle);
    event_synchronize = "cuEventSynchronize": fn(Handle);
    event_destroy = "cuEventDestroy_v2": fn(Handle);
    module_load = "cuModuleLoadData": fn(*mut Handle, *const c_void);
    module_function = "cuModuleGetFunction": fn(*mut Handle, Handle, *const c_char);
    function_attribute = "cuFuncSetAttribute": fn(Handle, c_int, c_int);
    capture_begin = "cuStreamBeginCapture_v2": fn(Handle, c_int);
    capture_end = "cuStreamEndCapture": fn(Handle, *mut Handle);
    graph_destroy = "cuGraphDestroy": fn(Handle);
    graph_instantiate = "cuGraphInstantiateWithFlags": fn(*mut Handle, Handle, u64);
    graph_launch = "cuGraphLaunch": fn(Handle, Handle);
    graph_executable_destroy = "cuGraphExecDestroy": fn(Handle);
    launch = "cuLaunchKernel":
        fn(Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void);
    launch_with = "cuLaunchKernelEx": fn(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void);
    error_name = "cuGetErrorName": fn(c_int, *mut *const c_char);
    error_string = "cuGetErrorString": fn(c_int, *mut *const c_char);
}

/// Shape of a launch: its grid, threads per block, bytes of dynamic shared memory, and order in the stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Shape {
    pub grid: [u32; 3],
    pub block: u32,
    pub shared: u32,
    /// Whether the kernel may start before the previous kernel of the stream has ended. The kernel must call
    /// `overlap_kernels` of `prelude.cuh`.
    pub overlaps: bool,
}

/// Layout of `CUlaunchAttribute`, for an attribute whose value is an int.
#[repr(C)]
struct LaunchAttribute {
    id: c_int,
    padding: c_int,
    value: c_int,
    rest: [c_int; 15],
}

/// Layout of `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: Handle,
    attributes: *const LaunchAttribute,
    attribute_count: c_uint,
}

/// Functions that call the driver and check the result. A device pointer is a plain address.
impl Driver {
    /// Opens and initialises the driver.
    pub fn open() -> Result<Self, CudaError> {
        let driver =
            Self::load(OpenLibrary::find(&["libcuda.so.1", "libcuda.so"]).ok_or(CudaError::NoDriver)?)?;
        // SAFETY: `cuInit` has no pointer parameter.
        driver.check("cuInit", unsafe { (driver.init)(0) })?;
        Ok(driver)
    }

    /// Returns the path of the mapped file.
    pub fn path(&self) -> &Path {
        self.library.path()
    }

    pub fn check(&self, operation: &str, result: c_int) -> Result<(), CudaError> {
        if result == SUCCESS {
            return Ok(());
        }
        let text = |get: unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int| {
            let mut text = ptr::null();
            // SAFETY: the driver writes a pointer to a static string, or null.
            unsafe { get(result, &mut text) };
            // SAFETY: if the pointer is not null, it points to a static string.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let code = text(self.error_name).unwrap_or_else(|| format!("CUresult {result}"));
        let message = text(self.error_string).unwrap_or_else(|| "the driver gives no reason".to_owned());
        Err(CudaError::Call { operation: operation.to_owned(), code, message })
    }

    /// Returns the version of the driver, such as 13000 for CUDA 13.0.
    pub fn version(&self) -> Result<u32, CudaError> {
        let mut version = 0;
        // SAFETY: the driver writes one int.
        self.check("cuDriverGetVersion", unsafe { (self.driver_version)(&mut version) })?;
        Ok(version as u32)
    }

    pub fn device_count(&self) -> Result<usize, CudaError> {
        let mut count = 0;
        // SAFETY: the driver writes one int.
        self.check("cuDeviceGetCount", unsafe { (self.device_count)(&mut count) })?;
        Ok(count as usize)
    }

    pub fn device(&self, index: usize) -> Result<c_int, CudaError> {
        let mut device = 0;
        // SAFETY: the driver writes one int.
        self.check("cuDeviceGet", unsafe { (self.device_get)(&mut device, index as c_int) })?;
        Ok(device)
    }

    pub fn device_name(&self, device: c_int) -> Result<String, CudaError> {
        let mut name = [0 as c_char; 256];
        // SAFETY: the driver writes at most the given number of bytes, including the final 0.
        self.check("cuDeviceGetName", unsafe { (self.device_name)(name.as_mut_ptr(), 256, device) })?;
        // SAFETY: the array contains the final 0 of the name.
        Ok(unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned())
    }

    pub fn attribute(&self, device: c_int, attribute: i32) -> Result<u32, CudaError> {
        let mut value = 0;
        let result = unsafe {
            // SAFETY: the driver writes one int.
            (self.device_attribute)(&mut value, attribute, device)
        };
        self.check("cuDeviceGetAttribute", result)?;
        Ok(value as u32)
    }

    pub fn device_memory(&self, device: c_int) -> Result<u64, CudaError> {
        let mut bytes = 0;
        // SAFETY: the driver writes one size.
        self.check("cuDeviceTotalMem", unsafe { (self.device_memory)(&mut bytes, device) })?;
        Ok(bytes as u64)
    }

    pub fn retain_context(&self, device: c_int) -> Result<Handle, CudaError> {
        let mut context = ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let result = unsafe { (self.context_retain)(&mut context, device) };
        self.check("cuDevicePrimaryCtxRetain", result)?;
        Ok(context)
    }

    pub fn release_context(&self, device: c_int) {
        // SAFETY: this function is called once for each `retain_context`, after every object of the context
        // was destroyed.
        unsafe { (self.context_release)(device) };
    }

    pub fn set_context(&self, context: Handle) -> Result<(), CudaError> {
        // SAFETY: the context is retained.
        self.check("cuCtxSetCurrent", unsafe { (self.context_set)(context) })
    }

    /// Returns the free and the total bytes of the device.
    pub fn memory_info(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the driver writes two sizes.
        self.check("cuMemGetInfo", unsafe { (self.memory_info)(&mut free, &mut total) })?;
        Ok((free as u64, total as u64))
    }

    pub fn allocate(&self, bytes: u64) -> Result<u64, CudaError> {
        let mut address = 0;
        // SAFETY: the driver writes one address.
        let result = unsafe { (self.memory_alloc)(&mut address, bytes as usize) };
        if result == OUT_OF_MEMORY {
            let (free, total) = self.memory_info()?;
            return Err(CudaError::OutOfMemory { wanted: bytes, free, total });
        }
        self.check("cuMemAlloc", result)?;
        Ok(address)
    }

    /// # Safety
    /// `address` must be a result of [`Driver::allocate`], and nothing may use the memory any more.
    pub unsafe fn free(&self, address: u64) {
        // SAFETY: the caller fulfils this function's safety contract.
        unsafe { (self.memory_free)(address) };
    }

    /// Allocates page-locked host memory.
    pub fn allocate_host(&self, bytes: usize) -> Result<*mut u8, CudaError> {
        let mut address = ptr::null_mut();
        // SAFETY: the driver writes one pointer.
        self.check("cuMemHostAlloc", unsafe { (self.host_alloc)(&mut address, bytes, 0) })?;
        Ok(address.cast())
    }

    /// # Safety
    /// `address` must be a result of [`Driver::allocate_host`], and no copy may use the memory any more.
    pub unsafe fn free_host(&self, address: *mut u8) {
        // SAFETY: the caller fulfils this function's safety contract.
        unsafe { (self.host_free)(address.cast()) };
    }

    pub fn create_stream(&self) -> Result<Handle, CudaError> {
        let mut stream = ptr::null_mut();
        // SAFETY: the driver writes one handle.
        let result = unsafe { (self.stream_create)(&mut stream, STREAM_NON_BLOCKING) };
        self.check("cuStreamCreate", result)?;
        Ok(stream)
    }

    pub fn synchronize(&self, stream: Handle) -> Result<(), CudaError> {
        // SAFETY: the stream exists.
        self.check("cuStreamSynchronize", unsafe { (self.stream_synchronize)(stream) })
    }

    /// # Safety
    /// `stream` must be a result of [`Driver::create_stream`], and must not be used again.
    pub unsafe fn destroy_stream(&self, stream: Handle) {
        // SAFETY: the caller fulfils this function's safety contract.
        unsafe { (self.stream_destroy)(stream) };
    }

    pub fn create_event(&self) -> Result<Handle, CudaError> {
        let mut event = ptr::null_mut();
        // SAFETY: the driver writes one handle.
        self.check("cuEventCreate", unsafe { (self.event_create)(&mut event, 0) })?;
        Ok(event)
    }

    pub fn record_event(&self, event: Handle, stream: Handle) -> Result<(), CudaError> {
        // SAFETY: the event and the stream exist.
        self.check("cuEventRecord", unsafe { (self.event_record)(event, stream) })
    }

    pub fn synchronize_event(&self, event: Handle) -> Result<(), CudaError> {
        // SAFETY: the event exists.
        self.check("cuEventSynchronize", unsafe { (self.event_synchronize)(event) })
    }

    /// # Safety
    /// `event` must be a result of [`Driver::create_event`], and must not be used again.
    pub unsafe fn destroy_event(&self, event: Handle) {
        // SAFETY: the caller fulfils this function's safety contract.
        unsafe { (self.event_destroy)(event) };
    }

    /// # Safety
    /// `from` and `to` must have `bytes` bytes each. `from` must be valid until the stream has run the copy.
    pub unsafe fn copy_to_device(
        &self,
        to: u64,
        from: *const u8,
        bytes: usize,
        stream: Handle,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller fulfils this function's safety contract.
        self.check("cuMemcpyHtoDAsync", unsafe { (self.copy_to_device)(to, from.cast(), bytes, stream) })
    }

    /// # Safety
    /// `to` and `from` must have `bytes` bytes each. `to` must be valid until the stream has run the copy.
    pub unsafe fn copy_to_host(
        &self,
        to: *mut u8,
        from: u64,
        bytes: usize,
        stream: Handle,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller fulfils this function's safety contract.
        self.check("cuMemcpyDtoHAsync", unsafe { (self.copy_to_host)(to.cast(), from, bytes, stream) })
    }

    /// # Safety
    /// `to` and `from` must have `bytes` bytes each, and must not overlap.
    pub unsafe fn copy_within(
        &self,
        to: u64,
        from: u64,
        bytes: usize,
        stream: Handle,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller fulfils this function's safety contract.
        self.check("cuMemcpyDtoDAsync", unsafe { (self.copy_within)(to, from, bytes, stream) })
    }

    /// # Safety
    /// `to` must have at least `bytes` bytes.
    pub unsafe fn fill(&self, to: u64, value: u8, bytes: usize, stream: Handle) -> Result<(), CudaError> {
        // SAFETY: the caller fulfils this function's safety contract.
        self.check("cuMemsetD8Async", unsafe { (self.fill_bytes)(to, value, bytes, stream) })
    }

    /// Makes the stream record its work in a graph instead of running it.
    pub fn begin_capture(&self, stream: Handle) -> Result<(), CudaError> {
        // SAFETY: the stream exists.
        self.check("cuStreamBeginCapture", unsafe { (self.capture_begin)(stream, CAPTURE_THREAD) })
    }

    /// Ends a capture, and returns the graph of the recorded work as an executable.
    ///
    /// # Errors
    /// If a call during the capture failed, or if the device has too little memory.
    pub fn end_capture(&self, stream: Handle) -> Result<Handle, CudaError> {
        let (mut graph, mut executable) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the stream exists, and the driver writes one handle.
        self.check("cuStreamEndCapture", unsafe { (self.capture_end)(stream, &mut graph) })?;
        // SAFETY: the graph exists, and the driver writes one handle.
        let result = unsafe { (self.graph_instantiate)(&mut executable, graph, 0) };
        // SAFETY: an executable does not refer to its graph.
        unsafe { (self.graph_destroy)(graph) };
        if result == OUT_OF_MEMORY {
            let (free, total) = self.memory_info()?;
            return Err(CudaError::OutOfMemory { wanted: 0, free, total });
        }
        self.check("cuGraphInstantiate", result)?;
        Ok(executable)
    }

    /// Launches all work of a graph.
    ///
    /// # Safety
    /// The executable must exist, and every pointer in its parameters must be valid.
    pub unsafe fn launch_graph(&self, executable: Handle, stream: Handle) -> Result<(), CudaError> {
        // SAFETY: the caller fulfils this function's safety contract.
        self.check("cuGraphLaunch", unsafe { (self.graph_launch)(executable, stream) })
    }

    /// # Safety
    /// `executable` must be a result of [`Driver::end_capture`], and must not be used again.
    pub unsafe fn destroy_graph(&self, executable: Handle) {
        // SAFETY: the caller fulfils this function's safety contract. The driver keeps the graph until its
        // last launch has run.
        unsafe { (self.graph_executable_destroy)(executable) };
    }

    /// Loads a cubin, or PTX text whose last byte is 0. Modules are never unloaded.
    pub fn load_module(&self, image: &[u8]) -> Result<Handle, CudaError> {
        let mut module = ptr::null_mut();
        // SAFETY: the image is either a complete cubin, whose header contains its length, or text whose last
        // byte is 0.
        let result = unsafe { (self.module_load)(&mut module, image.as_ptr().cast()) };
        self.check("cuModuleLoadData", result)?;
        Ok(module)
    }

    /// Returns the kernel `name` of a module. Returns `None` if the module does not contain it.
    pub fn module_function(&self, module: Handle, name: &CStr) -> Option<Handle> {
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, and the driver writes one handle.
        let result = unsafe { (self.module_function)(&mut function, module, name.as_ptr()) };
        (result == SUCCESS).then_some(function)
    }

    /// Allows a kernel to use `bytes` bytes of dynamic shared memory.
    pub fn allow_shared(&self, function: Handle, bytes: u32) -> Result<(), CudaError> {
        // SAFETY: the function belongs to a loaded module.
        let result = unsafe { (self.function_attribute)(function, MAX_DYNAMIC_SHARED, bytes as c_int) };
        self.check("cuFuncSetAttribute", result)
    }

    /// # Safety
    /// Each argument must point to a value of its parameter's type. Every pointer among these values must be
    /// valid for the accesses of the kernel.
    pub unsafe fn launch(
        &self,
        function: Handle,
        shape: Shape,
        stream: Handle,
        arguments: &mut [*mut c_void],
    ) -> c_int {
        let ([x, y, z], none) = (shape.grid, ptr::null_mut());
        if shape.overlaps {
            let attribute = LaunchAttribute { id: OVERLAP_ATTRIBUTE, padding: 0, value: 1, rest: [0; 15] };
            let config = LaunchConfig {
                grid: shape.grid,
                block: [shape.block, 1, 1],
                shared: shape.shared,
                stream,
                attributes: &attribute,
                attribute_count: 1,
            };
            // SAFETY: the caller fulfils this function's safety contract.
            return unsafe { (self.launch_with)(&config, function, arguments.as_mut_ptr(), none) };
        }
        // SAFETY: the caller fulfils this function's safety contract.
        unsafe {
            (self.launch)(
                function,
                x,
                y,
                z,
                shape.block,
                1,
                1,
                shape.shared,
                stream,
                arguments.as_mut_ptr(),
                none,
            )
        }
    }
}
