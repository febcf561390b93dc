//! Accepts connections, reads their requests and sends responses.

use std::collections::HashMap;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::fault::Plan;
use crate::http::{Body, Content, Head, Response, read_head, reason};
use crate::hub::Hub;
use crate::recorded_request::{Entry, Host, lock};
use crate::routes;

/// Maximum number of bytes of a response that are written at once.
const PIECE: u64 = 256 << 10;

/// Accepts connections. Dropping the listener closes all connections.
pub(crate) struct Listener {
    address: SocketAddr,
    stops: Arc<AtomicBool>,
    connections: Arc<Mutex<HashMap<u64, TcpStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl Listener {
    /// Starts to accept connections on `socket`.
    ///
    /// # Errors
    /// If the socket has no address.
    pub fn start(socket: TcpListener, host: Host, hub: Arc<Hub>) -> io::Result<Self> {
        let address = socket.local_addr()?;
        let stops = Arc::new(AtomicBool::new(false));
        let connections: Arc<Mutex<HashMap<u64, TcpStream>>> = Arc::default();
        let (stopping, open) = (stops.clone(), connections.clone());
        let thread = thread::spawn(move || {
            for (number, stream) in (0..).zip(socket.incoming()) {
                if stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let Ok(handle) = stream.try_clone() else { continue };
                lock(&open).insert(number, handle);
                let (hub, open) = (hub.clone(), open.clone());
                thread::spawn(move || {
                    // An error on a connection affects only its client.
                    let _ = serve(&hub, host, &stream);
                    let _ = stream.shutdown(Shutdown::Both);
                    lock(&open).remove(&number);
                });
            }
        });
        Ok(Self { address, stops, connections, thread: Some(thread) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::SeqCst);
        // A new connection is needed to end the blocked `accept` call.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        for stream in lock(&self.connections).values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn serve(hub: &Hub, host: Host, stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::with_capacity(128 << 10, stream.try_clone()?);
    let mut writer = stream.try_clone()?;
    loop {
        let head = match read_head(&mut reader) {
            Ok(Some(head)) => head,
            Ok(None) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => return refuse(&mut writer),
            Err(error) => return Err(error),
        };
        let record = hub.records.begin(host, &head);
        let mut plan = hub.faults.take(host, &head);
        thread::sleep(plan.delay);
        if plan.cut_before {
            return Ok(());
        }
        let mut continues = writer.try_clone()?;
        let Ok(mut body) = Body::new(&head, &mut reader, &mut continues, record.clone()) else {
            return refuse(&mut writer);
        };
        if let Some(bytes) = plan.cut_upload {
            body.cut_after(bytes);
        }
        let response = match plan.answer.take() {
            Some(response) => response,
            None => routes::answer(hub, host, &head, &mut body),
        };
        if body.broken {
            return Ok(());
        }
        let keep = body.drain().is_ok() && !head.header_has("Connection", "close");
        if plan.cut_answer || (plan.cut_upload.is_some() && body.broken) {
            return Ok(());
        }
        write_response(&mut writer, &head, plan.change(response), &plan, &record, keep)?;
        if !keep || plan.cut_after.is_some() {
            return Ok(());
        }
    }
}

/// Sends an error response to invalid HTTP. The connection is then closed, because the start of the next
/// request is unknown.
fn refuse(writer: &mut TcpStream) -> io::Result<()> {
    writer.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
}

fn write_response(
    writer: &mut TcpStream,
    head: &Head,
    mut response: Response,
    plan: &Plan,
    record: &Entry,
    keep: bool,
) -> io::Result<()> {
    let length = response.length();
    let status = response.status;
    let mut text = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    response.headers.retain(|(name, _)| !name.eq_ignore_ascii_case("Content-Length"));
    for (name, value) in &response.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str(&format!("Content-Length: {length}\r\n"));
    text.push_str(if keep { "Connection: keep-alive\r\n\r\n" } else { "Connection: close\r\n\r\n" });
    record.change(|record| record.status = Some(status));
    writer.write_all(text.as_bytes())?;
    if head.method == "HEAD" {
        return Ok(());
    }
    let most = plan.cut_after.unwrap_or(length).min(length);
    match response.content {
        Content::Bytes(bytes) => write_content(writer, &mut &bytes[..], length, most, plan, record),
        Content::File { mut file, start, .. } => {
            io::Seek::seek(&mut file, io::SeekFrom::Start(start))?;
            write_content(writer, &mut file, length, most, plan, record)
        }
    }
}

/// Writes the first `most` bytes of `content`, which has `length` bytes.
fn write_content(
    writer: &mut TcpStream,
    content: &mut dyn Read,
    length: u64,
    most: u64,
    plan: &Plan,
    record: &Entry,
) -> io::Result<()> {
    // If the response is throttled, one small block is written per tenth of a second. The rate is therefore
    // even.
    let piece = plan.throttle.map_or(PIECE, |speed| (speed / 10).clamp(1, PIECE));
    let mut buffer = vec![0; piece.min(most.max(1)) as usize];
    let mut written = 0;
    while written < most {
        let count = piece.min(most - written);
        let buffer = &mut buffer[..count as usize];
        content.read_exact(buffer)?;
        let middle = length / 2;
        if plan.corrupt && (written..written + count).contains(&middle) {
            buffer[(middle - written) as usize] ^= 0x20;
        }
        // The bytes are counted before they are written. When a client has received the last byte, the count
        // is therefore complete.
        record.change(|record| record.sent += count);
        if let Err(error) = writer.write_all(buffer) {
            record.change(|record| record.sent -= count);
            return Err(error);
        }
        written += count;
        if let Some(speed) = plan.throttle {
            thread::sleep(Duration::from_secs_f64(count as f64 / speed.max(1) as f64));
        }
    }
    Ok(())
}
