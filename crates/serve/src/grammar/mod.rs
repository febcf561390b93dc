//! Constrains replies to a JSON schema or to tool calls.
//!
//! ```text
//! response_format, tools ─► Lark grammar ─► Matcher ─► mask of the next token ─► logits
//!                           lark             GrammarFactory       TokenMask
//! ```
//!
//! A schema from a client may need unlimited time and memory to compile. The schema is therefore checked
//! first, and compiled on a separate thread with limits of time and memory.

mod factory;
mod json_schema;
mod lark;
mod token_mask;

pub(crate) use factory::GrammarFactory;
pub(crate) use json_schema::check_schema;
pub(crate) use lark::{calls_grammar, json_grammar};
pub(crate) use token_mask::{MaskWorker, TokenMask, Trigger};
