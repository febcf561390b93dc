//! Ctrl-C: while something can be finished and saved the first asks and the second insists; at any other
//! time it ends the process at once.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::report::{Report, Result};
use crate::scratch;

static PRESSED: AtomicUsize = AtomicUsize::new(0);
static ATTENTIVE: AtomicBool = AtomicBool::new(false);

/// Exit code of a process that was told to stop: 128 + SIGINT, as shells count.
const ABORTED: i32 = 130;

/// While it lives, the first Ctrl-C (or SIGTERM, SIGHUP) is noted, and answered on stderr.
#[must_use]
#[derive(Debug)]
pub struct Attention(());

impl Drop for Attention {
    fn drop(&mut self) {
        ATTENTIVE.store(false, Ordering::SeqCst);
        forget();
    }
}

/// Listens until the result is dropped; the first signal prints `answer`, where there is one.
///
/// # Errors
/// If the operating system refuses the handler.
pub fn listen(answer: Option<String>) -> Result<Attention> {
    static STARTED: Once = Once::new();
    static ANSWER: std::sync::Mutex<Option<String>> = std::sync::Mutex::new(None);
    let lock = || ANSWER.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    *lock() = answer;
    PRESSED.store(0, Ordering::SeqCst);
    ATTENTIVE.store(true, Ordering::SeqCst);
    let mut outcome = Ok(());
    STARTED.call_once(|| {
        // Under `nohup` a closing terminal is to be ignored, and stays so.
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&s| s != SIGHUP || !hangup_is_ignored());
        let signals = Signals::new(wanted).and_then(|mut signals| {
            let watch = move || {
                for _ in signals.forever() {
                    let first = PRESSED.fetch_add(1, Ordering::SeqCst) == 0;
                    if !first || !ATTENTIVE.load(Ordering::SeqCst) {
                        scratch::remove_all();
                        std::process::exit(ABORTED);
                    }
                    if let Some(answer) = &*lock() {
                        // Where stderr is closed nobody waits for an answer.
                        let _ = writeln!(std::io::stderr(), "\n{answer}");
                    }
                }
            };
            std::thread::Builder::new().name("signals".to_owned()).spawn(watch)
        });
        outcome = signals.map(drop);
    });
    outcome.map_err(|error| Report::ours(format!("cannot listen for Ctrl-C: {error}")))?;
    Ok(Attention(()))
}

/// Lets a write beyond `ulimit -f` fail with an error, which is reported and cleaned up after, instead of ending the
/// process.
pub fn survive_file_limits() {
    // Without a handler the old way stays, which loses nothing but the message.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Whether someone asked to stop.
pub fn requested() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// As whoever reports progress to us wants to know it.
pub fn flow() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Forgets the request: it was for a reply, not for the session.
pub fn forget() {
    PRESSED.store(0, Ordering::SeqCst);
}

/// Whether whoever started the process wants SIGHUP ignored, as `nohup` does. Linux tells; elsewhere no.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (SIGHUP - 1)) != 0
}
