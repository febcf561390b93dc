//! State that all routes share, and the functions that pass requests to the engine.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use danlu_generate::{LogitsProcessor, ReplyRequest, StopRules};
use danlu_model::Message;
use serde_json::{Map, Value};

use crate::api_error::{ApiError, shortened};
use crate::constraint::Constraint;
use crate::engine_thread::EngineHandle;
use crate::generation_hex::parse_generation;
use crate::grammar::MaskWorker;
use crate::json_fields::Fields;
use crate::logits_rules::LogitsRules;
use crate::metrics::{Gauges, Metrics};
use crate::registry::{Lease, Registry};
use crate::reply::Reply;
use crate::sampling_fields::SamplingFields;
use crate::security::Security;

/// The settings of a request that the engine needs.
#[derive(Clone, Copy)]
pub(crate) struct ReplySettings<'a> {
    pub sampling: &'a SamplingFields,
    /// Number of most likely tokens to report with each new token, if the client requested log probabilities.
    pub top_logprobs: Option<usize>,
    pub constraint: &'a Constraint,
}

/// The values that the chat template renders.
#[derive(Default)]
pub(crate) struct Conversation {
    pub messages: Vec<Message>,
    pub tools: Vec<Value>,
    /// Further values of the template, such as `enable_thinking`.
    pub values: Map<String, Value>,
}

pub(crate) struct App {
    pub registry: Arc<Registry>,
    pub engine: EngineHandle,
    pub masks: MaskWorker,
    pub metrics: Arc<Metrics>,
    pub security: Security,
    /// Maximum number of tokens of a prompt and its reply together.
    pub context: usize,
    pub vocab_size: usize,
    /// Maximum size of a request body in bytes.
    pub max_body_bytes: usize,
    /// Maximum time for a request body.
    pub body_time: Duration,
    /// Maximum number of requests that are handled at the same time.
    pub max_requests: usize,
    pub requests: AtomicUsize,
    /// Start time of the server, in seconds since 1970.
    pub started: u64,
    pub is_draining: AtomicBool,
}

impl App {
    /// Returns the name of the base in lists of models.
    pub fn base_name(&self) -> &str {
        &self.registry.options().base_names[0]
    }

    /// Returns the number of parameters of the base.
    pub fn parameters(&self) -> u64 {
        self.registry.loader().base.decoder().config().num_parameters()
    }

    /// Returns the size of the base's files in bytes.
    pub fn base_bytes(&self) -> u64 {
        self.registry.loader().base.files().weights().total_bytes()
    }

    /// Returns the model family of the base, such as `llama`.
    pub fn family(&self) -> String {
        self.registry.loader().base.decoder().config().model_type.clone()
    }

    /// Returns the type of the base's weights in Ollama's spelling, such as `NF4`. Unquantized weights are
    /// reported as `F16`.
    pub fn quantization_level(&self) -> String {
        let base = &self.registry.loader().base;
        let stored = base.files().stored_quantization().ok().flatten();
        match base.quantization().or(stored) {
            Some(quantization) => quantization.quant_type.to_string().to_uppercase(),
            None => "F16".to_owned(),
        }
    }

    /// Returns the model name for the response, and a lease, which keeps the model of the request in memory.
    pub async fn lease(&self, map: &Map<String, Value>) -> Result<(String, Lease), ApiError> {
        let fields = Fields::new(map);
        let Some(model) = fields.text("model")? else {
            return Err(fields.wrong("model", "the name of a model"));
        };
        let lease = match fields.get("adapter") {
            None => self.registry.lease(model).await?,
            Some(Value::String(alias)) => self.registry.lease(alias).await?,
            Some(adapter) => {
                let id = adapter.get("generation").and_then(Value::as_str).and_then(parse_generation);
                let Some(id) = id else {
                    return Err(fields.wrong("adapter", "an alias, or `{\"generation\": id}`"));
                };
                self.registry.lease_generation(&id).ok_or_else(|| {
                    let message = format!("cannot use generation `{id}`: it is not in memory");
                    ApiError::not_found(message).with_param("adapter").with_code("lora_adapter_not_found")
                })?
            }
        };
        Ok((model.to_owned(), lease))
    }

    /// Returns an error while the server shuts down, or if the engine has ended.
    pub fn check_ready(&self) -> Result<(), ApiError> {
        if self.is_draining.load(Ordering::Relaxed) {
            return Err(ApiError::unavailable("cannot take requests: the server is shutting down"));
        }
        if self.engine.has_ended() {
            return Err(ApiError::unavailable("cannot take requests: the engine has ended"));
        }
        Ok(())
    }

