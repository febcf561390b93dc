//! Requests: redirected with care, repeated where that may help, with the token for nobody but the Hub itself.

mod api_error;
mod connect_error;
mod network_env;
mod request;
mod response;
pub(crate) mod retry_after;
pub(crate) mod url;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ureq::http::{Method, Request};
use ureq::tls::TlsConfig;
use ureq::{Agent, SendBody};

use crate::http::network_env::{proxy, roots};
use crate::http::url::{is_encrypted, joined, origin};
use crate::{Endpoint, HubError, Token};

pub(crate) use api_error::{About, message};
use connect_error::unanswered;
pub(crate) use request::{Ask, Load};
pub(crate) use response::{Answer, Unread};

/// Redirects of one request at most.
const REDIRECTS: usize = 5;

/// Longest answer that is no file, in bytes.
pub(crate) const LONGEST_ANSWER: u64 = 64 << 20;

/// Longest pause of which nobody needs to hear.
const LONG_WAIT: Duration = Duration::from_secs(2);

/// How many times longer than a connection may stand still, the answer to a slow request may take.
const SLOWEST: u32 = 20;

/// How patient requests are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// How often a request is tried.
    pub tries: u32,
    /// Pause before the second try; each further one is twice as long.
    pub pause: Duration,
    /// Longest pause that a server may ask for.
    pub longest: Duration,
    /// How long a connection may stand still.
    pub stall: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { tries: 5, pause: seconds(1), longest: seconds(300), stall: seconds(30) }
    }
}

/// A client of one Hub.
#[derive(Debug)]
pub(crate) struct Http {
    /// Made for the first request: until then no variable matters.
    agent: OnceLock<Agent>,
    endpoint: Endpoint,
    token: Option<Token>,
    pace: Pace,
    /// How long any answer may take from the first to the last, where that is said.
    time: Option<Duration>,
    waits: Waits,
}

/// Who hears of pauses that a server asks for.
#[derive(Default)]
pub(crate) struct Waits(pub Option<Box<Wait>>);

/// Hears the host, how long it is still waited for, and how long in all.
pub(crate) type Wait = dyn Fn(&str, Duration, Duration) + Send + Sync;

impl std::fmt::Debug for Waits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Waits(..)")
    }
}

impl Http {
    /// A client; nothing is read or sent yet.
    pub fn new(endpoint: Endpoint, token: Option<Token>, pace: Pace) -> Self {
        Self { agent: OnceLock::new(), endpoint, token, pace, time: None, waits: Waits::default() }
    }

    /// The same, where every answer is to be here after so long; files too.
    pub fn within(self, time: Duration) -> Self {
        Self { time: Some(time), ..self }
    }

    /// The same, where someone hears of pauses.
    pub fn telling(self, waits: Box<Wait>) -> Self {
        Self { waits: Waits(Some(waits)), ..self }
    }

    /// How long an answer that is no file may take.
    pub fn time(&self) -> Duration {
        self.time.unwrap_or(2 * self.pace.stall)
    }

    /// What a server wrote, as it may be shown.
    pub fn redacted(&self, text: &str) -> String {
        self.token.as_ref().map_or_else(|| text.to_owned(), |token| token.redacted(text))
    }

    /// Whether the token stands in what a server wrote.
    pub fn is_token_in(&self, text: &str) -> bool {
        self.token.as_ref().is_some_and(|token| token.is_in(text.as_bytes()))
    }

