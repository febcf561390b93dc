//! cuBLASLt: the table of its functions, and the matrix products that run in it.
//!
//! Descriptors and algorithms are created once per shape. The algorithm is always the first result of the
//! library's heuristic, and never chosen by timing. Two runs of danlu therefore give the same bytes.

use std::collections::HashMap;
use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::Mutex;

use super::device::{Device, DevicePtr};
use super::driver::Handle;
use super::error::CudaError;
use super::library::OpenLibrary;
use crate::DType;
use crate::cpu::pool::lock;

/// Library names of CUDA 13 and CUDA 12. A driver for CUDA 12 cannot run the library of CUDA 13.
const NAMES: [&str; 2] = ["libcublasLt.so.13", "libcublasLt.so.12"];
/// Command that installs the library for drivers of CUDA 12 or later.
pub const INSTALL_COMMAND: &str = "pip install nvidia-cublas-cu12";

/// Bytes of scratch memory for the library's algorithms.
pub(super) const WORKSPACE_BYTES: u64 = 32 << 20;
/// Minimum number of rows for which the inner dimension is never split. From this number on, a row's result
/// does not depend on the number of rows.
const WHOLE_K_FROM: usize = 512;

/// `CUBLAS_COMPUTE_32F`. Sums are f32, and TF32 is not used.
const COMPUTE_F32: c_int = 68;
const TYPE_F32: c_int = 0;
const DESCRIPTION_TRANSPOSE_A: c_int = 3;
const PREFERENCE_WORKSPACE: c_int = 1;
const PREFERENCE_REDUCTION: c_int = 3;

/// Layout of `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($arg:ty),*);)*) => {
        struct Functions { $($field: unsafe extern "C" fn($($arg),*) -> c_int,)* }

        impl Functions {
            fn load(library: &OpenLibrary) -> Result<Self, CudaError> {
                // SAFETY: the function types are copied from `cublasLt.h`.
                unsafe { Ok(Self { $($field: library.function($name)?,)* }) }
            }
        }
    };
}

functions! {
    create = "cublasLtCreate": fn(*mut Handle);
    destroy = "cublasLtDestroy": fn(Handle);
    description_create = "cublasLtMatmulDescCreate": fn(*mut Handle, c_int, c_int);
    description_set = "cublasLtMatmulDescSetAttribute": fn(Handle, c_int, *const c_void, usize);
    description_destroy = "cublasLtMatmulDescDestroy": fn(Handle);
    layout_create = "cublasLtMatrixLayoutCreate": fn(*mut Handle, c_int, u64, u64, i64);
    layout_destroy = "cublasLtMatrixLayoutDestroy": fn(Handle);
    preference_create = "cublasLtMatmulPreferenceCreate": fn(*mut Handle);
    preference_set = "cublasLtMatmulPreferenceSetAttribute": fn(Handle, c_int, *const c_void, usize);
    preference_destroy = "cublasLtMatmulPreferenceDestroy": fn(Handle);
    heuristic = "cublasLtMatmulAlgoGetHeuristic":
        fn(Handle, Handle, Handle, Handle, Handle, Handle, Handle, c_int, *mut Heuristic, *mut c_int);
    matmul = "cublasLtMatmul":
        fn(Handle, Handle, *const f32, u64, Handle, u64, Handle, *const f32, u64, Handle, u64, Handle, *const Heuristic, u64, usize, Handle);
}

/// Direction of a matrix product with a weight `(OUT, IN)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Direction {
    /// The forward product `out (N, OUT) = inp (N, IN) Wᵀ`.
    Forward,
    /// The backward product `dinp (N, IN) = dout (N, OUT) W`.
    Backward,
}

/// Shape of a matrix product `to (rows, width) = from (rows, depth) · W'`, where `W'` is `W` or `Wᵀ`. Another
/// matrix may be added to the product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ProductShape {
    pub direction: Direction,
    pub dtype: DType,
    pub rows: usize,
    /// Output width of the weight, `OUT`.
    pub outputs: usize,
    /// Input width of the weight, `IN`.
    pub inputs: usize,
    /// Whether a matrix with the shape of `to` is added.
    pub adds: bool,
    /// Whether the result is f32 even if the operands have a different type.
    pub exact: bool,
}

/// Addresses of a product's operands. If `add` equals `to`, the product is added in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct ProductOperands {
    pub to: DevicePtr,
    pub from: DevicePtr,
    pub weight: DevicePtr,
    pub add: DevicePtr,
}

