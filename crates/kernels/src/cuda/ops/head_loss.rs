//! Launches of `head_loss.cu`.

use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Threads per row of logits.
const HEAD_THREADS: u32 = 1024;

/// Operands for one chunk of rows.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// `(n, v)`. Overwritten by the gradient if `dloss` is given.
    pub logits: DevicePtr,
    pub losses: DevicePtr,
    pub targets: DevicePtr,
    /// One f32 per row, or null for losses only.
    pub dloss: DevicePtr,
    /// Limit of the logits.
    pub softcap: Option<f32>,
}

/// Computes the losses of `n` rows, and optionally the gradient in place of the logits.
pub fn head_loss(device: &Device, dtype: DType, operands: Operands, n: usize, v: usize) {
    let Operands { logits, losses, targets, dloss, softcap } = operands;
    let launch = device.kernel("head_loss", dtype).grid(n, 1, 1).block(HEAD_THREADS);
    let launch = launch.ptr(logits).ptr(losses).ptr(targets).ptr(dloss).int(v).long(v);
    launch.float(softcap.unwrap_or(0.0)).run();
}
