//! Launches of `embedding.cu`.

use super::{Rows, THREADS};
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// A table of embeddings that the device can read.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    pub at: DevicePtr,
    pub dtype: DType,
    pub cols: usize,
}

/// `out[i] = table[ids[i]]` for `n` rows.
pub fn embedding_forward(device: &Device, dtype: DType, out: Rows, table: Table, ids: DevicePtr, n: usize) {
    let table_type = match table.dtype {
        DType::Bf16 => 0,
        DType::F16 => 1,
        DType::F32 => 2,
    };
    let launch = device.kernel("embedding_forward", dtype).grid(n, 1, 1).block(THREADS);
    launch.ptr(out.at).ptr(table.at).ptr(ids).int(table.cols).long(out.stride).int(table_type).run();
}
