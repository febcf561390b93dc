//! Products with frozen weights: cuBLASLt's where the library is, else the kernels of `gemm.cu`.

use super::blas::{Blas, Direction, ProductOperands, ProductShape, WORKSPACE_BYTES};
use super::device::{Allocation, Device};
use super::error::CudaError;
use crate::DType;

/// Rows and columns of `out` that a block of `gemm_*` computes, in half types and in f32.
const TILE: usize = 128;
const EXACT_TILE: usize = 64;
/// Rows of a shared tile along K, and how many tiles are in flight.
const TILE_K: usize = 32;
const STAGES: usize = 3;
/// What follows a row of a shared tile.
const PADDING: usize = 8;

/// What computes products.
pub(super) struct Products {
    /// The library, with its scratch.
    library: Option<(Blas, Allocation)>,
}

impl Products {
    /// Opens cuBLASLt where this machine has it.
    ///
    /// # Errors
    /// If the library is found and does not start, or its scratch does not fit.
    pub fn open(device: &std::sync::Arc<Device>) -> Result<Self, CudaError> {
        device.activate()?;
        let library = match Blas::open(device.info.driver)? {
            Some(blas) => Some((blas, device.allocate(WORKSPACE_BYTES)?)),
            None => None,
        };
        Ok(Self { library })
    }

    /// Products by the kernels of `gemm.cu` alone.
    pub fn own() -> Self {
        Self { library: None }
    }

    /// The library in use.
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
    let ProductShape { direction, dtype, rows, outputs, inputs, adds, exact } = shape;
    let ProductOperands { to, from, weight, add } = operands;
    let (width, depth) = shape.width_and_depth();
    let (tile, shared) = match dtype {
        DType::F32 => (EXACT_TILE, 0),
        _ => (TILE, 2 * STAGES * shared_elements(direction)),
    };
    // Rows of whole vectors of 16 bytes; the base of every buffer is aligned wider than that.
    let wide = outputs.is_multiple_of(8) && inputs.is_multiple_of(8);
    let aligned = [from, weight].iter().all(|p| p.0.is_multiple_of(16));
    let name = match (direction, dtype == DType::F32 || wide && aligned) {
        (Direction::Forward, _) if exact && dtype != DType::F32 => "gemm_nt_exact",
        (Direction::Forward, true) => "gemm_nt",
        (Direction::Backward, true) => "gemm_nn",
        (Direction::Forward, false) => "gemm_nt_any",
        (Direction::Backward, false) => "gemm_nn_any",
    };
    device
        .kernel(name, dtype)
        .grid(width.div_ceil(tile), rows.div_ceil(tile), 1)
        .block(256)
        .shared(shared)
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

/// Elements of the two shared tiles of a step.
fn shared_elements(direction: Direction) -> usize {
    let along_k = TILE * (TILE_K + PADDING);
    match direction {
        Direction::Forward => 2 * along_k,
        Direction::Backward => along_k + TILE_K * (TILE + PADDING),
    }
}
