//! One of the continuations ("choices") that a request asks for, as the scheduler stores it.

use danlu_model::SlotId;

use super::memory::KvMemory;
use super::{EventKind, GenerationId, RequestAdapter, RequestId, SchedulerEvent};
use crate::Sequence;

/// One sequence of a request, either waiting in the queue ("flow") of its adapter or running.
pub(super) struct Job {
    pub request: RequestId,
    pub choice: usize,
    pub adapter: Option<RequestAdapter>,
    pub place: JobPlace,
    /// Whether the event [`EventKind::Started`] of this job was emitted.
    pub is_started: bool,
    /// Number of times that the keys and values of the job were dropped before the job ended.
    pub preemptions: u32,
    /// The other choices of the request, which start after this job has read the prompt.
    pub siblings: Vec<Job>,
}

pub(super) enum JobPlace {
    /// The sequence has no keys and values.
    Detached(Box<Sequence>),
    /// The sequence is in this slot of the engine.
    Slot(SlotId),
}

impl Job {
    pub fn new(
        request: RequestId,
        choice: usize,
        adapter: Option<RequestAdapter>,
        sequence: Sequence,
    ) -> Self {
        let place = JobPlace::Detached(Box::new(sequence));
        Self { request, choice, adapter, place, is_started: false, preemptions: 0, siblings: Vec::new() }
    }

    /// Returns the key of the job's flow: the version of its adapter, or `None` for a job without an adapter.
    pub fn flow(&self) -> Option<GenerationId> {
        self.adapter.as_ref().map(|adapter| adapter.generation)
    }

    pub fn slot(&self) -> Option<SlotId> {
        match self.place {
            JobPlace::Slot(slot) => Some(slot),
            JobPlace::Detached(_) => None,
        }
    }

    pub fn event(&self, kind: EventKind) -> SchedulerEvent {
        SchedulerEvent { request: self.request, choice: self.choice, kind }
    }

    /// Drops the keys and values of the job. When the job runs again, the keys and values are recomputed.
    pub fn detach(&mut self, memory: &mut KvMemory) {
        if let JobPlace::Slot(slot) = self.place {
            self.place = JobPlace::Detached(Box::new(memory.close(slot)));
            self.preemptions += 1;
        }
    }
}
