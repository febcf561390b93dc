//! Held-out records and what a model makes of them: losses and replies.

pub mod held_out;
pub mod held_out_file;
pub mod losses;
pub mod replies;
