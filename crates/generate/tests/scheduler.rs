//! Tests that each request gets the same reply as without other requests, and that limits and fairness hold.

mod support;

use std::sync::Arc;

use danlu_generate::{
    AddError, EventKind, GenerateError, LogitsProcessor, ReplyRequest, RequestAdapter, RequestId,
    SamplingOptions, Scheduler, SchedulerOptions, StopReason,
};
use support::{BASE, adapter, alone, request};

/// Tokens and end of one choice.
#[derive(Clone, Debug, Default, PartialEq)]
struct Reply {
    ids: Vec<u32>,
    cached_tokens: usize,
    stop: Option<StopReason>,
}

/// Runs steps until no request is left. Returns the replies in the order of their first events.
fn finish(scheduler: &mut Scheduler) -> Vec<((RequestId, usize), Reply)> {
    let mut replies: Vec<((RequestId, usize), Reply)> = Vec::new();
    while !scheduler.is_idle() {
        for event in scheduler.step().unwrap() {
            let key = (event.request, event.choice);
            let index = replies.iter().position(|(known, _)| *known == key).unwrap_or_else(|| {
                replies.push((key, Reply::default()));
                replies.len() - 1
            });
            let reply = &mut replies[index].1;
            assert_eq!(reply.stop, None, "no event follows the end");
            match event.kind {
                EventKind::Started { cached_tokens } => reply.cached_tokens = cached_tokens,
                EventKind::Token { id, .. } => reply.ids.push(id),
                EventKind::Finished(stop) => reply.stop = Some(stop),
                EventKind::Failed(error) => panic!("{error}"),
            }
        }
        let stats = scheduler.stats();
        assert!(stats.kv_tokens + stats.prefix_tokens <= stats.max_kv_tokens, "{stats:?}");
    }
    assert_eq!(scheduler.stats().kv_tokens, 0, "no slot is leaked");
    replies
}

/// Returns the `i`-th prompt, with 2 to about 90 tokens. Some prompts have a common prefix.
fn prompt(i: usize) -> Vec<u32> {
    let system = "你是一位说书人，用古白话回答，句子要短，不要解释。".repeat(2);
    let text = ["今晚月色真美，", "话说天下大势，", "The palace was", "你好", "皇上"][i % 5];
    let text = if i.is_multiple_of(3) { format!("{system}{text}") } else { text.repeat(1 + i / 5) };
    BASE.1.encode(&text).unwrap()
}

/// Returns the `i`-th of many requests: greedy or sampled, and with no adapter or an adapter of one of three
/// ranks.
fn mixed(i: usize, adapters: &[RequestAdapter]) -> ReplyRequest {
    let sampling = SamplingOptions {
        temperature: if i.is_multiple_of(2) { 0.0 } else { 1.1 },
        top_p: 0.95,
        seed: i as u64,
        ..SamplingOptions::default()
    };
    let adapter = [None, Some(0), Some(1), Some(2)][i % 4].map(|which| adapters[which].clone());
    ReplyRequest { adapter, ..request(prompt(i), sampling, 10 + i) }
}

fn adapters() -> Vec<RequestAdapter> {
    [(8, 1), (3, 2), (17, 3)].map(|(rank, seed)| adapter(rank, seed)).to_vec()
}

fn scheduler(options: SchedulerOptions) -> Scheduler {
    Scheduler::new(BASE.0.clone(), options)
}

fn small() -> SchedulerOptions {
    SchedulerOptions { max_kv_tokens: 1024, ..SchedulerOptions::default() }
}

