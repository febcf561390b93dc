//! Tests the limits for clients that send or read slowly, over real sockets.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use danlu_serve::{ConnectionLimits, ServeOptions};
use serde_json::Value;
use support::{TestServer, options, start};

/// The time limit in tests whose client exceeds a limit.
const SHORT: Duration = Duration::from_millis(300);

/// Longest time for a test on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn start_with(connections: ConnectionLimits) -> TestServer {
    start(ServeOptions { connections, ..options() })
}

fn connect(server: &TestServer) -> TcpStream {
    let stream = TcpStream::connect(server.address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    stream
}

/// Sends bytes one at a time until the server responds or closes the connection. Returns the response.
fn drip(mut stream: TcpStream, byte: u8) -> String {
    let started = Instant::now();
    let mut answer = Vec::new();
    let mut buffer = [0; 1024];
    while started.elapsed() < PATIENCE {
        // After the server has closed the connection, the write may fail before the read returns the answer.
        let _ = stream.write_all(&[byte]);
        match stream.read(&mut buffer) {
            Ok(0) => return String::from_utf8(answer).unwrap(),
            Ok(n) => answer.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return String::from_utf8(answer).unwrap();
            }
            Err(_) => {}
        }
    }
    panic!("the server still reads after {PATIENCE:?}");
}

/// Returns the count of clients that were too slow with `part`.
fn timeouts(server: &TestServer, part: &str) -> u64 {
    let metrics = server.get("/metrics").body;
    let name = format!("danlu_client_timeouts_total{{part=\"{part}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

#[test]
fn a_client_that_drips_its_headers_loses_its_connection() {
    let server = start_with(ConnectionLimits { header_time: SHORT, ..ConnectionLimits::default() });
    let mut stream = connect(&server);
    stream.write_all(b"GET /health HTTP/1.1\r\nx: ").unwrap();
    drip(stream, b'x');
    assert_eq!(timeouts(&server, "headers"), 1);
}

#[test]
fn a_body_that_drips_gets_status_408() {
    let server = start_with(ConnectionLimits { body_time: SHORT, ..ConnectionLimits::default() });
    for (path, field) in [("/v1/chat/completions", "/error/message"), ("/api/chat", "/error")] {
        let mut stream = connect(&server);
        let head =
            format!("POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-length: 9000\r\n\r\n", server.address);
        stream.write_all(head.as_bytes()).unwrap();
        let answer = drip(stream, b' ');
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let message = body.pointer(field).and_then(Value::as_str).unwrap();
        assert_eq!(message, "cannot read the body: it did not arrive within 0.3 seconds");
    }
    assert_eq!(timeouts(&server, "body"), 2);
}

#[test]
fn a_client_that_never_reads_loses_its_connection() {
    let server = start_with(ConnectionLimits { write_time: SHORT, ..ConnectionLimits::default() });
    let mut stream = connect(&server);
    // The responses are larger than the buffers of both sockets together.
    let request = format!("GET /metrics HTTP/1.1\r\nhost: {}\r\n\r\n", server.address);
    let started = Instant::now();
    while stream.write_all(request.as_bytes()).is_ok() {
        assert!(started.elapsed() < PATIENCE, "the server still writes after {PATIENCE:?}");
    }
    assert_eq!(timeouts(&server, "response"), 1);
}

#[test]
fn clients_beyond_the_limit_wait_until_a_connection_closes() {
    let limits = ConnectionLimits { max_connections: 2, header_time: SHORT, ..ConnectionLimits::default() };
    let server = start_with(limits);
    let idle = [connect(&server), connect(&server)];
    thread::sleep(SHORT / 3);
    let started = Instant::now();
    assert_eq!(server.get("/health").status, 200);
    // The idle connections lose their slots `header_time` after their start.
    assert!(started.elapsed() > SHORT / 3, "{:?}", started.elapsed());
    let metrics = server.get("/metrics").body;
    assert!(metrics.contains("\ndanlu_connections 1\n"), "{metrics}");
    drop(idle);
}
