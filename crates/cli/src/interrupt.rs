//! Ctrl-C: while something can be finished and saved the first asks and the second insists; at any other
//! time it ends the process at once.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::diagnostic::{Diagnostic, Result};
use crate::temp_dirs;

/// What is said where a signal ends the process.
static EXIT_MESSAGE: Mutex<Option<String>> = Mutex::new(None);
static PRESSED: AtomicUsize = AtomicUsize::new(0);
static ATTENTIVE: AtomicBool = AtomicBool::new(false);

/// Exit code of a process that was told to stop: 128 + SIGINT, as shells count.
const ABORTED: i32 = 130;

/// While it lives, the first Ctrl-C (or SIGTERM, SIGHUP) is noted, and answered on stderr.
#[must_use]
#[derive(Debug)]
pub struct GracefulStop(());

impl Drop for GracefulStop {
    fn drop(&mut self) {
        ATTENTIVE.store(false, Ordering::SeqCst);
        clear();
    }
}

/// While it lives, a signal that ends the process says so.
#[must_use]
#[derive(Debug)]
pub struct ExitMessage(());

impl Drop for ExitMessage {
    fn drop(&mut self) {
        *lock(&EXIT_MESSAGE) = None;
    }
}

/// Until the result is dropped, whatever ends the process prints `words`.
///
/// # Errors
/// If the operating system refuses the handler.
pub fn exit_message(words: String) -> Result<ExitMessage> {
    *lock(&EXIT_MESSAGE) = Some(words);
    start()?;
    Ok(ExitMessage(()))
}

static ANSWER: Mutex<Option<String>> = Mutex::new(None);

fn lock(text: &'static Mutex<Option<String>>) -> MutexGuard<'static, Option<String>> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Listens until the result is dropped; the first signal prints `answer`, where there is one.
///
/// # Errors
/// If the operating system refuses the handler.
pub fn graceful_stop(answer: Option<String>) -> Result<GracefulStop> {
    *lock(&ANSWER) = answer;
    PRESSED.store(0, Ordering::SeqCst);
    ATTENTIVE.store(true, Ordering::SeqCst);
    start()?;
    Ok(GracefulStop(()))
}

/// Starts the thread that hears signals, once.
fn start() -> Result<()> {
    static STARTED: Once = Once::new();
    let mut outcome = Ok(());
    STARTED.call_once(|| {
        // Under `nohup` a closing terminal is to be ignored, and stays so.
        let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&s| s != SIGHUP || !hangup_is_ignored());
        let signals = Signals::new(wanted).and_then(|mut signals| {
            let watch = move || {
                for _ in signals.forever() {
                    let first = PRESSED.fetch_add(1, Ordering::SeqCst) == 0;
                    if !first || !ATTENTIVE.load(Ordering::SeqCst) {
                        if let Some(words) = &*lock(&EXIT_MESSAGE) {
                            let _ = writeln!(std::io::stderr(), "\n{words}");
                        }
                        exit_interrupted();
                    }
                    if let Some(answer) = &*lock(&ANSWER) {
                        // Where stderr is closed nobody waits for an answer.
                        let _ = writeln!(std::io::stderr(), "\n{answer}");
                    }
                }
            };
            std::thread::Builder::new().name("signals".to_owned()).spawn(watch)
        });
        outcome = signals.map(drop);
    });
    outcome.map_err(|error| Diagnostic::bug(format!("cannot listen for Ctrl-C: {error}")))
}

/// Lets a write beyond `ulimit -f` fail with an error, which is reported and cleaned up after, instead of ending the
/// process.
pub fn survive_file_limits() {
    // Without a handler the old way stays, which loses nothing but the message.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Ends the process as a signal would, after what could be saved is.
pub fn exit_interrupted() -> ! {
    temp_dirs::remove_all();
    std::process::exit(ABORTED);
}

/// Whether someone asked to stop.
pub fn requested() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// As whoever reports progress to us wants to know it.
pub fn check() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Forgets the request: it was for a reply, not for the session.
pub fn clear() {
    PRESSED.store(0, Ordering::SeqCst);
}

/// Whether whoever started the process wants SIGHUP ignored, as `nohup` does. Linux tells; elsewhere no.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (SIGHUP - 1)) != 0
}
