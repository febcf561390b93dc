//! A test server, and a client with its own cache.
#![allow(dead_code, reason = "every test file uses a part")]

pub mod push;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use danlu_hub::{FetchScope, Hub, HubError, HubSettings, Pulled, RepoName, RetryPolicy, Token};
use danlu_hub_test_server::HubServer;
use tempfile::TempDir;

/// Files of a small model. The server classifies the weights as large files by their names.
pub const MODEL: [(&str, &[u8]); 8] = [
    ("config.json", b"{\"model_type\": \"llama\"}"),
    ("tokenizer.json", b"{}"),
    ("tokenizer_config.json", b"{}"),
    ("README.md", b"# a model"),
    ("modeling.py", b"import os"),
    ("pytorch_model.bin", b"a pickle"),
    ("model.safetensors", &[7; 300_000]),
    ("original/consolidated.safetensors", &[8; 1000]),
];

/// The files of the model that danlu reads.
pub const READ: [&str; 5] =
    ["README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

pub struct Scene {
    pub server: HubServer,
    pub home: TempDir,
}

impl Scene {
    /// Starts a test server with the model `lab/model`.
    pub fn new() -> Self {
        let scene = Self { server: HubServer::start(), home: tempfile::tempdir().unwrap() };
        scene.server.add_model("lab/model", &MODEL);
        scene.server.clear_requests();
        scene
    }

    pub fn cache(&self) -> PathBuf {
        self.home.path().join("hub")
    }

    pub fn settings(&self, token: Option<&str>) -> HubSettings {
        Self::settings_of(&self.server, self.home.path(), token)
    }

    pub fn settings_of(server: &HubServer, home: &Path, token: Option<&str>) -> HubSettings {
        let (endpoint, home) = (server.endpoint(), home.to_owned());
        let var = |name: &str| match name {
            "HF_ENDPOINT" => Some(endpoint.clone().into()),
            "HF_HOME" => Some(home.clone().into()),
            _ => None,
        };
        let token = token.map(|token| Token::new(token).unwrap());
        HubSettings { token, ..HubSettings::from_vars(var, None).unwrap() }
    }

    pub fn hub(&self, token: Option<&str>) -> Hub {
        hub(self.settings(token))
    }

    pub fn pull(&self, name: &str) -> Result<Pulled, HubError> {
        self.hub(None).pull(&repo(name), FetchScope::Full, &mut |_| {})
    }

    /// Returns the names of all blobs in the cache, sorted.
    pub fn blobs(&self) -> Vec<String> {
        names(&self.cache().join("models--lab--model/blobs"))
    }
}

/// Returns a client with short waits.
pub fn hub(settings: HubSettings) -> Hub {
    let (pause, max_wait) = (Duration::from_millis(5), Duration::from_secs(2));
    let policy = RetryPolicy { attempts: 4, pause, max_wait, stall: Duration::from_secs(2), min_rate: 200 };
    Hub::with_retry_policy(settings, policy)
}

pub fn repo(name: &str) -> RepoName {
    name.parse().unwrap()
}

/// Returns the names of the files in a folder, sorted. Returns an empty list if the folder does not exist.
pub fn names(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
