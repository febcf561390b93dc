//! The thread that owns the scheduler.
//!
//! Requests arrive through a bounded channel and are added between two steps. Each HTTP request has its own
//! channel for events. The thread never waits for a client, because event channels are unbounded. The maximum
//! length of a reply bounds the memory of an event channel. If a client drops its receiver, the thread
//! cancels the request before the next step.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use danlu_generate::{
    AddError, EventKind, GenerateError, ReplyRequest, RequestId, Scheduler, SchedulerEvent, SchedulerStats,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::sync::oneshot;

use crate::api_error::ApiError;

/// An event of one choice, which is one of the replies to an HTTP request.
pub(crate) struct ChoiceEvent {
    /// Index of the choice in its HTTP request.
    pub choice: usize,
    pub kind: EventKind,
}

/// Receives the events of an HTTP request. Dropping the receiver cancels the request.
pub(crate) struct EventReceiver {
    receiver: UnboundedReceiver<ChoiceEvent>,
    _admissions: Vec<Admission>,
}

impl EventReceiver {
    /// Returns the next event. Returns `None` after the last choice has ended, or if the engine failed.
    pub async fn next(&mut self) -> Option<ChoiceEvent> {
        self.receiver.recv().await
    }
}

/// A request that was sent to the engine thread.
struct Submission {
    request: ReplyRequest,
    /// Index of the first choice of this submission among all choices of the HTTP request. The HTTP request
    /// has one submission for each prompt.
    first_choice: usize,
    events: UnboundedSender<ChoiceEvent>,
    admitted: oneshot::Sender<Result<(), AddError>>,
}

/// State that the HTTP threads read.
#[derive(Default)]
struct Shared {
    /// Number of admitted requests that have not ended.
    in_flight: AtomicUsize,
    has_ended: AtomicBool,
    stats: Mutex<SchedulerStats>,
}

/// Counts one request as in flight until this value is dropped.
struct Admission(Arc<Shared>);

impl Drop for Admission {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Sends requests to the engine thread.
pub(crate) struct EngineHandle {
    submissions: SyncSender<Submission>,
    shared: Arc<Shared>,
    /// Maximum number of running and waiting requests together.
    max_in_flight: usize,
}

impl EngineHandle {
    /// Starts the engine thread. After the handle is dropped, the thread finishes the running requests and
    /// ends.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub fn start(scheduler: Scheduler, max_in_flight: usize) -> std::io::Result<Self> {
        let (submissions, receiver) = sync_channel(max_in_flight);
        let shared = Arc::new(Shared::default());
        let engine = EngineLoop { scheduler, receiver, running: HashMap::new(), shared: Arc::clone(&shared) };
        std::thread::Builder::new().name("engine".to_owned()).spawn(|| engine.run())?;
        Ok(Self { submissions, shared, max_in_flight })
    }

    /// Submits requests, and returns after the scheduler has admitted all of them. The choices of all
    /// requests are numbered consecutively.
    ///
    /// # Errors
    /// If the queue is full, a request is invalid, or the engine has ended.
    pub async fn submit(&self, requests: Vec<ReplyRequest>) -> Result<EventReceiver, ApiError> {
        let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
        let receiver = EventReceiver { receiver, _admissions: self.admit(requests.len())? };
        let mut first_choice = 0;
        let mut answers = Vec::new();
        for request in requests {
            let (admitted, answer) = oneshot::channel();
            let choices = request.choices;
            let submission = Submission { request, first_choice, events: events.clone(), admitted };
            match self.submissions.try_send(submission) {
                Ok(()) => answers.push(answer),
                Err(TrySendError::Full(_)) => return Err(self.queue_full()),
                Err(TrySendError::Disconnected(_)) => return Err(engine_ended()),
            }
            first_choice += choices;
        }
        for answer in answers {
            answer.await.map_err(|_| engine_ended())?.map_err(|error| self.refused(error))?;
        }
        Ok(receiver)
    }

    /// Counts `n` requests as in flight. Returns an error if the limit is exceeded.
    fn admit(&self, n: usize) -> Result<Vec<Admission>, ApiError> {
        let before = self.shared.in_flight.fetch_add(n, Ordering::Relaxed);
        let admissions: Vec<_> = (0..n).map(|_| Admission(Arc::clone(&self.shared))).collect();
        if before + n > self.max_in_flight {
            return Err(self.queue_full());
        }
        Ok(admissions)
    }

