//! Runs the program with a stack of known size.
//!
//! `ulimit -s` limits the stack of the main thread only. The parser of the command line and readers of nested
//! files can exceed a stack below a megabyte. A signal would then end the process. A small `RUST_MIN_STACK`
//! has the same effect on all other threads, so [`run`] removes this variable.

use std::process::ExitCode;
use std::thread;
use std::{env, io};

use rustix::process::{Resource, getrlimit};

/// Stack of the program in bytes: the usual limit of the main thread on Linux.
const MIN_STACK_BYTES: usize = 8 << 20;

/// Runs `program`. If the limit on the main thread's stack is below [`MIN_STACK_BYTES`], the program runs on
/// a thread with a stack of that size. `main` must call this function before it starts a thread.
///
/// # Errors
/// If the system cannot start the thread.
pub fn run(program: fn() -> ExitCode) -> io::Result<ExitCode> {
    // SAFETY: no other thread exists that could read the environment at the same time.
    unsafe { env::remove_var("RUST_MIN_STACK") };
    // `None` means that the stack is unlimited.
    let limit = getrlimit(Resource::Stack).current.unwrap_or(u64::MAX);
    if limit >= MIN_STACK_BYTES as u64 {
        return Ok(program());
    }
    let thread = thread::Builder::new().name("main".to_owned()).stack_size(MIN_STACK_BYTES).spawn(program)?;
    // The panic hook ends the process, so a thread that ends has returned its code.
    Ok(thread.join().unwrap_or(ExitCode::from(2)))
}
