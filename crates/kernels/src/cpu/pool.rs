//! A thread pool. A parallel region ends when all of its tasks have ended.
//!
//! Decoding one token runs more than a hundred parallel regions with short pauses in between. Waking a thread
//! takes longer than most regions. An idle thread therefore first spins, and then lets other threads run,
//! before it sleeps.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicIsize, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Number of spins before a thread lets other threads run. They take about 20 microseconds.
const SPINS: u32 = 1000;
/// Time before a thread sleeps, if each thread of the pool can have a processor. The tasks of a region rarely
/// end at the same time, and waking a thread takes longer than most regions.
const PATIENCE: Duration = Duration::from_millis(2);

/// Locks a mutex, even if another thread panicked while it held the lock. The data is still valid after such
/// a panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A pointer that tasks share. Two tasks must access different elements.
#[derive(Clone, Copy)]
pub(crate) struct SendPtr(pub *mut f32);

// SAFETY: sending the pointer accesses no memory. Code that dereferences it guarantees disjoint access.
unsafe impl Send for SendPtr {}
// SAFETY: sharing the pointer accesses no memory. Code that dereferences it guarantees disjoint access.
unsafe impl Sync for SendPtr {}

impl SendPtr {
    /// Returns a pointer to the element at `offset`.
    pub fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// One cache line. It sets the alignment of packed panels, so that a vector load never crosses two cache
/// lines.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A grow-only buffer that is aligned to cache lines. Its elements contain arbitrary values of earlier
/// operations.
#[derive(Default)]
pub(crate) struct Scratch(Vec<Line>);

impl Scratch {
    /// Returns the bytes that a buffer of `len` elements allocates.
    pub fn bytes(len: usize) -> u64 {
        len.div_ceil(16) as u64 * size_of::<Line>() as u64
    }

    #[cfg(test)]
    pub fn allocated_bytes(&self) -> u64 {
        (self.0.capacity() * size_of::<Line>()) as u64
    }

    /// Returns at least `len` elements.
    pub fn at_least(&mut self, len: usize) -> &mut [f32] {
        let lines = len.div_ceil(16);
        if self.0.len() < lines {
            // The old allocation is freed first, and the new allocation has exactly this size. The memory
            // plan relies on both facts.
            self.0 = Vec::new();
            self.0 = vec![Line([0.0; 16]); lines];
        }
        // SAFETY: a `Line` is exactly 16 f32.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }

    /// Returns at least `len` elements as `u32`.
    pub fn words(&mut self, len: usize) -> &mut [u32] {
        let elements = self.at_least(len);
        // SAFETY: both types have four bytes, and every bit pattern is valid for both.
        unsafe { std::slice::from_raw_parts_mut(elements.as_mut_ptr().cast(), elements.len()) }
    }
}

/// The function of a parallel region, called as `task(index, worker)`. Its lifetime is erased, which is sound
/// because [`Pool::run`] returns only after the last call.
type Task = *const (dyn Fn(usize, usize) + Sync);

#[derive(Clone, Copy)]
struct Job {
    task: Task,
    tasks: usize,
}

// SAFETY: the closure is `Sync`, and it is alive until every worker has finished, because `Pool::run` does
// not return earlier.
unsafe impl Send for Job {}

/// A value that shares its cache lines with no other value. Otherwise, a thread that writes one value would
/// slow down threads that read another value. Processors fetch lines of 64 bytes in pairs.
#[repr(align(128))]
struct Padded<T>(T);

/// The state of a parallel region, which is one call of [`Pool::run`]. A region starts and ends without a
/// lock, unless a thread sleeps:
///
/// - The caller writes `job` while no worker runs, and then increments `epoch`.
/// - A thread that is about to sleep first sets `sleepers` or `caller_sleeps`, and then checks `epoch` or
///   `working` again. The other side changes `epoch` or `working`, and then checks for sleepers. All of these
///   accesses are sequentially consistent, so no sleeper misses a change.
struct Shared {
    /// Number that each new region increments. A sleeping worker continues when this number changes.
    epoch: Padded<AtomicU32>,
    job: UnsafeCell<Option<Job>>,
    next: Padded<AtomicUsize>,
    /// Number of workers that have not finished the current region.
    working: Padded<AtomicUsize>,
    /// Number of workers that sleep, or are about to.
    sleepers: AtomicUsize,
    caller_sleeps: AtomicBool,
    stop: AtomicBool,
    /// Time before a thread sleeps.
    patience: Duration,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Mutex of both condition variables: workers sleep on `wake`, and the caller sleeps on `done`.
    sleep: Mutex<()>,
    wake: Condvar,
    done: Condvar,
}

// SAFETY: only the caller of a region writes `job`, and no worker reads `job` at that time. The increment of
// `epoch` publishes the write, and the decrement of `working` ends the reads.
unsafe impl Sync for Shared {}

impl Shared {
    fn new(threads: usize) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            patience: if threads <= processors { PATIENCE } else { Duration::ZERO },
            epoch: Padded(AtomicU32::new(0)),
            job: UnsafeCell::new(None),
            next: Padded(AtomicUsize::new(0)),
            working: Padded(AtomicUsize::new(0)),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
        }
    }

