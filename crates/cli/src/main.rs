//! The `danlu` command.
fn main() {}