    /// Submits prompts to the engine, and returns a [`Reply`] that yields the generated text. Returns an
    /// error if the engine rejects a prompt.
    pub async fn submit(
        &self,
        prompts: Vec<Vec<u32>>,
        settings: ReplySettings<'_>,
        lease: Lease,
    ) -> Result<Reply, ApiError> {
        let requests: Result<Vec<_>, _> =
            prompts.iter().map(|ids| self.request(ids.clone(), settings, &lease)).collect();
        let events = self.engine.submit(requests?).await.inspect_err(|error| {
            if error.status == axum::http::StatusCode::TOO_MANY_REQUESTS {
                self.metrics.request_rejected();
            }
        })?;
        let ReplySettings { sampling, constraint, .. } = settings;
        Ok(Reply::new(events, lease, Arc::clone(&self.metrics), sampling, constraint, &prompts))
    }

    fn request(
        &self,
        ids: Vec<u32>,
        settings: ReplySettings<'_>,
        lease: &Lease,
    ) -> Result<ReplyRequest, ApiError> {
        let ReplySettings { sampling, top_logprobs, constraint } = settings;
        let context = self.context;
        let reply = sampling.max_tokens.unwrap_or(0);
        if ids.is_empty() {
            return Err(ApiError::field("prompt", "cannot continue an empty prompt: it has no tokens"));
        }
        if ids.len() >= context || ids.len().saturating_add(reply) > context {
            return Err(ApiError::context_length(ids.len(), reply, context));
        }
        let mut stop_ids = match sampling.ignore_eos {
            true => Default::default(),
            false => lease.profile.tokenizer().stop_ids().clone(),
        };
        stop_ids.extend(&sampling.stop_token_ids);
        let rules = |_| {
            let rules = LogitsRules::new(sampling, &stop_ids, constraint.mask(&self.masks))?;
            Some(Box::new(rules) as Box<dyn LogitsProcessor>)
        };
        let processors: Option<Vec<_>> = (0..sampling.choices).map(rules).collect();
        let options = sampling.options(&lease.profile.sampling);
        options.check()?;
        Ok(ReplyRequest {
            rules: StopRules {
                max_new_tokens: sampling.max_tokens.unwrap_or(context - ids.len()),
                max_context_tokens: context,
                stop_ids,
            },
            ids,
            sampling: options,
            choices: sampling.choices,
            adapter: lease.generation.as_ref().map(|generation| generation.request_adapter()),
            top_logprobs,
            processors: processors.unwrap_or_default(),
        })
    }

    /// Renders a conversation with the chat template of the model, and adds the model's default system
    /// message if the first message is no system message. Returns the text and its tokens.
    pub async fn render(
        &self,
        lease: &Lease,
        conversation: Conversation,
    ) -> Result<(String, Vec<u32>), ApiError> {
        let profile = Arc::clone(&lease.profile);
        blocking(move || {
            let Conversation { mut messages, tools, values } = conversation;
            if let Some(system) = profile.default_system.as_ref().filter(|_| messages[0].role != "system") {
                messages.insert(0, Message::new("system", system));
            }
            let template = profile.tokenizer().template()?;
            let mut template = Cow::Borrowed(template);
            if !tools.is_empty() {
                template = Cow::Owned(template.with_tools(&tools));
            }
            for (name, value) in values {
                template = Cow::Owned(template.with_value(&name, value));
            }
            let text = template.render(&messages, true)?;
            let ids = profile.tokenizer().encode(&text)?;
            Ok((text, ids))
        })
        .await
    }

    /// Returns the current values of the engine and the registry, for `/metrics`.
    pub fn gauges(&self) -> Gauges {
        let stats = self.engine.stats();
        let generations = self.registry.generations();
        let mut resident: Vec<String> = generations.iter().flat_map(|g| g.aliases.iter().cloned()).collect();
        resident.sort();
        Gauges {
            model: self.base_name().to_owned(),
            running: stats.running,
            waiting: stats.waiting,
            kv_used: stats.kv_tokens,
            kv_total: stats.max_kv_tokens,
            prefix_queries: stats.prefix_queries,
            prefix_hits: stats.prefix_hits,
            preemptions: stats.preemptions,
            resident_adapters: resident,
            waiting_adapters: self.registry.loading(),
            resident_bytes: self.registry.resident_bytes(),
            evictions: self.registry.evictions(),
            leases: generations.iter().map(|generation| generation.active_leases).sum(),
        }
    }

    /// Returns the tokens of a text. With `adds_start`, adds the tokenizer's start tokens, unless the text
    /// already begins with them.
    pub async fn tokenize(
        &self,
        lease: &Lease,
        text: String,
        adds_start: bool,
    ) -> Result<Vec<u32>, ApiError> {
        let profile = Arc::clone(&lease.profile);
        blocking(move || {
            let tokenizer = profile.tokenizer();
            let ids = tokenizer.encode(&text)?;
            let mut start = if adds_start { tokenizer.starting_ids()? } else { Vec::new() };
            if ids.starts_with(&start) {
                return Ok(ids);
            }
            start.extend(ids);
            Ok(start)
        })
        .await
    }
}

/// Runs slow work on another thread, so that other requests are not delayed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(ApiError::internal("cannot go on with the request: its thread panicked")))
}

pub(crate) fn no_route(path: &str) -> ApiError {
    ApiError::not_found(format!("cannot find `{}`: there is no such route", shortened(path)))
}
