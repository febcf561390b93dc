//! Working memory of [`Cpu`](crate::Cpu). The sizes are computed by the functions that also size the buffers
//! of `Cpu`.

use super::{ScratchPool, TraceTarget, TracedOp};
use crate::cpu::head_loss::HeadLoss;
use crate::cpu::lora::{LowRank, Sizes};
use crate::cpu::pool::Scratch;
use crate::cpu::{CpuOptions, describe};
use crate::gemm::{Gemm, SkinnyGemm};
use crate::rope::RopeTable;
use crate::{AttentionDims, DType, Element, FamilyOperation, Isa, Segment, attention};

/// Computes the working memory of a [`Cpu`](crate::Cpu) without allocating it.
#[derive(Debug)]
pub(super) struct CpuTarget {
    isa: Isa,
    threads: usize,
    bf16: bool,
}

impl CpuTarget {
    /// # Panics
    /// If this machine does not support `options.isa`.
    pub fn new(options: CpuOptions) -> Self {
        let (isa, threads, bf16) = options.resolve();
        assert!(isa.is_supported(), "this machine does not run {isa}");
        Self { isa, threads, bf16 }
    }

    /// Returns the bytes of all threads together if each thread has a buffer of `words` f32 elements.
    fn of_threads(&self, words: usize) -> u64 {
        self.threads as u64 * Scratch::bytes(words)
    }

    /// Returns the number of elements of one thread's attention buffer, which is sized for the largest task.
    fn attention(&self, segments: &[Segment], dims: AttentionDims, backward: bool) -> usize {
        let format = attention::OperandFormat::new(self.isa, self.bf16);
        let lens: Vec<usize> = if backward {
            let tasks = attention::backward_tasks(segments, dims);
            tasks.iter().map(|task| attention::backward_len(format, task, dims)).collect()
        } else {
            let tasks = attention::forward_tasks(segments, dims);
            tasks.iter().map(|task| attention::forward_len(format, task, dims)).collect()
        };
        lens.into_iter().max().unwrap_or(0)
    }
}

impl TraceTarget for CpuTarget {
    fn name(&self) -> String {
        describe(self.isa, self.threads, self.bf16)
    }

    fn row_invariant_from(&self) -> usize {
        SkinnyGemm::MAX_ROWS + 1
    }

    fn max_generated_rows(&self) -> usize {
        SkinnyGemm::MAX_GENERATED_ROWS
    }

    fn supports(&self, _operation: FamilyOperation) -> bool {
        true
    }

    fn dtype(&self, _element: Element) -> DType {
        DType::F32
    }

    fn scratch(&self, op: TracedOp<'_>, grow: &mut dyn FnMut(ScratchPool, u64)) {
        match op {
            TracedOp::Linear { n, d_in, is_generated, backward: false, .. }
                if is_generated || n <= SkinnyGemm::MAX_ROWS =>
            {
                let words = SkinnyGemm::new(self.isa, self.bf16).scratch(n, d_in);
                grow(ScratchPool::Products(2), Scratch::bytes(words));
            }
            TracedOp::Linear { n, d_out, d_in, backward, .. } => {
                let (cols, k) = if backward { (d_in, d_out) } else { (d_out, d_in) };
                let gemm = Gemm::new(self.isa, self.bf16, self.threads);
                let [a, b] = gemm.scratch(self.threads, n, cols, k);
                grow(ScratchPool::Products(0), Scratch::bytes(a));
                grow(ScratchPool::Products(1), self.of_threads(b));
            }
            TracedOp::Lora { rows, dims, dropout, backward } => {
                let low_rank = LowRank::new(self.isa, 0);
                let Sizes { shared, own } = if backward {
                    low_rank.backward_sizes(rows, dims, dropout)
                } else {
                    low_rank.forward_sizes(rows, dims, dropout)
                };
                for (i, words) in shared.into_iter().enumerate() {
                    grow(ScratchPool::LowRank(i), Scratch::bytes(words));
                }
                for (i, words) in own.into_iter().enumerate() {
                    grow(ScratchPool::LowRank(shared.len() + i), self.of_threads(words));
                }
            }
            TracedOp::Attention { segments, dims, backward } => {
                let words = self.attention(segments, dims, backward);
                grow(ScratchPool::Attention(0), self.of_threads(words));
            }
            TracedOp::DecodeAttention { segments, dims, window } => {
                let format = attention::OperandFormat::new(self.isa, self.bf16);
                let words = attention::task_len(format, dims);
                grow(ScratchPool::Attention(0), self.of_threads(words));
                let shared = attention::shared_len(segments, dims, window);
                grow(ScratchPool::Attention(1), Scratch::bytes(shared));
            }
            TracedOp::Head { n, v, c, gradient } => {
                let head = HeadLoss::new(self.isa, self.bf16, 0);
                let [shared, own] = head.scratch(self.threads, n, (v, c), gradient);
                grow(ScratchPool::Head(0), Scratch::bytes(shared));
                grow(ScratchPool::Head(1), self.of_threads(own));
            }
            TracedOp::Rope { n, half, frequencies, tables } => {
                grow(ScratchPool::Rope, RopeTable::bytes(n, half, frequencies, tables));
            }
        }
    }
}
