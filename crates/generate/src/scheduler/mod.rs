//! Runs requests on one engine: continuous batching within a memory limit (ADR 0008).
//!
//! A job generates one reply of a request. A flow is the queue of one adapter's jobs. A slot holds the keys
//! and values of a job.
//!
//! ```text
//! add ──► flow of the adapter ──► running ──► ended
//!               ▲                   │
//!               └── paused, preempted
//! ```
//!
//! A paused job returns to its flow and retains its slot. A preempted job also loses its keys and values,
//! which are recomputed when the job runs again.
//!
//! One [`Scheduler::step`] decodes one token for each running job, and reads a limited number of prompt
//! tokens. A reply depends only on its request, including the seed: other requests, preemptions and the
//! prefix cache change no bit.

mod flows;
mod job;
mod memory;
mod request;
mod stats;

use std::mem;
use std::sync::Arc;

use danlu_model::{Decoder, SlotId};

use self::flows::{FlowKey, Flows};
use self::job::{Job, JobPlace};
use self::memory::{CachedPrefix, KvMemory, PAGE_TOKENS, whole_pages};
pub use self::request::{AddError, GenerationId, ReplyRequest, RequestAdapter, RequestId};
pub use self::stats::{AdapterLoad, SchedulerStats};
use crate::{GenerateError, Sampler, Sequence, StepOutput, StopReason, StopRules, TokenLogprobs, TokenStep};

/// After this number of preemptions, a job restarts only if there is room for its longest possible reply.
const MAX_PREEMPTIONS: u32 = 2;

/// Limits of a [`Scheduler`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SchedulerOptions {
    /// Maximum number of sequences that run at the same time.
    pub max_running: usize,
    /// Number of waiting sequences at which a new request is rejected.
    pub max_queued: usize,
    /// Maximum number of tokens whose keys and values are in memory, rounded down to whole pages.
    pub max_kv_tokens: usize,
    /// Maximum number of prompt tokens in a step. A larger value delays the next token of every running
    /// sequence.
    pub prefill_tokens: usize,
    /// Whether the keys and values of prompts are retained for later requests with the same prefix.
    pub prefix_cache: bool,
}

impl Default for SchedulerOptions {
    fn default() -> Self {
        Self {
            max_running: 8,
            max_queued: 64,
            max_kv_tokens: 16_384,
            prefill_tokens: 128,
            prefix_cache: true,
        }
    }
}

/// An event of one reply of a request.
#[derive(Debug)]
pub struct SchedulerEvent {
    /// Id of the request.
    pub request: RequestId,
    /// Index of the reply. A request has [`ReplyRequest::choices`] replies.
    pub choice: usize,
    /// Kind of the event.
    pub kind: EventKind,
}

/// Kinds of [`SchedulerEvent`]. Each reply has one `Started` event, then `Token` events, then one `Finished`
/// or `Failed` event. A cancelled reply gets no further event.
#[derive(Debug)]
pub enum EventKind {
    /// The scheduler starts to read the prompt.
    Started {
        /// Number of prompt tokens whose keys and values were already in memory.
        cached_tokens: usize,
    },
    /// The model generated a token.
    Token {
        /// Id of the token.
        id: u32,
        /// Log probabilities of the token, if the request sets `top_logprobs`.
        logprobs: Option<TokenLogprobs>,
    },
    /// The continuation is complete.
    Finished(StopReason),
    /// The continuation failed. Other requests are not affected.
    Failed(GenerateError),
}

/// Runs many requests on one decoder. The caller calls [`Scheduler::step`] repeatedly, and adds or cancels
/// requests between steps.
pub struct Scheduler {
    memory: KvMemory,
    options: SchedulerOptions,
    flows: Flows,
    /// The running jobs, in the order in which they started.
    running: Vec<Job>,
    next_request: u64,
    /// Only the totals in this value are current. [`Scheduler::stats`] computes the other fields.
    totals: SchedulerStats,
}

