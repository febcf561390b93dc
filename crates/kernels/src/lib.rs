//! The forward and backward operations of LoRA training and of token generation, and the back ends that run
//! these operations. This crate handles no model files, no configuration and no model names.
//!
//! The whole crate uses these letters for shapes: `N` token rows, `C` hidden size, `V` vocabulary size, `NH`
//! heads, `KH` key and value heads, `HS` head size, `R` rank, `IN` and `OUT` input and output width of a
//! projection.
//!
//! A model calls a [`Backend`]. The code of the model is the same for every back end:
//!
//! ```
//! use danlu_kernels::{Backend, Buffer, Cpu, CpuOptions, Element, Matrix, Reference};
//!
//! let inp = Buffer::from_vec(vec![1.0, 2.0, 3.0]);
//! let weight = Matrix::from_f32(&[1.0, 0.0, -1.0, 0.5, 0.5, 0.5], 2, 3);
//! for backend in [&Reference::new() as &dyn Backend, &Cpu::new(CpuOptions::default())] {
//!     let mut out = backend.alloc(2, Element::Activation);
//!     backend.linear_forward(&mut out, &inp, &weight, 1);
//!     let mut values = [0.0; 2];
//!     backend.read(&mut values, &out, 0)?;
//!     assert_eq!(values, [-2.0, 3.0], "{}", backend.name());
//! }
//! # Ok::<(), danlu_kernels::BackendError>(())
//! ```

pub mod adamw;
pub mod attention;
mod backend;
mod backend_options;
mod buffer;
mod cpu;
pub mod cuda;
mod dtype;
mod error;
#[cfg(test)]
mod finite_difference;
mod four_bit;
pub mod gated;
pub mod geglu;
mod gemm;
pub mod head_loss;
mod indices;
mod isa;
pub mod linear;
pub mod lora;
pub mod math;
mod matrix;
mod operands;
mod packed_lora;
pub mod peak;
mod profile;
mod reference;
pub mod rmsnorm;
pub mod rng;
pub mod rope;
pub mod row_ops;
mod simd;
mod softmax;
pub mod swiglu;
mod trace;

pub use backend::{Backend, FamilyOperation};
pub use backend_options::BackendOptions;
pub use buffer::{Buffer, DeviceMemory, Element, HostMemory, Scalars, Storage};
pub use cpu::{Cpu, CpuOptions};
pub use dtype::{DType, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16, from_f32, to_f32};
pub use error::BackendError;
pub use four_bit::{
    FP4, FourBit, FourBitCode, FourBitFormat, NESTED_BLOCK, NF4, NestedScales, Scales, dynamic_u8,
    encode_blocks, nest,
};
pub use gated::GateActivation;
pub use indices::{Indices, Segments, Uploaded};
pub use isa::{Isa, UnknownIsa};
pub use matrix::{Bytes, Matrix, MatrixStorage};
pub use operands::{
    AdamW, AttentionDims, AttentionGrads, AttentionOperands, AttentionSaved, AttentionScores, ColumnProducts,
    Dropout, GatedGrads, GatedOperands, HeadGrads, HeadOperands, LoraGrads, LoraPair, LoraRef, LoraSegment,
    PassSize, ProjectGrads, ProjectGroup, ProjectSaved, RmsnormSaved, RopeOperands, RopePairs, RopeRotation,
    Segment, Store,
};
pub use packed_lora::PackedLora;
pub use profile::{Profile, ProfileRow};
pub use reference::Reference;
pub use trace::{Footprint, ScratchBytes, ScratchPool, Trace, TraceTarget, TracedOp};
