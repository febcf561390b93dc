//! Queues for fair scheduling between adapters.
//!
//! A flow is the queue of one adapter's jobs. Each flow counts the tokens that the model has processed for
//! its jobs. The flow with the lowest count is served first. Among equal counts, a flow without running jobs
//! is first. Jobs of the same flow are served in order.
//!
//! An idle flow has no waiting and no running jobs. When an idle flow gets a job, its count is raised to at
//! least the lowest count of the other flows with jobs. A flow therefore gains no advantage from its idle
//! time.

use std::collections::{BTreeMap, VecDeque};

use super::job::Job;
use super::{GenerationId, RequestId};

/// Adapter version, or `None` for the base model without an adapter.
pub(super) type FlowKey = Option<GenerationId>;

/// The jobs of one adapter.
#[derive(Default)]
pub(super) struct Flow {
    pub waiting: VecDeque<Job>,
    pub running: usize,
    /// Number of tokens processed for this adapter's jobs. [`Flows::activate`] raises this count after idle
    /// time.
    pub served: u64,
}

impl Flow {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

/// The flows of all adapters. [`Flows::prune`] removes idle flows that are no longer needed.
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

    pub fn served(&self, key: FlowKey) -> u64 {
        self.flows.get(&key).map_or(0, |flow| flow.served)
    }

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

    /// Returns the flow with the lowest count among the flows with waiting jobs. Among equal counts, a flow
    /// without running jobs is first, and then the flow with the older request.
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

    /// Puts a running job back at the front of its queue.
    pub fn stop(&mut self, job: Job) {
        let key = job.flow();
        self.push_front(job);
        self.end(key);
    }

    pub fn end(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.running -= 1;
        }
    }

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

    /// Removes each idle flow whose count [`Self::activate`] would raise to the lowest active count anyway.
    /// If no flow is active, removes all flows.
    pub fn prune(&mut self) {
        let lowest = self.lowest();
        self.flows.retain(|_, flow| flow.is_active() || lowest.is_some_and(|lowest| flow.served > lowest));
    }

    fn lowest(&self) -> Option<u64> {
        self.active().map(|(_, flow)| flow.served).min()
    }

    /// Returns a flow. The count of an idle flow is first raised to at least the lowest count of the flows
    /// with jobs.
    fn activate(&mut self, key: FlowKey) -> &mut Flow {
        let lowest = self.lowest().unwrap_or(0);
        let flow = self.flows.entry(key).or_default();
        if !flow.is_active() {
            flow.served = flow.served.max(lowest);
        }
        flow
    }
}
