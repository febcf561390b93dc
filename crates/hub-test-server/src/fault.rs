//! Injected faults. Each fault selects requests and defines an action for them.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::Value;

use crate::http::{Content, Head, Response};
use crate::recorded_request::{Host, lock};

/// HTTP method of the selected requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Any method.
    Any,
    /// `GET`.
    Get,
    /// `HEAD`.
    Head,
    /// `POST`.
    Post,
    /// `PUT`.
    Put,
}

/// The action of an injected fault.
#[derive(Clone, Debug)]
pub enum Action {
    /// Responds with this status, headers and body. The request has no effect.
    Status(u16, Vec<(String, String)>, Vec<u8>),
    /// Closes the connection without a response. The request has no effect.
    CutBefore,
    /// Closes the connection after this number of bytes of the response body.
    CutAfter(u64),
    /// Closes the connection after this number of bytes of the request body.
    CutUpload(u64),
    /// Closes the connection without a response. The request takes effect.
    CutAnswer,
    /// Changes one byte in the middle of the response's body.
    Corrupt,
    /// Truncates the response body to this number of bytes. `Content-Length` is the new length.
    Shorten(u64),
    /// Delays the response.
    Delay(Duration),
    /// Redirects to this URL with status 302.
    RedirectTo(String),
    /// Replaces the response's body.
    Replace(Value),
    /// Replaces a header of the response.
    Header(String, String),
    /// Limits the response body to this number of bytes per second.
    Throttle(u64),
}

/// An injected fault: an action, and the requests that it affects.
///
/// A fault affects one request, unless [`Fault::times`] or [`Fault::always`] is called.
#[derive(Clone, Debug)]
pub struct Fault {
    method: Method,
    part: String,
    host: Option<Host>,
    ranged: Option<bool>,
    skip: usize,
    left: usize,
    actions: Vec<Action>,
}

impl Fault {
    /// Creates a fault that selects requests with this method and with `part` in the path or query as sent.
    pub fn on(method: Method, part: &str) -> Self {
        Self {
            method,
            part: part.to_owned(),
            host: None,
            ranged: None,
            skip: 0,
            left: 1,
            actions: Vec::new(),
        }
    }

    /// Selects only requests to the listener `host`.
    pub fn at(self, host: Host) -> Self {
        Self { host: Some(host), ..self }
    }

    /// If `ranged` is true, selects only requests with a `Range` header. If it is false, selects only
    /// requests without this header.
    pub fn ranged(self, ranged: bool) -> Self {
        Self { ranged: Some(ranged), ..self }
    }

    /// Skips the first `count` selected requests.
    pub fn after(self, count: usize) -> Self {
        Self { skip: count, ..self }
    }

    /// Limits the fault to `count` of the selected requests.
    pub fn times(self, count: usize) -> Self {
        Self { left: count, ..self }
    }

    /// Affects every selected request.
    pub fn always(self) -> Self {
        self.times(usize::MAX)
    }

    /// Adds an action.
    pub fn then(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }

    fn meets(&self, host: Host, head: &Head) -> bool {
        let method = match self.method {
            Method::Any => true,
            Method::Get => head.method == "GET",
            Method::Head => head.method == "HEAD",
            Method::Post => head.method == "POST",
            Method::Put => head.method == "PUT",
        };
        method
            && self.left > 0
            && self.host.is_none_or(|only| only == host)
            && self.ranged.is_none_or(|ranged| ranged == head.header("Range").is_some())
            && head.target.raw.contains(&self.part)
    }
}

#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub fn add(&self, fault: Fault) {
        lock(&self.0).push(fault);
    }

    pub fn clear(&self) {
        lock(&self.0).clear();
    }

    /// Returns the actions of the first fault that affects a request.
    pub fn take(&self, host: Host, head: &Head) -> Plan {
        for fault in lock(&self.0).iter_mut().filter(|fault| fault.meets(host, head)) {
            if fault.skip > 0 {
                fault.skip -= 1;
                continue;
            }
            fault.left = fault.left.saturating_sub(usize::from(fault.left != usize::MAX));
            return Plan::new(&fault.actions);
        }
        Plan::default()
    }
}

