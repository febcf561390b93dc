//! Settings from the environment variables of `huggingface_hub`.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use ureq::http::Uri;

use crate::{HubError, Token, TokenFault};

/// The endpoint if `HF_ENDPOINT` is not set.
pub(crate) const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// URL of a Hub or a mirror: scheme, host, and an optional path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint(String);

impl Endpoint {
    /// Returns the URL without a trailing `/`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the endpoint is a mirror, not the Hub itself.
    pub fn is_mirror(&self) -> bool {
        self.0 != DEFAULT_ENDPOINT
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Endpoint {
    type Err = HubError;

    fn from_str(text: &str) -> Result<Self, HubError> {
        let trimmed = text.trim().trim_end_matches('/');
        // Scheme and host are case-insensitive.
        let (scheme, rest) = trimmed.split_once("://").unwrap_or(("", trimmed));
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let trimmed = format!("{}://{}{path}", scheme.to_ascii_lowercase(), host.to_ascii_lowercase());
        let is_one = trimmed.parse::<Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some()
                && uri.query().is_none()
        });
        // If the URL contained a password, logs and errors would show it.
        if !is_one || trimmed.contains(['@', '#']) {
            // The query may contain a token, so the error must not show the query.
            let shown = match text.split_once(['?', '#']) {
                Some((before, _)) => format!("{before}?..."),
                None => text.to_owned(),
            };
            let shown = shown.rsplit_once('@').map_or(shown.clone(), |(_, host)| format!("...@{host}"));
            return Err(HubError::Endpoint { text: shown });
        }
        Ok(Self(trimmed))
    }
}

/// Endpoint, paths and token of a client.
#[derive(Clone, Debug)]
pub struct HubSettings {
    /// URL of the Hub, from `HF_ENDPOINT`.
    pub endpoint: Endpoint,
    /// Folder of the cache: `HF_HUB_CACHE`, or `hub` in `HF_HOME`.
    pub cache: PathBuf,
    /// Path of the token file: `HF_TOKEN_PATH`, or `token` in `HF_HOME`.
    pub token_path: PathBuf,
    /// The token: `HF_TOKEN`, or the content of the token file.
    pub token: Option<Token>,
    /// Error of an invalid configured token, if any. Every request to the Hub returns this error.
    pub token_fault: Option<TokenFault>,
    /// Whether the token is from an environment variable. The token file then has no effect.
    pub token_is_variable: bool,
    /// Whether `HF_HUB_OFFLINE` forbids network access.
    pub offline: bool,
}

impl HubSettings {
    /// Reads the environment variables of the process.
    ///
    /// # Errors
    /// If a variable is invalid, or there is no home folder for the cache.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_vars(|name| std::env::var_os(name), std::env::home_dir())
    }

    /// Reads the variables that `var` returns, in place of the process environment.
    ///
    /// # Errors
    /// As for [`HubSettings::from_env`].
    pub fn from_vars(
        var: impl Fn(&str) -> Option<OsString>,
        home: Option<PathBuf>,
    ) -> Result<Self, HubError> {
        let path = |value| expanded(value, home.as_ref(), &var);
        let var = |name: &str| var(name).filter(|value| !value.is_empty());
        let any = |names: &[&str]| names.iter().find_map(|name| var(name));
        let path = |names: &[&str]| any(names).map(path);
        let text = |names: &[&str]| any(names).map(|value| value.to_string_lossy().into_owned());

        let endpoint = text(&["HF_ENDPOINT"]).unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned()).parse()?;
        let xdg = path(&["XDG_CACHE_HOME"]).or_else(|| home.as_ref().map(|home| home.join(".cache")));
        let hf_home = path(&["HF_HOME"]).or_else(|| xdg.map(|cache| cache.join("huggingface")));
        let in_home = |given: Option<PathBuf>, name: &str| {
            given.or_else(|| hf_home.as_ref().map(|hf_home| hf_home.join(name))).ok_or(HubError::NoHome)
        };
        let cache = in_home(path(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]), "hub")?;
        let token_path = in_home(path(&["HF_TOKEN_PATH"]), "token")?;
        let given = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"]
            .into_iter()
            .find_map(|name| Some((name, text(&[name])?)).filter(|(_, text)| !text.trim().is_empty()));
        let token = match &given {
            Some((name, text)) => {
                Token::new(text).map(Some).map_err(|error| TokenFault::of_variable(name, &error))
            }
            None => Token::read(&token_path).map_err(|error| TokenFault::of_file(&token_path, &error)),
        };
        let token_is_variable = given.is_some();
        let (token, token_fault) = match token {
            Ok(token) => (token, None),
            Err(fault) => (None, Some(fault)),
        };
        let is_set = |name: &str| {
            var(name).is_some_and(|value| {
                matches!(&*value.to_string_lossy().to_uppercase(), "1" | "ON" | "YES" | "TRUE")
            })
        };
        let offline = is_set("HF_HUB_OFFLINE") || is_set("TRANSFORMERS_OFFLINE");
        Ok(Self { endpoint, cache, token_path, token, token_fault, token_is_variable, offline })
    }
}