impl ProductShape {
    /// Returns the number of columns of the result, and the number of terms in each of its sums.
    pub fn width_and_depth(&self) -> (usize, usize) {
        match self.direction {
            Direction::Forward => (self.outputs, self.inputs),
            Direction::Backward => (self.inputs, self.outputs),
        }
    }
}

/// Descriptors and algorithm for one shape.
#[derive(Clone, Copy)]
struct Plan {
    description: Handle,
    weight: Handle,
    from: Handle,
    to: Handle,
    heuristic: Heuristic,
}

/// The opened library, and its plan for each shape.
pub(super) struct Blas {
    functions: Functions,
    library: OpenLibrary,
    handle: Handle,
    version: usize,
    plans: Mutex<HashMap<ProductShape, Plan>>,
}

impl std::fmt::Debug for Blas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Blas({})", self.path().display())
    }
}

// SAFETY: the library accepts the handle and the descriptors on any thread. A mutex guards the plans.
unsafe impl Send for Blas {}
// SAFETY: the library accepts the handle and the descriptors on any thread. A mutex guards the plans.
unsafe impl Sync for Blas {}

impl Blas {
    /// Opens the library for this driver version. Returns `None` if the library is not installed.
    ///
    /// # Errors
    /// If a function is missing, or if the library does not start.
    pub fn open(driver: u32) -> Result<Option<Self>, CudaError> {
        let names = if driver >= 13000 { &NAMES[..] } else { &NAMES[1..] };
        let Some(library) = OpenLibrary::find(names) else { return Ok(None) };
        let (functions, mut handle) = (Functions::load(&library)?, ptr::null_mut());
        // SAFETY: the function type is copied from `cublasLt.h`.
        let version: unsafe extern "C" fn() -> usize = unsafe { library.function("cublasLtGetVersion")? };
        // SAFETY: the library writes one handle to a valid address, and a context is current.
        check("cublasLtCreate", unsafe { (functions.create)(&mut handle) })?;
        // SAFETY: the function has no parameters.
        let version = unsafe { version() };
        Ok(Some(Self { functions, library, handle, version, plans: Mutex::default() }))
    }

    /// Returns the path of the mapped file.
    pub fn path(&self) -> &Path {
        self.library.path()
    }

    /// Returns the version of the library, such as 130100 for 13.1.
    pub fn version(&self) -> usize {
        self.version
    }

    /// Launches the product. `workspace` has [`WORKSPACE_BYTES`] bytes.
    pub fn run(
        &self,
        device: &Device,
        shape: ProductShape,
        operands: ProductOperands,
        workspace: DevicePtr,
    ) -> Result<(), CudaError> {
        let plan = self.plan(shape)?;
        let ProductOperands { to, from, weight, add } = operands;
        let (alpha, beta) = (1.0f32, if shape.adds { 1.0f32 } else { 0.0 });
        let Plan { description, heuristic, .. } = plan;
        // SAFETY: the descriptors and the caller's buffers have the shape of the product.
        let result = unsafe {
            (self.functions.matmul)(
                self.handle,
                description,
                &alpha,
                weight.0,
                plan.weight,
                from.0,
                plan.from,
                &beta,
                add.0,
                plan.to,
                to.0,
                plan.to,
                &heuristic,
                workspace.0,
                WORKSPACE_BYTES as usize,
                device.stream,
            )
        };
        check("cublasLtMatmul", result)
    }

    fn plan(&self, shape: ProductShape) -> Result<Plan, CudaError> {
        if let Some(plan) = lock(&self.plans).get(&shape) {
            return Ok(*plan);
        }
        let plan = self.make_plan(shape)?;
        lock(&self.plans).insert(shape, plan);
        Ok(plan)
    }

    fn make_plan(&self, shape: ProductShape) -> Result<Plan, CudaError> {
        let ProductShape { direction, dtype, rows, outputs, inputs, .. } = shape;
        let (width, depth) = shape.width_and_depth();
        let (calls, mut description) = (&self.functions, ptr::null_mut());
        // SAFETY: the library writes one handle to a valid address.
        let result = unsafe { (calls.description_create)(&mut description, COMPUTE_F32, TYPE_F32) };
        check("cublasLtMatmulDescCreate", result)?;
        let transpose = c_int::from(direction == Direction::Forward);
        // SAFETY: the value of this attribute is an int.
        let result = unsafe {
            let value = ptr::from_ref(&transpose).cast();
            (calls.description_set)(description, DESCRIPTION_TRANSPOSE_A, value, size_of::<c_int>())
        };
        check("cublasLtMatmulDescSetAttribute", result)?;
        // The library uses column-major matrices, so each row-major matrix is described as its transpose.
        let weight = self.layout(dtype, inputs, outputs)?;
        let result = if shape.exact { DType::F32 } else { dtype };
        let (from, to) = (self.layout(dtype, depth, rows)?, self.layout(result, width, rows)?);
        let mut plan = Plan { description, weight, from, to, heuristic: Heuristic::default() };
        plan.heuristic = self.first_heuristic(&plan, rows)?;
        Ok(plan)
    }

