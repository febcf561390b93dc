//! Measures a running server with streams of several clients.

use std::io::{self, BufReader, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Maximum time between two events of a stream.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

/// A load test of a server. In each round, every client sends one request and reads its stream.
#[derive(Clone, Debug)]
pub struct LoadTest {
    /// Address of the server.
    pub address: SocketAddr,
    /// Key for inference, if the server needs one.
    pub api_key: Option<String>,
    /// Number of new tokens of each reply.
    pub tokens: usize,
}

/// Result of one round of a [`LoadTest`].
#[derive(Clone, Debug)]
pub struct LoadRound {
    /// New tokens of all replies, divided by the time from the first request to the last token.
    pub tokens_per_second: f64,
    /// Time from each request to its first token.
    pub first_tokens: Vec<Duration>,
}

impl LoadTest {
    /// Runs one round. Each entry of `models` is the model of one client. `round` makes the prompts of this
    /// round different from those of other rounds.
    ///
    /// # Errors
    /// If a connection breaks, or the server refuses a request.
    pub fn run(&self, models: &[String], round: usize) -> io::Result<LoadRound> {
        let start = Arc::new(Barrier::new(models.len() + 1));
        let clients: Vec<_> = models
            .iter()
            .enumerate()
            .map(|(client, model)| {
                let (test, start, model) = (self.clone(), Arc::clone(&start), model.clone());
                thread::spawn(move || {
                    start.wait();
                    test.stream(&model, &format!("{round}.{client}"))
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        let mut first_tokens = Vec::new();
        for client in clients {
            let ended = client.join().map_err(|_| io::Error::other("a client of the load test panicked"))?;
            first_tokens.push(ended?);
        }
        let tokens = (self.tokens * models.len()) as f64;
        Ok(LoadRound { tokens_per_second: tokens / started.elapsed().as_secs_f64(), first_tokens })
    }

    /// Sends one request and reads its stream. Returns the time to the first token.
    fn stream(&self, model: &str, question: &str) -> io::Result<Duration> {
        let started = Instant::now();
        let mut connection = TcpStream::connect(self.address)?;
        connection.set_nodelay(true)?;
        connection.set_read_timeout(Some(READ_TIMEOUT))?;
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.tokens,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 1,
            "ignore_eos": true,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        let body = body.to_string();
        let key = self.api_key.as_ref().map(|key| format!("authorization: Bearer {key}\r\n"));
        // With HTTP/1.0, the body is not divided into chunks, and ends with the connection.
        let head = format!(
            "POST /v1/chat/completions HTTP/1.0\r\nhost: {}\r\ncontent-type: application/json\r\n{}content-length: {}\r\n\r\n",
            self.address,
            key.unwrap_or_default(),
            body.len()
        );
        connection.write_all(head.as_bytes())?;
        connection.write_all(body.as_bytes())?;
        self.read(BufReader::new(connection), started)
    }

    fn read(&self, mut lines: impl io::BufRead, started: Instant) -> io::Result<Duration> {
        let mut status = String::new();
        lines.read_line(&mut status)?;
        let is_ok = status.split(' ').nth(1) == Some("200");
        let (mut first, mut tokens, mut last) = (None, None, String::new());
        for line in lines.lines() {
            let line = line?;
            if let Some(event) = line.strip_prefix("data: ").filter(|event| event.starts_with('{')) {
                let event: Value = serde_json::from_str(event).map_err(io::Error::other)?;
                if event["choices"][0]["delta"]["content"].as_str().is_some_and(|text| !text.is_empty()) {
                    first.get_or_insert_with(|| started.elapsed());
                }
                tokens = event["usage"]["completion_tokens"].as_u64().or(tokens);
            }
            last = line;
        }
        match (is_ok, tokens) {
            (true, Some(tokens)) if tokens == self.tokens as u64 => Ok(first.unwrap_or(started.elapsed())),
            (true, tokens) => {
                let tokens = tokens.unwrap_or(0);
                let expected = self.tokens;
                Err(io::Error::other(format!("a reply has {tokens} tokens, expected {expected}: {last}")))
            }
            (false, _) => Err(io::Error::other(format!("{}: {last}", status.trim()))),
        }
    }
}
