//! Launches of `rmsnorm.cu`.

use super::Rows;
use crate::DType;
use crate::cuda::device::{Device, DevicePtr};
use crate::cuda::launch::KernelLaunch;

/// Type of the residual stream, and type of all other activations.
#[derive(Clone, Copy, Debug)]
pub struct NormTypes {
    pub stream: DType,
    pub activation: DType,
}

impl NormTypes {
    fn launch<'a>(
        self,
        device: &'a Device,
        [same, over_f32]: [&'static str; 2],
        shape: NormShape,
    ) -> KernelLaunch<'a> {
        let NormShape { n, c } = shape;
        let launch = match self.stream == self.activation {
            true => device.kernel(same, self.activation),
            false => device.exact(over_f32),
        };
        // The block size determines the order of the sum. It depends only on `c`, so a row has the same bits
        // in every batch.
        launch.grid(n, 1, 1).block((c.div_ceil(8).next_multiple_of(32) as u32).clamp(32, 256))
    }
}

/// Shape of the input: `n` rows of `c` columns.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    pub n: usize,
    pub c: usize,
}

/// Computes `out = weight · inp · rstd`, and `rstd` for the backward pass.
pub fn forward(
    device: &Device,
    types: NormTypes,
    (out, rstd): (Rows, DevicePtr),
    inp: Rows,
    weight: DevicePtr,
    eps: f32,
    shape: NormShape,
) {
    let launch = types.launch(device, ["rmsnorm_forward", "rmsnorm_forward_f16_over_f32"], shape);
    let launch = launch.overlapping().ptr(out.at).ptr(rstd).ptr(inp.at).ptr(weight);
    launch.int(shape.c).long(out.stride).long(inp.stride).float(eps).run();
}

/// Values that the forward pass saved.
#[derive(Clone, Copy, Debug)]
pub struct Saved {
    pub inp: Rows,
    pub rstd: DevicePtr,
    pub weight: DevicePtr,
}

/// Computes the gradient of [`forward`] with respect to `inp`.
pub fn backward(
    device: &Device,
    types: NormTypes,
    (dinp, accumulates): (Rows, bool),
    dout: Rows,
    saved: Saved,
    shape: NormShape,
) {
    let launch = types.launch(device, ["rmsnorm_backward", "rmsnorm_backward_f16_over_f32"], shape);
    let launch = launch.ptr(dinp.at).ptr(dout.at).ptr(saved.inp.at).ptr(saved.rstd).ptr(saved.weight);
    let launch = launch.int(shape.c).long(dinp.stride).long(dout.stride).long(saved.inp.stride);
    launch.int(accumulates as usize).run();
}