/// The actions for one request.
#[derive(Default)]
pub(crate) struct Plan {
    pub delay: Duration,
    pub cut_before: bool,
    pub cut_upload: Option<u64>,
    pub cut_answer: bool,
    pub answer: Option<Response>,
    pub cut_after: Option<u64>,
    pub throttle: Option<u64>,
    pub corrupt: bool,
    changes: Vec<Action>,
}

impl Plan {
    fn new(actions: &[Action]) -> Self {
        let mut plan = Self::default();
        for action in actions {
            match action {
                Action::Status(status, headers, body) => {
                    let content = Content::Bytes(body.clone());
                    plan.answer = Some(Response { status: *status, headers: headers.clone(), content });
                }
                Action::RedirectTo(to) => {
                    plan.answer = Some(Response::empty(302).with("Location", to));
                }
                Action::CutBefore => plan.cut_before = true,
                Action::CutAfter(bytes) => plan.cut_after = Some(*bytes),
                Action::CutUpload(bytes) => plan.cut_upload = Some(*bytes),
                Action::CutAnswer => plan.cut_answer = true,
                Action::Corrupt => plan.corrupt = true,
                Action::Delay(time) => plan.delay += *time,
                Action::Throttle(speed) => plan.throttle = Some(*speed),
                Action::Shorten(_) | Action::Replace(_) | Action::Header(..) => {
                    plan.changes.push(action.clone());
                }
            }
        }
        plan
    }

    /// Applies the actions to a response.
    pub fn change(&self, mut response: Response) -> Response {
        for change in &self.changes {
            match change {
                Action::Shorten(bytes) => match &mut response.content {
                    Content::Bytes(content) => {
                        content.truncate(usize::try_from(*bytes).unwrap_or(usize::MAX))
                    }
                    Content::File { length, .. } => *length = (*length).min(*bytes),
                },
                Action::Replace(value) => response.content = Content::Bytes(value.to_string().into_bytes()),
                Action::Header(name, value) => response = response.with(name, value),
                _ => {}
            }
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::read_head;

    fn head(line: &str) -> Head {
        read_head(&mut format!("{line} HTTP/1.1\r\n\r\n").as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn a_fault_meets_its_requests_in_their_number() {
        let faults = Faults::default();
        let get = head("GET /a/resolve/main/x");
        faults.add(Fault::on(Method::Get, "resolve").after(1).times(2).then(Action::CutBefore));
        let met: Vec<bool> = (0..5).map(|_| faults.take(Host::Hub, &get).cut_before).collect();
        assert_eq!(met, [false, true, true, false, false]);
        faults.add(Fault::on(Method::Any, "").at(Host::Storage).always().then(Action::CutBefore));
        assert!(!faults.take(Host::Hub, &get).cut_before);
        assert!((0..3).all(|_| faults.take(Host::Storage, &get).cut_before));
    }

    #[test]
    fn method_and_ranges_choose() {
        let faults = Faults::default();
        faults.add(Fault::on(Method::Put, "x").always().then(Action::CutBefore));
        faults.add(Fault::on(Method::Any, "x").ranged(false).always().then(Action::CutAnswer));
        let ranged = read_head(&mut &b"GET /x HTTP/1.1\r\nRange: bytes=0-1\r\n\r\n"[..]).unwrap().unwrap();
        assert!(faults.take(Host::Hub, &head("PUT /x")).cut_before);
        assert!(!faults.take(Host::Hub, &head("GET /x")).cut_before);
        assert!(faults.take(Host::Hub, &head("GET /x")).cut_answer);
        assert!(!faults.take(Host::Hub, &ranged).cut_answer);
    }
}
