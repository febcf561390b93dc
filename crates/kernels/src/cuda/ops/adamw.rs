//! Launches of `adamw.cu`.

use super::THREADS;
use crate::AdamW;
use crate::cuda::device::{Device, DevicePtr};

/// Number of parameters per block of `adamw`.
const ADAMW_BLOCK: usize = 1024;
/// Number of elements per block of `sum_of_squares`.
const SQUARES_BLOCK: usize = 16_384;

/// Flat buffers of the optimizer.
#[derive(Clone, Copy, Debug)]
pub struct Buffers {
    pub params: DevicePtr,
    pub grads: DevicePtr,
    pub m: DevicePtr,
    pub v: DevicePtr,
}

/// Computes one AdamW step for the first `len` parameters.
pub fn adamw(device: &Device, buffers: Buffers, len: usize, step: AdamW) {
    // The factors are computed in f64 and rounded once, as on the host.
    let wide = |x: f32| x as f64;
    let (beta1, beta2) = (wide(step.beta1), wide(step.beta2));
    let correction1 = 1.0 - beta1.powi(step.step as i32);
    let correction2 = 1.0 - beta2.powi(step.step as i32);
    let decay = 1.0 - wide(step.learning_rate) * wide(step.weight_decay);
    let rate = -wide(step.learning_rate) / correction1;
    let factors =
        [decay, rate, beta1, 1.0 - beta1, beta2, 1.0 - beta2, 1.0 / correction2.sqrt(), wide(step.eps)];
    let launch = device.exact("adamw").grid(len.div_ceil(ADAMW_BLOCK), 1, 1).block(THREADS);
    let launch = launch.ptr(buffers.params).ptr(buffers.grads).ptr(buffers.m).ptr(buffers.v).long(len);
    factors.iter().fold(launch.float(step.grad_scale), |launch, &f| launch.float(f as f32)).run();
}

/// Computes the sum of squares of `len` elements in f64.
pub fn sum_of_squares(device: &Device, out: DevicePtr, x: DevicePtr, len: usize) {
    let blocks = len.div_ceil(SQUARES_BLOCK);
    let partial = device.workspace(8 * blocks);
    device.exact("sum_of_squares").grid(blocks, 1, 1).block(THREADS).ptr(partial).ptr(x).long(len).run();
    device.exact("sum_partials").grid(1, 1, 1).block(THREADS).ptr(out).ptr(partial).int(blocks).run();
}
