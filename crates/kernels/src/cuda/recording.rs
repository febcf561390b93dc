//! Records launches, and replays repeated sequences of launches as graphs.
//!
//! The driver needs about 4 microseconds of host time per launch, and the device idles for about one
//! microsecond between two dependent kernels. A graph submits a whole sequence at once, and removes most of
//! both costs. This matters for decoding, which launches hundreds of short kernels for each token.
//!
//! A sequence is recorded each time that it runs, and is compared with the sequences of existing graphs. A
//! graph is therefore only replayed if every kernel, address and parameter is the same.
//!
//! | the sequence equals | action |
//! |---|---|
//! | no recent sequence | its kernels are launched one by one |
//! | a recent sequence without a graph | it becomes a graph, which is launched |
//! | the sequence of a graph | the graph is launched |

use std::collections::VecDeque;
use std::ffi::c_void;
use std::ops::Range;
use std::ptr;
use std::sync::Arc;

use super::blas::{Blas, ProductOperands, ProductShape};
use super::device::{Device, DevicePtr};
use super::driver::{Handle, Shape};
use super::error::CudaError;

/// Maximum number of graphs of a device. A graph of 400 launches occupies one to two MiB.
const MAX_GRAPHS: usize = 16;
/// Number of recent sequences whose hashes are stored.
const MAX_SEEN: usize = 32;

/// A kernel with its launch shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Kernel {
    pub name: &'static str,
    pub function: Handle,
    pub shape: Shape,
}

/// One unit of work of a stream.
#[derive(Debug)]
enum Work {
    /// A kernel, and the range of its parameters in [`Recording::starts`].
    Kernel(Kernel, Range<usize>),
    /// A product of cuBLASLt, and its scratch memory.
    Product(Arc<Blas>, ProductShape, ProductOperands, DevicePtr),
    Copy {
        to: DevicePtr,
        from: DevicePtr,
        bytes: usize,
    },
    Fill {
        to: DevicePtr,
        value: u8,
        bytes: usize,
    },
}

impl PartialEq for Work {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Kernel(a, b), Self::Kernel(c, d)) => (a, b) == (c, d),
            (Self::Product(a, b, c, d), Self::Product(e, f, g, h)) => {
                Arc::ptr_eq(a, e) && (b, c, d) == (f, g, h)
            }
            (Self::Copy { to, from, bytes }, Self::Copy { to: t, from: f, bytes: b }) => {
                (to, from, bytes) == (t, f, b)
            }
            (Self::Fill { to, value, bytes }, Self::Fill { to: t, value: v, bytes: b }) => {
                (to, value, bytes) == (t, v, b)
            }
            _ => false,
        }
    }
}

/// A recorded sequence.
#[derive(Debug, Default, PartialEq)]
struct Recording {
    work: Vec<Work>,
    /// Index in `words` at which each parameter of each kernel starts.
    starts: Vec<usize>,
    /// Parameters of all kernels.
    words: Vec<u64>,
}

impl Recording {
    /// Adds a kernel. A parameter is an address and a number of bytes.
    ///
    /// # Safety
    /// Every parameter must be readable, and must have no padding bytes.
    unsafe fn push_kernel(
        &mut self,
        kernel: Kernel,
        parameters: impl Iterator<Item = (*const c_void, usize)>,
    ) {
        let first = self.starts.len();
        for (from, bytes) in parameters {
            let start = self.words.len();
            self.starts.push(start);
            self.words.resize(start + bytes.div_ceil(8), 0);
            // SAFETY: the caller guarantees that the parameter is readable. The words were just added.
            unsafe {
                ptr::copy_nonoverlapping(from.cast::<u8>(), self.words[start..].as_mut_ptr().cast(), bytes);
            }
        }
        self.work.push(Work::Kernel(kernel, first..self.starts.len()));
    }

    fn clear(&mut self) {
        self.work.clear();
        self.starts.clear();
        self.words.clear();
    }

    /// Returns a hash of the sequence. Sequences with equal hashes are then compared in full.
    fn hash(&self) -> u64 {
        let numbers = [self.work.len() as u64, self.starts.len() as u64];
        let mix = |state: u64, &word: &u64| (state.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
        numbers.iter().chain(&self.words).fold(0, mix)
    }

    /// Launches the work in order.
    fn run(&mut self, device: &Device) -> Result<(), CudaError> {
        let Device { driver, stream, .. } = device;
        let mut arguments = Vec::new();
        for work in &self.work {
            match work {
                Work::Kernel(kernel, parameters) => {
                    arguments.clear();
                    let words = self.words.as_mut_ptr();
                    // SAFETY: a parameter starts inside `words`.
                    let address = |&start: &usize| unsafe { words.add(start) }.cast::<c_void>();
                    arguments.extend(self.starts[parameters.clone()].iter().map(address));
                    // SAFETY: the parameters are copies of those that the operation passed.
                    let result =
                        unsafe { driver.launch(kernel.function, kernel.shape, *stream, &mut arguments) };
                    driver.check(kernel.name, result)?;
                }
                Work::Product(blas, shape, operands, scratch) => {
                    blas.run(device, *shape, *operands, *scratch)?
                }
                // SAFETY: the operation passed disjoint ranges inside its own allocations.
                Work::Copy { to, from, bytes } => unsafe {
                    driver.copy_within(to.0, from.0, *bytes, *stream)?
                },
                // SAFETY: the operation passed a range inside its own allocation.
                Work::Fill { to, value, bytes } => unsafe { driver.fill(to.0, *value, *bytes, *stream)? },
            }
        }
        Ok(())
    }
}

/// A sequence, and the graph that replays it.
#[derive(Debug)]
struct Graph {
    hash: u64,
    recording: Recording,
    executable: Handle,
    last_used: u64,
}

/// Records sequences and owns their graphs.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    is_active: bool,
    /// Whether no upload, download or allocation has interrupted the current sequence.
    is_whole: bool,
    recording: Recording,
    /// Hashes of recent sequences without a graph.
    seen: VecDeque<u64>,
    graphs: Vec<Graph>,
    /// Number of sequences so far.
    sequences: u64,
    replays: u64,
}

