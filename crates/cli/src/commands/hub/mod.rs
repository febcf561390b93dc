//! Subcommands for the Hugging Face Hub.

pub mod account;
pub mod pull;
pub mod push;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use danlu_hub::{Hub, HubSettings};

use crate::diagnostic::Result;
use crate::printer::Printer;
use crate::style::Color;

/// Opens a client of the Hub with the settings of the environment. The client shows its pauses before
/// retries.
///
/// # Errors
/// If an environment variable is invalid.
pub fn open(printer: &Printer) -> Result<Hub> {
    Ok(Hub::new(HubSettings::from_env()?).on_wait(pauses(printer)))
}

/// Returns a callback that shows the remaining time of a pause before a retry. On a live line, the time is
/// updated. Without a live line, the time is printed once.
pub fn pauses(printer: &Printer) -> impl Fn(&str, Duration, Duration) + Send + Sync + 'static {
    // Several threads may pause at once, and a lock keeps their messages apart.
    let printer = Mutex::new(Printer::new(printer.lang, Color::Auto, false));
    move |host, left, of| {
        let printer = printer.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = left.as_secs_f64().ceil();
        let zh = format!("{host} 限制了请求频率：{seconds} 秒后自动重试");
        let en = format!("{host} limits requests: retrying in {seconds} s");
        match (printer.has_live_line(), left.is_zero()) {
            (true, true) => printer.clear_live(),
            (true, false) => printer.live(&printer.pick(zh, en)),
            (false, _) if left == of => printer.status_bilingual(&zh, &en),
            (false, _) => {}
        }
    }
}
