//! Fair queues: one flow per adapter, and one for the base.
//!
//! A flow counts the rows that were computed for it. The flow with the fewest rows is served first, and within
//! a flow requests keep their order. A flow that becomes active starts at the lowest count of the active flows:
//! it neither makes up for rows that it did not need, nor waits for those of others.

use std::collections::{BTreeMap, VecDeque};

use super::job::Job;
use super::{GenerationId, RequestId};

/// The adapter of a flow, or `None` for the base alone.
pub(super) type FlowKey = Option<GenerationId>;

/// Waiting jobs of one adapter.
#[derive(Default)]
pub(super) struct Flow {
    pub waiting: VecDeque<Job>,
    /// Number of running jobs.
    pub running: usize,
    /// Rows computed, comparable between active flows.
    pub served: u64,
}

impl Flow {
    fn is_active(&self) -> bool {
        self.running > 0 || !self.waiting.is_empty()
    }
}

/// All flows with waiting or running jobs, and the counts of some earlier ones.
#[derive(Default)]
pub(super) struct Flows {
    flows: BTreeMap<FlowKey, Flow>,
}

impl Flows {
    /// Returns the active flows.
    pub fn active(&self) -> impl Iterator<Item = (FlowKey, &Flow)> {
        self.flows.iter().filter(|(_, flow)| flow.is_active()).map(|(&key, flow)| (key, flow))
    }

    /// Returns a flow.
    pub fn get(&self, key: FlowKey) -> Option<&Flow> {
        self.flows.get(&key)
    }

    /// Returns the rows computed for a flow.
    pub fn served(&self, key: FlowKey) -> u64 {
        self.flows.get(&key).map_or(0, |flow| flow.served)
    }

    /// Returns the number of waiting jobs.
    pub fn waiting(&self) -> usize {
        self.flows.values().map(|flow| flow.waiting.len()).sum()
    }

    /// Returns every waiting job.
    pub fn jobs(&self) -> impl Iterator<Item = &Job> {
        self.flows.values().flat_map(|flow| flow.waiting.iter())
    }

    /// As [`Flows::jobs`], mutable.
    pub fn jobs_mut(&mut self) -> impl Iterator<Item = &mut Job> {
        self.flows.values_mut().flat_map(|flow| flow.waiting.iter_mut())
    }

    /// Adds a job behind the others of its flow.
    pub fn push_back(&mut self, job: Job) {
        self.activate(job.flow()).waiting.push_back(job);
    }

    /// Puts a job before the others of its flow.
    pub fn push_front(&mut self, job: Job) {
        self.activate(job.flow()).waiting.push_front(job);
    }

    /// Returns the flow whose first waiting job is served next.
    pub fn next(&self) -> Option<FlowKey> {
        let waiting = self.flows.iter().filter_map(|(&key, flow)| {
            let first = flow.waiting.front()?;
            Some(((flow.served, first.request, first.choice), key))
        });
        waiting.min_by_key(|&(order, _)| order).map(|(_, key)| key)
    }

    /// Starts the first waiting job of a flow.
    pub fn start(&mut self, key: FlowKey) -> Option<Job> {
        let flow = self.flows.get_mut(&key)?;
        let job = flow.waiting.pop_front()?;
        flow.running += 1;
        Some(job)
    }

    /// Puts a running job before the waiting ones of its flow.
    pub fn stop(&mut self, job: Job) {
        let key = job.flow();
        self.push_front(job);
        self.end(key);
    }

    /// Counts a running job as ended.
    pub fn end(&mut self, key: FlowKey) {
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.running -= 1;
        }
    }

    /// Removes the waiting jobs of a request.
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

    /// Counts computed rows.
    pub fn charge(&mut self, key: FlowKey, rows: usize) {
        if let Some(flow) = self.flows.get_mut(&key) {
            flow.served += rows as u64;
        }
    }

    /// Forgets flows that would start at the lowest count anyway.
    pub fn prune(&mut self) {
        let lowest = self.lowest();
        self.flows.retain(|_, flow| flow.is_active() || lowest.is_some_and(|lowest| flow.served > lowest));
    }

    /// Returns the lowest count of the active flows.
    fn lowest(&self) -> Option<u64> {
        self.active().map(|(_, flow)| flow.served).min()
    }

    /// Returns a flow, and raises its count to the lowest active one if it was not active.
    fn activate(&mut self, key: FlowKey) -> &mut Flow {
        let lowest = self.lowest().unwrap_or(0);
        let flow = self.flows.entry(key).or_default();
        if !flow.is_active() {
            flow.served = flow.served.max(lowest);
        }
        flow
    }
}
