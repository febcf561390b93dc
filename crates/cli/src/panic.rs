//! The panic hook. A panic is a bug in danlu, and the process exits with code 2.

use std::io::Write;

use crate::terminal_text;

/// Replaces Rust's panic message. A panic in any thread ends the process, except in calls that catch panics,
/// such as the decoding of Parquet.
pub fn install() {
    std::panic::set_hook(Box::new(|info| {
        if danlu_data::is_decoding_parquet() || danlu_model::is_panic_caught() {
            return;
        }
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text =
            text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "panic".to_owned());
        let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
        // The message may quote the content of a file, so control characters are removed.
        let text = terminal_text::printable(&text);
        // A file gets its final name only after it is complete, so this exit leaves no incomplete file.
        let _ = writeln!(
            std::io::stderr(),
            "\nerror: danlu {}: internal error: {text} ({place})\n\nhint: this is a bug in danlu, and files saved before are intact; \
             report it with the command line and this message",
            env!("CARGO_PKG_VERSION"),
        );
        std::process::exit(2);
    }));
}
