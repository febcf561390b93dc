//! The ledger of a trace: live bytes, working memory and number of operations.

use std::sync::{Arc, Mutex};

use crate::cpu::pool::lock;

/// Bytes and FLOP of all operations on a [`Trace`](super::Trace).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Bytes of all live buffers.
    pub live: u64,
    /// Largest sum of buffers and working memory so far, in bytes.
    pub peak: u64,
    /// Working memory of the back end. It only grows.
    pub scratch: ScratchBytes,
    /// FLOP: the number of multiplications and additions.
    pub flops: u64,
}

/// Bytes of working memory for each use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScratchBytes {
    /// Packed operands of multiplications by the base weights.
    pub products: u64,
    /// Buffers of multiplications by `A` and `B`.
    pub low_rank: u64,
    /// Attention tiles of all threads.
    pub attention: u64,
    /// Rows, logits and gradients of the loss head.
    pub head: u64,
    /// Angles of the rotary embedding.
    pub rope: u64,
}

impl ScratchBytes {
    /// Returns the sum of all uses.
    pub fn total(&self) -> u64 {
        self.products + self.low_rank + self.attention + self.head + self.rope
    }
}

/// One grow-only buffer of a back end's working memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScratchPool {
    /// One of four buffers for matrix multiplications by base weights.
    ///
    /// On the CPU: 0 is the packed first operand, 1 is the packed second operand of every thread, and 2 is
    /// the packed rows of `SkinnyGemm`. On a GPU: 0 is the decoded 4-bit weight, 1 and 2 are the workspaces
    /// of the kernels and of cuBLASLt, and 3 is rows rounded to the compute type.
    Products(usize),
    /// One of seven buffers for multiplications by `A` and `B`.
    LowRank(usize),
    /// Attention buffers of all threads (0), or the memory that the threads share (1).
    Attention(usize),
    /// Memory of the loss head that all threads share (0), or the memory of every thread (1).
    Head(usize),
    /// Angles of the rotary embedding.
    Rope,
}

/// Bytes and FLOP, shared by a trace and its buffers. Dropping the [`Allocation`] of a buffer subtracts the
/// bytes of the buffer.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger(Arc<Mutex<Account>>);

#[derive(Debug, Default)]
struct Account {
    live: u64,
    peak: u64,
    flops: u64,
    products: [u64; 4],
    low_rank: [u64; 7],
    attention: [u64; 2],
    head: [u64; 2],
    rope: u64,
}

impl Account {
    fn scratch(&self) -> ScratchBytes {
        ScratchBytes {
            products: self.products.iter().sum(),
            low_rank: self.low_rank.iter().sum(),
            attention: self.attention.iter().sum(),
            head: self.head.iter().sum(),
            rope: self.rope,
        }
    }

    fn note_peak(&mut self) {
        self.peak = self.peak.max(self.live + self.scratch().total());
    }
}

impl Ledger {
    /// Adds the bytes of a buffer. The buffer is live until the returned handle is dropped.
    pub fn alloc(&self, bytes: u64) -> Allocation {
        let mut account = lock(&self.0);
        account.live += bytes;
        account.note_peak();
        Allocation { ledger: self.clone(), bytes }
    }

    /// Records that a pool now has at least `bytes`.
    pub fn grow(&self, pool: ScratchPool, bytes: u64) {
        let mut account = lock(&self.0);
        let bytes_of_pool = match pool {
            ScratchPool::Products(i) => &mut account.products[i],
            ScratchPool::LowRank(i) => &mut account.low_rank[i],
            ScratchPool::Attention(i) => &mut account.attention[i],
            ScratchPool::Head(i) => &mut account.head[i],
            ScratchPool::Rope => &mut account.rope,
        };
        *bytes_of_pool = bytes.max(*bytes_of_pool);
        account.note_peak();
    }

    pub fn add_flops(&self, flops: u64) {
        let mut account = lock(&self.0);
        account.flops = account.flops.saturating_add(flops);
    }

    pub fn footprint(&self) -> Footprint {
        let account = lock(&self.0);
        Footprint { live: account.live, peak: account.peak, scratch: account.scratch(), flops: account.flops }
    }

    /// Resets everything except the live buffers.
    pub fn restart(&self) {
        let mut account = lock(&self.0);
        let live = account.live;
        *account = Account { live, peak: live, ..Account::default() };
    }
}

/// Handle of a buffer that has a size but no elements.
#[derive(Debug)]
pub(super) struct Allocation {
    ledger: Ledger,
    bytes: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        lock(&self.ledger.0).live -= self.bytes;
    }
}
