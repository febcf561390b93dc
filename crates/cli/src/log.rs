//! Prints log events of the libraries. Warnings are always printed, and other events only with `--verbose`.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::printer::Printer;
use crate::style::{Style, paint};

/// Writes each event to stderr as one line.
struct Stderr {
    level: Level,
    color: bool,
}

pub fn install(printer: &Printer) {
    let level = if printer.verbose { Level::DEBUG } else { Level::WARN };
    // Setting the subscriber a second time fails. This happens only in tests.
    let _ = tracing::subscriber::set_global_default(Stderr { level, color: printer.status_color() });
}

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("danlu") && *metadata.level() <= self.level
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line::default();
        event.record(&mut line);
        let (style, name) = match *event.metadata().level() {
            Level::ERROR | Level::WARN => (Style::Yellow, "warning:"),
            _ => (Style::Dim, "note:"),
        };
        let _ = writeln!(io::stderr(), "{} {}{}", paint(self.color, style, name), line.message, line.fields);
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// Formats an event as its message, followed by its fields as ` name=value`.
#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.fields, " {name}={value:?}"),
        };
    }
}
