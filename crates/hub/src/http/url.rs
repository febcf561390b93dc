//! Origins, redirects and escaping of URLs.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ureq::http::Uri;

use crate::Endpoint;

/// Characters that must be escaped in a path segment.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Returns whether a request to a URL from the Hub is allowed. The URL must use HTTPS, or may use HTTP if the
/// endpoint itself uses HTTP.
pub(crate) fn is_address(url: &str, endpoint: &Endpoint) -> bool {
    joined(endpoint.as_str(), url).is_some_and(|same| same == url)
        && (is_encrypted(url) || !is_encrypted(endpoint.as_str()))
}

pub(crate) fn is_encrypted(url: &str) -> bool {
    origin(url).is_some_and(|(scheme, _)| scheme == "https")
}

/// Returns the scheme of a URL, and its host with the port.
pub(crate) fn origin(url: &str) -> Option<(String, String)> {
    let uri: Uri = url.parse().ok()?;
    Some((uri.scheme_str()?.to_ascii_lowercase(), uri.authority()?.as_str().to_ascii_lowercase()))
}

/// Resolves a redirect from `url` to `to`.
pub(crate) fn joined(url: &str, to: &str) -> Option<String> {
    let next = if to.starts_with("//") || !to.starts_with('/') {
        to.to_owned()
    } else {
        let (scheme, host) = origin(url)?;
        format!("{scheme}://{host}{to}")
    };
    matches!(origin(&next)?.0.as_str(), "http" | "https").then_some(next)
}

/// Escapes `text` as one path segment.
pub(crate) fn escaped(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_where_they_say_and_only_there() {
        let from = "https://huggingface.co/a/resolve/main/x?y=1";
        assert_eq!(joined(from, "/b?c").unwrap(), "https://huggingface.co/b?c");
        assert_eq!(joined(from, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        for wrong in ["file:///etc/passwd", "//cdn.example/x", "x", ""] {
            assert_eq!(joined(from, wrong), None, "{wrong}");
        }
        assert_ne!(origin("http://a:1/x"), origin("http://a:2/x"));
        assert_eq!(origin("HTTPS://Hub/x"), origin("https://hub"));
    }

    #[test]
    fn what_is_sent_goes_to_whole_addresses_and_stays_encrypted() {
        let (open, closed) = ("http://hub:1".parse().unwrap(), "https://hub".parse().unwrap());
        assert!(is_address("https://s3/x?y", &closed) && is_address("http://s3/x", &open));
        for wrong in ["http://s3/x", "/x", "ftp://s3/x", "file:///x", "", "s3/x"] {
            assert!(!is_address(wrong, &closed), "{wrong}");
        }
    }
}
