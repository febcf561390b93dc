//! Matrix products with frozen weights. They run in cuBLASLt if it is installed, and otherwise in the kernels
//! of `gemm.cu` and `gemm_wgmma.cu`.

use std::sync::Arc;

use super::blas::{Blas, Direction, ProductOperands, ProductShape, WORKSPACE_BYTES};
use super::device::{Allocation, Device, DeviceInfo, DevicePtr};
use super::error::CudaError;
use crate::DType;
use crate::cpu::pool::lock;

/// Number of rows, and number of columns, that a block of `gemm_*` computes in 16-bit types.
const TILE: usize = 128;
/// Number of columns that a block of `gemm_*_large` or `gemm_wgmma_*` computes.
const LARGE_TILE: usize = 256;
/// Bytes of shared memory of a block of `gemm_wgmma_*`.
const WGMMA_SHARED_BYTES: usize = 4 * 2 * 64 * (TILE + LARGE_TILE);
/// Smallest number of rows for `gemm_wgmma_*`.
const WGMMA_FROM: usize = 64;
const LARGE_FROM: usize = 512;
/// Minimum length of a part of K, if K is split.
const MIN_PART_DEPTH: usize = 512;
/// Number of elements that a thread of `gemm_sum` adds up.
const SUM_LEN: usize = 4;
const EXACT_TILE: usize = 64;
const STAGES: usize = 3;
/// Number of padding elements after each row of a shared-memory tile.
const PADDING: usize = 8;

/// Runs matrix products. The default value only uses danlu's own kernels.
#[derive(Default)]
pub(super) struct Products {
    /// The library and its scratch memory.
    library: Option<(Arc<Blas>, Allocation)>,
    #[cfg(test)]
    general_only: bool,
}

impl Products {
    /// Opens cuBLASLt if it is installed.
    ///
    /// # Errors
    /// If the library does not start, or if its scratch memory cannot be allocated.
    pub fn open(device: &Arc<Device>) -> Result<Self, CudaError> {
        device.activate()?;
        let library = match Blas::open(device.info.driver)? {
            Some(blas) => Some((Arc::new(blas), device.allocate(WORKSPACE_BYTES)?)),
            None => None,
        };
        Ok(Self {
            library,
            #[cfg(test)]
            general_only: false,
        })
    }

    /// Leaves out the kernels that only one architecture has, so that tests on that architecture also run the
    /// general kernels.
    #[cfg(test)]
    pub fn general() -> Self {
        Self { general_only: true, ..Self::default() }
    }

    /// Returns the library if it is installed.
    pub fn library(&self) -> Option<&Blas> {
        self.library.as_ref().map(|(blas, _)| &**blas)
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
                if lock(&device.recorder).take_product(blas, shape, operands, scratch) {
                    return;
                }
                device.record(device.activate().and_then(|()| blas.run(device, shape, operands, scratch)));
            }
            None => own_product(device, self.allows_wgmma(&device.info), shape, operands),
        }
    }

    /// Returns whether the device has the kernels of `gemm_wgmma.cu`.
    fn allows_wgmma(&self, info: &DeviceInfo) -> bool {
        #[cfg(test)]
        if self.general_only {
            return false;
        }
        info.capability == (9, 0) && WGMMA_SHARED_BYTES <= info.shared as usize
    }
}

fn own_product(device: &Device, allows_wgmma: bool, shape: ProductShape, operands: ProductOperands) {
    let ProductShape { dtype, rows, inputs, adds, .. } = shape;
    let ProductOperands { to, from, weight, add } = operands;
    let (width, depth) = shape.width_and_depth();
    let kernel = OwnKernel::of(&device.info, allows_wgmma, &shape, [from, weight]);
    let (columns, tiles) = (width.div_ceil(kernel.columns), rows.div_ceil(kernel.rows));
    let (x, y) = if dtype == DType::F32 { (columns, tiles) } else { (columns * tiles, kernel.parts) };
    let (len, beta) = (rows * width, if adds { 1.0 } else { 0.0 });
    let out = if kernel.parts > 1 { device.workspace(4 * kernel.parts * len) } else { to };
    let launch = device.kernel(kernel.name, dtype).grid(x, y, 1).block(256).shared(kernel.shared);
    let launch = launch.ptr(out).ptr(from).ptr(weight).ptr(add).int(rows).int(width).int(depth);
    launch.int(width).int(depth).int(inputs).int(width).float(beta).run();
    if kernel.parts > 1 {
        let blocks = len.div_ceil(SUM_LEN * 256);
        let launch = device.kernel("gemm_sum", dtype).grid(blocks, 1, 1).block(256);
        launch.ptr(to).ptr(out).ptr(add).int(kernel.parts).long(len).float(beta).run();
    }
}

