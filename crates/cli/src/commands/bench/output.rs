//! Prints the result of a measurement as a table or as one JSON object.

use serde_json::{Map, Number, Value};

use super::median;
use crate::printer::Printer;
use crate::style::Style;
use crate::terminal_text;

/// Width of the column with the names, in cells.
const NAME: usize = 16;

/// Collects and prints the results.
///
/// The table shows the job before the measurement, and a few results after the measurement. With `--json`,
/// all results are printed to stdout as one line of JSON, and the table is printed to stderr.
pub struct BenchOutput<'a> {
    printer: &'a Printer,
    json: bool,
    values: Map<String, Value>,
}

impl<'a> BenchOutput<'a> {
    /// Creates the output of a subcommand of `danlu bench`. `bench` is its name, such as `decode`.
    pub fn new(bench: &str, json: bool, printer: &'a Printer) -> Self {
        let mut figures = Self { printer, json, values: Map::new() };
        figures.set("bench", bench);
        figures.set("version", env!("CARGO_PKG_VERSION"));
        figures
    }

    /// Sets a value of the JSON object.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.values.insert(key.to_owned(), value.into());
    }

    /// Sets a measured value of the JSON object, rounded to six significant digits. A missing value becomes
    /// null.
    pub fn measured(&mut self, key: &str, value: impl Into<Option<f64>>) {
        let value = value.into().and_then(|v| format!("{v:.5e}").parse().ok().and_then(Number::from_f64));
        self.set(key, value.map_or(Value::Null, Value::Number));
    }

    /// Prints a row of the table. `name` is the name of the row in both languages.
    pub fn row(&self, name: (&str, &str), value: &str) {
        let name = terminal_text::pad(self.printer.pick(name.0, name.1), NAME);
        match self.json {
            true => self.printer.status(&format!("{} {value}", self.printer.paint_status(Style::Dim, &name))),
            false => self.printer.data(&format!("{} {value}", self.printer.paint_data(Style::Dim, &name))),
        }
    }

    /// Prints a row as [`BenchOutput::row`] does, but in bold unless `--json` is given.
    pub fn result(&self, name: (&str, &str), value: &str) {
        match self.json {
            true => self.row(name, value),
            false => self.row(name, &self.printer.paint_data(Style::Bold, value)),
        }
    }

    /// Reports the median and the maximum of `times`, in seconds per `unit`. `say` formats these two values
    /// for the table.
    pub fn times(
        &mut self,
        name: (&str, &str),
        unit: &str,
        times: &[f64],
        (runs, warm_up): (usize, u64),
        say: impl Fn(&str, &str) -> String,
    ) {
        let (middle, slowest) = (median(times.iter().copied()), times.iter().copied().fold(0.0, f64::max));
        self.result(name, &say(&seconds(middle, self.printer), &seconds(slowest, self.printer)));
        self.set("steps", runs);
        self.set("warm_up", warm_up);
        self.measured(&format!("median_{unit}_seconds"), middle);
        self.measured(&format!("slowest_{unit}_seconds"), slowest);
    }

    /// Prints the JSON object, if requested.
    pub fn finish(self) {
        if self.json {
            self.printer.data(&Value::Object(self.values).to_string());
        }
    }
}

/// Formats a rate: `0.52`, `12.4`, `1,372`.
pub fn rate(value: f64) -> String {
    match value {
        v if v < 1.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => terminal_text::thousands(v.round() as u64),
    }
}

/// Formats a time in seconds, or in milliseconds if the time is below 0.1 seconds.
pub fn seconds(value: f64, printer: &Printer) -> String {
    match value {
        v if v < 0.1 => printer.pick(format!("{:.2} 毫秒", 1e3 * v), format!("{:.2} ms", 1e3 * v)),
        v => printer.pick(format!("{v:.3} 秒"), format!("{v:.3} s")),
    }
}

/// Returns `of` as a share of the peak, if the peak is known.
pub fn share(of: f64, peak: Option<f64>) -> Option<f64> {
    peak.filter(|&peak| peak > 0.0).map(|peak| of / peak)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lang::Lang;
    use crate::style::Color;

    #[test]
    fn rates_keep_three_digits_or_more() {
        for (value, text) in [(0.523, "0.52"), (12.44, "12.4"), (99.96, "100.0"), (1371.6, "1,372")] {
            assert_eq!(rate(value), text);
        }
    }

    #[test]
    fn measured_figures_have_six_digits_and_may_be_absent() {
        let printer = Printer::new(Lang::En, Color::Never, false);
        let mut figures = BenchOutput::new("train", true, &printer);
        figures.measured("a", 1_234.567_891);
        figures.measured("b", None);
        figures.measured("c", f64::NAN);
        figures.measured("d", 3.0);
        assert_eq!(figures.values["a"].to_string(), "1234.57");
        assert!(figures.values["b"].is_null() && figures.values["c"].is_null());
        assert_eq!(figures.values["d"].to_string(), "3.0");
    }
}
