//! Fair scheduling. There is one queue ("flow") for each adapter, and one for the base.
//!
//! Each flow counts the token rows that were computed for its requests. The flow with the lowest count is
//! served first. Among equal counts, a flow without running requests is first. Requests of the same flow are
//! served in order. If a flow becomes active and its count is below the counts of all active flows, its count
//! is raised to the lowest of these. A flow therefore gets no extra rows for its idle time.

use std::collections::{BTreeMap, VecDeque};

use super::job::Job;
use super::{GenerationId, RequestId};

/// The adapter version of a flow, or `None` for the flow of the base.
pub(super) type FlowKey = Option<GenerationId>;

/// The waiting jobs of one adapter, and the number of its running jobs.
#[derive(Default)]
pub(super) struct Flow {
    pub waiting: VecDeque<Job>,
    /// Number of running jobs.
    pub running: usize,
    /// Number of tokens that the model read for this flow, raised when the flow becomes active.
    pub served: u64,
}

impl Flow {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

/// All active flows, and inactive flows whose token count exceeds the lowest count of an active flow. If such
/// a flow were forgotten, it would start again at the lowest count and be served too early.
#[derive(Default)]
pub(super) struct Flows {
    flows: BTreeMap<FlowKey, Flow>,
}

impl Flows {
    pub fn active(&self) -> impl Iterator<Item = (FlowKey, &Flow)> {
        self.flows.iter().filter(|(_, flow)| flow.is_active()).map(|(&key, flow)| (key, flow))
    }

    pub fn get(&self, key: FlowKey) -> Option<&Flow> {
        self.flows.get(&key)
    }

    /// Returns the token count of a flow (the queue of one adapter). The flow with the lowest count is served
    /// first.
    pub fn served(&self, key: FlowKey) -> u64 {
        self.flows.get(&key).map_or(0, |flow| flow.served)
    }

    /// Returns the number of waiting jobs in all flows.
    pub fn waiting(&self) -> usize {
        self.flows.values().map(|flow| flow.waiting.len()).sum()
    }

    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.flows.values().flat_map(|flow| flow.waiting.iter())
    }

    pub fn jobs_mut(&mut self) -> impl Iterator<Item = &mut Job> {
        self.flows.values_mut().flat_map(|flow| flow.waiting.iter_mut())
    }

    pub fn push_back(&mut self, job: Job) {
        self.activate(job.flow()).waiting.push_back(job);
    }

    pub fn push_front(&mut self, job: Job) {
        self.activate(job.flow()).waiting.push_front(job);
    }

    /// Returns the flow that is served next, or `None` if no job is waiting.
    pub fn next(&self) -> Option<FlowKey> {
        let waiting = self.flows.iter().filter_map(|(&key, flow)| {
            let first = flow.waiting.front()?;
            Some(((flow.served, flow.running > 0, first.request, first.choice), key))
        });
        waiting.min_by_key(|&(order, _)| order).map(|(_, key)| key)
    }

    /// Removes the first waiting job of a flow, and counts it as running.
    pub fn start(&mut self, key: FlowKey) -> Option<Job> {
        let flow = self.flows.get_mut(&key)?;
        let job = flow.waiting.pop_front()?;
        flow.running += 1;
        Some(job)
    }

    /// Moves a running job back to the front of its flow.
    pub fn stop(&mut self, job: Job) {
        let key = job.flow();
        self.push_front(job);
        self.end(key);
    }

    /// Records that a running job has ended.
    pub fn end(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.running -= 1;
        }
    }

    /// Removes and returns the waiting jobs of a request.
    pub fn remove(&mut self, request: RequestId) -> Vec<Job> {
        let mut removed = Vec::new();
        for flow in self.flows.values_mut() {
            let waiting = std::mem::take(&mut flow.waiting);
            let (gone, kept): (VecDeque<Job>, _) =
                waiting.into_iter().partition(|job| job.request == request);
            flow.waiting = kept;
            removed.extend(gone);
        }
        removed
    }

    pub fn charge(&mut self, key: FlowKey, rows: usize) {
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.served += rows as u64;
        }
    }

    /// Removes inactive flows whose token count is at most the lowest count of an active flow, because
    /// [`Self::activate`] would raise their counts to the lowest count anyway. Removes all flows if none is
    /// active.
    pub fn prune(&mut self) {
        let lowest = self.lowest();
        self.flows.retain(|_, flow| flow.is_active() || lowest.is_some_and(|lowest| flow.served > lowest));
    }

    fn lowest(&self) -> Option<u64> {
        self.active().map(|(_, flow)| flow.served).min()
    }

    /// Returns a flow, and creates it if necessary. If the flow is inactive, its token count is first raised
    /// to at least the lowest count of an active flow.
    fn activate(&mut self, key: FlowKey) -> &mut Flow {
        let lowest = self.lowest().unwrap_or(0);
        let flow = self.flows.entry(key).or_default();
        if !flow.is_active() {
            flow.served = flow.served.max(lowest);
        }
        flow
    }
}