    fn queue_full(&self) -> ApiError {
        let message = format!(
            "cannot queue the request: {} requests run or wait, at most {} may",
            self.in_flight(),
            self.max_in_flight
        );
        ApiError::too_many("server_overloaded", message, 1)
    }

    fn refused(&self, error: AddError) -> ApiError {
        match error {
            AddError::QueueFull { .. } => self.queue_full(),
            AddError::TooLong { tokens, room } => ApiError::context_length(tokens, 0, room),
            AddError::Invalid(error) => error.into(),
        }
    }

    /// Returns the number of running and waiting requests.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Returns whether the thread has ended. While the handle exists, the thread ends only after a panic.
    pub fn has_ended(&self) -> bool {
        self.shared.has_ended.load(Ordering::Relaxed)
    }

    /// Returns the scheduler's state after its last step.
    pub fn stats(&self) -> SchedulerStats {
        self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn engine_ended() -> ApiError {
    ApiError::internal("cannot generate: the engine has ended")
}

/// A request in the scheduler.
struct Running {
    first_choice: usize,
    /// Number of choices that have not ended.
    open_choices: usize,
    events: UnboundedSender<ChoiceEvent>,
}

struct EngineLoop {
    scheduler: Scheduler,
    receiver: Receiver<Submission>,
    running: HashMap<RequestId, Running>,
    shared: Arc<Shared>,
}

impl Drop for EngineLoop {
    fn drop(&mut self) {
        self.shared.has_ended.store(true, Ordering::Relaxed);
    }
}

impl EngineLoop {
    /// Runs steps until the handle is dropped and no request is left.
    fn run(mut self) {
        while self.take_submissions() {
            self.cancel_abandoned();
            let started = Instant::now();
            match self.scheduler.step() {
                Ok(events) => events.into_iter().for_each(|event| self.forward(event)),
                Err(error) => self.fail_all(&error),
            }
            tracing::trace!(
                requests = self.running.len(),
                micros = started.elapsed().as_micros() as u64,
                "step"
            );
            *self.shared.stats.lock().unwrap_or_else(PoisonError::into_inner) = self.scheduler.stats();
        }
    }

    /// Adds all submitted requests. Sleeps while no request runs. Returns whether the thread must continue.
    fn take_submissions(&mut self) -> bool {
        loop {
            let submission = if self.running.is_empty() {
                self.receiver.recv().map_err(|_| TryRecvError::Disconnected)
            } else {
                self.receiver.try_recv()
            };
            match submission {
                Ok(submission) => self.add(submission),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return !self.running.is_empty(),
            }
        }
    }

    fn add(&mut self, submission: Submission) {
        let Submission { request, first_choice, events, admitted } = submission;
        if admitted.is_closed() {
            return;
        }
        let open_choices = request.choices;
        let added = self.scheduler.add(request).map(|id| {
            self.running.insert(id, Running { first_choice, open_choices, events });
        });
        // The send fails if the client has disconnected. The event receiver of the client is then dropped
        // too, which cancels the request.
        let _ = admitted.send(added);
    }

    fn cancel_abandoned(&mut self) {
        let scheduler = &mut self.scheduler;
        self.running.retain(|&id, running| {
            let is_abandoned = running.events.is_closed();
            if is_abandoned {
                scheduler.cancel(id);
            }
            !is_abandoned
        });
    }

    fn forward(&mut self, event: SchedulerEvent) {
        let Some(running) = self.running.get_mut(&event.request) else { return };
        if matches!(event.kind, EventKind::Finished(_) | EventKind::Failed(_)) {
            running.open_choices -= 1;
        }
        let is_over = running.open_choices == 0;
        let choice = running.first_choice + event.choice;
        // The send fails if the receiver was dropped. The request is then cancelled before the next step.
        let _ = running.events.send(ChoiceEvent { choice, kind: event.kind });
        if is_over {
            self.running.remove(&event.request);
        }
    }

    /// Ends every request after a failure of the model.
    fn fail_all(&mut self, error: &GenerateError) {
        tracing::error!(%error, "cannot run the model");
        for (id, _) in self.running.drain() {
            self.scheduler.cancel(id);
        }
    }
}
