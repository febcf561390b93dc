//! The verbs of the Hugging Face Hub.

pub mod account;
pub mod pull;
pub mod push;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use danlu_hub::{Hub, HubSettings};

use crate::diagnostic::Result;
use crate::printer::Printer;
use crate::style::Color;

/// The Hub that the environment configures. Pauses that it asks for are shown.
///
/// # Errors
/// If a variable has a fault.
pub fn open(printer: &Printer) -> Result<Hub> {
    Ok(Hub::new(HubSettings::from_env()?).on_wait(pauses(printer)))
}

/// Shows the time left of a pause: on the live line every second, elsewhere once.
pub fn pauses(printer: &Printer) -> impl Fn(&str, Duration, Duration) + Send + Sync + 'static {
    // Any of several threads may have to pause.
    let printer = Mutex::new(Printer::new(printer.lang, Color::Auto, false));
    move |host, left, of| {
        let printer = printer.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = left.as_secs_f64().ceil();
        let zh = format!("{host} 要求等待 {seconds} 秒，之后自动继续");
        let en = format!("{host} asks to wait {seconds} s, then it goes on");
        match (printer.has_live_line(), left.is_zero()) {
            (true, true) => printer.clear_live(),
            (true, false) => printer.live(&printer.pick(zh, en)),
            (false, _) if left == of => printer.status_bilingual(&zh, &en),
            (false, _) => {}
        }
    }
}
