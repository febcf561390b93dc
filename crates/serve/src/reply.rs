//! Converts the engine's events into the text of a reply, as the events arrive.

use std::sync::Arc;
use std::time::Instant;

use danlu_generate::{EventKind, StopReason, TokenLogprobs};
use danlu_model::DecodeState;

use crate::api_error::ApiError;
use crate::constraint::Constraint;
use crate::engine_thread::{ChoiceEvent, EventReceiver};
use crate::metrics::{EndReason, Metrics};
use crate::registry::Lease;
use crate::sampling_fields::SamplingFields;
use crate::stop_text::StopText;
use crate::tools::{CallPiece, CallScanner, Scanned};

/// The end of a choice, which is one of the replies to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finish {
    /// Value of `finish_reason`: `stop`, `length` or `tool_calls`.
    pub reason: &'static str,
    /// The stop string, or the token in `stop_token_ids`, that ended the choice. vLLM returns it as
    /// `stop_reason`.
    pub matched: Option<StopMatch>,
}

/// The stop string or stop token that ended a choice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopMatch {
    Text(String),
    Token(u32),
}

/// New text of one choice.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    pub choice: usize,
    pub text: String,
    pub calls: Vec<CallPiece>,
    /// Tokens since the previous piece of text, if the client requested log probabilities.
    pub logprobs: Vec<(u32, TokenLogprobs)>,
    pub finish: Option<Finish>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub cached_tokens: usize,
}

struct Choice {
    decoder: DecodeState,
    stop: StopText,
    scanner: Option<CallScanner>,
    logprobs: Vec<(u32, TokenLogprobs)>,
    is_over: bool,
    last_token: Option<Instant>,
}

impl Choice {
    /// Divides new text into plain text and tool calls.
    fn scan(&mut self, text: String, is_last: bool) -> Scanned {
        let Some(scanner) = &mut self.scanner else { return Scanned { text, calls: Vec::new() } };
        let mut scanned = scanner.push(&text);
        if is_last {
            let rest = scanner.finish();
            scanned.text.push_str(&rest.text);
            scanned.calls.extend(rest.calls);
        }
        scanned
    }

    /// Returns `finish`. If the choice has tool calls, the reason `stop` is replaced by `tool_calls`.
    fn with_calls(&self, finish: Finish) -> Finish {
        let has_calls = self.scanner.as_ref().is_some_and(CallScanner::has_calls);
        match has_calls && finish.reason == "stop" {
            true => Finish { reason: "tool_calls", ..finish },
            false => finish,
        }
    }
}

/// The choices of one HTTP request.
pub(crate) struct Reply {
    events: EventReceiver,
    lease: Lease,
    metrics: Arc<Metrics>,
    choices: Vec<Choice>,
    /// Number of choices per prompt.
    choices_per_prompt: usize,
    stop_token_ids: Vec<u32>,
    usage: Usage,
    started: Instant,
    first_token: Option<Instant>,
    is_queued: bool,
}

impl Reply {
    pub fn new(
        events: EventReceiver,
        lease: Lease,
        metrics: Arc<Metrics>,
        sampling: &SamplingFields,
        constraint: &Constraint,
        prompts: &[Vec<u32>],
    ) -> Self {
        let skips_special = sampling.skips_special && !constraint.shows_special();
        let choice = || Choice {
            decoder: DecodeState::new(skips_special),
            stop: StopText::new(sampling.stops.clone(), sampling.includes_stop),
            scanner: constraint.scanner(),
            logprobs: Vec::new(),
            is_over: false,
            last_token: None,
        };
        Self {
            events,
            lease,
            metrics,
            choices: (0..prompts.len() * sampling.choices).map(|_| choice()).collect(),
            choices_per_prompt: sampling.choices,
            stop_token_ids: sampling.stop_token_ids.clone(),
            usage: Usage { prompt_tokens: prompts.iter().map(Vec::len).sum(), ..Usage::default() },
            started: Instant::now(),
            first_token: None,
            is_queued: true,
        }
    }

