//! Draws curves in the terminal with braille characters. Each character has two columns and four rows of
//! dots.

use crate::style::{Style, paint};
use crate::terminal_text;

/// Largest number of points for which a series is drawn with `●`. More of these signs would hide the curve.
const MAX_MARKS: usize = 12;

pub struct Series<'a> {
    pub label: &'a str,
    /// The points of the series, in ascending order of x.
    pub points: &'a [(f64, f64)],
    pub style: Style,
}

/// Size of a chart in terminal cells.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Number of columns, including the y labels.
    pub width: usize,
    /// Number of lines of the plot, without the labels below it.
    pub height: usize,
}

/// Draws `series` over shared axes, with y labels at the left, and with x labels and a legend below. Points
/// that are not finite are skipped. Returns an empty text if no point remains.
pub fn draw(series: &[Series<'_>], size: Size, x_label: &str, color: bool) -> String {
    let finite = |p: &&(f64, f64)| p.0.is_finite() && p.1.is_finite();
    let points = || series.iter().flat_map(|s| s.points.iter().filter(finite));
    let Some((x0, x1)) = range(points().map(|p| p.0)) else { return String::new() };
    let Some((y0, y1)) = range(points().map(|p| p.1)) else { return String::new() };
    // A flat curve is drawn through the middle.
    let (y0, y1) = if y1 - y0 < 1e-9 { (y0 - 0.5, y1 + 0.5) } else { (y0, y1) };

    let height = size.height.max(2);
    let labels: Vec<String> =
        (0..height).map(|row| y_label(y1 - (y1 - y0) * row as f64 / (height - 1) as f64)).collect();
    let margin = labels.iter().map(String::len).max().unwrap_or(0);
    let columns = size.width.saturating_sub(margin + 2).max(8);

    let mut canvas = Canvas::new(columns, height);
    for (index, s) in series.iter().enumerate() {
        let to_dot = |p: &(f64, f64)| {
            let x = if x1 > x0 { (p.0 - x0) / (x1 - x0) } else { 0.0 };
            let across = (x * (2 * columns - 1) as f64).round() as i64;
            let down = ((y1 - p.1) / (y1 - y0) * (4 * height - 1) as f64).round() as i64;
            (across, down)
        };
        let dots: Vec<_> = s.points.iter().filter(finite).map(to_dot).collect();
        if let [only] = dots[..] {
            canvas.set(only, index);
        }
        for pair in dots.windows(2) {
            canvas.line(pair[0], pair[1], index);
        }
        if is_marked(index, s) {
            dots.iter().for_each(|&dot| canvas.mark(dot, index));
        }
    }

    let mut out = String::new();
    for (row, label) in labels.iter().enumerate() {
        // A label on every other line is enough to read a value.
        let label = if row % 2 == 0 || row + 1 == height { label.as_str() } else { "" };
        let tick = if label.is_empty() { '│' } else { '┤' };
        let cells = canvas.row(row).map(|(c, owner)| match owner {
            Some(index) => paint(color, series[index].style, &c.to_string()),
            None => " ".to_owned(),
        });
        let line = format!("{} {tick}{}", terminal_text::pad_left(label, margin), cells.collect::<String>());
        out += line.trim_end();
        out.push('\n');
    }
    out += &format!("{} └{}\n", " ".repeat(margin), "─".repeat(columns));
    let (first, last) = (x_value(x0), format!("{} {x_label}", x_value(x1)));
    let gap = columns.saturating_sub(first.len() + terminal_text::width(&last)).max(1);
    out += &format!("{}{first}{}{last}\n", " ".repeat(margin + 2), " ".repeat(gap));
    if series.len() > 1 {
        let legend = series.iter().enumerate().map(|(index, s)| {
            let sign = if is_marked(index, s) { "⠤●⠤" } else { "⣀⡠⠤" };
            format!("{} {}", paint(color, s.style, sign), s.label)
        });
        out += &format!("{}{}\n", " ".repeat(margin + 2), legend.collect::<Vec<_>>().join("   "));
    }
    out
}

/// Returns whether the points of the series are drawn as `●`. This sign distinguishes a series from the first
/// one even in a terminal without colour.
fn is_marked(index: usize, series: &Series<'_>) -> bool {
    index > 0 && series.points.len() <= MAX_MARKS
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

fn y_label(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        a if !(1e-3..1e5).contains(&a) => format!("{value:.1e}"),
        a if a < 0.1 => format!("{value:.4}"),
        a if a < 100.0 => format!("{value:.2}"),
        _ => format!("{value:.0}"),
    }
}

fn x_value(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

/// A grid of braille cells. Each cell stores the series that was drawn in it last.
struct Canvas {
    columns: usize,
    cells: Vec<Cell>,
}

#[derive(Clone, Copy, Default)]
struct Cell {
    bits: u8,
    owner: Option<usize>,
    marked: bool,
}

impl Canvas {
    fn new(columns: usize, height: usize) -> Self {
        Self { columns, cells: vec![Cell::default(); columns * height] }
    }

    /// Returns the cell that contains a dot, and the dot's column and row inside this cell. Returns `None`
    /// for a dot outside the grid.
    fn cell(&mut self, (across, down): (i64, i64)) -> Option<(&mut Cell, usize, usize)> {
        let (across, down) = (usize::try_from(across).ok()?, usize::try_from(down).ok()?);
        let inside = across / 2 < self.columns;
        let cell = self.cells.get_mut(down / 4 * self.columns + across / 2).filter(|_| inside)?;
        Some((cell, across % 2, down % 4))
    }

    fn set(&mut self, dot: (i64, i64), owner: usize) {
        // The bit of each dot, by row and column, in the Unicode block that starts at U+2800.
        const BITS: [[u8; 2]; 4] = [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];
        if let Some((cell, column, row)) = self.cell(dot) {
            cell.bits |= BITS[row][column];
            cell.owner = Some(owner);
        }
    }

    fn mark(&mut self, dot: (i64, i64), owner: usize) {
        if let Some((cell, ..)) = self.cell(dot) {
            *cell = Cell { owner: Some(owner), marked: true, ..*cell };
        }
    }

    fn line(&mut self, from: (i64, i64), to: (i64, i64), owner: usize) {
        let steps = (to.0 - from.0).abs().max((to.1 - from.1).abs()).max(1);
        for i in 0..=steps {
            let along = |a: i64, b: i64| a + ((b - a) as f64 * i as f64 / steps as f64).round() as i64;
            self.set((along(from.0, to.0), along(from.1, to.1)), owner);
        }
    }

    fn row(&self, row: usize) -> impl Iterator<Item = (char, Option<usize>)> + '_ {
        let cells = &self.cells[row * self.columns..][..self.columns];
        cells.iter().map(|cell| {
            let braille = char::from_u32(0x2800 + cell.bits as u32).unwrap_or(' ');
            (if cell.marked { '●' } else { braille }, cell.owner)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = Size { width: 18, height: 4 };

    fn one(points: &[(f64, f64)]) -> String {
        draw(&[Series { label: "loss", points, style: Style::Cyan }], SIZE, "step", false)
    }

    #[test]
    fn a_falling_line_falls_from_corner_to_corner() {
        let expected = "\
4.00 ┤⠑⠢⣀
     │   ⠑⠢⣀
2.00 ┤      ⠉⠢⢄
1.00 ┤         ⠉⠢⢄
     └────────────
      1    10 step
";
        assert_eq!(one(&[(1.0, 4.0), (10.0, 1.0)]), expected);
    }

    #[test]
    fn points_that_are_no_number_are_left_out() {
        assert_eq!(one(&[]), "");
        assert_eq!(one(&[(f64::NAN, 1.0), (1.0, f64::INFINITY)]), "");
        assert_eq!(one(&[(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)]), one(&[(1.0, 2.0), (3.0, 1.0)]));
    }

    #[test]
    fn one_point_and_a_flat_curve_stand_in_the_middle() {
        let dots = |drawn: &str| {
            drawn.lines().position(|l| l.chars().any(|c| ('\u{2801}'..='\u{28ff}').contains(&c)))
        };
        assert!(matches!(dots(&one(&[(1.0, 2.5)])), Some(1 | 2)));
        assert!(matches!(dots(&one(&[(1.0, 2.0), (2.0, 2.0)])), Some(1 | 2)));
    }

    #[test]
    fn two_series_get_a_legend() {
        let series = [
            Series { label: "train", points: &[(1.0, 2.0), (2.0, 1.0)], style: Style::Cyan },
            Series { label: "held out", points: &[(2.0, 1.5)], style: Style::Yellow },
        ];
        assert!(draw(&series, SIZE, "step", false).ends_with("train   ⠤●⠤ held out\n"));
    }
}
