//! Requests: redirected with care, repeated where that may help, with the token for nobody but the Hub itself.

use std::borrow::Cow;
use std::io::{self, Read};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use ureq::http::{HeaderMap, Method, Request, StatusCode};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body, SendBody, Timeout};

use crate::address::{is_encrypted, joined, origin};
use crate::machine::{proxy, proxy_variable, roots};
use crate::slice::Slice;
use crate::sum::PIECE;
use crate::{Endpoint, HubError, Token, wait};

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

/// What is asked.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub method: Method,
    /// An address of the Hub, or one that it gave.
    pub url: String,
    pub headers: Vec<(Cow<'static, str>, String)>,
    pub load: Load<'a>,
    /// Says when nobody waits for the answer any more.
    pub stop: Option<&'a AtomicBool>,
    /// Whether its answer may take long, and must not be asked for again before.
    pub is_slow: bool,
}

/// What a request brings.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load<'a> {
    Nothing,
    Bytes(&'a [u8]),
    Slice(&'a Slice<'a>),
}

impl<'a> Ask<'a> {
    /// Reads what is at `url`.
    pub fn get(url: impl Into<String>) -> Self {
        Self {
            method: Method::GET,
            url: url.into(),
            headers: Vec::new(),
            load: Load::Nothing,
            stop: None,
            is_slow: false,
        }
    }

    /// Brings `bytes` of a kind such as `application/json`.
    pub fn post(url: impl Into<String>, kind: &str, bytes: &'a [u8]) -> Self {
        let headers = vec![(Cow::Borrowed("content-type"), kind.to_owned())];
        Self {
            method: Method::POST,
            url: url.into(),
            headers,
            load: Load::Bytes(bytes),
            stop: None,
            is_slow: false,
        }
    }

    /// Puts a part of a file there.
    pub fn put(url: impl Into<String>, slice: &'a Slice<'a>) -> Self {
        let (headers, load, stop) = (Vec::new(), Load::Slice(slice), Some(slice.stop));
        Self { method: Method::PUT, url: url.into(), headers, load, stop, is_slow: false }
    }

    /// The request in words: the address without its query, which may be signed.
    pub fn words(&self) -> String {
        format!("{} {}", self.method, self.url.split(['?', '#']).next().unwrap_or_default())
    }

    /// An answer that the Hub does not give.
    pub fn fault(&self, fault: impl Into<String>) -> HubError {
        HubError::Answer { host: self.host(), request: self.words(), fault: fault.into() }
    }

    /// The host asked.
    pub fn host(&self) -> String {
        origin(&self.url).map_or_else(|| self.url.clone(), |(_, host)| host)
    }
}

/// What came back: any status that is no redirect.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Who gave it, after redirects.
    pub host: String,
    pub status: StatusCode,
    pub headers: HeaderMap,
    body: Body,
    /// Where it is no file, how long all of it may take, and until when that is.
    time: Duration,
    end: Instant,
    token: Option<Token>,
}

/// Why an answer that is no file was not read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    /// The connection: worth another try.
    #[error(transparent)]
    Cut(#[from] io::Error),
    #[error("an answer that is not here after {} seconds", .0.as_secs())]
    Late(Duration),
    #[error("an answer of more than {0} bytes")]
    Long(u64),
}

impl Answer {
    /// A header's text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the same request may do better later, and after which pause if the server names one.
    pub fn is_passing(&self) -> Option<Option<Duration>> {
        is_passing(self.status).then(|| retry_after(self))
    }

    /// The body, as it arrives.
    pub fn into_reader(self) -> impl Read {
        self.body.into_reader()
    }

    /// The whole body, of an answer that is no file.
    pub fn bytes(&mut self) -> Result<Vec<u8>, Unread> {
        self.at_most(LONGEST_ANSWER)
    }

    /// As [`Answer::bytes`], where it may be so long.
    pub fn at_most(&mut self, most: u64) -> Result<Vec<u8>, Unread> {
        let (mut reader, mut piece) = (self.body.as_reader(), vec![0; PIECE]);
        let mut bytes = Vec::new();
        loop {
            // A server that sends a byte now and then never stands still.
            if Instant::now() > self.end {
                return Err(Unread::Late(self.time));
            }
            match reader.read(&mut piece) {
                Ok(0) => return Ok(bytes),
                Ok(n) if (bytes.len() + n) as u64 > most => return Err(Unread::Long(most)),
                Ok(n) => bytes.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the server wrote, as it may be shown.
    pub fn redacted(&self, text: &str) -> String {
        self.token.as_ref().map_or_else(|| text.to_owned(), |token| token.redacted(text))
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
                false => wait::pause(wait, ask.stop)?,
            }
            pause *= 2;
        }
        unreachable!("the last try returns")
    }

    /// Waits as a server asks, and says so where it is long.
    fn wait(&self, time: Duration, ask: &Ask<'_>) -> Result<(), HubError> {
        let told = match &self.waits.0 {
            Some(told) if time > LONG_WAIT => told,
            _ => return wait::pause(time, ask.stop),
        };
        let (host, mut left) = (ask.host(), time);
        while !left.is_zero() {
            told(&host, left, time);
            let part = left.min(Duration::from_secs(1));
            wait::pause(part, ask.stop)?;
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

/// Why `url` gave no answer.
fn unanswered(agent: &Agent, url: &str, host: String, error: &ureq::Error) -> HubError {
    let (is_lost, reason) = (is_lost(error), reason(error));
    if is_certificate(error) {
        return HubError::Certificate { host, reason };
    }
    let goes_through = |proxy: &ureq::Proxy| url.parse().is_ok_and(|uri| !proxy.is_no_proxy(&uri));
    match agent.config().proxy().filter(|proxy| goes_through(proxy)).and(proxy_variable()) {
        Some(variable) if !is_lost => HubError::Proxy { host, variable, reason },
        _ => HubError::Connect { is_lost, host, reason },
    }
}

/// Whether somebody answered who cannot prove to be the host.
fn is_certificate(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => {
            error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("certificate")
        }
        ureq::Error::Rustls(error) => error.to_string().contains("certificate"),
        _ => false,
    }
}

/// What the system said, in few words.
fn reason(error: &ureq::Error) -> String {
    match error {
        error if is_nowhere(error) => "there is no such host, or no network".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) | ureq::Error::BodyStalled => "it does not answer".to_owned(),
        ureq::Error::ConnectProxyFailed(said) => said.clone(),
        error => error.to_string(),
    }
}

/// Whether the host's name means nothing here; the system's own words have no kind of their own.
fn is_nowhere(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound => true,
        ureq::Error::Io(error) => error.to_string().starts_with("failed to lookup address information"),
        _ => false,
    }
}

/// Whether there was a connection, and it broke.
fn is_lost(error: &ureq::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable};
    match error {
        error if is_nowhere(error) => false,
        ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => false,
        ureq::Error::Timeout(timeout) => !matches!(timeout, Timeout::Resolve | Timeout::Connect),
        ureq::Error::Io(error) => {
            // The third: what answers does not speak TLS.
            !matches!(error.kind(), ConnectionRefused | HostUnreachable | InvalidData | NetworkUnreachable)
        }
        _ => true,
    }
}

/// Whether the same request may do better later.
fn is_passing(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 429)
}

/// How long the server asks to wait.
fn retry_after(answer: &Answer) -> Option<Duration> {
    wait::asked(answer.header("retry-after")?, answer.header("date"))
}