#[test]
fn a_reply_is_the_same_alone_and_in_any_mix() {
    let adapters = adapters();
    let expected: Vec<Vec<u32>> = (0..16).map(|i| alone(&mixed(i, &adapters), 0)).collect();
    assert_ne!(expected[0][..5], expected[12][..5], "adapters change the reply");
    for (max_running, max_kv_tokens, prefill_tokens, prefix_cache) in [
        (16, 4096, 512, false),
        (5, 2048, 7, true),
        (12, 320, 33, true),
        (12, 192, 33, false),
        (1, 192, 1, true),
    ] {
        let options =
            SchedulerOptions { max_running, max_queued: 99, max_kv_tokens, prefill_tokens, prefix_cache };
        let mut scheduler = scheduler(options);
        let ids: Vec<RequestId> = (0..16).map(|i| scheduler.add(mixed(i, &adapters)).unwrap()).collect();
        let replies = finish(&mut scheduler);
        assert_eq!(replies.len(), 16);
        for ((request, _), reply) in replies {
            let i = ids.iter().position(|&id| id == request).unwrap();
            assert_eq!(reply.ids, expected[i], "request {i} under {options:?}");
        }
        let stats = scheduler.stats();
        assert_eq!(stats.preemptions > 0, max_kv_tokens < 1024 && max_running > 1, "{options:?} {stats:?}");
        assert!(prefix_cache || stats.prefix_hits == 0, "{options:?} {stats:?}");
    }
}

#[test]
fn choices_share_one_prefill_and_differ_by_their_streams() {
    for prefix_cache in [false, true] {
        let mut scheduler = scheduler(SchedulerOptions { prefix_cache, ..small() });
        let sampling = SamplingOptions { temperature: 1.2, seed: 5, ..SamplingOptions::default() };
        let many = || ReplyRequest { choices: 4, ..request(prompt(0), sampling.clone(), 9) };
        scheduler.add(many()).unwrap();
        let replies = finish(&mut scheduler);
        assert_eq!(
            scheduler.stats().prompt_tokens as usize,
            prompt(0).len() + 3,
            "the last token is read again"
        );
        for ((_, choice), reply) in &replies {
            assert_eq!(reply.ids, alone(&many(), *choice), "choice {choice}");
            assert_eq!(reply.cached_tokens, if *choice == 0 { 0 } else { prompt(0).len() - 1 });
        }
        assert_eq!(replies.len(), 4);
        assert_ne!(replies[0].1.ids, replies[1].1.ids);
    }
}

#[test]
fn choices_of_one_token_share_the_prompt_too() {
    let mut scheduler = scheduler(SchedulerOptions { prefix_cache: false, max_running: 3, ..small() });
    let sampling = SamplingOptions { temperature: 1.2, ..SamplingOptions::default() };
    scheduler.add(ReplyRequest { choices: 3, ..request(prompt(0), sampling, 1) }).unwrap();
    assert_eq!(finish(&mut scheduler).len(), 3);
    assert_eq!(scheduler.stats().prompt_tokens as usize, prompt(0).len() + 2);
}

#[test]
fn requests_that_begin_alike_read_the_beginning_once() {
    let mut scheduler = scheduler(SchedulerOptions { prefill_tokens: 16, ..small() });
    for _ in 0..3 {
        scheduler.add(request(prompt(0), SamplingOptions::greedy(), 5)).unwrap();
    }
    let replies = finish(&mut scheduler);
    assert!(replies.iter().all(|(_, reply)| reply.ids == replies[0].1.ids));
    let stats = scheduler.stats();
    // In the step that ends the first prompt, the second prompt may use the rest of the limit. Prompts can
    // share only tokens that an earlier step read, so up to 16 tokens are read twice.
    assert!((stats.prompt_tokens as usize) < prompt(0).len() + 2 * 16, "{stats:?}");
}

#[test]
fn a_prefix_is_shared_within_a_generation_only() {
    let mut scheduler = scheduler(small());
    let with = |adapter: &RequestAdapter| ReplyRequest {
        adapter: Some(adapter.clone()),
        ..request(prompt(0), SamplingOptions::greedy(), 6)
    };
    // The third adapter has different contents and a different id, like a new version of an adapter.
    let [first, second, third] = [1, 2, 3].map(|seed| adapter(8, seed));
    let mut cached = |adapter: &RequestAdapter| {
        scheduler.add(with(adapter)).unwrap();
        let reply = finish(&mut scheduler).swap_remove(0).1;
        assert_eq!(reply.ids, alone(&with(adapter), 0));
        reply.cached_tokens
    };
    let whole = prompt(0).len() - 1;
    assert_eq!([&first, &second, &first, &third, &second].map(&mut cached), [0, 0, whole, 0, whole]);
}

