//! Threads that load adapters.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

type Task = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that run tasks in order of arrival. They end when the pool is dropped.
pub(crate) struct LoadPool {
    tasks: Sender<Task>,
}

impl LoadPool {
    /// Starts `threads` threads called `name`.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub fn start(name: &str, threads: usize) -> std::io::Result<Self> {
        let (tasks, receiver) = channel::<Task>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new().name(name.to_owned()).spawn(move || while run_next(&receiver) {})?;
        }
        Ok(Self { tasks })
    }

    /// Queues a task.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) {
        // The threads outlive the pool's sender.
        let _ = self.tasks.send(Box::new(task));
    }
}

/// Runs the next task. Returns `false` once the pool is dropped.
fn run_next(receiver: &Mutex<Receiver<Task>>) -> bool {
    let task = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let Ok(task) = task else { return false };
    // A panic drops the task's channel, so its waiters get an error. The thread stays for other tasks.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
    true
}
