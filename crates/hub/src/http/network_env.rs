//! Reads the proxy and the certificates from the environment.

use std::path::Path;

use danlu_model::files::read_bounded;
use ureq::tls::{Certificate, PemItem, RootCerts};
use ureq::{Proxy, ProxyProtocol};

use crate::HubError;

const MAX_CERTIFICATE_BYTES: u64 = 16 << 20;

/// Returns the proxy of the first variable that is set. The proxy is used with CONNECT for every URL, except
/// for hosts in `NO_PROXY`.
///
/// # Errors
/// If the value is not the URL of an HTTP proxy. A request must not bypass a configured proxy.
pub(crate) fn proxy() -> Result<Option<Proxy>, HubError> {
    if let Some(variable) = proxy_variable() {
        let value = std::env::var(variable).unwrap_or_default();
        let is_http = |proxy: Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
        if !Proxy::new(&value).is_ok_and(is_http) {
            // The value may contain a password, so the error does not repeat it.
            let reason = "it is not the URL of an HTTP proxy, such as `http://host:port`".to_owned();
            return Err(HubError::Variable { variable, reason });
        }
    }
    Ok(Proxy::try_from_env())
}

/// Returns the name of the first proxy variable that is set.
pub(crate) fn proxy_variable() -> Option<&'static str> {
    const VARIABLES: [&str; 6] =
        ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    VARIABLES.into_iter().find(is_set)
}

/// Returns the trusted root certificates: those in the file that `SSL_CERT_FILE` names, or the built-in set
/// of Mozilla.
///
/// # Errors
/// If that file cannot be read or contains no certificate.
pub(crate) fn roots() -> Result<RootCerts, HubError> {
    let Some(path) = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()) else {
        return Ok(RootCerts::WebPki);
    };
    let fault = |reason: String| HubError::Variable { variable: "SSL_CERT_FILE", reason };
    let pem =
        read_bounded(Path::new(&path), MAX_CERTIFICATE_BYTES).map_err(|error| fault(error.to_string()))?;
    let mut certificates: Vec<Certificate<'static>> = Vec::new();
    for item in ureq::tls::parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|error| fault(error.to_string()))? {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        return Err(fault(format!("`{}` contains no certificate", Path::new(&path).display())));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}