impl Scheduler {
    /// Returns a scheduler without requests. Allocates the memory for all keys and values.
    pub fn new(decoder: Arc<Decoder>, options: SchedulerOptions) -> Self {
        let pages = (options.max_kv_tokens / PAGE_TOKENS).max(1);
        Self {
            memory: KvMemory::new(decoder, pages * PAGE_TOKENS),
            options,
            flows: Flows::default(),
            running: Vec::new(),
            next_request: 0,
            totals: SchedulerStats::default(),
        }
    }

    /// Returns the maximum number of tokens of a prompt and its continuation together.
    pub fn max_context_tokens(&self) -> usize {
        self.memory.total.min(self.memory.engine.decoder().config().max_position_embeddings)
    }

    /// Adds a request at the end of the queue of its adapter.
    ///
    /// # Errors
    /// If too many requests are waiting, the prompt is too long, or a value is invalid. The scheduler is then
    /// unchanged.
    pub fn add(&mut self, request: ReplyRequest) -> Result<RequestId, AddError> {
        let (waiting, limit) = (self.flows.waiting(), self.options.max_queued);
        if waiting >= limit {
            return Err(AddError::QueueFull { waiting, limit });
        }
        let room = self.max_context_tokens().min(request.rules.max_context_tokens);
        let tokens = request.ids.len();
        if tokens > room {
            return Err(AddError::TooLong { tokens, room });
        }
        self.memory.engine.decoder().check_ids(&request.ids).map_err(GenerateError::from)?;
        let id = RequestId(self.next_request);
        let mut jobs = jobs(request, id, room)?;
        self.next_request += 1;
        let siblings = jobs.split_off(1);
        let first = Job { siblings, ..jobs.swap_remove(0) };
        self.flows.push_back(first);
        Ok(id)
    }

    /// Ends every reply of a request, without events. Returns whether any reply had not ended before.
    pub fn cancel(&mut self, request: RequestId) -> bool {
        let mut cancelled = self.flows.remove(request);
        for job in &cancelled {
            self.free(job);
        }
        let (ended, running) =
            mem::take(&mut self.running).into_iter().partition(|job| job.request == request);
        self.running = running;
        let ended: Vec<Job> = ended;
        for job in &ended {
            self.flows.end(job.flow());
            self.free(job);
        }
        cancelled.extend(ended);
        self.flows.prune();
        !cancelled.is_empty()
    }

