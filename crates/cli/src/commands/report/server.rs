//! Serves one page on the loopback address.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::diagnostic::{Diagnostic, Result};
use crate::interrupt;

/// Largest head of a request, in bytes.
const MAX_REQUEST_BYTES: usize = 16 << 10;

/// Maximum time to receive a request, and maximum time to send the page.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Pause between two checks for a new connection.
const POLL: Duration = Duration::from_millis(50);

/// A server for one page. Only programs on this machine can connect.
pub struct PageServer {
    listener: TcpListener,
    port: u16,
}

impl PageServer {
    /// Listens on 127.0.0.1.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn bind(port: u16) -> Result<Self> {
        let refused = |error: io::Error| {
            let diagnostic = Diagnostic::input(format!("cannot listen on 127.0.0.1:{port}: {error}"));
            diagnostic.with_hint("choose another port with `--port`, or 0 for any free one")
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let port = listener.local_addr().map_err(refused)?.port();
        Ok(Self { listener, port })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Answers requests with `page` until Ctrl-C.
    ///
    /// # Errors
    /// If the listener fails. If `page` fails, the response has status 500, and the server continues.
    pub fn serve(&self, page: &dyn Fn() -> Result<String>) -> Result<()> {
        while !interrupt::requested() {
            match self.listener.accept() {
                // A browser that closes the connection early is no error of the server.
                Ok((stream, _)) => drop(self.answer(stream, page)),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {
                    thread::sleep(POLL);
                }
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(Diagnostic::input(format!("cannot accept a connection: {error}"))),
            }
        }
        Ok(())
    }

    fn answer(&self, mut stream: TcpStream, page: &dyn Fn() -> Result<String>) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(TIME_LIMIT))?;
        let head = read_head(&mut stream)?;
        let (status, body) = match self.status(&head) {
            "200 OK" => match page() {
                Ok(page) => ("200 OK", page),
                Err(error) => ("500 Internal Server Error", error.render(false)),
            },
            refused => (refused, format!("{refused}\n")),
        };
        let kind = if status == "200 OK" { "text/html" } else { "text/plain" };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: {kind}; charset=utf-8\r\nContent-Length: {}\r\n\
             Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n",
            body.len()
        )?;
        stream.write_all(body.as_bytes())
    }

    /// Checks a request, and returns the status of the response. The header `Host` must name the loopback
    /// address. Without this check, a page of a foreign site could read the report through a name that
    /// resolves to this machine.
    fn status(&self, head: &str) -> &'static str {
        let mut lines = head.lines();
        let mut words = lines.next().unwrap_or_default().split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let host =
            lines.filter_map(|line| line.split_once(':')).find(|(name, _)| name.eq_ignore_ascii_case("host"));
        let host = host.map(|(_, host)| host.trim()).unwrap_or_default();
        let allowed = [format!("127.0.0.1:{}", self.port), format!("localhost:{}", self.port)];
        match (method, path) {
            _ if !allowed.iter().any(|allowed| allowed == host) => "403 Forbidden",
            ("GET", "/") => "200 OK",
            ("GET", _) => "404 Not Found",
            _ => "405 Method Not Allowed",
        }
    }
}

/// Reads the head of a request, with limits on its size and its time.
fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let end = Instant::now() + TIME_LIMIT;
    let (mut head, mut piece) = (Vec::new(), [0; 1024]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || head.len() > MAX_REQUEST_BYTES {
            return Err(ErrorKind::InvalidData.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut piece)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => head.extend_from_slice(&piece[..read]),
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_and_only_this_machine_is_answered() {
        let server = PageServer::bind(0).unwrap();
        let port = server.port;
        let status =
            |line: &str, host: &str| server.status(&format!("{line} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(status("GET /", &format!("127.0.0.1:{port}")), "200 OK");
        assert_eq!(status("GET /", &format!("localhost:{port}")), "200 OK");
        assert_eq!(status("GET /run.toml", &format!("localhost:{port}")), "404 Not Found");
        assert_eq!(status("POST /", &format!("localhost:{port}")), "405 Method Not Allowed");
        assert_eq!(status("GET /", "evil.example"), "403 Forbidden");
        assert_eq!(server.status("GET / HTTP/1.0\r\n\r\n"), "403 Forbidden");
        assert!(PageServer::bind(port).is_err());
    }
}