impl Recorder {
    /// Starts a sequence. Until the sequence ends, work is recorded and not launched.
    pub fn begin(&mut self) {
        assert!(!self.is_active, "a sequence inside a sequence");
        (self.is_active, self.is_whole) = (true, true);
    }

    /// Records a kernel. Returns false if no sequence is being recorded.
    ///
    /// # Safety
    /// As for [`Recording::push_kernel`].
    pub unsafe fn take_kernel(
        &mut self,
        kernel: Kernel,
        parameters: impl Iterator<Item = (*const c_void, usize)>,
    ) -> bool {
        if self.is_active {
            // SAFETY: the caller fulfils this function's safety contract.
            unsafe { self.recording.push_kernel(kernel, parameters) };
        }
        self.is_active
    }

    /// Records a product. Returns false if no sequence is being recorded.
    pub fn take_product(
        &mut self,
        blas: &Arc<Blas>,
        shape: ProductShape,
        operands: ProductOperands,
        scratch: DevicePtr,
    ) -> bool {
        self.take(|| Work::Product(blas.clone(), shape, operands, scratch))
    }

    /// Records a copy. Returns false if no sequence is being recorded.
    pub fn take_copy(&mut self, to: DevicePtr, from: DevicePtr, bytes: usize) -> bool {
        self.take(|| Work::Copy { to, from, bytes })
    }

    /// Records a fill. Returns false if no sequence is being recorded.
    pub fn take_fill(&mut self, to: DevicePtr, value: u8, bytes: usize) -> bool {
        self.take(|| Work::Fill { to, value, bytes })
    }

    fn take(&mut self, work: impl FnOnce() -> Work) -> bool {
        if self.is_active {
            self.recording.work.push(work());
        }
        self.is_active
    }

    /// Launches the work that has been recorded so far. This function must be called before every driver call
    /// that must run after the recorded work.
    pub fn flush(&mut self, device: &Device) -> Result<(), CudaError> {
        if !self.is_active || self.recording.work.is_empty() {
            return Ok(());
        }
        self.is_whole = false;
        let result = self.recording.run(device);
        self.recording.clear();
        result
    }

    /// Ends the sequence and launches its work.
    pub fn end(&mut self, device: &Device) -> Result<(), CudaError> {
        self.is_active = false;
        self.sequences += 1;
        if self.is_whole { self.replay(device) } else { self.recording.run(device) }
    }

    /// Discards the current sequence.
    pub fn clear(&mut self) {
        self.is_active = false;
        self.recording.clear();
    }

    /// Returns the number of graph launches.
    pub fn replays(&self) -> u64 {
        self.replays
    }

    fn replay(&mut self, device: &Device) -> Result<(), CudaError> {
        let hash = self.recording.hash();
        let is_equal = |graph: &Graph| graph.hash == hash && graph.recording == self.recording;
        let graph = match self.graphs.iter().position(is_equal) {
            Some(graph) => graph,
            None if self.seen.contains(&hash) => match self.capture(device, hash)? {
                Some(graph) => graph,
                None => return self.recording.run(device),
            },
            None => {
                self.seen.truncate(MAX_SEEN - 1);
                self.seen.push_front(hash);
                return self.recording.run(device);
            }
        };
        self.replays += 1;
        self.graphs[graph].last_used = self.sequences;
        // SAFETY: the graph has the parameters of the recorded sequence, whose operations checked them.
        unsafe { device.driver.launch_graph(self.graphs[graph].executable, device.stream) }
    }

    /// Creates a graph of the recorded sequence. Returns its index, or `None` if the device has too little
    /// memory for it.
    fn capture(&mut self, device: &Device, hash: u64) -> Result<Option<usize>, CudaError> {
        let Device { driver, stream, .. } = device;
        driver.begin_capture(*stream)?;
        let result = self.recording.run(device);
        // A capture must end, even after an error.
        let executable = driver.end_capture(*stream);
        result?;
        let executable = match executable {
            Err(CudaError::OutOfMemory { .. }) => return Ok(None),
            executable => executable?,
        };
        self.seen.retain(|&other| other != hash);
        if self.graphs.len() == MAX_GRAPHS {
            let oldest = (0..MAX_GRAPHS).min_by_key(|&i| self.graphs[i].last_used).expect("there are graphs");
            // SAFETY: the graph is removed, so it is not launched again.
            unsafe { driver.destroy_graph(self.graphs.swap_remove(oldest).executable) };
        }
        let recording = std::mem::take(&mut self.recording);
        self.graphs.push(Graph { hash, recording, executable, last_used: 0 });
        Ok(Some(self.graphs.len() - 1))
    }

    pub fn release(&mut self, device: &Device) {
        for graph in self.graphs.drain(..) {
            // SAFETY: the graph is removed, so it is not launched again.
            unsafe { device.driver.destroy_graph(graph.executable) };
        }
    }
}
