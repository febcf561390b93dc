//! Launches of `gated.cu`.

use super::{Rows, THREADS, vector_len};
use crate::cuda::device::{Device, DevicePtr};
use crate::cuda::launch::KernelLaunch;
use crate::{DType, GateActivation};

/// Returns the name of the kernel for an activation.
fn name(activation: GateActivation, [silu, gelu]: [&'static str; 2]) -> &'static str {
    match activation {
        GateActivation::Silu => silu,
        GateActivation::GeluTanh => gelu,
    }
}

/// Two matrices of the same shape and stride.
#[derive(Clone, Copy, Debug)]
pub struct GateUp {
    pub gate: DevicePtr,
    pub up: DevicePtr,
    pub stride: usize,
}

fn launch<'a>(
    device: &'a Device,
    name: &'static str,
    dtype: DType,
    n: usize,
    cols: usize,
) -> KernelLaunch<'a> {
    let blocks = cols.div_ceil(THREADS as usize * vector_len(dtype));
    device.kernel(name, dtype).grid(n, blocks, 1).block(THREADS)
}

/// Computes `out = activation(gate) · up` for `n` rows of `cols` columns.
pub fn forward(
    device: &Device,
    dtype: DType,
    activation: GateActivation,
    out: Rows,
    inp: GateUp,
    (n, cols): (usize, usize),
) {
    let name = name(activation, ["swiglu_forward", "geglu_forward"]);
    let launch = launch(device, name, dtype, n, cols).overlapping();
    let launch = launch.ptr(out.at).ptr(inp.gate).ptr(inp.up);
    launch.int(cols).long(out.stride).long(inp.stride).run();
}

/// Computes the gradients of [`forward`]. `dinp` may be the same memory as `inp`.
pub fn backward(
    device: &Device,
    dtype: DType,
    activation: GateActivation,
    dinp: GateUp,
    (dout, inp): (Rows, GateUp),
    (n, cols): (usize, usize),
) {
    let name = name(activation, ["swiglu_backward", "geglu_backward"]);
    let launch = launch(device, name, dtype, n, cols);
    let launch = launch.ptr(dinp.gate).ptr(dinp.up).ptr(dout.at).ptr(inp.gate).ptr(inp.up);
    launch.int(cols).long(dinp.stride).long(dout.stride).long(inp.stride).run();
}