    /// Returns the number of choices.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    pub fn usage(&self) -> Usage {
        self.usage
    }

    pub fn started(&self) -> Instant {
        self.started
    }

    pub fn first_token(&self) -> Option<Instant> {
        self.first_token
    }

    /// Returns the next piece of text, or `None` after every choice has ended.
    ///
    /// # Errors
    /// If the model failed.
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        while self.choices.iter().any(|choice| !choice.is_over) {
            let Some(event) = self.events.next().await else {
                return Err(ApiError::internal("cannot go on with the reply: the engine failed"));
            };
            if let Some(piece) = self.take(event)? {
                return Ok(Some(piece));
            }
        }
        Ok(None)
    }

    /// Waits for the end of every choice. Returns one piece per choice, with the text `begun(choice)` and the
    /// whole text of the choice after it.
    ///
    /// # Errors
    /// The errors of [`Reply::next`].
    pub async fn collect(&mut self, begun: impl Fn(usize) -> String) -> Result<Vec<Piece>, ApiError> {
        let empty = |choice| {
            let (calls, logprobs) = Default::default();
            Piece { choice, text: begun(choice), calls, logprobs, finish: None }
        };
        let mut wholes: Vec<Piece> = (0..self.choices()).map(empty).collect();
        while let Some(mut piece) = self.next().await? {
            let whole = &mut wholes[piece.choice];
            whole.text.push_str(&piece.text);
            whole.calls.append(&mut piece.calls);
            whole.logprobs.append(&mut piece.logprobs);
            whole.finish = piece.finish;
        }
        Ok(wholes)
    }

    fn take(&mut self, event: ChoiceEvent) -> Result<Option<Piece>, ApiError> {
        let index = event.choice;
        let Some(choice) = self.choices.get_mut(index).filter(|choice| !choice.is_over) else {
            return Ok(None);
        };
        let tokenizer = self.lease.profile.tokenizer();
        let (text, finish) = match event.kind {
            EventKind::Started { cached_tokens } => {
                // All choices of a prompt share its keys and values, so only the first choice counts the
                // cached tokens.
                if index.is_multiple_of(self.choices_per_prompt) {
                    self.usage.cached_tokens += cached_tokens;
                }
                if std::mem::take(&mut self.is_queued) {
                    self.metrics.queue_time.add(self.started.elapsed());
                }
                return Ok(None);
            }
            EventKind::Token { id, logprobs } => {
                choice.logprobs.extend(logprobs.map(|logprobs| (id, logprobs)));
                let text = choice.decoder.push(tokenizer, id).unwrap_or_default();
                let text = choice.stop.push(&text);
                self.usage.completion_tokens += 1;
                self.time_token(index);
                let stopped = self.choices[index].stop.stopped().map(str::to_owned);
                let finish =
                    stopped.map(|stop| Finish { reason: "stop", matched: Some(StopMatch::Text(stop)) });
                (text, finish)
            }
            EventKind::Finished(reason) => {
                let rest = choice.decoder.finish(tokenizer).unwrap_or_default();
                let mut text = choice.stop.push(&rest);
                let stopped = choice.stop.stopped().map(str::to_owned);
                text.push_str(&choice.stop.finish());
                if matches!(reason, StopReason::EndToken(_)) {
                    self.usage.completion_tokens += 1;
                }
                (text, Some(finish(reason, stopped, &self.stop_token_ids)))
            }
            EventKind::Failed(error) => {
                self.choices[index].is_over = true;
                self.metrics.choice_ended(EndReason::Error);
                return Err(error.into());
            }
        };
        let choice = &mut self.choices[index];
        let Scanned { text, calls } = choice.scan(text, finish.is_some());
        let finish = finish.map(|finish| choice.with_calls(finish));
        if let Some(finish) = &finish {
            choice.is_over = true;
            let is_length = finish.reason == "length";
            self.metrics.choice_ended(if is_length { EndReason::Length } else { EndReason::Stop });
        }
        if text.is_empty() && calls.is_empty() && finish.is_none() {
            return Ok(None);
        }
        let logprobs = std::mem::take(&mut choice.logprobs);
        Ok(Some(Piece { choice: index, text, calls, logprobs, finish }))
    }

    /// Records the time to the first token of the request, or the time since the previous token of the
    /// choice.
    fn time_token(&mut self, index: usize) {
        let now = Instant::now();
        if self.first_token.is_none() {
            self.first_token = Some(now);
            self.metrics.first_token.add(now - self.started);
        }
        if let Some(last) = self.choices[index].last_token.replace(now) {
            self.metrics.next_token.add(now - last);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let open = self.choices.iter().filter(|choice| !choice.is_over).count();
        (0..open).for_each(|_| self.metrics.choice_ended(EndReason::Abort));
        self.metrics.whole_request.add(self.started.elapsed());
        let Usage { prompt_tokens, completion_tokens, .. } = self.usage;
        self.metrics.request_ended(self.lease.alias.as_deref(), prompt_tokens, completion_tokens);
    }
}

fn finish(reason: StopReason, stopped: Option<String>, listed: &[u32]) -> Finish {
    match (stopped, reason) {
        (Some(stop), _) => Finish { reason: "stop", matched: Some(StopMatch::Text(stop)) },
        (None, StopReason::EndToken(id)) => {
            let matched = listed.contains(&id).then_some(StopMatch::Token(id));
            Finish { reason: "stop", matched }
        }
        (None, StopReason::MaxNewTokens | StopReason::ContextFull | StopReason::Caller) => {
            Finish { reason: "length", matched: None }
        }
    }
}
