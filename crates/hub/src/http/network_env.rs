//! What this machine's variables say of the way to any host: the proxy, and whom to trust.

use std::path::Path;

use danlu_model::files::read_bounded;
use ureq::tls::{Certificate, PemItem, RootCerts};
use ureq::{Proxy, ProxyProtocol};

use crate::HubError;

/// Longest certificate file.
const MAX_CERTIFICATE_BYTES: u64 = 16 << 20;

/// The proxy that the variables name: the first that is set, whatever the address asked, which it is told by CONNECT.
/// `NO_PROXY` names hosts that are asked without it.
///
/// # Errors
/// If it is no HTTP proxy: what was to go through one must not go beside it.
pub(crate) fn proxy() -> Result<Option<Proxy>, HubError> {
    if let Some(variable) = proxy_variable() {
        let value = std::env::var(variable).unwrap_or_default();
        let is_http = |proxy: Proxy| matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https);
        if !Proxy::new(&value).is_ok_and(is_http) {
            // It may hold a password, and is not repeated.
            let reason = "it is no address of an HTTP proxy such as `http://host:port`".to_owned();
            return Err(HubError::Variable { variable, reason });
        }
    }
    Ok(Proxy::try_from_env())
}

/// The variable that names the proxy.
pub(crate) fn proxy_variable() -> Option<&'static str> {
    const VARIABLES: [&str; 6] =
        ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];
    let is_set = |name: &&str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    VARIABLES.into_iter().find(is_set)
}

/// Whom to trust: the authorities that browsers trust, or those of `SSL_CERT_FILE`, as behind a company's proxy.
///
/// # Errors
/// If that file cannot be read or holds none.
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
        return Err(fault(format!("`{}` holds no certificate", Path::new(&path).display())));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}
