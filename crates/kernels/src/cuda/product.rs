//! Matrix products with frozen weights. They run in cuBLASLt if it is installed, and otherwise in the kernels
//! of `gemm.cu`.

use super::blas::{Blas, Direction, ProductOperands, ProductShape, WORKSPACE_BYTES};
use super::device::{Allocation, Device, DevicePtr};
use super::error::CudaError;
use crate::DType;

/// Number of rows, and number of columns, that a block of `gemm_*` computes in 16-bit types.
const TILE: usize = 128;
/// Number of columns that a block of `gemm_*_large` computes.
const LARGE_TILE: usize = 256;
const LARGE_FROM: usize = 512;
const EXACT_TILE: usize = 64;
/// Length of a shared-memory tile along K.
const TILE_K: usize = 32;
const STAGES: usize = 3;
/// Number of padding elements after each row of a shared-memory tile.
const PADDING: usize = 8;

/// Runs matrix products. The default value only uses the kernels of `gemm.cu`.
#[derive(Default)]
pub(super) struct Products {
    /// The library and its scratch memory.
    library: Option<(Blas, Allocation)>,
}

impl Products {
    /// Opens cuBLASLt if it is installed.
    ///
    /// # Errors
    /// If the library does not start, or if its scratch memory cannot be allocated.
    pub fn open(device: &std::sync::Arc<Device>) -> Result<Self, CudaError> {
        device.activate()?;
        let library = match Blas::open(device.info.driver)? {
            Some(blas) => Some((blas, device.allocate(WORKSPACE_BYTES)?)),
            None => None,
        };
        Ok(Self { library })
    }

    /// Returns the library if it is installed.
    pub fn library(&self) -> Option<&Blas> {
        self.library.as_ref().map(|(blas, _)| blas)
    }

    /// Launches the product.
    pub fn run(&self, device: &Device, shape: ProductShape, operands: ProductOperands) {
        if shape.rows == 0 || device.has_failed() {
            return;
        }
        match &self.library {
            Some((blas, workspace)) => {
                device.count_launch();
                let scratch = workspace.address();
                device.record(device.activate().and_then(|()| blas.run(device, shape, operands, scratch)));
            }
            None => own_product(device, shape, operands),
        }
    }
}

fn own_product(device: &Device, shape: ProductShape, operands: ProductOperands) {
    let ProductShape { direction, dtype, rows, inputs, adds, .. } = shape;
    let ProductOperands { to, from, weight, add } = operands;
    let (width, depth) = shape.width_and_depth();
    let kernel = OwnKernel::of(device, &shape, [from, weight]);
    device
        .kernel(kernel.name, dtype)
        .grid(width.div_ceil(kernel.columns), rows.div_ceil(kernel.rows), 1)
        .block(256)
        .shared(if dtype == DType::F32 { 0 } else { shared_bytes(direction, kernel.columns) })
        .ptr(to)
        .ptr(from)
        .ptr(weight)
        .ptr(add)
        .int(rows)
        .int(width)
        .int(depth)
        .int(width)
        .int(depth)
        .int(inputs)
        .int(width)
        .float(if adds { 1.0 } else { 0.0 })
        .run();
}

/// A kernel of `gemm.cu`, and the size of its blocks.
struct OwnKernel {
    name: &'static str,
    rows: usize,
    columns: usize,
}

impl OwnKernel {
    fn of(device: &Device, shape: &ProductShape, operands: [DevicePtr; 2]) -> Self {
        let ProductShape { direction, dtype, rows, outputs, inputs, exact, .. } = *shape;
        let forward = direction == Direction::Forward;
        let pick = |nt, nn| if forward { nt } else { nn };
        if dtype == DType::F32 {
            return Self { name: pick("gemm_nt", "gemm_nn"), rows: EXACT_TILE, columns: EXACT_TILE };
        }
        // The vector kernels require rows that consist of whole 16-byte vectors.
        let wide = outputs.is_multiple_of(8) && inputs.is_multiple_of(8);
        let aligned = operands.iter().all(|p| p.0.is_multiple_of(16));
        let has_shared = device.info.shared as usize >= shared_bytes(direction, LARGE_TILE);
        let (name, columns) = if exact {
            ("gemm_nt_exact", TILE)
        } else if !wide || !aligned {
            (pick("gemm_nt_any", "gemm_nn_any"), TILE)
        } else if rows >= LARGE_FROM && has_shared {
            (pick("gemm_nt_large", "gemm_nn_large"), LARGE_TILE)
        } else {
            (pick("gemm_nt", "gemm_nn"), TILE)
        };
        Self { name, rows: TILE, columns }
    }
}

/// Returns the bytes of all shared-memory tiles of a block.
fn shared_bytes(direction: Direction, columns: usize) -> usize {
    let weight = match direction {
        Direction::Forward => columns * (TILE_K + PADDING),
        Direction::Backward => TILE_K * (columns + PADDING),
    };
    2 * STAGES * (TILE * (TILE_K + PADDING) + weight)
}