/// A kernel of `gemm.cu` or `gemm_wgmma.cu`, the size of its blocks, and its bytes of dynamic shared memory.
/// `parts` is the number of parts into which K is split.
struct OwnKernel {
    name: &'static str,
    rows: usize,
    columns: usize,
    shared: usize,
    parts: usize,
}

impl OwnKernel {
    fn of(info: &DeviceInfo, allows_wgmma: bool, shape: &ProductShape, operands: [DevicePtr; 2]) -> Self {
        let ProductShape { direction, dtype, rows, outputs, inputs, exact, .. } = *shape;
        let forward = direction == Direction::Forward;
        let pick = |nt, nn| if forward { nt } else { nn };
        if dtype == DType::F32 {
            let name = pick("gemm_nt", "gemm_nn");
            return Self { name, rows: EXACT_TILE, columns: EXACT_TILE, shared: 0, parts: 1 };
        }
        // The vector kernels require rows that consist of whole 16-byte vectors.
        let is_wide = outputs.is_multiple_of(8) && inputs.is_multiple_of(8);
        let is_aligned = operands.iter().all(|p| p.0.is_multiple_of(16));
        let shared = |columns| shared_bytes(direction, tile_depth(info.capability), columns);
        let (width, depth) = shape.width_and_depth();
        let tiles = |columns| rows.div_ceil(TILE) * width.div_ceil(columns);
        let multiprocessors = info.multiprocessors as usize;
        // Small results have too few tiles to occupy the device, so K is split.
        let parts = |columns| (multiprocessors / tiles(columns)).min(depth / MIN_PART_DEPTH).max(1);
        let own = |name, columns, parts| Self { name, rows: TILE, columns, shared: shared(columns), parts };
        if exact {
            own("gemm_nt_exact", TILE, 1)
        } else if !is_wide || !is_aligned {
            own(pick("gemm_nt_any", "gemm_nn_any"), TILE, 1)
        } else if allows_wgmma && rows >= WGMMA_FROM {
            let parts = parts(LARGE_TILE);
            let whole = pick("gemm_wgmma_nt", "gemm_wgmma_nn");
            let name = if parts > 1 { pick("gemm_wgmma_nt_split", "gemm_wgmma_nn_split") } else { whole };
            Self { name, rows: TILE, columns: LARGE_TILE, shared: WGMMA_SHARED_BYTES, parts }
        } else if rows >= LARGE_FROM
            && 2 * tiles(LARGE_TILE) > multiprocessors
            && shared(LARGE_TILE) <= info.shared as usize
        {
            own(pick("gemm_nt_large", "gemm_nn_large"), LARGE_TILE, 1)
        } else if parts(TILE) > 1 {
            own(pick("gemm_nt_split", "gemm_nn_split"), TILE, parts(TILE))
        } else {
            own(pick("gemm_nt", "gemm_nn"), TILE, 1)
        }
    }
}

/// Returns the length of a shared-memory tile along the inner dimension, as `gemm.cu` defines it.
fn tile_depth(capability: (u32, u32)) -> usize {
    match capability {
        (7, _) | (8, 6..) | (12.., _) => 32,
        _ => 64,
    }
}

/// Returns the bytes of all shared-memory tiles of a block.
fn shared_bytes(direction: Direction, depth: usize, columns: usize) -> usize {
    let weight = match direction {
        Direction::Forward => columns * (depth + PADDING),
        Direction::Backward => depth * (columns + PADDING),
    };
    2 * STAGES * (TILE * (depth + PADDING) + weight)
}
