/// Path and query of a request.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Path and query as sent.
    pub raw: String,
    /// Path segments. Each segment is decoded after the path is split, so `refs%2Fpr%2F1` is one segment.
    pub segments: Vec<String>,
    query: Vec<(String, String)>,
}

impl Target {
    pub fn parse(raw: &str) -> Self {
        let (path, query) = raw.split_once('?').unwrap_or((raw, ""));
        let segments = path.trim_start_matches('/').split('/').map(|part| decode(part, false)).collect();
        Self { raw: raw.to_owned(), segments, query: parse_form(query) }
    }

    /// Returns the path as sent.
    pub fn path(&self) -> &str {
        self.raw.split('?').next().unwrap_or_default()
    }

    /// Returns the first value of the query parameter `name`.
    pub fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns whether the query parameter `name` is set to a true value.
    pub fn asks(&self, name: &str) -> bool {
        self.query(name).is_some_and(|value| matches!(value, "1" | "true" | "True"))
    }

    /// Returns the query without the parameter `name`.
    pub fn query_without(&self, name: &str) -> String {
        let kept = self.query.iter().filter(|(key, _)| key != name);
        kept.map(|(key, value)| format!("{}={}", encode(key), encode(value))).collect::<Vec<_>>().join("&")
    }
}

/// Parses a query or a form into pairs of key and value.
pub(crate) fn parse_form(text: &str) -> Vec<(String, String)> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key, true), decode(value, true))
        })
        .collect()
}

fn decode(text: &str, plus_is_space: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let pair = text.get(i + 1..i + 3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match (bytes[i], pair) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 2;
            }
            (b'+', _) if plus_is_space => out.push(b' '),
            (byte, _) => out.push(byte),
        }
        i += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Escapes `text` for use as a path segment, or as a key or value in a query.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_that_was_encoded_does_not_split() {
        let target = Target::parse("/api/models/a/b/revision/refs%2Fpr%2F1?recursive=True&x=a+b%26");
        assert_eq!(target.segments, ["api", "models", "a", "b", "revision", "refs/pr/1"]);
        assert_eq!(target.query("x"), Some("a b&"));
        assert!(target.asks("recursive"));
        assert_eq!(target.query_without("x"), "recursive=True");
    }

    #[test]
    fn what_is_encoded_decodes_to_itself_and_broken_escapes_stay() {
        assert_eq!(decode(&encode("甄嬛/a b%+&=?"), true), "甄嬛/a b%+&=?");
        assert_eq!(decode("100%", false), "100%");
        assert_eq!(decode("%zz%4", false), "%zz%4");
        assert_eq!(decode("%é", false), "%é");
    }
}
