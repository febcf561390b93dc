//! A line chart as inline SVG, with axes, thin and solid lines, points, and data for tooltips.

use std::borrow::Cow;
use std::fmt::Write as _;

use serde_json::json;

use super::escape;

const MARGIN_LEFT: f64 = 62.0;
const MARGIN_RIGHT: f64 = 18.0;
const MARGIN_TOP: f64 = 12.0;
const MARGIN_BOTTOM: f64 = 34.0;

/// Height of the legend in a chart file, in pixels.
const KEY: f64 = 30.0;

/// Maximum number of points in a series. This limit is about two points per pixel, and bounds the file size
/// for a long run.
const MAX_POINTS: usize = 1500;

/// Drawing style of a series.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// A thin, pale line for raw values.
    Faint,
    /// A solid line.
    Line,
    /// Rings that are connected by a dashed line.
    Points,
}

impl Style {
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Faint => "faint",
            Self::Line => "firm",
            Self::Points => "dashed",
        }
    }
}

/// The values of one quantity at different steps.
#[derive(Clone, Debug)]
pub(crate) struct Series {
    pub name: Cow<'static, str>,
    pub style: Style,
    /// CSS class of the colour, `a` to `f`.
    pub colour: char,
    pub points: Vec<(f64, f64)>,
}

/// A chart with the step on the horizontal axis.
#[derive(Clone, Debug)]
pub(crate) struct Chart {
    pub label: &'static str,
    pub x_label: &'static str,
    pub width: f64,
    pub height: f64,
    /// Whether the vertical axis starts at zero.
    pub from_zero: bool,
    pub series: Vec<Series>,
}

impl Chart {
    /// Returns the `<svg>` element. The text is empty if there are no points.
    pub fn svg(&self) -> String {
        let Some((series, x, y)) = self.drawable() else { return String::new() };
        let mut svg = String::new();
        let (width, height) = (self.width, self.height);
        let (label, step) = (escape(self.label), escape(self.x_label));
        let wide = if width > 600.0 { " wide" } else { "" };
        let hover = escape(&hover_data(&series, &x).to_string());
        write!(
            svg,
            r#"<svg class="chart{wide}" viewBox="0 0 {width} {height}" role="img" aria-label="{label}" data-step="{step}" data-hover="{hover}">"#
        )
        .expect("a string takes everything");
        self.draw(&mut svg, &series, &x, &y);
        let (top, bottom) = (MARGIN_TOP, height - MARGIN_BOTTOM);
        let _ = write!(svg, r#"<line class="cursor" y1="{top}" y2="{bottom}" x1="-9" x2="-9"/></svg>"#);
        svg
    }

    /// Returns a complete SVG file with a legend and a light background. The text is empty if there are no
    /// points.
    pub fn file(&self) -> String {
        let Some((series, x, y)) = self.drawable() else { return String::new() };
        let (width, height, label, style) =
            (self.width, self.height, escape(self.label), include_str!("picture.css"));
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -{KEY} {width} {}\" width=\"{width}\" role=\"img\" \
             aria-label=\"{label}\">\n<style>\n{style}</style>\n<rect y=\"-{KEY}\" width=\"{width}\" height=\"{}\"/>\n",
            height + KEY,
            height + KEY
        );
        let mut left = MARGIN_LEFT;
        for s in &series {
            let (class, colour, end, name) = (s.style.class(), s.colour, left + 22.0, escape(&s.name));
            let (line, text) = (-KEY / 2.0 + 4.0, left + 28.0);
            let _ = write!(
                svg,
                r#"<path class="{class} {colour}" d="M{left} {line}L{end} {line}"/><text x="{text}" y="{}">{name}</text>"#,
                line + 4.0
            );
            // A Han character is about twice as wide as a letter.
            left = text + s.name.chars().map(|c| if c.is_ascii() { 6.5 } else { 12.5 }).sum::<f64>() + 22.0;
        }
        self.draw(&mut svg, &series, &x, &y);
        svg + "</svg>\n"
    }

    /// Returns the series to draw, and the horizontal and the vertical axis.
    fn drawable(&self) -> Option<(Vec<Series>, Axis, Axis)> {
        let series: Vec<Series> = self.series.iter().map(thinned).filter(|s| !s.points.is_empty()).collect();
        let points = || series.iter().flat_map(|s| &s.points);
        points().next()?;
        let x = Axis::exact(points().map(|p| p.0), MARGIN_LEFT, self.width - MARGIN_RIGHT);
        let floor = self.from_zero.then_some(0.0);
        let y = Axis::padded(points().map(|p| p.1).chain(floor), self.height - MARGIN_BOTTOM, MARGIN_TOP);
        Some((series, x, y))
    }

