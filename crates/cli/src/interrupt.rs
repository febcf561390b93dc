//! Handles Ctrl-C. During a [`GracefulStop`], the first Ctrl-C requests a clean stop, and the second Ctrl-C
//! exits. At any other time, the first Ctrl-C exits. SIGTERM and SIGHUP are handled as Ctrl-C.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use crate::diagnostic::{Diagnostic, Result};
use crate::temp_dirs;

/// The text to print if a signal ends the process.
static EXIT_MESSAGE: Mutex<Option<String>> = Mutex::new(None);
static PRESSED: AtomicUsize = AtomicUsize::new(0);
/// Whether a signal requested a clean stop of the running command.
static STOPPED: AtomicBool = AtomicBool::new(false);
static ATTENTIVE: AtomicBool = AtomicBool::new(false);

/// Exit code after an interrupt: 128 + SIGINT, as in shells.
pub const ABORTED: u8 = 130;

/// While this value exists, the first Ctrl-C, SIGTERM or SIGHUP sets a flag instead of ending the process.
#[must_use]
#[derive(Debug)]
pub struct GracefulStop(());

impl Drop for GracefulStop {
    fn drop(&mut self) {
        ATTENTIVE.store(false, Ordering::SeqCst);
        PRESSED.store(0, Ordering::SeqCst);
    }
}

/// While this value exists, its text is printed if a signal ends the process.
#[must_use]
#[derive(Debug)]
pub struct ExitMessage(());

impl Drop for ExitMessage {
    fn drop(&mut self) {
        *lock(&EXIT_MESSAGE) = None;
    }
}

/// Prints `words` if a signal ends the process. Dropping the returned value removes the text.
///
/// # Errors
/// If the operating system refuses the handler.
pub fn exit_message(words: String) -> Result<ExitMessage> {
    *lock(&EXIT_MESSAGE) = Some(words);
    start()?;
    Ok(ExitMessage(()))
}

/// The terminal settings to restore if a signal ends the process.
static TERMINAL: Mutex<Option<Termios>> = Mutex::new(None);

/// While this value exists, a signal that ends the process restores the terminal settings.
#[must_use]
#[derive(Debug)]
pub struct SavedTerminal(());

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        *TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Restores `settings` of the terminal on standard input if a signal ends the process. Dropping the returned
/// value ends this.
pub fn save_terminal(settings: Termios) -> SavedTerminal {
    *TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) = Some(settings);
    SavedTerminal(())
}

static ANSWER: Mutex<Option<String>> = Mutex::new(None);

fn lock(text: &'static Mutex<Option<String>>) -> MutexGuard<'static, Option<String>> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Turns the first signal into a stop request until the returned value is dropped. Prints `answer` when the
/// signal arrives.
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

/// Starts the signal thread, unless it runs already.
fn start() -> Result<()> {
    static STARTED: Mutex<bool> = Mutex::new(false);
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let mut outcome = Ok(());
    if !*started {
        // `nohup` makes the process ignore SIGHUP. In this case, danlu must not handle the signal.
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
                    STOPPED.store(true, Ordering::SeqCst);
                    if let Some(answer) = &*lock(&ANSWER) {
                        // A failed write is ignored, because nothing can be reported if stderr is closed.
                        let _ = writeln!(std::io::stderr(), "\n{answer}");
                    }
                }
            };
            std::thread::Builder::new().name("signals".to_owned()).spawn(watch)
        });
        outcome = signals.map(drop);
        *started = outcome.is_ok();
    }
    outcome.map_err(|error| {
        Diagnostic::input(format!("cannot listen for Ctrl-C: {error}"))
            .with_hint("raise the limits on threads and open files with `ulimit -u` and `ulimit -n`")
    })
}

/// Handles signals from the start of the process, so that each signal ends it with the same exit code and
/// leaves no temporary folder.
pub fn exit_on_signals() {
    // Without a thread for the handler, a signal ends the process as the system does by default.
    let _ = start();
}

/// Makes a write beyond `ulimit -f` return an error. By default such a write ends the process.
pub fn survive_file_limits() {
    // If the handler is not installed, a write beyond the limit ends the process without a message.
    let _ = signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// Removes the temporary folders, and exits with the code of an interrupt.
pub fn exit_interrupted() -> ! {
    if let Some(settings) = &*TERMINAL.lock().unwrap_or_else(PoisonError::into_inner) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, settings);
    }
    temp_dirs::remove_all();
    std::process::exit(ABORTED.into());
}

pub fn requested() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}

/// Returns `ControlFlow::Break` after a stop request. Progress callbacks return this value.
pub fn check() -> ControlFlow<()> {
    if requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}

/// Returns whether a signal stopped the command. Unlike [`requested`], the result stays true after the
/// [`GracefulStop`] is dropped.
pub fn stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// Clears the stop request. A chat calls this function before each reply, so that Ctrl-C stops one reply and
/// not the chat.
pub fn clear() {
    STOPPED.store(false, Ordering::SeqCst);
    PRESSED.store(0, Ordering::SeqCst);
}

/// Returns whether the process was started with SIGHUP ignored, as `nohup` does. Always returns `false`
/// outside Linux.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << (SIGHUP - 1)) != 0
}
