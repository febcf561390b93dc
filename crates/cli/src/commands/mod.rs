//! One file per subcommand, with its flags.

pub mod bench;
pub mod card;
pub mod chat;
pub mod compare;
pub mod completions;
pub mod config;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod explain;
pub mod hub;
pub mod merge;
pub mod new;
pub mod plan;
pub mod quantization_progress;
pub mod quantize;
pub mod report;
pub mod serve;
pub mod train;
