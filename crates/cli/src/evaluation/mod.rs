//! Evaluation on held-out records: losses and replies.

pub mod held_out;
pub mod held_out_file;
pub mod losses;
pub mod replies;
