//! Large files on their way to storage: several at a time, in parts where the Hub wants parts, and never twice what has
//! arrived.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use serde_json::{Value, json};

use super::lfs_batch::{LFS, Object, Route, Target, Way};
use crate::http::message;
use crate::http::{Answer, Ask};
use crate::push::file_part::Slice;
use crate::{Hub, HubError, PushOptions, RepoName};

/// Files or parts sent at a time.
const AT_ONCE: usize = 4;

/// How often addresses are asked for: they expire, and an upload can be lost.
const ROUNDS: usize = 3;

/// Why a part did not arrive.
enum Failure {
    /// The address, or the upload, is of no more use: another may be.
    Stale(HubError),
    /// Anything else.
    Hard(HubError),
}

impl<E: Into<HubError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Hard(error.into())
    }
}

/// What a thread tells.
enum Told {
    Advanced(i64),
    Failed(Failure),
}

impl Hub {
    /// Sees to it that all `objects` are in storage. `advanced` hears of bytes on their way, and whether they were there
    /// before.
    ///
    /// # Errors
    /// If one cannot be sent, or changes meanwhile.
    pub(super) fn send_large(
        &self,
        repo: &RepoName,
        options: &PushOptions,
        objects: &[Object<'_>],
        advanced: &mut dyn FnMut(i64, bool),
    ) -> Result<(), HubError> {
        let mut failure = None;
        for round in 0..ROUNDS {
            let lacking: Vec<&Object<'_>> =
                objects.iter().filter(|object| !object.is_there.load(Ordering::SeqCst)).collect();
            if lacking.is_empty() {
                return Ok(());
            }
            if let Some(error) = &failure {
                tracing::info!("{error}; asking for another address");
                thread::sleep(self.http.pace().pause);
            }
            let routes = self.routes(repo, options, &lacking)?;
            for (object, route) in lacking.iter().zip(&routes) {
                if matches!(route.way, Way::There) {
                    object.is_there.store(true, Ordering::SeqCst);
                    object.count(object.file.size(), &mut |bytes| advanced(bytes, round == 0));
                }
            }
            failure = self.send_round(&lacking, &routes, advanced)?;
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Sends what lacks by these routes; the first failure that another address may mend.
    fn send_round(
        &self,
        objects: &[&Object<'_>],
        routes: &[Route],
        advanced: &mut dyn FnMut(i64, bool),
    ) -> Result<Option<HubError>, HubError> {
        let mut tasks = Vec::new();
        for (&object, route) in
            objects.iter().zip(routes).filter(|(_, route)| !matches!(route.way, Way::There))
        {
            let parts = object.tasks(&route.way, &mut |bytes| advanced(bytes, false));
            tasks.extend(parts.into_iter().map(|part| (object, route, part)));
        }
        let queue = Mutex::new(tasks.iter());
        let stop = AtomicBool::new(false);
        let next = || {
            if stop.load(Ordering::Relaxed) {
                return None;
            }
            queue.lock().expect("nothing panics while it is held").next()
        };
        let (tell, told) = mpsc::channel();
        thread::scope(|scope| {
            for _ in 0..AT_ONCE.min(tasks.len()) {
                let (tell, next, stop) = (tell.clone(), &next, &stop);
                scope.spawn(move || {
                    while let Some(&(object, route, part)) = next() {
                        let done = self.send_part(object, route, part, stop, &tell);
                        let done = done.and_then(|()| self.end_part(object, route));
                        if let Err(failure) = done {
                            // Who does not listen any more knows of another failure.
                            let _ = tell.send(Told::Failed(failure));
                        }
                    }
                });
            }
            drop(tell);
            let (mut stale, mut hard) = (None, None);
            for message in told {
                match message {
                    Told::Advanced(bytes) => advanced(bytes, false),
                    Told::Failed(Failure::Stale(error)) => stale = stale.or(Some(error)),
                    Told::Failed(Failure::Hard(error)) => {
                        stop.store(true, Ordering::Relaxed);
                        hard = hard.or(Some(error));
                    }
                }
            }
            hard.map_or(Ok(stale), Err)
        })
    }

    /// Sends one part, or the whole.
    fn send_part(
        &self,
        object: &Object<'_>,
        route: &Route,
        part: usize,
        stop: &AtomicBool,
        tell: &Sender<Told>,
    ) -> Result<(), Failure> {
        let content = object.file.open()?;
        let size = object.file.size();
        let (url, start, len) = match &route.way {
            Way::There => return Ok(()),
            Way::Whole(target) => (&target.url, 0, size),
            Way::Parts { size: each, urls, .. } => {
                let start = part as u64 * each;
                (&urls[part], start, (size - start).min(*each))
            }
        };
        let advanced = |bytes: i64| {
            object.counted.fetch_add(bytes, Ordering::Relaxed);
            let _ = tell.send(Told::Advanced(bytes));
        };
        let sent = Mutex::new(None);
        let slice = Slice { of: object.file, content: &content, start, len, advanced: &advanced, stop, sent };
        let mut ask = Ask::put(url, &slice);
        if let Way::Whole(Target { headers, .. }) = &route.way {
            ask.headers.clone_from(headers);
        }
        let answer = arrived(&ask, self.http.ask(&ask)?)?;
        if let Way::Parts { .. } = &route.way {
            let tag = answer.header("etag").ok_or_else(|| ask.fault("a part without a tag"))?;
            let mut parts = object.parts.lock().expect("nothing panics while it is held");
            parts.1[part] = Some(tag.to_owned());
        } else if slice.sent.into_inner().expect("nothing panics while it is held").as_deref()
            != Some(object.oid)
        {
            return Err(object.file.changed().into());
        }
        Ok(())
    }

    /// After the last part: declares them to be the file, and asks whether it has arrived.
    fn end_part(&self, object: &Object<'_>, route: &Route) -> Result<(), Failure> {
        if object.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return Ok(());
        }
        let target = |url: &str| Target { url: url.to_owned(), headers: Vec::new() };
        if let Way::Parts { complete, .. } = &route.way {
            let parts = object.parts.lock().expect("nothing panics while it is held").1.clone();
            let number = |(i, tag)| json!({ "partNumber": i + 1, "etag": tag });
            let parts: Vec<Value> = parts.into_iter().enumerate().map(number).collect();
            self.tell(&target(complete), &json!({ "oid": object.oid, "parts": parts }))?;
        }
        if let Some(verify) = &route.verify {
            self.tell(verify, &json!({ "oid": object.oid, "size": object.file.size() }))?;
        }
        object.is_there.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn tell(&self, target: &Target, value: &Value) -> Result<(), Failure> {
        let body = value.to_string();
        let mut ask = Ask::post(&target.url, LFS, body.as_bytes());
        ask.headers.push(("accept".into(), LFS.to_owned()));
        ask.headers.extend(target.headers.iter().cloned());
        arrived(&ask, self.http.ask(&ask)?).map(drop)
    }
}

/// An answer of success. Any other that no waiting mends is of an address or an upload that is of no more use.
fn arrived(ask: &Ask<'_>, mut answer: Answer) -> Result<Answer, Failure> {
    if answer.status.is_success() {
        return Ok(answer);
    }
    let is_passing = answer.is_passing().is_some();
    let (status, message) = (answer.status.as_u16(), message(&mut answer));
    let error = HubError::Status { host: ask.host(), request: ask.words(), status, message };
    Err(if is_passing { Failure::Hard(error) } else { Failure::Stale(error) })
}