    fn agent(&self) -> Result<&Agent, HubError> {
        if let Some(agent) = self.agent.get() {
            return Ok(agent);
        }
        let pace = self.pace;
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("danlu/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(pace.stall))
            .timeout_recv_response(Some(2 * pace.stall))
            .timeout_per_read(Some(pace.stall))
            .timeout_per_write(Some(pace.stall))
            .timeout_global(self.time)
            .proxy(proxy()?)
            .tls_config(TlsConfig::builder().root_certs(roots()?).build())
            .build();
        Ok(self.agent.get_or_init(|| config.into()))
    }

    /// The Hub's address.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Whether there is a token to send.
    pub fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// How patient it is.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Asks until there is an answer worth having: a lost connection, a server's own fault and a request to wait are
    /// tried again.
    ///
    /// # Errors
    /// If nobody answers, or the server asks to wait too long.
    pub fn ask(&self, ask: &Ask<'_>) -> Result<Answer, HubError> {
        let mut pause = self.pace.pause;
        for tried in 1..=self.pace.tries {
            let outcome = self.once(ask);
            let mut is_asked = false;
            let (reason, wait, tries) = match &outcome {
                Ok(answer) => match answer.is_passing() {
                    Some(wait) => {
                        is_asked = wait.is_some();
                        (answer.status.to_string(), wait.unwrap_or(pause), self.pace.tries)
                    }
                    None => return outcome,
                },
                // Without a network nobody wants to wait for long to be told.
                Err(HubError::Connect { is_lost, reason, .. }) => {
                    (reason.clone(), pause, if *is_lost { self.pace.tries } else { self.pace.tries.min(2) })
                }
                Err(_) => return outcome,
            };
            if wait > self.pace.longest {
                return Err(HubError::Busy { host: ask.host(), wait });
            }
            if tried >= tries {
                return outcome;
            }
            tracing::info!("{}: {reason}; trying again in {:.1} s", ask.words(), wait.as_secs_f64());
            match is_asked {
                true => self.wait(wait, ask)?,
                false => retry_after::pause(wait, ask.stop)?,
            }
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    /// Waits as a server asks, and says so where it is long.
    fn wait(&self, time: Duration, ask: &Ask<'_>) -> Result<(), HubError> {
        let told = match &self.waits.0 {
            Some(told) if time > LONG_WAIT => told,
            _ => return retry_after::pause(time, ask.stop),
        };
        let (host, mut left) = (ask.host(), time);
        while !left.is_zero() {
            told(&host, left, time);
            let part = left.min(Duration::from_secs(1));
            retry_after::pause(part, ask.stop)?;
            left -= part;
        }
        told(&host, left, time);
        Ok(())
    }

    /// One try, with its redirects: for what must not be done twice.
    ///
    /// # Errors
    /// If nobody answers.
    pub fn once(&self, ask: &Ask<'_>) -> Result<Answer, HubError> {
        let mut url = ask.url.clone();
        for _ in 0..=REDIRECTS {
            let answer = self.send(ask, &url)?;
            let to = answer.header("location").map(str::to_owned);
            let Some(to) = to.filter(|_| answer.status.is_redirection()) else { return Ok(answer) };
            let next = joined(&url, &to).ok_or_else(|| ask.fault("a redirect to what is no address"))?;
            if ask.method != Method::GET && ask.method != Method::HEAD {
                let status = answer.status.as_u16();
                return Err(ask.fault(format!("{status}, a redirect of what is not only read")));
            }
            if is_encrypted(&url) && !is_encrypted(&next) {
                return Err(ask.fault("a redirect to an address without encryption"));
            }
            url = next;
        }
        Err(ask.fault(format!("more than {REDIRECTS} redirects")))
    }

    fn send(&self, ask: &Ask<'_>, url: &str) -> Result<Answer, HubError> {
        let mut request = Request::builder().method(ask.method.clone()).uri(url);
        for (name, value) in &ask.headers {
            request = request.header(&**name, value);
        }
        // Whoever the Hub redirects to has no business with the token, and who names another is taken at their word.
        let is_hub = origin(url) == origin(self.endpoint.as_str());
        let has_other = ask.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization"));
        if let Some(token) = self.token.as_ref().filter(|_| is_hub && !has_other) {
            request = request.header("authorization", token.bearer());
        }
        let agent = self.agent()?;
        let no_address = |_| ask.fault("an address that cannot be asked");
        let answer = match ask.load {
            Load::Nothing => agent.run(request.body(()).map_err(no_address)?),
            Load::Bytes(bytes) if ask.is_slow => {
                let longest = Some(SLOWEST * self.pace.stall);
                let request = agent.configure_request(request.body(bytes).map_err(no_address)?);
                agent.run(request.timeout_recv_response(longest).timeout_per_read(longest).build())
            }
            Load::Bytes(bytes) => agent.run(request.body(bytes).map_err(no_address)?),
            Load::Slice(slice) => {
                let request = request.header("content-length", slice.len);
                let mut reader = slice.reader();
                let body = SendBody::from_reader(&mut reader);
                let answer = agent.run(request.body(body).map_err(no_address)?);
                reader.end(answer.as_ref().is_ok_and(|answer| answer.status().is_success()))?;
                answer
            }
        };
        let host = self.redacted(&origin(url).map_or_else(|| ask.host(), |(_, host)| host));
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return Err(unanswered(agent, url, host, &error)),
        };
        let (parts, body) = answer.into_parts();
        let (time, token) = (self.time(), self.token.clone());
        let end = Instant::now() + time;
        Ok(Answer { host, status: parts.status, headers: parts.headers, body, time, end, token })
    }
}
