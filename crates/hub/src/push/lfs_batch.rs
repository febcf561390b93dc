//! The batch request of git-lfs, which returns a plan for the upload of each object. An object is the content
//! of a large file.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::http::Request;
use crate::http::Resource;
use crate::http::url::is_address;
use crate::transfer::signed;
use crate::{Hub, HubError, PushOptions, RepoName, UploadFile};

const MAX_OBJECTS_PER_BATCH: usize = 100;

/// Maximum number of parts of a file. S3 has the same limit.
const MAX_PARTS: u64 = 10_000;

/// Content type of git-lfs requests.
pub(super) const LFS: &str = "application/vnd.git-lfs+json";

/// Headers that only this client may set. The client rejects a plan of the Hub that contains one of them.
const OWN: [&str; 5] = ["content-length", "transfer-encoding", "host", "connection", "expect"];

/// A URL with the headers of its request.
#[derive(Clone, Debug)]
pub(super) struct LfsAction {
    pub url: String,
    pub headers: Vec<(Cow<'static, str>, String)>,
}

#[derive(Clone, Debug)]
pub(super) enum UploadMethod {
    /// The storage already contains the object.
    AlreadyStored,
    /// The object is uploaded in one request.
    Basic(LfsAction),
    /// The object is uploaded in parts of `size` bytes, one request each. Another request completes the
    /// upload.
    Multipart { size: u64, urls: Vec<String>, complete: String },
}

/// A file to upload to storage.
#[derive(Debug)]
pub(super) struct LfsObject<'a> {
    pub file: &'a UploadFile,
    pub oid: &'a str,
    /// For a multipart upload: the URL that completes it, and the ETag of each uploaded part.
    pub parts: Mutex<(String, Vec<Option<String>>)>,
    /// Number of parts that are not uploaded yet.
    pub left: AtomicUsize,
    /// Number of bytes that were reported as progress.
    pub counted: AtomicI64,
    pub is_there: AtomicBool,
}

/// The Hub's plan for an object.
#[derive(Clone, Debug)]
pub(super) struct UploadPlan {
    pub method: UploadMethod,
    /// The request that verifies the upload, if the Hub requires one.
    pub verify: Option<LfsAction>,
}

#[derive(Deserialize)]
struct LfsBatch {
    objects: Vec<BatchObject>,
}

#[derive(Deserialize)]
struct BatchObject {
    oid: String,
    error: Option<Value>,
    actions: Option<Actions>,
}

#[derive(Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: Option<BTreeMap<String, Value>>,
}

impl<'a> LfsObject<'a> {
    pub fn new(file: &'a UploadFile, oid: &'a str) -> Self {
        let parts = Mutex::new((String::new(), Vec::new()));
        let (left, counted, is_there) = Default::default();
        Self { file, oid, parts, left, counted, is_there }
    }

    /// Sets the reported progress of this object to `bytes`.
    pub fn count(&self, bytes: u64, advanced: &mut dyn FnMut(i64)) {
        let bytes = signed(bytes);
        let before = self.counted.swap(bytes, Ordering::Relaxed);
        if bytes != before {
            advanced(bytes - before);
        }
    }

    /// Returns the parts that must still be uploaded, and corrects the reported progress.
    pub fn tasks(&self, method: &UploadMethod, advanced: &mut dyn FnMut(i64)) -> Vec<usize> {
        let mut to_send = self.file.size();
        let tasks = match method {
            UploadMethod::AlreadyStored => Vec::new(),
            UploadMethod::Basic(_) => vec![0],
            UploadMethod::Multipart { size, urls, complete } => {
                let mut parts = self.parts.lock().expect("nothing panics while it is held");
                if parts.0 != *complete || parts.1.len() != urls.len() {
                    *parts = (complete.clone(), vec![None; urls.len()]);
                }
                let mut tasks: Vec<usize> = (0..urls.len()).filter(|&i| parts.1[i].is_none()).collect();
                if tasks.is_empty() {
                    // All parts are uploaded, but the completion failed. Uploading the last part again also
                    // repeats the completion.
                    tasks.push(urls.len() - 1);
                }
                let len = |&i: &usize| (self.file.size() - i as u64 * size).min(*size);
                to_send = tasks.iter().map(len).sum();
                tasks
            }
        };
        self.count(self.file.size() - to_send, advanced);
        self.left.store(tasks.len(), Ordering::SeqCst);
        tasks
    }
}

