//! Checks keys and the headers `Host` and `Origin`.

use std::net::IpAddr;

use axum::http::{HeaderMap, Method, header};
use sha2::{Digest, Sha256};

use crate::api_error::ApiError;

/// Access rules of a server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Security {
    api_key: Option<KeyDigest>,
    admin_key: Option<KeyDigest>,
    /// Whether every client may load and unload adapters. Has no effect if there is an admin key.
    allows_updates: bool,
    /// Accepted values of the header `Host`. If the list is empty, every value is accepted.
    hosts: Vec<String>,
}

/// SHA-256 of a key.
#[derive(Clone)]
struct KeyDigest([u8; 32]);

impl std::fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyDigest")
    }
}

impl KeyDigest {
    fn of(key: &str) -> Self {
        Self(Sha256::digest(key.as_bytes()).into())
    }

    /// Compares two keys. The time does not depend on the bytes of the keys.
    fn matches(&self, key: &str) -> bool {
        let other = Self::of(key);
        let difference = self.0.iter().zip(other.0).fold(0, |difference, (a, b)| difference | (a ^ b));
        std::hint::black_box(difference) == 0
    }
}

/// Access level of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// The server requires no key for this request.
    Open,
    /// The client sent the key for inference.
    Inference,
    /// The client sent the admin key.
    Admin,
}

impl Security {
    /// Returns the access rules of a server on `host`, whose IP address is `ip`.
    pub fn new(
        api_key: Option<&str>,
        admin_key: Option<&str>,
        allows_updates: bool,
        host: &str,
        ip: IpAddr,
    ) -> Self {
        // By DNS rebinding, a foreign web page can reach a server on a loopback address under the page's own
        // host name. A server on a loopback address therefore accepts only these names.
        let hosts = match ip.is_loopback() {
            true => ["localhost", "127.0.0.1", "[::1]", host].map(str::to_ascii_lowercase).to_vec(),
            false => Vec::new(),
        };
        Self {
            api_key: api_key.map(KeyDigest::of),
            admin_key: admin_key.map(KeyDigest::of),
            allows_updates,
            hosts,
        }
    }

    /// Checks the key in a request.
    ///
    /// # Errors
    /// If the server has an API key, and the key in the request is missing or wrong.
    pub fn access(&self, headers: &HeaderMap) -> Result<Access, ApiError> {
        let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = header.and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
        });
        let matches = |digest: &Option<KeyDigest>| match (digest, key) {
            (Some(digest), Some(key)) => digest.matches(key),
            _ => false,
        };
        if matches(&self.admin_key) {
            return Ok(Access::Admin);
        }
        match &self.api_key {
            None => Ok(Access::Open),
            some if matches(some) => Ok(Access::Inference),
            _ if key.is_none() => Err(ApiError::unauthorized(
                "cannot take the request: the header `Authorization: Bearer KEY` is missing",
            )),
            _ => Err(ApiError::unauthorized("cannot take the request: the key is wrong")),
        }
    }

    /// Checks that a client may load and unload adapters.
    ///
    /// # Errors
    /// If neither the client's key nor the settings permit the change.
    pub fn check_admin(&self, access: Access) -> Result<(), ApiError> {
        if access == Access::Admin || (self.allows_updates && self.admin_key.is_none()) {
            return Ok(());
        }
        let message = match self.admin_key {
            Some(_) => "cannot change adapters: it needs the admin key",
            None => {
                "cannot change adapters: start the server with `--admin-key` or `--allow-adapter-updates`"
            }
        };
        Err(ApiError::forbidden("adapter_updates_forbidden", message))
    }

    /// Checks the headers `Host` and `Origin`, so that a web page of a foreign site cannot use the server.
    ///
    /// # Errors
    /// If `Host` is not an accepted name, or if a request other than GET has an `Origin` that differs from
    /// `Host`.
    pub fn check_site(&self, method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
        let host = headers.get(header::HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let name = without_port(host).to_ascii_lowercase();
        if !self.hosts.is_empty() && !self.hosts.contains(&name) {
            return Err(ApiError::forbidden(
                "host_forbidden",
                "cannot take the request: `Host` names another server",
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN).filter(|_| *method != Method::GET) {
            let origin = origin.to_str().unwrap_or_default();
            let site = origin.split_once("://").map(|(_, site)| site);
            if !site.is_some_and(|site| site.eq_ignore_ascii_case(host)) {
                let message = "cannot take the request: `Origin` names another site";
                return Err(ApiError::forbidden("origin_forbidden", message));
            }
        }
        Ok(())
    }
}

/// Returns a host without its port. An IPv6 address is enclosed in brackets.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse::<axum::http::HeaderName>().unwrap(), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn a_page_of_another_site_is_refused() {
        let security = Security::new(None, None, false, "127.0.0.1", Ipv4Addr::LOCALHOST.into());
        let check = |method: &Method, pairs: &[(&'static str, &str)]| {
            security.check_site(method, &headers(pairs)).is_ok()
        };
        assert!(check(&Method::POST, &[("host", "localhost:8000")]));
        assert!(check(&Method::GET, &[("host", "[::1]:8000")]));
        assert!(check(&Method::POST, &[("host", "127.0.0.1:8000"), ("origin", "http://127.0.0.1:8000")]));
        assert!(!check(&Method::POST, &[("host", "127.0.0.1:8000"), ("origin", "https://evil.example")]));
        assert!(!check(&Method::POST, &[("host", "127.0.0.1:8000"), ("origin", "null")]));
        assert!(!check(&Method::GET, &[("host", "evil.example")]));
        assert!(!check(&Method::GET, &[("host", "127.0.0.1.evil.example:8000")]));
    }

    #[test]
    fn each_key_opens_its_part() {
        let security = Security::new(Some("a"), Some("b"), true, "0.0.0.0", Ipv4Addr::UNSPECIFIED.into());
        let access = |value: &str| security.access(&headers(&[("authorization", value)]));
        assert_eq!(access("Bearer a").unwrap(), Access::Inference);
        assert_eq!(access("bearer b").unwrap(), Access::Admin);
        for wrong in ["Bearer c", "Basic a", "a", "Bearer "] {
            assert!(access(wrong).is_err(), "{wrong}");
        }
        assert!(security.check_admin(Access::Inference).is_err(), "the admin key exists, so it is needed");
        assert!(security.check_admin(Access::Admin).is_ok());
        let open = Security::new(None, None, true, "127.0.0.1", Ipv4Addr::LOCALHOST.into());
        assert!(open.check_admin(open.access(&HeaderMap::new()).unwrap()).is_ok());
        let closed = Security::new(None, None, false, "127.0.0.1", Ipv4Addr::LOCALHOST.into());
        assert!(closed.check_admin(Access::Open).is_err());
    }
}
