//! One choice of a request inside the scheduler.

use danlu_model::SlotId;

use super::memory::KvMemory;
use super::{EventKind, GenerationId, RequestAdapter, RequestId, SchedulerEvent};
use crate::Sequence;

/// A sequence of a request. It waits in its flow or runs.
pub(super) struct Job {
    pub request: RequestId,
    pub choice: usize,
    pub adapter: Option<RequestAdapter>,
    pub place: JobPlace,
    /// Whether its [`EventKind::Started`](super::EventKind::Started) was reported.
    pub is_started: bool,
    /// How often its keys and values were dropped before it ended.
    pub preemptions: u32,
    /// Choices of the request that start once the prompt is read.
    pub siblings: Vec<Job>,
}

/// Where the sequence of a job is.
pub(super) enum JobPlace {
    /// It has no keys and values.
    Detached(Box<Sequence>),
    /// In a slot of the engine.
    Slot(SlotId),
}

impl Job {
    /// Returns a job that has not run.
    pub fn new(
        request: RequestId,
        choice: usize,
        adapter: Option<RequestAdapter>,
        sequence: Sequence,
    ) -> Self {
        let place = JobPlace::Detached(Box::new(sequence));
        Self { request, choice, adapter, place, is_started: false, preemptions: 0, siblings: Vec::new() }
    }

    /// Returns the key for fair scheduling: the version of the job's adapter, or `None` if it runs on the
    /// base alone.
    pub fn flow(&self) -> Option<GenerationId> {
        self.adapter.as_ref().map(|adapter| adapter.generation)
    }

    /// Returns the slot, if the job has one.
    pub fn slot(&self) -> Option<SlotId> {
        match self.place {
            JobPlace::Slot(slot) => Some(slot),
            JobPlace::Detached(_) => None,
        }
    }

    /// Returns an event of this job.
    pub fn event(&self, kind: EventKind) -> SchedulerEvent {
        SchedulerEvent { request: self.request, choice: self.choice, kind }
    }

    /// Drops the keys and values of the job. They are computed again when it runs.
    pub fn detach(&mut self, memory: &mut KvMemory) {
        if let JobPlace::Slot(slot) = self.place {
            self.place = JobPlace::Detached(Box::new(memory.close(slot)));
            self.preemptions += 1;
        }
    }
}
