//! Uploads large files: several at the same time, and in parts if the Hub requires parts.
//!
//! A part that the storage has accepted is uploaded again only in these cases:
//!
//! - The Hub started a new multipart upload.
//! - The part is the last one, and the completion failed.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::thread;

use serde_json::{Value, json};

use super::lfs_batch::{LFS, LfsAction, LfsObject, UploadMethod, UploadPlan};
use crate::http::message;
use crate::http::{Request, Response};
use crate::push::file_part::FilePart;
use crate::{Hub, HubError, PushOptions, RepoName};

const PARALLEL_UPLOADS: usize = 4;

/// Maximum number of batch requests in a push. After expired URLs or failed uploads, a further request
/// returns new URLs.
const MAX_ROUNDS: usize = 3;

/// Reason why a part was not uploaded.
enum PartError {
    /// The URL or the upload is no longer valid. A new batch request may help.
    Stale(HubError),
    Hard(HubError),
}

impl<E: Into<HubError>> From<E> for PartError {
    fn from(error: E) -> Self {
        Self::Hard(error.into())
    }
}

/// A message from an upload thread.
enum PartEvent {
    Advanced(i64),
    Failed(PartError),
}

impl Hub {
    /// Uploads all objects that the storage does not contain.
    ///
    /// `advanced` receives a number of bytes, and whether the storage already had them.
    ///
    /// # Errors
    /// If an object cannot be uploaded, or its file changes.
    pub(super) fn upload_objects(
        &self,
        repo: &RepoName,
        options: &PushOptions,
        objects: &[LfsObject<'_>],
        advanced: &mut dyn FnMut(i64, bool),
    ) -> Result<(), HubError> {
        let mut failure = None;
        for round in 0..MAX_ROUNDS {
            let lacking: Vec<&LfsObject<'_>> =
                objects.iter().filter(|object| !object.is_there.load(Ordering::SeqCst)).collect();
            if lacking.is_empty() {
                return Ok(());
            }
            if let Some(error) = &failure {
                tracing::info!("{error}; asking for another address");
                thread::sleep(self.http.retry_policy().pause);
            }
            let plans = self.plans(repo, options, &lacking)?;
            for (object, plan) in lacking.iter().zip(&plans) {
                if matches!(plan.method, UploadMethod::AlreadyStored) {
                    object.is_there.store(true, Ordering::SeqCst);
                    object.count(object.file.size(), &mut |bytes| advanced(bytes, round == 0));
                }
            }
            failure = self.send_round(&lacking, &plans, advanced)?;
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Uploads objects according to their plans. Returns the first error that a new batch request may
    /// resolve, if any.
    fn send_round(
        &self,
        objects: &[&LfsObject<'_>],
        plans: &[UploadPlan],
        advanced: &mut dyn FnMut(i64, bool),
    ) -> Result<Option<HubError>, HubError> {
        let mut tasks = Vec::new();
        for (&object, plan) in
            objects.iter().zip(plans).filter(|(_, plan)| !matches!(plan.method, UploadMethod::AlreadyStored))
        {
            let parts = object.tasks(&plan.method, &mut |bytes| advanced(bytes, false));
            tasks.extend(parts.into_iter().map(|part| (object, plan, part)));
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
            for _ in 0..PARALLEL_UPLOADS.min(tasks.len()) {
                let (tell, next, stop) = (tell.clone(), &next, &stop);
                scope.spawn(move || {
                    while let Some(&(object, plan, part)) = next() {
                        let done = self.send_part(object, plan, part, stop, &tell);
                        let done = done.and_then(|()| self.end_part(object, plan));
                        if let Err(failure) = done {
                            // The send fails if the receiver was dropped after another error.
                            let _ = tell.send(PartEvent::Failed(failure));
                        }
                    }
                });
            }
            drop(tell);
            let (mut stale, mut hard) = (None, None);
            for message in told {
                match message {
                    PartEvent::Advanced(bytes) => advanced(bytes, false),
                    PartEvent::Failed(PartError::Stale(error)) => stale = stale.or(Some(error)),
                    PartEvent::Failed(PartError::Hard(error)) => {
                        stop.store(true, Ordering::Relaxed);
                        hard = hard.or(Some(error));
                    }
                }
            }
            hard.map_or(Ok(stale), Err)
        })
    }

    /// Uploads one part or a whole file.
    fn send_part(
        &self,
        object: &LfsObject<'_>,
        plan: &UploadPlan,
        part: usize,
        stop: &AtomicBool,
        tell: &Sender<PartEvent>,
    ) -> Result<(), PartError> {
        let content = object.file.open()?;
        let size = object.file.size();
        let (url, start, len) = match &plan.method {
            UploadMethod::AlreadyStored => return Ok(()),
            UploadMethod::Basic(target) => (&target.url, 0, size),
            UploadMethod::Multipart { size: each, urls, .. } => {
                let start = part as u64 * each;
                (&urls[part], start, (size - start).min(*each))
            }
        };
        let advanced = |bytes: i64| {
            object.counted.fetch_add(bytes, Ordering::Relaxed);
            let _ = tell.send(PartEvent::Advanced(bytes));
        };
        let sent = Mutex::new(None);
        let slice =
            FilePart { of: object.file, content: &content, start, len, advanced: &advanced, stop, sent };
        let mut request = Request::put(url, &slice);
        if let UploadMethod::Basic(LfsAction { headers, .. }) = &plan.method {
            request.headers.clone_from(headers);
        }
        let response = arrived(&request, self.http.send(&request)?)?;
        if let UploadMethod::Multipart { .. } = &plan.method {
            let tag = response.header("etag").ok_or_else(|| request.fault("a part without an ETag"))?;
            let mut parts = object.parts.lock().expect("nothing panics while it is held");
            parts.1[part] = Some(tag.to_owned());
        } else if slice.sent.into_inner().expect("nothing panics while it is held").as_deref()
            != Some(object.oid)
        {
            return Err(object.file.changed().into());
        }
        Ok(())
    }

    /// Completes and verifies an upload after its last part was sent.
    fn end_part(&self, object: &LfsObject<'_>, plan: &UploadPlan) -> Result<(), PartError> {
        if object.left.fetch_sub(1, Ordering::SeqCst) != 1 {
            return Ok(());
        }
        let target = |url: &str| LfsAction { url: url.to_owned(), headers: Vec::new() };
        if let UploadMethod::Multipart { complete, .. } = &plan.method {
            let parts = object.parts.lock().expect("nothing panics while it is held").1.clone();
            let number = |(i, tag)| json!({ "partNumber": i + 1, "etag": tag });
            let parts: Vec<Value> = parts.into_iter().enumerate().map(number).collect();
            self.tell(&target(complete), &json!({ "oid": object.oid, "parts": parts }))?;
        }
        if let Some(verify) = &plan.verify {
            self.tell(verify, &json!({ "oid": object.oid, "size": object.file.size() }))?;
        }
        object.is_there.store(true, Ordering::SeqCst);
        Ok(())
    }

    fn tell(&self, target: &LfsAction, value: &Value) -> Result<(), PartError> {
        let body = value.to_string();
        let mut request = Request::post(&target.url, LFS, body.as_bytes());
        request.headers.push(("accept".into(), LFS.to_owned()));
        request.headers.extend(target.headers.iter().cloned());
        arrived(&request, self.http.send(&request)?).map(drop)
    }
}

/// Returns the response if its status is a success. A temporary error is final here, because
/// [`Http::send`](crate::http::Http::send) has already retried the request. Any other status is treated as an
/// expired URL or upload, because a new batch request may help.
fn arrived(request: &Request<'_>, mut response: Response) -> Result<Response, PartError> {
    if response.status.is_success() {
        return Ok(response);
    }
    let is_passing = response.is_passing().is_some();
    let (status, message) = (response.status.as_u16(), message(&mut response));
    let error = HubError::Status { host: request.host(), request: request.words(), status, message };
    Err(if is_passing { PartError::Hard(error) } else { PartError::Stale(error) })
}