#[test]
fn a_second_turn_reads_the_reply_as_a_prompt() {
    let [mut on, mut off] =
        [true, false].map(|prefix_cache| scheduler(SchedulerOptions { prefix_cache, ..small() }));
    let turns = |scheduler: &mut Scheduler| {
        scheduler.add(request(prompt(3), SamplingOptions::greedy(), 12)).unwrap();
        let mut ids = prompt(3);
        ids.extend(finish(scheduler).swap_remove(0).1.ids);
        ids.extend(prompt(1));
        scheduler.add(request(ids, SamplingOptions::greedy(), 12)).unwrap();
        finish(scheduler).swap_remove(0).1
    };
    let (with, without) = (turns(&mut on), turns(&mut off));
    assert_eq!((with.ids, with.cached_tokens), (without.ids, prompt(3).len()));
    assert_eq!(without.cached_tokens, 0);
}

#[test]
fn a_cancelled_request_leaves_nothing_behind() {
    let mut scheduler = scheduler(SchedulerOptions { max_running: 2, prefill_tokens: 16, ..small() });
    let greedy = || request(prompt(0), SamplingOptions::greedy(), 30);
    let adapter = adapter(4, 9);
    let leases = Arc::strong_count(&adapter.lora);
    let ids: Vec<RequestId> = (0..4)
        .map(|_| {
            scheduler.add(ReplyRequest { adapter: Some(adapter.clone()), choices: 2, ..greedy() }).unwrap()
        })
        .collect();
    scheduler.step().unwrap();
    // The first request is reading its prompt, and the last request is in the queue.
    assert!(scheduler.cancel(ids[0]) && scheduler.cancel(ids[3]) && !scheduler.cancel(ids[0]));
    for _ in 0..20 {
        for event in scheduler.step().unwrap() {
            assert!(event.request == ids[1] || event.request == ids[2]);
        }
    }
    assert!(scheduler.cancel(ids[1]), "it generates tokens");
    assert_eq!(finish(&mut scheduler).iter().filter(|((id, _), _)| *id == ids[2]).count(), 2);
    assert_eq!(Arc::strong_count(&adapter.lora), leases, "no lease is leaked");
    assert_eq!((scheduler.stats().waiting, scheduler.stats().adapters), (0, vec![]));
}

#[test]
fn limits_reject_a_request_without_effect() {
    let mut scheduler = scheduler(SchedulerOptions { max_running: 1, max_queued: 2, ..small() });
    let greedy = |ids| request(ids, SamplingOptions::greedy(), 4);
    for _ in 0..2 {
        scheduler.add(greedy(prompt(1))).unwrap();
    }
    let error = scheduler.add(greedy(prompt(1))).unwrap_err();
    assert!(matches!(error, AddError::QueueFull { waiting: 2, limit: 2 }), "{error}");
    scheduler.step().unwrap();
    let error = scheduler.add(greedy(vec![1; 401])).unwrap_err();
    assert!(matches!(error, AddError::TooLong { tokens: 401, room: 400 }), "{error}");
    let error = scheduler.add(greedy(vec![u32::MAX])).unwrap_err();
    assert!(matches!(error, AddError::Invalid(GenerateError::Model(_))), "{error}");
    let error = scheduler.add(ReplyRequest { choices: 0, ..greedy(prompt(1)) }).unwrap_err();
    assert_eq!(error.to_string(), "cannot use `choices`: it is 0, expected 1 or more");
    assert_eq!(finish(&mut scheduler).len(), 2);
}