    fn draw(&self, svg: &mut String, series: &[Series], x: &Axis, y: &Axis) {
        self.axes(svg, x, y);
        for s in series {
            draw(svg, s, x, y);
        }
    }

    fn axes(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (self.width - MARGIN_RIGHT, self.height - MARGIN_BOTTOM);
        for (value, text) in y.ticks(5) {
            let at = y.place(value);
            let _ = write!(
                svg,
                r#"<line class="grid" x1="{MARGIN_LEFT}" x2="{right}" y1="{at:.1}" y2="{at:.1}"/>"#
            );
            let (left, base) = (MARGIN_LEFT - 8.0, at + 4.0);
            let _ = write!(svg, r#"<text x="{left}" y="{base:.1}" text-anchor="end">{text}</text>"#);
        }
        let _ = write!(
            svg,
            r#"<line class="axis" x1="{MARGIN_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>"#
        );
        let tick_base = bottom + 18.0;
        for (value, text) in
            x.ticks(if self.width > 600.0 { 8 } else { 5 }).into_iter().filter(|t| t.0.fract() == 0.0)
        {
            let at = x.place(value);
            // The ticks near the end of the axis have no number, because the label of the axis is there.
            if at < right - 80.0 {
                let _ =
                    write!(svg, r#"<text x="{at:.1}" y="{tick_base}" text-anchor="middle">{text}</text>"#);
            }
        }
        // The label ends with the last value, such as `172 steps`.
        let name = escape(&format!("{} {}", tick_text(x.high.round() as i64, 1.0), self.x_label));
        let _ =
            write!(svg, r#"<text class="name" x="{right}" y="{tick_base}" text-anchor="end">{name}</text>"#);
    }
}

fn draw(svg: &mut String, series: &Series, x: &Axis, y: &Axis) {
    let mut path = String::new();
    for (i, &(px, py)) in series.points.iter().enumerate() {
        let command = if i == 0 { 'M' } else { 'L' };
        let _ = write!(path, "{command}{:.1} {:.1}", x.place(px), y.place(py));
    }
    let class = series.style.class();
    let colour = series.colour;
    let _ = write!(svg, r#"<path class="{class} {colour}" d="{path}"/>"#);
    if series.style == Style::Points || series.points.len() == 1 {
        let name = escape(&series.name);
        for &(px, py) in &series.points {
            let (cx, cy, value) = (x.place(px), y.place(py), number(py));
            let _ = write!(
                svg,
                r#"<circle class="{colour}" cx="{cx:.1}" cy="{cy:.1}" r="4.5"><title>{px} · {name} {value}</title></circle>"#
            );
        }
    }
}

/// Returns the values that the page's script shows as tooltips.
fn hover_data(series: &[Series], x: &Axis) -> serde_json::Value {
    let rows: Vec<_> = series
        .iter()
        .map(|s| {
            let points: Vec<_> =
                s.points.iter().map(|&(px, py)| json!([px, x.place(px).round(), number(py)])).collect();
            json!({ "name": s.name, "colour": s.colour.to_string(), "points": points })
        })
        .collect();
    json!(rows)
}

/// Returns the series with at most `MAX_POINTS` points and without values that are not finite. In a longer
/// series, the mean of several neighbouring points becomes one point.
fn thinned(series: &Series) -> Series {
    let size = series.points.len().div_ceil(MAX_POINTS).max(1);
    let finite =
        series.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite()).collect::<Vec<_>>();
    let mean = |bucket: &[(f64, f64)]| {
        let sum = bucket.iter().fold((0.0, 0.0), |sum, p| (sum.0 + p.0, sum.1 + p.1));
        (sum.0 / bucket.len() as f64, sum.1 / bucket.len() as f64)
    };
    Series { points: finite.chunks(size).map(mean).collect(), ..series.clone() }
}

/// A linear scale from values to pixels.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// Creates an axis that starts at the smallest value and ends at the largest value.
    fn exact(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut low, mut high) = bounds(values);
        if high <= low {
            (low, high) = (low - 0.5, low + 0.5);
        }
        Self { low, high, from, to }
    }

    /// Creates an axis with some space on both sides of the values. The axis starts below zero only if there
    /// are negative values.
    fn padded(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = bounds(values);
        let room = if high > low { (high - low) * 0.06 } else { high.abs().max(1e-12) * 0.1 };
        let below = if low >= 0.0 { (low - room).max(0.0) } else { low - room };
        Self { low: below, high: high + room, from, to }
    }

    fn place(&self, value: f64) -> f64 {
        self.from + (value - self.low) / (self.high - self.low) * (self.to - self.from)
    }

    /// Returns about `count` round values for ticks, with their labels.
    fn ticks(&self, count: usize) -> Vec<(f64, String)> {
        let rough = (self.high - self.low) / count as f64;
        let magnitude = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * magnitude).find(|&s| s >= rough * 0.999);
        let step = step.unwrap_or(10.0 * magnitude);
        let first = (self.low / step).ceil() as i64;
        let last = (self.high / step + 1e-9).floor() as i64;
        (first..=last).map(|i| (i as f64 * step, tick_text(i, step))).collect()
    }
}

