//! Converts connection failures to errors.

use std::io;

use ureq::{Agent, Timeout};

use crate::HubError;
use crate::http::network_env::proxy_variable;

/// Reason in the error for a server that did not respond in time.
pub(super) const NO_RESPONSE: &str = "no response";

/// Returns the error for a request without a response.
pub(super) fn unanswered(agent: &Agent, url: &str, host: String, error: &ureq::Error) -> HubError {
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

fn is_certificate(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Io(error) => {
            error.kind() == io::ErrorKind::InvalidData && error.to_string().contains("certificate")
        }
        ureq::Error::Rustls(error) => error.to_string().contains("certificate"),
        _ => false,
    }
}

/// Returns the operating system's reason in a few words.
fn reason(error: &ureq::Error) -> String {
    match error {
        error if is_nowhere(error) => "the host is unknown, or there is no network".to_owned(),
        ureq::Error::Io(error) => error.to_string(),
        ureq::Error::Timeout(_) | ureq::Error::BodyStalled => NO_RESPONSE.to_owned(),
        ureq::Error::ConnectProxyFailed(said) => said.clone(),
        error => error.to_string(),
    }
}

/// Returns whether the host name is unknown. `io::ErrorKind` has no value for this case, so the text of the
/// error is compared.
fn is_nowhere(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound => true,
        ureq::Error::Io(error) => error.to_string().starts_with("failed to lookup address information"),
        _ => false,
    }
}

/// Returns whether an existing connection was lost.
fn is_lost(error: &ureq::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, InvalidData, NetworkUnreachable};
    match error {
        error if is_nowhere(error) => false,
        ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => false,
        ureq::Error::Timeout(timeout) => !matches!(timeout, Timeout::Resolve | Timeout::Connect),
        ureq::Error::Io(error) => {
            // `InvalidData` means that the server does not use TLS.
            !matches!(error.kind(), ConnectionRefused | HostUnreachable | InvalidData | NetworkUnreachable)
        }
        _ => true,
    }
}
