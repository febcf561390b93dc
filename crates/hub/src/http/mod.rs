//! HTTP requests with checked redirects and retries. Only the Hub receives the token.

mod api_error;
mod connect_error;
mod network_env;
pub(crate) mod rate_floor;
mod request;
mod response;
pub(crate) mod retry_after;
pub(crate) mod url;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ureq::http::Method;
use ureq::tls::TlsConfig;
use ureq::{Agent, SendBody};

use crate::http::network_env::{proxy, roots};
use crate::http::url::{is_encrypted, joined, origin};
use crate::{Endpoint, HubError, Token};

pub(crate) use api_error::{Resource, message};
use connect_error::unanswered;
pub(crate) use request::{Body, Request};
pub(crate) use response::{Response, Unread};

const MAX_REDIRECTS: usize = 5;

/// Maximum size in bytes of a response that is not a file.
pub(crate) const MAX_RESPONSE_BYTES: u64 = 64 << 20;

/// A wait that a server requests is reported only if it is longer than this.
const MIN_REPORTED_WAIT: Duration = Duration::from_secs(2);

/// Time limit for the response to a request with `is_slow`, and for each read of this response, in multiples
/// of [`RetryPolicy::stall`].
const SLOW_RESPONSE_FACTOR: u32 = 20;

/// Maximum number of attempts if a server accepts the connection but sends no complete headers. Each attempt
/// takes as long as [`RetryPolicy::stall`], and the user sees no progress during this time.
const MAX_SILENT_ATTEMPTS: u32 = 3;

/// Limits for retries and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// Maximum number of attempts per request.
    pub attempts: u32,
    /// Wait before the second attempt. Each later wait is twice as long as the one before.
    pub pause: Duration,
    /// Maximum wait that a server may request.
    pub max_wait: Duration,
    /// Time after which a connection without any data is closed.
    pub stall: Duration,
    /// Minimum rate of a transfer in bytes per second, averaged over `stall`.
    pub min_rate: u64,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { attempts: 5, pause: seconds(1), max_wait: seconds(300), stall: seconds(30), min_rate: 200 }
    }
}

/// An HTTP client of one Hub.
#[derive(Debug)]
pub(crate) struct Http {
    /// The first request creates the agent. Invalid proxy variables therefore cause no error before the first
    /// request.
    agent: OnceLock<Agent>,
    endpoint: Endpoint,
    token: Option<Token>,
    retry_policy: RetryPolicy,
    /// Time limit of every response, including files.
    time: Option<Duration>,
    waits: WaitListener,
}

/// Callback for waits that a server requests.
#[derive(Default)]
pub(crate) struct WaitListener(pub Option<Box<Wait>>);

/// Receives the host, the remaining time and the total time of a wait.
pub(crate) type Wait = dyn Fn(&str, Duration, Duration) + Send + Sync;

impl std::fmt::Debug for WaitListener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waits(..)")
    }
}

impl Http {
    /// Creates a client. Sends no request.
    pub fn new(endpoint: Endpoint, token: Option<Token>, retry_policy: RetryPolicy) -> Self {
        Self {
            agent: OnceLock::new(),
            endpoint,
            token,
            retry_policy,
            time: None,
            waits: WaitListener::default(),
        }
    }

    /// Sets the time limit of every response, including files.
    pub fn within(self, time: Duration) -> Self {
        Self { time: Some(time), ..self }
    }

    /// Sets the callback for waits that a server requests.
    pub fn on_wait(self, waits: Box<Wait>) -> Self {
        Self { waits: WaitListener(Some(waits)), ..self }
    }

    /// Returns the time limit of a response that is not a file.
    pub fn time(&self) -> Duration {
        self.time.unwrap_or(2 * self.retry_policy.stall)
    }

    /// Replaces the token in a text from the server.
    pub fn redacted(&self, text: &str) -> String {
        self.token.as_ref().map_or_else(|| text.to_owned(), |token| token.redacted(text))
    }

    /// Returns whether a text from the server contains the token.
    pub fn is_token_in(&self, text: &str) -> bool {
        self.token.as_ref().is_some_and(|token| token.is_in(text.as_bytes()))
    }

