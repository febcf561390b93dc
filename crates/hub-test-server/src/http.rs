//! HTTP/1.1, limited to what Hub clients use.
//!
//! Connections stay open after a response. A body has a length or is sent in chunks. `Expect: 100-continue`
//! and ranges are supported.

mod body;
mod head;
mod range;
mod response;
mod target;

pub(crate) use body::Body;
pub(crate) use head::{Head, read_head};
pub(crate) use range::{Range, parse_range};
pub(crate) use response::{Content, Response, reason};
pub(crate) use target::{Target, encode, parse_form};
