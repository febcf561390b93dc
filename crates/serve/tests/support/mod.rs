//! Starts servers on the embedded base, writes random adapters, and sends HTTP requests.

#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use danlu_adapter::{Adapter, LoraConfig};
use danlu_hub::{Hub, HubSettings};
use danlu_kernels::{Cpu, CpuOptions, DType, rng};
use danlu_loader::{BaseFiles, LoadedBase, Loader, ModelTokens};
use danlu_model::Tokenizer;
use danlu_serve::{AdapterSource, ServeOptions, ServedAdapter, Server};
use serde_json::Value;

/// Folder of the embedded base.
pub const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../cli/assets/base-8m");

static LOADED: LazyLock<Arc<LoadedBase>> = LazyLock::new(|| {
    let backend = Arc::new(Cpu::new(CpuOptions { threads: Some(2), isa: None, dtype: DType::F32 }));
    let hub = Hub::new(HubSettings::from_vars(|_| None, Some("/nonexistent".into())).unwrap());
    let observer = |_: danlu_loader::Progress<'_>| std::ops::ControlFlow::Continue(());
    let files = Arc::new(BaseFiles::open(Path::new(BASE)).unwrap());
    Arc::new(Loader::new(&hub, &observer).load_base(files, None, 1, backend).unwrap())
});

/// Returns test options: a free port, and the name `base` for the base.
pub fn options() -> ServeOptions {
    ServeOptions { port: 0, ..ServeOptions::default() }
}

/// Starts a server on the embedded base.
pub fn start(options: ServeOptions) -> TestServer {
    start_on(options, LOADED.files().tokenizer(None).unwrap())
}

/// Starts a server on the embedded base with another chat template.
pub fn start_with_template(options: ServeOptions, template: &str) -> TestServer {
    let tokenizer = LOADED.files().tokenizer(None).unwrap();
    start_on(options, tokenizer.with_template(Path::new("template.jinja"), template).unwrap())
}

fn start_on(options: ServeOptions, tokenizer: Tokenizer) -> TestServer {
    tokenizer.limit_ids(LOADED.decoder().config());
    let server = Server::start(Arc::clone(&LOADED), ModelTokens { tokenizer, default_system: None }, options);
    let server = server.unwrap_or_else(|error| panic!("{error}"));
    TestServer { address: server.address(), server: Some(server) }
}

/// Writes a random adapter whose effect on replies is large.
pub fn write_adapter(folder: &Path, seed: u64, rank: u32) {
    let decoder = LOADED.decoder();
    let (config, backend) = (decoder.config(), &**decoder.backend());
    let mut lora = LoraConfig::new(rank, 4.0 * f64::from(rank));
    lora.base_model_name_or_path = Some("base-8m".to_owned());
    let mut adapter = Adapter::init(lora, config, seed, backend).unwrap();
    let mut stream = rng::Stream::new(rng::key(&[seed]));
    let values: Vec<f32> =
        (0..adapter.num_parameters()).map(|_| (stream.next_uniform() - 0.5) * 0.2).collect();
    backend.write(&mut adapter.params, 0, &values);
    adapter.save(folder, backend).unwrap();
}

/// Writes a random adapter of rank 4 into `top`, with the given seed. Returns its entry for
/// [`ServeOptions::adapters`].
pub fn served(top: &Path, name: &str, seed: u64) -> ServedAdapter {
    let folder = top.join(name);
    write_adapter(&folder, seed, 4);
    ServedAdapter { name: name.to_owned(), source: AdapterSource::Folder(folder) }
}

/// A running test server.
pub struct TestServer {
    pub address: SocketAddr,
    pub server: Option<Server>,
}

/// An HTTP response.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Answer {
    /// Returns the body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Returns the events of a stream, without the last event `[DONE]`.
    pub fn events(&self) -> Vec<Value> {
        let data = self.body.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
        data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
    }

    /// Returns the text of a chat or completion response.
    pub fn text(&self) -> String {
        let json = self.json();
        let choice = &json["choices"][0];
        let text = choice["message"]["content"].as_str().or(choice["text"].as_str());
        text.unwrap_or_else(|| panic!("no text in {}", self.body)).to_owned()
    }
}

impl TestServer {
    /// Opens a connection and sends an HTTP/1.0 request, so that the end of the connection ends the body.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut head = format!("{method} {path} HTTP/1.0\r\ncontent-length: {}\r\n", body.len());
        if !headers.iter().any(|(name, _)| *name == "host") {
            head += &format!("host: {}\r\n", self.address);
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        stream
    }

    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let mut bytes = Vec::new();
        self.send(method, path, headers, body).read_to_end(&mut bytes).unwrap();
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no response: {text:?}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_ascii_lowercase(), value.to_owned())
        };
        Answer { status, headers: lines.map(header).collect(), body: body.to_owned() }
    }

    pub fn get(&self, path: &str) -> Answer {
        self.request("GET", path, &[], "")
    }

    pub fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, &[("content-type", "application/json")], &body.to_string())
    }

    /// Sends a chat request with one question. `more` contains additional fields.
    pub fn chat(&self, model: &str, question: &str, more: Value) -> Answer {
        let mut body = serde_json::json!({
            "model": model, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 12,
        });
        let fields = more.as_object().unwrap().clone();
        body.as_object_mut().unwrap().extend(fields);
        self.post("/v1/chat/completions", &body)
    }
}