    fn agent(&self) -> Result<&Agent, HubError> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let retry_policy = self.retry_policy;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("danlu/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(retry_policy.stall))
            .timeout_recv_response(Some(retry_policy.stall))
            .timeout_per_read(Some(retry_policy.stall))
            .timeout_per_write(Some(retry_policy.stall))
            .timeout_global(self.time)
            .proxy(proxy()?)
            .tls_config(TlsConfig::builder().root_certs(roots()?).build())
            .build();
        Ok(self.agent.get_or_init(|| config.into()))
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    pub fn retry_policy(&self) -> RetryPolicy {
        self.retry_policy
    }

    /// Sends a request. Retries after a failed connection, a server error, and the statuses 408 and 429. If
    /// the last attempt gets one of these statuses, returns the response.
    ///
    /// # Errors
    /// If the last attempt gets no response, a redirect is not allowed, or the server requests a wait above
    /// the limit.
    pub fn send(&self, request: &Request<'_>) -> Result<Response, HubError> {
        let mut pause = self.retry_policy.pause;
        for tried in 1..=self.retry_policy.attempts {
            let outcome = self.send_once(request);
            let mut is_asked = false;
            let (reason, wait, attempts) = match &outcome {
                Ok(response) => match response.is_passing() {
                    Some(wait) => {
                        is_asked = wait.is_some();
                        (response.status.to_string(), wait.unwrap_or(pause), self.retry_policy.attempts)
                    }
                    None => return outcome,
                },
                // A missing network is reported after fewer attempts than a lost connection.
                Err(HubError::Connect { is_lost, reason, .. }) => {
                    let most = match (*is_lost, &**reason) {
                        (false, _) => 2,
                        (true, connect_error::NO_RESPONSE) => MAX_SILENT_ATTEMPTS,
                        (true, _) => u32::MAX,
                    };
                    (reason.clone(), pause, self.retry_policy.attempts.min(most))
                }
                Err(_) => return outcome,
            };
            if wait > self.retry_policy.max_wait {
                return Err(HubError::Busy { host: request.host(), wait });
            }
            if tried >= attempts {
                return outcome;
            }
            tracing::info!("{}: {reason}; trying again in {:.1} s", request.words(), wait.as_secs_f64());
            match is_asked {
                true => self.wait(wait, request)?,
                false => retry_after::pause(wait, request.stop)?,
            }
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    /// Waits for the time that a server requests, and reports long waits.
    fn wait(&self, time: Duration, request: &Request<'_>) -> Result<(), HubError> {
        let told = match &self.waits.0 {
            Some(told) if time > MIN_REPORTED_WAIT => told,
            _ => return retry_after::pause(time, request.stop),
        };
        let (host, mut left) = (request.host(), time);
        while !left.is_zero() {
            told(&host, left, time);
            let part = left.min(Duration::from_secs(1));
            retry_after::pause(part, request.stop)?;
            left -= part;
        }
        told(&host, left, time);
        Ok(())
    }

    /// Sends a request that must not be repeated. Follows redirects.
    ///
    /// # Errors
    /// If there is no response, or a redirect is not allowed.
    pub fn send_once(&self, request: &Request<'_>) -> Result<Response, HubError> {
        let mut url = request.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let response = self.send_hop(request, &url)?;
            let to = response.header("location").map(str::to_owned);
            let Some(to) = to.filter(|_| response.status.is_redirection()) else { return Ok(response) };
            let next = joined(&url, &to).ok_or_else(|| request.fault("a redirect to an invalid URL"))?;
            if request.method != Method::GET && request.method != Method::HEAD {
                let status = response.status.as_u16();
                return Err(request.fault(format!("{status}, a redirect of a request that changes data")));
            }
            if is_encrypted(&url) && !is_encrypted(&next) {
                return Err(request.fault("a redirect to a URL without encryption"));
            }
            url = next;
        }
        Err(request.fault(format!("more than {MAX_REDIRECTS} redirects")))
    }

    fn send_hop(&self, request: &Request<'_>, url: &str) -> Result<Response, HubError> {
        let mut raw = ureq::http::Request::builder().method(request.method.clone()).uri(url);
        for (name, value) in &request.headers {
            raw = raw.header(&**name, value);
        }
        // Only the Hub receives the token, and redirect targets do not. If the request has its own
        // `authorization` header, the token is not sent.
        let is_hub = origin(url) == origin(self.endpoint.as_str());
        let has_other = request.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        if let Some(token) = self.token.as_ref().filter(|_| is_hub && !has_other) {
            raw = raw.header("authorization", token.bearer());
        }
        let agent = self.agent()?;
        let no_address = |_| request.fault("an invalid URL");
        let response = match request.load {
            Body::Nothing => agent.run(raw.body(()).map_err(no_address)?),
            Body::Bytes(bytes) if request.is_slow => {
                let longest = Some(SLOW_RESPONSE_FACTOR * self.retry_policy.stall);
                let raw = agent.configure_request(raw.body(bytes).map_err(no_address)?);
                agent.run(raw.timeout_recv_response(longest).timeout_per_read(longest).build())
            }
            Body::Bytes(bytes) => agent.run(raw.body(bytes).map_err(no_address)?),
            Body::FilePart(slice) => {
                let raw = raw.header("content-length", slice.len);
                let mut reader = slice.reader();
                let body = SendBody::from_reader(&mut reader);
                let response = agent.run(raw.body(body).map_err(no_address)?);
                reader.end(response.as_ref().is_ok_and(|response| response.status().is_success()))?;
                response
            }
        };
        let host = self.redacted(&origin(url).map_or_else(|| request.host(), |(_, host)| host));
        let response = match response {
            Ok(response) => response,
            Err(error) => return Err(unanswered(agent, url, host, &error)),
        };
        let (parts, body) = response.into_parts();
        let (time, token) = (self.time(), self.token.clone());
        let end = Instant::now() + time;
        Ok(Response { host, status: parts.status, headers: parts.headers, body, time, end, token })
    }
}
