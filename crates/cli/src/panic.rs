//! The panic hook. A panic is a bug in danlu, and the process exits with code 2.
//!
//! One kind of panic is no bug: the standard library panics if the system refuses a thread.

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
        if is_refused_thread(&text) {
            let _ = writeln!(
                std::io::stderr(),
                "\nerror: cannot start a thread: {text}\n\nhint: raise the limits of this process (`ulimit -v`, \
                 `ulimit -u`, the container's), or use fewer `--threads`; what was saved before is whole",
            );
            std::process::exit(1);
        }
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

/// Returns whether a panic reports a thread that the system refused. These are the words of the standard
/// library, of rayon and of tokio.
fn is_refused_thread(text: &str) -> bool {
    [
        "failed to spawn thread",
        "failed to allocate an alternative stack",
        "failed to set up alternative stack guard page",
        "ThreadPoolBuildError",
        "OS can't spawn worker thread",
    ]
    .iter()
    .any(|words| text.contains(words))
}
