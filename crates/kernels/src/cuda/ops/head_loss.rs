//! Launches of `head_loss.cu`.

use crate::DType;
use crate::cuda::device::{Device, DevicePtr};

/// Number of threads per row of logits.
const HEAD_THREADS: u32 = 1024;

/// Operands of [`head_loss`].
#[derive(Clone, Copy, Debug)]
pub struct Operands {
    /// Logits, `(n, v)`. If `dloss` is given, the kernel overwrites the logits with their gradient.
    pub logits: DevicePtr,
    pub losses: DevicePtr,
    pub targets: DevicePtr,
    /// One f32 per row. Null if only the losses are computed.
    pub dloss: DevicePtr,
    /// Cap of the logits.
    pub softcap: Option<f32>,
}

/// Computes the losses of `n` rows. If `dloss` is given, overwrites the logits with their gradient.
pub fn head_loss(device: &Device, dtype: DType, operands: Operands, n: usize, v: usize) {
    let Operands { logits, losses, targets, dloss, softcap } = operands;
    let launch = device.kernel("head_loss", dtype).grid(n, 1, 1).block(HEAD_THREADS);
    let launch = launch.ptr(logits).ptr(losses).ptr(targets).ptr(dloss).int(v).long(v);
    launch.float(softcap.unwrap_or(0.0)).run();
}
