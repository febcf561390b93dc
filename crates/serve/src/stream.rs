//! Streams text to a client, as server-sent events or as lines of JSON.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use futures_core::Stream;
use serde_json::Value;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::api_error::ApiError;
use crate::reply::{Piece, Reply};

/// Time without new text after which an empty frame is sent, because proxies close idle connections.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Maximum number of frames that are buffered for a slow client.
const MAX_PENDING_FRAMES: usize = 64;

/// Formats a stream as frames, which are server-sent events or lines of JSON. Each function returns complete
/// frames, or an empty string.
pub(crate) trait StreamWriter: Send + 'static {
    fn start(&mut self, reply: &Reply) -> String;
    fn piece(&mut self, piece: &Piece, reply: &Reply) -> String;
    fn end(&mut self, reply: &Reply) -> String;
    fn error(&mut self, error: &ApiError) -> String;
    /// Returns a frame without content, if the format has such a frame.
    fn ping(&self) -> Option<&'static str>;
}

/// Formats a JSON value as a server-sent event.
pub(crate) fn sse(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// The body of a streamed response.
struct Frames(Receiver<Bytes>);

impl Stream for Frames {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|frame| frame.map(Ok))
    }
}

/// Streams a reply to the client. The engine cancels the request after the client disconnects.
pub(crate) fn respond(reply: Reply, writer: impl StreamWriter, content_type: &'static str) -> Response {
    let (frames, receiver) = channel(MAX_PENDING_FRAMES);
    tokio::spawn(run(reply, writer, frames));
    let mut response = Response::new(Body::from_stream(Frames(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // By default, nginx buffers a response. This header disables the buffer.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

async fn run(mut reply: Reply, mut writer: impl StreamWriter, frames: Sender<Bytes>) {
    let start = writer.start(&reply);
    if !send(&frames, start).await {
        return;
    }
    loop {
        let next = tokio::select! {
            next = tokio::time::timeout(PING_INTERVAL, reply.next()) => next,
            () = frames.closed() => return,
        };
        let frame = match next {
            Err(_) => writer.ping().unwrap_or_default().to_owned(),
            Ok(Ok(Some(piece))) => writer.piece(&piece, &reply),
            Ok(Ok(None)) => {
                let end = writer.end(&reply);
                send(&frames, end).await;
                return;
            }
            Ok(Err(error)) => {
                let end = writer.error(&error);
                send(&frames, end).await;
                return;
            }
        };
        if !send(&frames, frame).await {
            return;
        }
    }
}

/// Sends a frame, unless it is empty. Returns `false` if the client has disconnected.
async fn send(frames: &Sender<Bytes>, frame: String) -> bool {
    frame.is_empty() || frames.send(Bytes::from(frame)).await.is_ok()
}