#[test]
fn one_client_beside_many_of_another_adapter_is_not_delayed() {
    let mut scheduler =
        scheduler(SchedulerOptions { max_queued: 99, prefill_tokens: 32, max_kv_tokens: 4096, ..small() });
    let [busy, quiet] = [adapter(4, 1), adapter(4, 2)];
    let with = |adapter: &RequestAdapter, i| ReplyRequest {
        adapter: Some(adapter.clone()),
        ..request(prompt(i), SamplingOptions::greedy(), 40)
    };
    for i in 0..50 {
        scheduler.add(with(&busy, i)).unwrap();
    }
    for _ in 0..20 {
        scheduler.step().unwrap();
    }
    assert_eq!(scheduler.stats().running, 8);
    let first = scheduler.add(with(&quiet, 0)).unwrap();
    let alone = prompt(0).len().div_ceil(32);
    let is_first = |event: &danlu_generate::SchedulerEvent| {
        event.request == first && matches!(event.kind, EventKind::Token { .. })
    };
    let steps = (1..).find(|_| scheduler.step().unwrap().iter().any(is_first)).unwrap();
    // The two adapters share the prompt tokens of a step, so the new prompt takes at most twice as many steps
    // as alone. One more step may be partly used by a prompt of the busy adapter.
    assert!(steps <= 2 * alone + 1, "{steps} steps, {alone} alone");
    assert_eq!(finish(&mut scheduler).len(), 51);
}

#[test]
fn a_request_waits_behind_others_of_its_adapter_and_none_waits_forever() {
    let mut scheduler = scheduler(SchedulerOptions { max_running: 2, ..small() });
    let many: Vec<RequestAdapter> = (0..5).map(|i| adapter(2, i)).collect();
    let mut order = Vec::new();
    for i in 0..20 {
        let adapter = Some(many[i % 5].clone());
        let id = scheduler
            .add(ReplyRequest { adapter, ..request(prompt(1), SamplingOptions::greedy(), 8) })
            .unwrap();
        order.push((id, i % 5));
    }
    let replies = finish(&mut scheduler);
    assert_eq!(replies.len(), 20);
    for which in 0..5 {
        let started: Vec<RequestId> =
            replies.iter().map(|((id, _), _)| *id).filter(|id| order.contains(&(*id, which))).collect();
        assert!(started.is_sorted(), "adapter {which}: {started:?}");
    }
}

/// A processor that allows only the token `id`, and fails after `most` tokens.
struct Only {
    id: u32,
    most: usize,
}

impl LogitsProcessor for Only {
    fn apply(&mut self, new_ids: &[u32], logits: &mut [f32]) -> Result<(), String> {
        if new_ids.len() == self.most {
            return Err("the grammar has ended".to_owned());
        }
        let excluded = (0..).zip(logits).filter(|(id, _)| *id != self.id);
        excluded.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        Ok(())
    }
}

#[test]
fn processors_and_log_probabilities_belong_to_a_choice() {
    let mut scheduler = scheduler(small());
    let processors: Vec<Box<dyn LogitsProcessor>> =
        vec![Box::new(Only { id: 70, most: 99 }), Box::new(Only { id: 80, most: 2 })];
    let greedy = request(prompt(1), SamplingOptions::greedy(), 3);
    let id = scheduler.add(ReplyRequest { choices: 2, processors, top_logprobs: Some(2), ..greedy }).unwrap();
    let other = scheduler.add(request(prompt(1), SamplingOptions::greedy(), 3)).unwrap();
    let (mut tokens, mut ends) = (Vec::new(), Vec::new());
    while !scheduler.is_idle() {
        for event in scheduler.step().unwrap() {
            match event.kind {
                EventKind::Token { id: token, logprobs } if event.request == id => {
                    let logprobs = logprobs.unwrap();
                    assert!(logprobs.logprob <= logprobs.top[1].1 && logprobs.top[0].1 < 0.0);
                    tokens.push((event.choice, token));
                }
                EventKind::Token { logprobs, .. } => assert_eq!(logprobs, None),
                EventKind::Finished(stop) => ends.push((event.request, event.choice, Ok(stop))),
                EventKind::Failed(error) => ends.push((event.request, event.choice, Err(error.to_string()))),
                EventKind::Started { .. } => {}
            }
        }
    }
    tokens.sort();
    assert_eq!(tokens, [(0, 70), (0, 70), (0, 70), (1, 80), (1, 80)]);
    ends.sort_by_key(|&(request, choice, _)| (request, choice));
    let failed = format!("cannot choose a token after {} tokens: the grammar has ended", prompt(1).len() + 2);
    let all = Ok(StopReason::MaxNewTokens);
    assert_eq!(ends, [(id, 0, all.clone()), (id, 1, Err(failed)), (other, 0, all)]);
}
