//! Tools that the model may call.

mod call_format;
mod call_scanner;

use serde_json::Value;

pub(crate) use call_format::{CallFormat, CallPart};
pub(crate) use call_scanner::{CallPiece, CallScanner, Scanned, ToolCall, whole_calls};

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ToolDefinition {
    pub name: String,
    /// JSON schema of the arguments.
    pub parameters: Value,
    /// The definition for the chat template, as the client sent it.
    pub definition: Value,
}