    /// Starts a new epoch, and wakes the workers that sleep.
    fn start_epoch(&self) {
        self.epoch.0.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _sleep = lock(&self.sleep);
            self.wake.notify_all();
        }
    }

    /// Blocks until the epoch differs from `seen`.
    fn wait_for_epoch(&self, seen: u32) {
        let changed = || self.epoch.0.load(Ordering::SeqCst) != seen;
        if wait_until(changed, self.patience) {
            return;
        }
        let mut sleep = lock(&self.sleep);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while !changed() {
            sleep = self.wake.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    /// Records that a worker has finished the region. The last worker wakes the caller if the caller sleeps.
    fn finish(&self) {
        let is_last = self.working.0.fetch_sub(1, Ordering::SeqCst) == 1;
        if is_last && self.caller_sleeps.load(Ordering::SeqCst) {
            let _sleep = lock(&self.sleep);
            self.done.notify_one();
        }
    }

    /// Blocks until every worker has finished the region.
    fn wait_for_workers(&self) {
        let finished = || self.working.0.load(Ordering::SeqCst) == 0;
        if wait_until(finished, self.patience) {
            return;
        }
        let mut sleep = lock(&self.sleep);
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !finished() {
            sleep = self.done.wait(sleep).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }
}

/// A fixed set of threads that share the tasks of a region. Only one region runs at a time. The calling
/// thread is worker 0.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    caller: Mutex<()>,
}

thread_local! {
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

impl Pool {
    /// Starts a pool of `threads` threads, including the calling thread.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::new(threads));
        let workers = (1..threads.max(1))
            .map_while(|worker| {
                let shared = Arc::clone(&shared);
                let name = format!("kernel-{worker}");
                // If the system cannot start a thread, the pool works with fewer threads.
                std::thread::Builder::new().name(name).spawn(move || work(&shared, worker)).ok()
            })
            .collect();
        Self { shared, workers, caller: Mutex::new(()) }
    }

    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(index, worker)` for every index below `tasks`, in any order. Returns when all tasks have
    /// ended. Tasks that run at the same time have different `worker` numbers. Calls of this function from
    /// several threads run one after another.
    ///
    /// # Panics
    /// If a task panics, or if a task calls this function.
    pub fn run(&self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        assert!(!INSIDE.get(), "a parallel region inside another");
        // Only one region runs at a time, even if the pool has no other threads, because worker 0 has only
        // one working memory.
        let _turn = lock(&self.caller);
        let _inside = Inside::enter();
        if tasks <= 1 || self.workers.is_empty() {
            return (0..tasks).for_each(|index| task(index, 0));
        }
        let shared = &*self.shared;
        let task: &(dyn Fn(usize, usize) + Sync) = &task;
        // SAFETY: only the lifetime changes. `working` reaches 0 before this function returns, and no worker
        // uses the closure after that.
        let task: Task = unsafe { std::mem::transmute(task) };
        let job = Job { task, tasks };
        // SAFETY: every worker has finished the previous region, and no worker reads `job` before the next
        // epoch.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.0.store(0, Ordering::Relaxed);
        shared.working.0.store(self.workers.len(), Ordering::Relaxed);
        shared.start_epoch();
        share(shared, job, 0);
        shared.wait_for_workers();
        if let Some(panic) = lock(&shared.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.start_epoch();
        for worker in self.workers.drain(..) {
            // There is no panic to report here, because a worker catches the panics of its tasks and passes
            // them to the caller.
            let _ = worker.join();
        }
    }
}

/// Marks this thread as running a region until this value is dropped.
struct Inside;

impl Inside {
    fn enter() -> Self {
        INSIDE.set(true);
        Self
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// Runs the loop of a worker: runs tasks of each new epoch, and signals completion.
fn work(shared: &Shared, worker: usize) {
    INSIDE.set(true);
    let mut seen = 0;
    loop {
        shared.wait_for_epoch(seen);
        // The next region starts only after every worker has finished, so no epoch is missed.
        seen = seen.wrapping_add(1);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: the caller wrote `job` before this epoch, and writes `job` again only after this worker has
        // finished.
        if let Some(job) = unsafe { *shared.job.get() } {
            share(shared, job, worker);
        }
        shared.finish();
    }
}

/// Runs tasks until all tasks of the region have started. After a panic, the remaining tasks are skipped.
fn share(shared: &Shared, job: Job, worker: usize) {
    let result = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let index = shared.next.0.fetch_add(1, Ordering::Relaxed);
            if index >= job.tasks {
                return;
            }
            // SAFETY: the region lasts until this worker has finished, so the closure is alive.
            unsafe { (*job.task)(index, worker) };
        }
    }));
    if let Err(panic) = result {
        shared.next.0.store(job.tasks, Ordering::Relaxed);
        lock(&shared.panic).get_or_insert(panic);
    }
}

/// Counts tasks of a region whose results other tasks of the same region read.
///
/// Tasks start in ascending order, and a counted task never waits. If the counted tasks have the lowest
/// indices, they therefore end while others wait for them.
pub(crate) struct Latch(Padded<AtomicIsize>);

/// Ends a counted task when this value is dropped. A panic opens the latch, because the pool then skips the
/// other counted tasks.
struct Counted<'a>(&'a Latch);

impl Latch {
    /// Creates a latch that opens after `tasks` calls of [`run`](Self::run).
    pub fn new(tasks: usize) -> Self {
        Self(Padded(AtomicIsize::new(tasks as isize)))
    }

    /// Runs a counted task.
    pub fn run(&self, task: impl FnOnce()) {
        let _counted = Counted(self);
        task();
    }

    /// Blocks until all counted tasks have ended. Their writes are then visible.
    pub fn wait(&self) {
        let is_open = || self.0.0.load(Ordering::Acquire) <= 0;
        while !spin_until(is_open) {
            std::thread::yield_now();
        }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let left = &self.0.0.0;
        match std::thread::panicking() {
            true => left.store(isize::MIN / 2, Ordering::Release),
            false => _ = left.fetch_sub(1, Ordering::Release),
        }
    }
}

/// Spins, and then lets other threads run until `patience` has passed. Returns whether `ready` returned true.
fn wait_until(ready: impl Fn() -> bool, patience: Duration) -> bool {
    if spin_until(&ready) {
        return true;
    }
    let start = Instant::now();
    while start.elapsed() < patience {
        std::thread::yield_now();
        if ready() {
            return true;
        }
    }
    false
}

/// Spins for a limited time. Returns whether `ready` returned true.
fn spin_until(ready: impl Fn() -> bool) -> bool {
    for _ in 0..SPINS {
        if ready() {
            return true;
        }
        std::hint::spin_loop();
    }
    ready()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 5, 100] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |index, worker| {
                    assert!(worker < threads);
                    counts[index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} {tasks}");
            }
        }
    }

    #[test]
    fn regions_follow_each_other_without_mixing() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        for round in 0..2000 {
            pool.run(4, |_, _| {
                sum.fetch_add(round, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.load(Ordering::Relaxed), 4 * 2000 * 1999 / 2);
    }

    #[test]
    fn threads_that_sleep_are_woken() {
        let pool = Pool::new(4);
        // The pauses are longer than a thread spins, between regions and within them.
        let pause = 2 * PATIENCE;
        let count = AtomicUsize::new(0);
        for round in 0..60 {
            pool.run(4, |index, _| {
                if index == round % 4 {
                    std::thread::sleep(pause);
                }
                count.fetch_add(1, Ordering::Relaxed);
            });
            if round % 2 == 0 {
                std::thread::sleep(pause);
            }
        }
        assert_eq!(count.load(Ordering::Relaxed), 240);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(8, |index, _| assert_ne!(index, 5))));
        assert!(result.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.load(Ordering::Relaxed), 8);
    }

    #[test]
    fn a_nested_region_is_refused() {
        let pool = Pool::new(2);
        let result = catch_unwind(AssertUnwindSafe(|| pool.run(4, |_, _| pool.run(1, |_, _| ()))));
        assert!(result.is_err());
    }

    #[test]
    fn callers_on_several_threads_take_turns() {
        let pool = Pool::new(2);
        let busy = [AtomicBool::new(false), AtomicBool::new(false)];
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(3, |_, worker| {
                            assert!(!busy[worker].swap(true, Ordering::SeqCst));
                            busy[worker].store(false, Ordering::SeqCst);
                        });
                    }
                });
            }
        });
    }

    #[test]
    fn tasks_behind_a_latch_see_what_the_counted_tasks_wrote() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for round in 0..200 {
                let (latch, sum) = (Latch::new(3), AtomicUsize::new(0));
                pool.run(9, |index, _| match index {
                    0..3 => latch.run(|| _ = sum.fetch_add(round, Ordering::Relaxed)),
                    _ => {
                        latch.wait();
                        assert_eq!(sum.load(Ordering::Relaxed), 3 * round);
                    }
                });
            }
        }
    }

    #[test]
    fn a_panic_of_a_counted_task_leaves_no_task_waiting() {
        let pool = Pool::new(3);
        let latch = Latch::new(4);
        let region = || {
            pool.run(12, |index, _| match index {
                0..4 => latch.run(|| assert_ne!(index, 0)),
                _ => latch.wait(),
            });
        };
        assert!(catch_unwind(AssertUnwindSafe(region)).is_err());
    }

    #[test]
    fn scratch_grows_and_is_aligned() {
        let mut scratch = Scratch::default();
        assert!(scratch.at_least(5).len() >= 5);
        assert_eq!(scratch.at_least(1000).as_ptr().addr() % 64, 0);
    }
}
