//! Runs untrusted work on threads with a fixed stack size. Abandons work that takes too much time or memory.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Stack size of a thread. The operating system allocates only the pages that are used.
const STACK_BYTES: usize = 32 << 20;

/// Interval at which the memory of running work is measured. Most work ends before the first measurement.
const POLL: Duration = Duration::from_millis(10);

/// Idle threads.
static IDLE: Mutex<Vec<Sender<Job>>> = Mutex::new(Vec::new());

type Job = Box<dyn FnOnce() + Send>;

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether this thread currently runs a library on an unchecked file. In this state, a panic becomes
/// an error, so a panic hook should print nothing.
pub fn is_panic_caught() -> bool {
    GUARDED.get()
}

/// Returns the result of `work`, or the message of its panic.
pub(crate) fn catch_panic<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let outer = GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    GUARDED.set(outer);
    result.map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
    })
}

/// Limits for one call of [`run_guarded`](crate::run_guarded).
#[derive(Clone, Copy, Debug)]
pub struct WorkLimits {
    /// Maximum running time.
    pub time: Duration,
    /// Maximum number of bytes by which the memory of the process may grow.
    pub bytes: u64,
}

/// The reason why a call of [`run_guarded`](crate::run_guarded) returned no result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoResult {
    /// The work took longer than allowed.
    Time(Duration),
    /// The work used more memory than allowed.
    Memory(u64),
    /// The work panicked with this message.
    Panic(String),
    /// No thread could be started.
    NoThread(String),
}

impl NoResult {
    /// Returns whether the work still runs.
    pub fn is_abandoned(&self) -> bool {
        matches!(self, Self::Time(_) | Self::Memory(_))
    }
}

impl std::fmt::Display for NoResult {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(limit) => write!(f, "it takes more than {} seconds", limit.as_secs()),
            Self::Memory(limit) => write!(f, "it takes more than {} MiB of memory", limit >> 20),
            Self::Panic(message) => write!(f, "it makes the library fail: {message}"),
            Self::NoThread(message) => write!(f, "a thread cannot be started: {message}"),
        }
    }
}

/// Runs `work` on a thread with a stack of `STACK_BYTES`.
///
/// If the work exceeds `limits`, it is abandoned. Its thread continues until the process ends, so the caller
/// should not try the same input again.
///
/// # Errors
/// If the work exceeds a limit or panics, or no thread can be started.
pub fn run<T: Send + 'static>(
    limits: WorkLimits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, NoResult> {
    let (done, result) = channel();
    let mut job: Job = Box::new(move || drop(done.send(catch_panic(work))));
    let worker = loop {
        let idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let worker = idle.map_or_else(new_worker, Ok)?;
        match worker.send(job) {
            Ok(()) => break worker,
            Err(unsent) => job = unsent.0,
        }
    };
    let start = Instant::now();
    let before = resident_bytes();
    let outcome = loop {
        match result.recv_timeout(POLL) {
            Ok(outcome) => break outcome.map_err(NoResult::Panic),
            Err(RecvTimeoutError::Disconnected) => return Err(NoResult::Panic(String::new())),
            Err(RecvTimeoutError::Timeout) if start.elapsed() > limits.time => {
                return Err(NoResult::Time(limits.time));
            }
            Err(RecvTimeoutError::Timeout) => {
                let grown = resident_bytes().saturating_sub(before);
                if grown > limits.bytes {
                    return Err(NoResult::Memory(limits.bytes));
                }
            }
        }
    };
    IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(worker);
    outcome
}

fn new_worker() -> Result<Sender<Job>, NoResult> {
    let (sender, jobs) = channel::<Job>();
    let builder = thread::Builder::new().name("danlu-guarded".to_owned()).stack_size(STACK_BYTES);
    builder
        .spawn(move || jobs.iter().for_each(|job| job()))
        .map_err(|e| NoResult::NoThread(e.to_string()))?;
    Ok(sender)
}

/// Returns the memory of the process in bytes, without its mapped files. Returns 0 if the operating system
/// does not report the memory.
fn resident_bytes() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/self/statm") else { return 0 };
    let mut pages = text.split(' ').skip(1).map(|pages| pages.parse::<u64>().unwrap_or(0));
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These limits do not bound memory, because other tests of this process use memory at the same time.
    const LIMITS: WorkLimits = WorkLimits { time: Duration::from_secs(20), bytes: u64::MAX };

    #[test]
    fn work_returns_its_result_and_its_thread_is_used_again() {
        assert_eq!(run(LIMITS, || 1 + 1), Ok(2));
        assert_eq!(run(LIMITS, || 2 + 2), Ok(4));
    }

    #[test]
    fn endless_work_is_abandoned() {
        let limits = WorkLimits { time: Duration::from_millis(50), ..LIMITS };
        let endless = || thread::sleep(Duration::from_secs(60));
        assert_eq!(run(limits, endless), Err(NoResult::Time(limits.time)));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn work_that_takes_all_memory_is_abandoned() {
        let greedy = || {
            let mut all = Vec::new();
            loop {
                all.push(vec![1u8; 1 << 20]);
                thread::sleep(Duration::from_millis(1));
                if all.len() > 512 {
                    return;
                }
            }
        };
        let limits = WorkLimits { bytes: 64 << 20, ..LIMITS };
        assert_eq!(run(limits, greedy), Err(NoResult::Memory(limits.bytes)));
    }

    #[test]
    fn a_panic_is_a_result() {
        assert_eq!(run(LIMITS, || -> u8 { panic!("no") }), Err(NoResult::Panic("no".to_owned())));
        assert_eq!(run(LIMITS, || 3), Ok(3));
        assert!(!is_panic_caught());
    }
}
