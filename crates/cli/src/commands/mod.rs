//! One file per verb: its flags, what they settle to, and what it does.

pub mod base;
mod base_identity;
pub mod bench;
pub mod card;
pub mod chat;
pub mod compare;
pub mod data;
pub mod demo;
pub mod doctor;
pub mod hub;
pub mod loaded;
pub mod merge;
pub mod nearby;
pub mod no_model;
pub mod other_base;
pub mod plan;
pub mod quantize;
pub mod tokens;
pub mod train;
