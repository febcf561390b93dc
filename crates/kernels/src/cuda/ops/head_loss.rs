//! Launches of `head_loss.cu`.

use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Threads that share a row of logits.
const HEAD_THREADS: u32 = 1024;

/// What a chunk of rows of the loss head works on.
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// `(n, v)`; becomes the gradient where `dloss` is given.
    pub logits: DevicePtr,
    pub losses: DevicePtr,
    pub targets: DevicePtr,
    /// One f32 a row, or null where no gradient is wanted.
    pub dloss: DevicePtr,
}

/// Losses of `n` rows, and where asked their gradient in place of the logits.
pub fn head_loss(device: &Device, dtype: DType, operands: Operands, n: usize, v: usize) {
    let Operands { logits, losses, targets, dloss } = operands;
    let launch = device.kernel("head_loss", dtype).grid(n, 1, 1).block(HEAD_THREADS);
    launch.ptr(logits).ptr(losses).ptr(targets).ptr(dloss).int(v).long(v).run();
}
