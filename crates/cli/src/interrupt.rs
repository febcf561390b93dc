//! Ctrl-C: the first asks, the second insists.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::report::{Report, Result};
use crate::scratch;

static PRESSED: AtomicUsize = AtomicUsize::new(0);

/// Exit code of a process that was told twice: 128 + SIGINT, as shells count.
const ABORTED: i32 = 130;

/// From now on the first Ctrl-C (or SIGTERM, SIGHUP) is only noted, and the second ends the process at once.
///
/// # Errors
/// If the operating system refuses the handler.
pub fn listen() -> Result<()> {
    let handler = || {
        if PRESSED.fetch_add(1, Ordering::SeqCst) > 0 {
            scratch::remove_all();
            std::process::exit(ABORTED);
        }
    };
    ctrlc::set_handler(handler).map_err(|error| Report::ours(format!("cannot listen for Ctrl-C: {error}")))
}

/// Whether someone asked to stop.
pub fn requested() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// Forgets the request: it was for a reply, not for the session.
pub fn forget() {
    PRESSED.store(0, Ordering::SeqCst);
}
