//! A folder to push, and a test server that receives it.

use std::fs;
use std::path::Path;

use danlu_hub::{Hub, HubError, PushOptions, Pushed, UploadOptions, UploadSet};
use danlu_hub_test_server::HubServer;
use tempfile::TempDir;

use super::{Scene, repo};

/// Size of each large file in bytes.
pub const WEIGHTS: u64 = 300_000;

/// The folder of an adapter, and a test server. The user `me` may write to the server with the token
/// `hf_mine`.
pub struct Desk {
    pub server: HubServer,
    pub home: TempDir,
    folder: TempDir,
}

impl Desk {
    pub fn new() -> Self {
        Self::on(HubServer::start())
    }

    pub fn on(server: HubServer) -> Self {
        server.add_user("me", "hf_mine");
        let desk = Self { server, home: tempfile::tempdir().unwrap(), folder: tempfile::tempdir().unwrap() };
        desk.write("adapter_config.json", b"{}");
        desk.write("README.md", "# an adapter 甄".as_bytes());
        desk.write("adapter_model.safetensors", &[7; WEIGHTS as usize]);
        desk.write("deep/extra.safetensors", &[8; WEIGHTS as usize]);
        desk
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn write(&self, path: &str, bytes: &[u8]) {
        let path = self.folder().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn upload_set(&self) -> UploadSet {
        UploadSet::from_folder(self.folder(), &UploadOptions::default()).unwrap()
    }

    /// Returns a client with this token.
    pub fn hub_with(&self, token: Option<&str>) -> Hub {
        let scene = Scene::settings_of(&self.server, self.home.path(), token);
        super::hub(scene)
    }

    pub fn hub(&self) -> Hub {
        self.hub_with(Some("hf_mine"))
    }

    pub fn push(&self, name: &str) -> Result<Pushed, HubError> {
        self.hub().push(&self.upload_set(), &repo(name), &PushOptions::default(), &mut |_, _| {})
    }

    /// Asserts that the repository contains the folder's files, byte for byte.
    pub fn assert_whole(&self, id: &str, revision: &str) {
        for file in self.upload_set().files() {
            let there = self.server.read(id, revision, file.path());
            assert!(there == Some(fs::read(self.folder().join(file.path())).unwrap()), "{}", file.path());
        }
    }
}