impl Hub {
    /// Requests an upload plan for each object.
    pub(super) fn plans(
        &self,
        repo: &RepoName,
        options: &PushOptions,
        objects: &[&LfsObject<'_>],
    ) -> Result<Vec<UploadPlan>, HubError> {
        let url = format!("{}/{}.git/info/lfs/objects/batch", self.http.endpoint(), repo.id());
        let mut plans = Vec::new();
        for objects in objects.chunks(MAX_OBJECTS_PER_BATCH) {
            let named: Vec<Value> = objects
                .iter()
                .map(|object| json!({ "oid": object.oid, "size": object.file.size() }))
                .collect();
            let mut wish = json!({
                "operation": "upload",
                "transfers": ["basic", "multipart"],
                "hash_algo": "sha256",
                "objects": named,
            });
            if !options.create_pr {
                wish["ref"] = json!({ "name": repo.revision() });
            }
            let wish = wish.to_string();
            let mut request = Request::post(&url, LFS, wish.as_bytes());
            request.headers.push(("accept".into(), LFS.to_owned()));
            let batch: LfsBatch = self.json(&request, Resource::Repo(repo))?;
            let told: BTreeMap<&str, &BatchObject> =
                batch.objects.iter().map(|object| (object.oid.as_str(), object)).collect();
            for object in objects {
                let told = told.get(object.oid).ok_or_else(|| {
                    request.fault(format!("no entry for the object of {:?}", object.file.path()))
                })?;
                plans.push(self.plan(object, told).map_err(|reason| request.fault(reason))?);
            }
        }
        Ok(plans)
    }

    fn plan(&self, object: &LfsObject<'_>, told: &BatchObject) -> Result<UploadPlan, String> {
        let path = object.file.path();
        if let Some(error) = &told.error {
            let said = error["message"].as_str().unwrap_or("an error").chars().take(200);
            return Err(format!("{path:?}: {}", said.filter(|c| !c.is_control()).collect::<String>()));
        }
        let Some(Actions { upload: Some(upload), verify }) = &told.actions else {
            return Ok(UploadPlan { method: UploadMethod::AlreadyStored, verify: None });
        };
        let verify = verify.as_ref().map(|action| self.target(action)).transpose()?;
        let header = |name: &str| upload.header.as_ref()?.get(name);
        let Some(size) = header("chunk_size") else {
            return Ok(UploadPlan { method: UploadMethod::Basic(self.target(upload)?), verify });
        };
        let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|&size| size > 0);
        let Some(size) = size else { return Err(format!("no size for the parts of {path:?}")) };
        let mut urls: Vec<(u64, String)> = Vec::new();
        for (name, value) in upload.header.iter().flatten() {
            if let (Ok(number), Some(url)) = (name.parse(), value.as_str()) {
                urls.push((number, self.address(url)?));
            }
        }
        urls.sort();
        let count = object.file.size().div_ceil(size);
        let is_whole = urls.iter().map(|&(number, _)| number).eq(1..=count);
        if !is_whole || count > MAX_PARTS {
            return Err(format!("{} URLs for the {count} parts of {path:?}", urls.len()));
        }
        let urls = urls.into_iter().map(|(_, url)| url).collect();
        Ok(UploadPlan {
            method: UploadMethod::Multipart { size, urls, complete: self.address(&upload.href)? },
            verify,
        })
    }

    fn target(&self, action: &Action) -> Result<LfsAction, String> {
        let own = |name: &str| OWN.iter().any(|own| own.eq_ignore_ascii_case(name));
        let headers = action.header.iter().flatten().filter(|(name, _)| !own(name));
        let headers =
            headers.filter_map(|(name, value)| Some((name.clone().into(), value.as_str()?.to_owned())));
        Ok(LfsAction { url: self.address(&action.href)?, headers: headers.collect() })
    }

    fn address(&self, url: &str) -> Result<String, String> {
        match is_address(url, self.http.endpoint()) {
            true => Ok(url.to_owned()),
            false => Err("an upload URL that is invalid or not encrypted".to_owned()),
        }
    }
}
