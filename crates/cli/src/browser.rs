//! Opens pages in the browser of the desktop.

use std::ffi::OsStr;
use std::process::{Command, Stdio};

use crate::printer::Printer;

const OPENER: &str = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };

/// Opens a URL or a file. If no program can open it, only a warning is printed, because the user can open the
/// page by hand.
pub fn open(page: impl AsRef<OsStr>, printer: &Printer) {
    let page = page.as_ref();
    let quiet = || Stdio::null();
    let started = Command::new(OPENER).arg(page).stdin(quiet()).stdout(quiet()).stderr(quiet()).spawn();
    if let Err(error) = started {
        let page = page.to_string_lossy();
        printer.warn(&printer.pick(
            format!("无法启动浏览器（{OPENER}：{error}），请自己打开 {page}"),
            format!("cannot start a browser ({OPENER}: {error}): open {page} yourself"),
        ));
    }
}