    /// Returns whether every request has ended.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.flows.waiting() == 0
    }

    /// Returns the current load and the totals since the start.
    pub fn stats(&self) -> SchedulerStats {
        let load = self.flows.active().map(|(generation, flow)| AdapterLoad {
            generation,
            running: flow.running,
            waiting: flow.waiting.len(),
        });
        let prefix_tokens = self.memory.retained_tokens();
        SchedulerStats {
            running: self.running.len(),
            waiting: self.flows.waiting(),
            kv_tokens: self.memory.used() - prefix_tokens,
            prefix_tokens,
            max_kv_tokens: self.memory.total,
            adapters: load.collect(),
            ..self.totals.clone()
        }
    }

    /// Starts waiting requests, decodes one token for each running sequence, and reads at most
    /// [`SchedulerOptions::prefill_tokens`] prompt tokens.
    ///
    /// # Errors
    /// If the model cannot run. The failure of a single sequence is an event.
    pub fn step(&mut self) -> Result<Vec<SchedulerEvent>, GenerateError> {
        let mut events = Vec::new();
        self.start_waiting(&mut events);
        let mut work = self.decode_work();
        work.extend(self.prefill_work());
        for &(slot, tokens) in &work {
            let job = self.running.iter().find(|job| job.slot() == Some(slot));
            self.flows.charge(job.and_then(Job::flow), tokens);
            if self.memory.engine.is_in_prompt(slot) {
                self.totals.prompt_tokens += tokens as u64;
            }
        }
        for output in self.memory.engine.step_slots(&work)? {
            self.deliver(output, &mut events);
        }
        self.flows.prune();
        Ok(events)
    }

    /// Starts waiting jobs in the order of [`Flows::next`] until a limit is reached. If there is no room for
    /// the next job, no later job starts. Without this rule, small requests could delay a large one forever.
    fn start_waiting(&mut self, events: &mut Vec<SchedulerEvent>) {
        while let Some(key) = self.flows.next() {
            if self.running.len() >= self.options.max_running.max(1) && !self.pause_for(key) {
                return;
            }
            let Some(mut job) = self.flows.start(key) else { return };
            if !self.enter(&mut job, events) {
                return self.flows.stop(job);
            }
            self.running.push(job);
        }
    }

    /// Pauses a running job so that a job of flow `key` can start. The youngest job of the flow with the most
    /// running jobs is paused, and its slot stays in memory. Returns `false` without a pause if flow `key`
    /// has a running job, or if no flow has two running jobs.
    fn pause_for(&mut self, key: FlowKey) -> bool {
        let has_running = self.flows.get(key).is_some_and(|flow| flow.running > 0);
        let most = self.flows.active().max_by_key(|(_, flow)| flow.running);
        let Some((most, _)) = most.filter(|(_, flow)| !has_running && flow.running > 1) else { return false };
        let Some(youngest) = self.running.iter().rposition(|job| job.flow() == most) else { return false };
        self.flows.stop(self.running.remove(youngest));
        true
    }

    /// Gives a slot to a job unless it already has one. Returns `false` if there is no room.
    fn enter(&mut self, job: &mut Job, events: &mut Vec<SchedulerEvent>) -> bool {
        let JobPlace::Detached(sequence) = &job.place else { return true };
        let (ids, rules) = (sequence.ids(), sequence.rules());
        let whole = rules.max_context_tokens.min(sequence.prompt_len().saturating_add(rules.max_new_tokens));
        let needed = match job.preemptions < MAX_PREEMPTIONS {
            true => (ids.len() + 1).min(whole),
            false => whole,
        };
        let prompt = &ids[..sequence.prompt_len()];
        let prefix = self.find_prefix(job, prompt);
        let Some(slot) = self.open(whole_pages(needed.max(ids.len())), prefix, job) else { return false };
        let JobPlace::Detached(sequence) = mem::replace(&mut job.place, JobPlace::Slot(slot)) else {
            unreachable!("the place was checked above")
        };
        let prompt_len = sequence.prompt_len();
        let cached_tokens = match self.memory.engine.start(slot, *sequence) {
            Ok(cached) => cached,
            Err(_) => unreachable!("the ids were checked when the request was added"),
        };
        if !job.is_started {
            job.is_started = true;
            self.totals.prefix_queries += prompt_len as u64;
            self.totals.prefix_hits += cached_tokens as u64;
            events.push(job.event(EventKind::Started { cached_tokens }));
        }
        true
    }

    /// Returns the longest prefix of `prompt` that is in memory and that the job may share.
    fn find_prefix(&self, job: &Job, prompt: &[u32]) -> Option<CachedPrefix> {
        let is_shared = |other: &&Job| {
            other.flow() == job.flow() && (self.options.prefix_cache || other.request == job.request)
        };
        let slots = self.running.iter().filter(is_shared).filter_map(Job::slot);
        let of_jobs = slots.map(|slot| self.memory.prefix_of_job(slot, prompt)).filter(|p| p.tokens > 0);
        of_jobs.chain(self.memory.find(job.flow(), prompt)).max_by_key(|prefix| prefix.tokens)
    }

    /// Returns a slot with room for `capacity` tokens. If necessary, drops the keys and values of paused
    /// sequences.
    fn open(&mut self, capacity: usize, prefix: Option<CachedPrefix>, job: &Job) -> Option<SlotId> {
        let paused = self.flows.jobs().filter_map(Job::slot);
        let paused: usize = paused.map(|slot| self.memory.engine.cache().capacity(slot)).sum();
        if self.memory.available() + paused < capacity {
            return None;
        }
        let lora = job.adapter.as_ref().map(|adapter| adapter.lora.clone());
        loop {
            for prefix in [prefix, None] {
                if let Some(slot) = self.memory.open(capacity, prefix, lora.clone()) {
                    return Some(slot);
                }
            }
            if !self.drop_paused() {
                return None;
            }
        }
    }

    /// Drops the keys and values of the youngest paused sequence. Returns `false` if no sequence is paused.
    fn drop_paused(&mut self) -> bool {
        let paused = self.flows.jobs_mut().filter(|job| job.slot().is_some());
        let Some(youngest) = paused.max_by_key(|job| (job.request, job.choice)) else { return false };
        self.totals.preemptions += 1;
        youngest.detach(&mut self.memory);
        true
    }

    /// Returns the slots that decode one token in this step. Each slot has room for the token.
    fn decode_work(&mut self) -> Vec<(SlotId, usize)> {
        let mut work = Vec::new();
        let slots: Vec<SlotId> = self.running.iter().filter_map(Job::slot).collect();
        for slot in slots {
            let is_running = self.running.iter().any(|job| job.slot() == Some(slot));
            if is_running && !self.memory.engine.is_in_prompt(slot) && self.make_room(slot) {
                work.push((slot, 1));
            }
        }
        // A later iteration may have preempted the job of a slot that is already in `work`.
        work.retain(|&(slot, _)| self.running.iter().any(|job| job.slot() == Some(slot)));
        work
    }

    /// Makes room for one more token in a slot, if necessary by preempting jobs. Returns `false` if the job
    /// of this slot was itself preempted.
    fn make_room(&mut self, slot: SlotId) -> bool {
        let rules = self.memory.engine.sequence(slot).map(Sequence::rules);
        let most = rules.map_or(0, |rules| rules.max_context_tokens);
        loop {
            let needed = self.memory.engine.cache().len(slot) + 1;
            if self.memory.grow(slot, needed, most) {
                return true;
            }
            if self.drop_paused() {
                continue;
            }
            let victim = self.victim();
            if self.preempt(victim) == slot {
                return false;
            }
        }
    }

    /// Returns the index of the job to preempt: the youngest running job of the adapter whose slots use the
    /// most memory.
    fn victim(&self) -> usize {
        let tokens = |key: FlowKey| -> usize {
            let slots = self.running.iter().filter(|job| job.flow() == key).filter_map(Job::slot);
            slots.map(|slot| self.memory.engine.cache().capacity(slot)).sum()
        };
        let largest = self.running.iter().map(Job::flow).max_by_key(|&key| tokens(key)).flatten();
        self.running.iter().rposition(|job| job.flow() == largest).expect("a job is running")
    }

    /// Preempts a running job: drops its keys and values, and moves the job back to the front of its
    /// adapter's queue. Returns the former slot of the job.
    fn preempt(&mut self, index: usize) -> SlotId {
        let mut job = self.running.remove(index);
        let slot = job.slot().expect("a running job has a slot");
        self.totals.preemptions += 1;
        job.detach(&mut self.memory);
        self.flows.stop(job);
        slot
    }

    /// Returns the slots that read prompt tokens in this step, and the number of tokens for each. Adapters
    /// with the fewest processed tokens come first.
    fn prefill_work(&mut self) -> Vec<(SlotId, usize)> {
        let mut prompts: Vec<(u64, RequestId, SlotId)> = Vec::new();
        for job in &self.running {
            if let Some(slot) = job.slot().filter(|&slot| self.memory.engine.is_in_prompt(slot)) {
                prompts.push((self.flows.served(job.flow()), job.request, slot));
            }
        }
        prompts.sort_by_key(|&(served, request, _)| (served, request));
        let mut left = self.options.prefill_tokens.max(1);
        let mut work = Vec::new();
        for (_, _, slot) in prompts {
            if left == 0 {
                break;
            }
            self.share_prefix(slot);
            let tokens = self.memory.engine.next_tokens(slot).min(left);
            if tokens > 0 {
                left -= tokens;
                work.push((slot, tokens));
            }
        }
        work
    }

    /// Copies the part of this slot's prompt that another sequence has read in the meantime.
    fn share_prefix(&mut self, slot: SlotId) {
        let Some(job) = self.running.iter().find(|job| job.slot() == Some(slot)) else { return };
        let Some(sequence) = self.memory.engine.sequence(slot) else { return };
        let prompt = &sequence.ids()[..sequence.prompt_len()];
        let read = self.memory.engine.prompt_read(slot).len();
        if let Some(prefix) = self.find_prefix(job, prompt).filter(|prefix| prefix.tokens > read) {
            self.memory.engine.copy_prefix(prefix.slot, slot, prefix.tokens);
            self.totals.prefix_hits += (prefix.tokens - read) as u64;
        }
    }

    /// Converts the output of a slot to events. Frees the slot if the sequence has ended.
    fn deliver(&mut self, StepOutput { slot, step }: StepOutput, events: &mut Vec<SchedulerEvent>) {
        let index = self.running.iter().position(|job| job.slot() == Some(slot)).expect("a running job");
        let siblings = mem::take(&mut self.running[index].siblings);
        let job = &self.running[index];
        let is_ended = match step {
            Ok(TokenStep { token, logprobs, stop }) => {
                if let Some(id) = token {
                    self.totals.generated_tokens += 1;
                    events.push(job.event(EventKind::Token { id, logprobs }));
                }
                events.extend(stop.map(|stop| job.event(EventKind::Finished(stop))));
                stop.is_some()
            }
            Err(error) => {
                events.push(job.event(EventKind::Failed(error)));
                true
            }
        };
        // The other replies copy the prompt from this slot, so they start before the slot is freed.
        let (choices, key) = (siblings.len(), self.running[index].flow());
        siblings.into_iter().rev().for_each(|job| self.flows.push_front(job));
        if is_ended {
            self.start_choices(key, choices, events);
            let job = self.running.remove(index);
            self.flows.end(key);
            self.free(&job);
        }
    }

    /// Starts the first `count` waiting jobs of a flow. Stops early if there is no room.
    fn start_choices(&mut self, key: FlowKey, count: usize, events: &mut Vec<SchedulerEvent>) {
        for _ in 0..count {
            // The ended job is still in `running`, so `running` may exceed the limit by one.
            if self.running.len() > self.options.max_running {
                return;
            }
            let Some(mut job) = self.flows.start(key) else { return };
            if !self.enter(&mut job, events) {
                return self.flows.stop(job);
            }
            self.running.push(job);
        }
    }

    fn free(&mut self, job: &Job) {
        if let Some(slot) = job.slot() {
            self.memory.release(slot, job.flow(), self.options.prefix_cache);
        }
    }
}

/// Returns one job for each reply of a request. Prompt and reply together have at most `room` tokens.
fn jobs(request: ReplyRequest, id: RequestId, room: usize) -> Result<Vec<Job>, GenerateError> {
    let ReplyRequest { ids, sampling, rules, choices, adapter, top_logprobs, processors } = request;
    let setting =
        |name, found: usize, expected| GenerateError::Setting { name, found: found.to_string(), expected };
    if choices == 0 {
        return Err(setting("choices", choices, "1 or more"));
    }
    if !processors.is_empty() && processors.len() != choices {
        return Err(setting("processors", processors.len(), "one per choice, or none"));
    }
    let mut processors = processors.into_iter();
    let job = |choice| {
        let sampler = Sampler::for_choice(sampling.clone(), choice)?;
        let rules = StopRules { max_context_tokens: room, ..rules.clone() };
        let sequence = Sequence::new(ids.clone(), sampler, rules)?;
        let sequence = sequence.with_processor(processors.next()).with_logprobs(top_logprobs);
        Ok(Job::new(id, choice, adapter.clone(), sequence))
    };
    (0..choices).map(job).collect()
}
