//! Runs requests with many adapters in random order, with cancellations and replaced adapters. Each reply is
//! compared with a reply computed without other requests.

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use danlu_generate::{
    EventKind, ReplyRequest, RequestAdapter, RequestId, SamplingOptions, Scheduler, SchedulerOptions,
};
use danlu_kernels::rng::Stream;
use danlu_model::PackedAdapter;
use support::{BASE, adapter, alone, request};

/// A name under which an adapter is served. The adapter can be replaced by another one.
struct Alias {
    contents: u64,
    adapter: RequestAdapter,
}

/// A request that has not ended.
struct Open {
    alias: usize,
    contents: Option<u64>,
    prompt: usize,
    ids: Vec<u32>,
}

struct Soak {
    scheduler: Scheduler,
    stream: Stream,
    aliases: Vec<Alias>,
    prompts: Vec<Vec<u32>>,
    open: BTreeMap<RequestId, Open>,
    /// Expected replies, by the adapter's seed and the prompt's number. Each was computed without other
    /// requests.
    known: BTreeMap<(Option<u64>, usize), Vec<u32>>,
    next_contents: u64,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    finished: usize,
    cancelled: usize,
    replaced: usize,
}

const NEW_TOKENS: usize = 12;

/// Returns a packed adapter whose values and rank depend on `number`.
fn contents(number: u64) -> RequestAdapter {
    let rank = [8, 1, 16, 3, 32][(number % 5) as usize];
    let mut adapter = adapter(rank, number);
    let packed = PackedAdapter::new(adapter.lora, BASE.0.config(), &**BASE.0.backend());
    adapter.lora = Arc::new(packed);
    adapter
}

impl Soak {
    fn new(aliases: u64) -> Self {
        let options = SchedulerOptions {
            max_running: 8,
            max_queued: 40,
            max_kv_tokens: 512,
            prefill_tokens: 48,
            prefix_cache: true,
        };
        let system = "你是一位说书人，用古白话回答，句子要短。";
        let prompts = ["今晚月色真美，", "话说天下大势，", "The palace was", "你好"];
        let prompts = prompts.iter().enumerate().map(|(i, text)| match i % 2 {
            0 => BASE.1.encode(text).unwrap(),
            _ => BASE.1.encode(&format!("{system}{text}")).unwrap(),
        });
        Self {
            scheduler: Scheduler::new(BASE.0.clone(), options),
            stream: Stream::new(21),
            aliases: (0..aliases).map(|i| Alias { contents: i, adapter: contents(i) }).collect(),
            prompts: prompts.collect(),
            open: BTreeMap::new(),
            known: BTreeMap::new(),
            next_contents: aliases,
            counts: Counts::default(),
        }
    }

    fn draw(&mut self, below: usize) -> usize {
        self.stream.next_below(below as u64) as usize
    }

    fn request(&self, adapter: Option<RequestAdapter>, prompt: usize) -> ReplyRequest {
        let greedy = SamplingOptions::greedy();
        ReplyRequest { adapter, ..request(self.prompts[prompt].clone(), greedy, NEW_TOKENS) }
    }

    fn add(&mut self) {
        let (alias, prompt) = (self.draw(self.aliases.len() + 3), self.draw(self.prompts.len()));
        let chosen = self.aliases.get(alias);
        let (adapter, contents) = (chosen.map(|a| a.adapter.clone()), chosen.map(|a| a.contents));
        if !self.known.contains_key(&(contents, prompt)) {
            let reply = alone(&self.request(adapter.clone(), prompt), 0);
            self.known.insert((contents, prompt), reply);
        }
        if let Ok(id) = self.scheduler.add(self.request(adapter, prompt)) {
            self.open.insert(id, Open { alias, contents, prompt, ids: Vec::new() });
        }
    }

    fn cancel(&mut self) {
        let which = self.draw(self.open.len().max(1));
        if let Some((&id, _)) = self.open.iter().nth(which) {
            assert!(self.scheduler.cancel(id));
            self.open.remove(&id);
            self.counts.cancelled += 1;
        }
    }

    /// Replaces the adapter of an alias. Running requests continue with the old adapter.
    fn replace(&mut self) {
        let which = self.draw(self.aliases.len());
        self.aliases[which] = Alias { contents: self.next_contents, adapter: contents(self.next_contents) };
        self.next_contents += 1;
        self.counts.replaced += 1;
    }

    fn step(&mut self) {
        for event in self.scheduler.step().unwrap() {
            let open = self.open.get_mut(&event.request).expect("no event of an ended request");
            match event.kind {
                EventKind::Started { .. } => assert!(open.ids.is_empty()),
                EventKind::Token { id, .. } => open.ids.push(id),
                EventKind::Finished(_) => {
                    let Open { alias, contents, prompt, ids } = self.open.remove(&event.request).unwrap();
                    let expected = &self.known[&(contents, prompt)];
                    assert_eq!(ids, *expected, "alias {alias}, contents {contents:?}, prompt {prompt}");
                    self.counts.finished += 1;
                }
                EventKind::Failed(error) => panic!("{error}"),
            }
        }
        let stats = self.scheduler.stats();
        assert!(stats.kv_tokens + stats.prefix_tokens <= stats.max_kv_tokens, "{stats:?}");
        assert!(stats.running <= 8 && stats.waiting <= 40 + 8, "{stats:?}");
    }

    /// Adds requests until `count` requests have finished or the time `limit` has passed. Then checks that no
    /// sequence is in memory and no adapter is leaked.
    fn run(mut self, count: usize, limit: Duration) -> Counts {
        let start = Instant::now();
        while self.counts.finished < count && start.elapsed() < limit {
            match self.draw(40) {
                0 => self.replace(),
                1..4 => self.cancel(),
                4..16 => self.add(),
                _ => self.step(),
            }
        }
        while !self.scheduler.is_idle() {
            self.step();
        }
        let stats = self.scheduler.stats();
        assert_eq!((self.open.len(), stats.kv_tokens, stats.adapters.len()), (0, 0, 0), "{stats:?}");
        assert!(stats.prefix_hits > 0, "{stats:?}");
        for Alias { adapter, .. } in &self.aliases {
            assert_eq!(Arc::strong_count(&adapter.lora), 1, "no lease is leaked");
        }
        println!("{:?}, {stats:?}", self.counts);
        self.counts
    }
}

#[test]
fn random_requests_get_the_reply_of_their_adapter() {
    let counts = Soak::new(50).run(150, Duration::from_secs(30));
    assert!(counts.finished > 10, "{counts:?}");
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    4096 * pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap()
}

#[test]
#[ignore = "takes minutes: run it by hand in release mode"]
#[cfg(target_os = "linux")]
fn two_thousand_random_requests_leave_memory_flat() {
    let counts = Soak::new(50).run(500, Duration::MAX);
    let before = resident_bytes();
    let more = Soak::new(50).run(1500, Duration::MAX);
    let after = resident_bytes();
    println!("{counts:?}, {more:?}: {before} bytes resident, then {after}");
    assert!(after < before + (32 << 20), "{before} bytes, then {after}");
}