/// Expands `~`, `$NAME` and `${NAME}` as Python does. The name of an unset variable is not replaced.
fn expanded(path: OsString, home: Option<&PathBuf>, var: &impl Fn(&str) -> Option<OsString>) -> PathBuf {
    let path = PathBuf::from(path);
    let path = match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    };
    let Some(mut rest) = path.to_str().filter(|text| text.contains('$')) else { return path };
    let mut out = OsString::new();
    while let Some((before, after)) = rest.split_once('$') {
        out.push(before);
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (name, behind) = match after.strip_prefix('{').and_then(|inner| inner.split_once('}')) {
            Some(braced) => braced,
            None => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
        };
        let written = &after[..after.len() - behind.len()];
        match var(name).filter(|_| !name.is_empty()) {
            Some(value) => out.push(value),
            None => out.push(format!("${written}")),
        }
        rest = behind;
    }
    out.push(rest);
    out.into()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn settings(vars: &[(&str, &str)]) -> Result<HubSettings, HubError> {
        let var = |name: &str| vars.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
        HubSettings::from_vars(var, Some("/home/me".into()))
    }

    #[test]
    fn places_and_switches_follow_the_variables_of_python() {
        let plain = settings(&[]).unwrap();
        assert_eq!(plain.endpoint.as_str(), "https://huggingface.co");
        assert_eq!(plain.cache, Path::new("/home/me/.cache/huggingface/hub"));
        assert_eq!(plain.token_path, Path::new("/home/me/.cache/huggingface/token"));
        assert!(!plain.offline && plain.token.is_none());

        let home = settings(&[("HF_HOME", "~/hf"), ("HF_ENDPOINT", "https://hf-mirror.com/")]).unwrap();
        assert_eq!(
            (home.cache.as_path(), home.endpoint.as_str()),
            (Path::new("/home/me/hf/hub"), "https://hf-mirror.com")
        );
        let both = settings(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HF_TOKEN_PATH", "/t")]).unwrap();
        assert_eq!((both.cache, both.token_path), ("/c".into(), "/t".into()));
        // Expected values: `os.path.expandvars(os.path.expanduser(value))` in Python, where only `D` is set.
        for (value, expected) in [
            ("$D/hf", "/data/hf"),
            ("~/${D}x/$D", "/home/me//datax//data"),
            ("/$Dx/${E}/$/${D", "/$Dx/${E}/$/${D"),
            ("/a$D-b", "/a/data-b"),
        ] {
            let home = settings(&[("HF_HOME", value), ("D", "/data")]).unwrap();
            assert_eq!(home.token_path.to_str(), Some(&*format!("{expected}/token")), "{value}");
        }
        let xdg = settings(&[("XDG_CACHE_HOME", "/x"), ("TRANSFORMERS_OFFLINE", "yes")]).unwrap();
        assert_eq!((xdg.cache, xdg.offline), ("/x/huggingface/hub".into(), true));
        assert!(!settings(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
        let token = settings(&[("HF_TOKEN", "hf_x\n")]).unwrap();
        assert_eq!((token.token, token.token_is_variable), (Some(Token::new("hf_x").unwrap()), true));
        let wrong = settings(&[("HF_TOKEN", "hf_a b")]).unwrap();
        let fault = wrong.token_fault.unwrap().to_string();
        assert!(wrong.token.is_none() && fault.contains("`HF_TOKEN`") && !fault.contains("hf_a"), "{fault}");
        assert!(HubSettings::from_vars(|_| None, None).is_err());
    }

    #[test]
    fn an_endpoint_is_an_address_without_a_password() {
        let loud: Endpoint = "HTTPS://HF-Mirror.com/Hub/".parse().unwrap();
        assert_eq!(loud.as_str(), "https://hf-mirror.com/Hub");
        for wrong in ["hf-mirror.com", "ftp://x", "https://", "https://me:secret@x", "https://x/?a=b", "x y"]
        {
            assert!(settings(&[("HF_ENDPOINT", wrong)]).is_err(), "{wrong}");
        }
        for wrong in ["https://x/?token=secret", "https://x/#secret", "https://me:secret@x/?secret@y"] {
            let error = settings(&[("HF_ENDPOINT", wrong)]).unwrap_err().to_string();
            assert!(!error.contains("secret") && error.contains("x/?...`"), "{error}");
        }
    }
}
