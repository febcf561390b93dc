//! Threads that load adapters.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

type Task = Box<dyn FnOnce() + Send>;

/// A fixed number of threads that run tasks in order of arrival. The threads end after the pool is dropped.
pub(crate) struct LoadPool {
    tasks: Sender<Task>,
}

impl LoadPool {
    /// Starts `threads` threads with the name `name`.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(name: &str, threads: usize) -> std::io::Result<Self> {
        let (tasks, receiver) = channel::<Task>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..threads {
            let receiver = Arc::clone(&receiver);
            thread::Builder::new().name(name.to_owned()).spawn(move || while run_next(&receiver) {})?;
        }
        Ok(Self { tasks })
    }

    /// Adds a task to the queue.
    pub fn run(&self, task: impl FnOnce() + Send + 'static) {
        // The send cannot fail, because the threads run until this sender is dropped.
        let _ = self.tasks.send(Box::new(task));
    }
}

/// Runs the next task. Returns `false` after the pool was dropped.
fn run_next(receiver: &Mutex<Receiver<Task>>) -> bool {
    let task = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
    let Ok(task) = task else { return false };
    // A panic drops the task's channel, so the requests that wait for the task get an error. The caught panic
    // does not end the thread.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(task));
    true
}