    fn layout(&self, dtype: DType, rows: usize, cols: usize) -> Result<Handle, CudaError> {
        let kind = match dtype {
            DType::F32 => TYPE_F32,
            DType::F16 => 2,
            DType::Bf16 => 14,
        };
        let mut layout = ptr::null_mut();
        // SAFETY: the library writes one handle to a valid address.
        let result = unsafe {
            (self.functions.layout_create)(&mut layout, kind, rows as u64, cols as u64, rows as i64)
        };
        check("cublasLtMatrixLayoutCreate", result)?;
        Ok(layout)
    }

    fn first_heuristic(&self, plan: &Plan, rows: usize) -> Result<Heuristic, CudaError> {
        let (calls, mut preference) = (&self.functions, ptr::null_mut());
        // SAFETY: the library writes one handle to a valid address.
        check("cublasLtMatmulPreferenceCreate", unsafe { (calls.preference_create)(&mut preference) })?;
        let workspace = WORKSPACE_BYTES;
        // SAFETY: the value of this attribute is a 64-bit size.
        let result = unsafe {
            (calls.preference_set)(preference, PREFERENCE_WORKSPACE, ptr::from_ref(&workspace).cast(), 8)
        };
        check("cublasLtMatmulPreferenceSetAttribute", result)?;
        if rows >= WHOLE_K_FROM {
            let no_reduction = 0u32;
            // SAFETY: the value of this attribute is a 32-bit mask.
            let result = unsafe {
                (calls.preference_set)(
                    preference,
                    PREFERENCE_REDUCTION,
                    ptr::from_ref(&no_reduction).cast(),
                    4,
                )
            };
            check("cublasLtMatmulPreferenceSetAttribute", result)?;
        }
        let (mut heuristic, mut found) = (Heuristic::default(), 0);
        // SAFETY: the library writes at most one result and one count.
        let result = unsafe {
            let Plan { description, weight, from, to, .. } = *plan;
            (calls.heuristic)(
                self.handle,
                description,
                weight,
                from,
                to,
                to,
                preference,
                1,
                &mut heuristic,
                &mut found,
            )
        };
        // SAFETY: the preference is not used after this.
        unsafe { (calls.preference_destroy)(preference) };
        check("cublasLtMatmulAlgoGetHeuristic", result)?;
        check("cublasLtMatmulAlgoGetHeuristic", if found == 0 { 15 } else { heuristic.state })?;
        Ok(heuristic)
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: the library is not used after this.
        unsafe {
            for plan in lock(&self.plans).values() {
                for layout in [plan.weight, plan.from, plan.to] {
                    (self.functions.layout_destroy)(layout);
                }
                (self.functions.description_destroy)(plan.description);
            }
            (self.functions.destroy)(self.handle);
        }
    }
}

fn check(operation: &str, status: c_int) -> Result<(), CudaError> {
    let (code, message) = match status {
        0 => return Ok(()),
        1 => ("CUBLAS_STATUS_NOT_INITIALIZED", "the library did not start"),
        3 => ("CUBLAS_STATUS_ALLOC_FAILED", "the library found no memory"),
        7 => ("CUBLAS_STATUS_INVALID_VALUE", "an argument was rejected"),
        8 => ("CUBLAS_STATUS_ARCH_MISMATCH", "the library has no kernel for this device"),
        13 => ("CUBLAS_STATUS_EXECUTION_FAILED", "a kernel of the library failed"),
        14 => ("CUBLAS_STATUS_INTERNAL_ERROR", "the library failed inside"),
        15 => ("CUBLAS_STATUS_NOT_SUPPORTED", "the library has no algorithm for the shape"),
        _ => ("CUBLAS_STATUS", "the library gives no reason"),
    };
    let code = if code == "CUBLAS_STATUS" { format!("{code} {status}") } else { code.to_owned() };
    Err(CudaError::Call { operation: operation.to_owned(), code, message: message.to_owned() })
}