fn bounds(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)))
}

/// Formats `i · step` with enough digits to distinguish neighbouring ticks.
fn tick_text(i: i64, step: f64) -> String {
    let value = i as f64 * step;
    if value == 0.0 {
        return "0".into();
    }
    let exponent = step.log10().floor();
    if exponent < -3.0 {
        // For example, 0.00008 is written as 8e-5.
        let digits = (value.abs().log10().floor() - exponent).max(0.0) as usize;
        return format!("{value:.digits$e}").replace(".0e", "e");
    }
    format!("{value:.*}", (-exponent).max(0.0) as usize)
}

/// Formats a value for a tooltip: in scientific notation below 0.001, with four decimals below 100, and
/// without decimals from 100 on.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        v if v < 1e-3 => format!("{value:.3e}"),
        v if v < 100.0 => format!("{value:.4}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<(f64, f64)>) -> String {
        let series = Series { name: "loss".into(), style: Style::Line, colour: 'a', points };
        Chart {
            label: "l",
            x_label: "s",
            width: 800.0,
            height: 300.0,
            from_zero: false,
            series: vec![series],
        }
        .svg()
    }

    #[test]
    fn every_coordinate_lies_on_the_page() {
        for points in [
            vec![(1.0, 2.0)],
            vec![(1.0, 1e-4), (2.0, 1e-4)],
            vec![(1.0, 0.0), (2.0, 0.0)],
            (1..9000).map(|i| (f64::from(i), f64::from(i).sin() * 1e6)).collect(),
            vec![(1.0, f64::NAN), (2.0, 3.0), (3.0, f64::INFINITY)],
        ] {
            let svg = chart(points);
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
            let path = svg.split(" d=\"").nth(1).unwrap().split('"').next().unwrap();
            for pair in path.split(['M', 'L']).skip(1) {
                let (x, y) = pair.split_once(' ').unwrap();
                let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
                assert!((0.0..=800.0).contains(&x) && (0.0..=300.0).contains(&y), "{pair}");
            }
        }
        assert_eq!(chart(vec![]), "");
        assert_eq!(chart(vec![(1.0, f64::NAN)]), "");
    }

    #[test]
    fn a_file_stands_alone_and_asks_for_nothing() {
        let series = |name: &'static str, style| Series {
            name: name.into(),
            style,
            colour: 'a',
            points: vec![(1.0, 2.0), (2.0, 1.0)],
        };
        let chart = Chart {
            label: "a <b>",
            x_label: "步",
            width: 800.0,
            height: 300.0,
            from_zero: false,
            series: vec![series("每一步", Style::Faint), series("held-out", Style::Points)],
        };
        let file = chart.file();
        assert!(
            file.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 -30 800 330\""),
            "{file}"
        );
        assert!(file.contains("每一步") && file.contains("held-out") && file.contains("a &lt;b&gt;"));
        assert!(
            file.matches("http").count() == 1 && !file.contains("<script") && !file.contains("var("),
            "{file}"
        );
        assert_eq!(Chart { series: vec![], ..chart }.file(), "");
    }

    #[test]
    fn a_long_run_stays_a_small_file() {
        let svg = chart((0..200_000).map(|i| (f64::from(i), 1.0)).collect());
        assert!(svg.len() < 120_000, "{}", svg.len());
    }

    #[test]
    fn ticks_are_round_and_told_apart() {
        let texts = |low, high| {
            let axis = Axis { low, high, from: 0.0, to: 1.0 };
            axis.ticks(5).into_iter().map(|t| t.1).collect::<Vec<_>>()
        };
        assert_eq!(texts(2.1, 2.9), ["2.2", "2.4", "2.6", "2.8"]);
        assert_eq!(texts(0.0, 1e-4), ["0", "2e-5", "4e-5", "6e-5", "8e-5", "1e-4"]);
        assert_eq!(texts(0.0, 1050.0), ["0", "500", "1000"]);
    }
}
