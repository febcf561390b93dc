//! The part of HTTP/1.1 that Hub clients use.
//!
//! Connections stay open. Bodies have a length or chunks. `Expect: 100-continue` and ranges work.

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
