//! A job generates one of the replies ("choices") of a request.

use danlu_model::SlotId;

use super::memory::KvMemory;
use super::{EventKind, GenerationId, RequestAdapter, RequestId, SchedulerEvent};
use crate::Sequence;

/// One reply of a request, either waiting or running.
pub(super) struct Job {
    pub request: RequestId,
    pub choice: usize,
    pub adapter: Option<RequestAdapter>,
    pub place: JobPlace,
    /// Whether the event [`EventKind::Started`] of this job was emitted.
    pub is_started: bool,
    /// Number of times that the keys and values of this job were dropped to make room for other jobs.
    pub preemptions: u32,
    /// Jobs for the other replies of the request. These jobs start after this job has read the prompt, and
    /// copy the keys and values of the prompt.
    pub siblings: Vec<Job>,
}

/// The storage of a job's tokens, and of their keys and values.
pub(super) enum JobPlace {
    /// Outside the engine. Only the tokens are stored, without keys and values.
    Detached(Box<Sequence>),
    /// In a slot of the engine, together with keys and values.
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

    /// Returns the key of the job's queue: the adapter version, or `None` for the base model.
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
