//! Colours of text in the terminal.

/// When to use colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    Always,
    Never,
}

/// Text styles. The output must be readable even without them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// For headings and important numbers.
    Bold,
    /// For secondary text.
    Dim,
    Green,
    /// For commands to type, and for the first series of a chart.
    Cyan,
    /// For warnings, and for the second series of a chart.
    Yellow,
    /// For errors.
    Red,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Cyan => "36",
            Self::Yellow => "33",
            Self::Red => "1;31",
        }
    }
}

pub fn paint(color: bool, style: Style, text: &str) -> String {
    if !color || text.is_empty() {
        return text.to_owned();
    }
    // Each line is coloured separately, because pagers reset colours at line ends.
    let paint = |line: &str| {
        if line.is_empty() { String::new() } else { format!("\x1b[{}m{line}\x1b[0m", style.code()) }
    };
    text.split('\n').map(paint).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paint_closes_its_colour_on_every_line() {
        assert_eq!(paint(true, Style::Green, "a\n\nb"), "\x1b[32ma\x1b[0m\n\n\x1b[32mb\x1b[0m");
        assert_eq!(paint(false, Style::Green, "a\nb"), "a\nb");
    }
}
