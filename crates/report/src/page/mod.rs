//! `report.html`: one self-contained page about a run. The page loads no other files.

mod chart;
mod comparison;
mod labels;

use std::fmt::Write as _;

use danlu_train::StepMetrics;
use danlu_train::memory::display;

use crate::number_format::{duration, thousands};
use crate::summary::value_text;
use crate::{Finding, Language, MemoryUse, Reply, RunSummary, Verdict};
use chart::{Chart, Series, Style};
use labels::Labels;

pub(crate) use chart::number;
pub use comparison::{ComparedRun, compare};

/// Number of seconds between two reloads of the page while a run is in progress.
const REFRESH_SECONDS: u64 = 5;

/// Returns the complete page, including style, script and charts. Names, replies and settings are escaped.
pub fn render(run: &RunSummary, language: Language) -> String {
    let l = language.labels();
    let body = [
        header(run, l),
        tiles(run, l),
        verdict(run, language),
        charts(run, l),
        replies(&run.replies, l),
        data(run, l),
        settings(run, l),
    ];
    let made = made(run, language);
    document(l, &title(run, l), &body.concat(), &made, None)
}

/// Returns the page of a run in progress that will take `total` steps. The browser reloads this page.
pub fn render_running(run: &RunSummary, total: u64, language: Language) -> String {
    let l = language.labels();
    let body = [
        header(run, l),
        progress(run, total, l),
        tiles(run, l),
        charts(run, l),
        data(run, l),
        settings(run, l),
    ];
    let made = made(run, language);
    document(l, &title(run, l), &body.concat(), &made, Some(REFRESH_SECONDS))
}

/// Returns the page of a run that has no results yet. The browser reloads this page.
pub fn waiting(name: &str, text: &str, language: Language) -> String {
    let l = language.labels();
    let (name, text) = (escape(name), escape(text));
    let body = format!("<header><p>{}</p><h1>{name}</h1></header>\n<p class=\"note\">{text}</p>\n", l.title);
    let title = format!("{name} · {}", l.title);
    document(l, &title, &body, env!("CARGO_PKG_VERSION"), Some(REFRESH_SECONDS))
}

/// Returns the version of danlu and the back end.
fn made(run: &RunSummary, language: Language) -> String {
    let chinese = || run.backend.replace(" threads,", " 线程,").replace(" thread,", " 线程,");
    format!("{} · {}", run.version, language.pick(chinese(), run.backend.clone()))
}

fn title(run: &RunSummary, l: &Labels) -> String {
    format!("{} · {}", escape(&run.adapter_name), l.title)
}

/// Returns the complete page with the contents `body`. `title` and `body` must be escaped. `made` must not be
/// escaped, because this function escapes it.
fn document(l: &Labels, title: &str, body: &str, made: &str, refresh: Option<u64>) -> String {
    let (style, script) = (include_str!("page.css"), include_str!("page.js"));
    let (lang, made_by, made) = (l.html_lang, l.made_by, escape(made));
    let refresh = refresh
        .map_or_else(String::new, |seconds| format!("<meta http-equiv=\"refresh\" content=\"{seconds}\">\n"));
    format!(
        r#"<!doctype html>
<html lang="{lang}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{refresh}<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}<footer>{made_by} danlu {made}</footer>
</main>
<script>
{script}</script>
</body>
</html>
"#
    )
}

/// Returns the progress bar of a run in progress.
fn progress(run: &RunSummary, total: u64, l: &Labels) -> String {
    let done = run.steps.last().map_or(0, |step| step.step);
    let percent = 100.0 * done as f64 / total.max(1) as f64;
    let per_step = run.seconds() / run.steps.len().max(1) as f64;
    let left = duration(per_step * total.saturating_sub(done) as f64);
    let (done, total, of, time) = (thousands(done), thousands(total), l.steps, l.left);
    format!(
        "<section class=\"progress\"><div><i style=\"width:{percent:.1}%\"></i></div>\
         <p class=\"note\">{done} / {total} {of} · {time} {left}</p></section>\n"
    )
}

/// Escapes text for HTML, both between tags and in quoted attributes.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Control characters are not allowed in HTML.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn header(run: &RunSummary, l: &Labels) -> String {
    let (title, on_base) = (l.title, l.on_base);
    let (name, base) = (escape(&run.adapter_name), escape(&run.base_name));
    format!("<header><p>{title}</p><h1>{name}</h1><p>{on_base} {base}</p></header>\n")
}

fn tiles(run: &RunSummary, l: &Labels) -> String {
    let mut tiles = String::new();
    let mut tile = |name: &str, value: String, note: String| {
        let _ =
            write!(tiles, r#"<div class="tile"><span>{name}</span><b>{value}</b><span>{note}</span></div>"#);
    };
    let change = |before: f64, after: f64| format!("<i>{before:.3} →</i> <em>{after:.3}</em>");
    if let Some((before, after)) = run.held_out() {
        let note = format!("{} {:.1} → {:.1}", l.perplexity, before.exp(), after.exp());
        tile(l.held_out_loss, change(before, after), note);
    }
    if let Some((first, last)) = run.train_loss() {
        let note = format!("{} {}", thousands(run.steps.len() as u64), l.steps);
        tile(l.train_loss, change(first, last), note);
    }
    if let Some(speed) = run.tokens_per_second() {
        let tokens = run.steps.iter().map(|s| s.tokens).sum();
        let value = format!("{} <i>{}</i>", thousands(speed.round() as u64), l.speed_unit);
        tile(l.speed, value, format!("{} {} · {}", thousands(tokens), l.tokens, duration(run.seconds())));
    }
    if let Some(MemoryUse { plan, peak: Some(peak) }) = &run.memory {
        tile(l.memory, display(*peak), format!("{} {}", l.planned, display(plan.total)));
    }
    let note = l.of_parameters.replace("{}", &thousands(run.all_parameters));
    tile(l.trainable, format!("{:.3}%", run.trainable_percent()), note);
    format!("<div class=\"tiles\">{tiles}</div>\n")
}

fn verdict(run: &RunSummary, language: Language) -> String {
    let line = |finding: &Finding| {
        let (class, label) = match finding.is_warning() {
            true => ("warning", language.pick("注意：", "Warning: ")),
            false => ("outcome", language.pick("结论：", "Verdict: ")),
        };
        format!("<p class=\"{class}\">{label}{}</p>\n", escape(&finding.text(language)))
    };
    Verdict::of(run).findings().iter().map(line).collect()
}

/// Returns the losses of a run as an SVG file. The text is empty if there are no steps.
pub fn picture(run: &RunSummary, language: Language) -> String {
    losses(run, language.labels()).file()
}

fn over(run: &RunSummary, value: fn(&StepMetrics) -> f64) -> Vec<(f64, f64)> {
    run.steps.iter().map(|s| (s.step as f64, value(s))).collect()
}

fn losses(run: &RunSummary, l: &'static Labels) -> Chart {
    let loss = over(run, |s| s.loss);
    let held_out = run.evaluations.iter().map(|&(step, loss)| (step as f64, loss)).collect();
    let series = vec![
        Series { name: l.raw.into(), style: Style::Faint, colour: 'a', points: loss.clone() },
        Series { name: l.smoothed.into(), style: Style::Line, colour: 'a', points: smoothed(&loss) },
        Series { name: l.held_out.into(), style: Style::Points, colour: 'b', points: held_out },
    ];
    Chart { label: l.loss, x_label: l.step, width: 940.0, height: 340.0, from_zero: false, series }
}

fn charts(run: &RunSummary, l: &'static Labels) -> String {
    let wide = losses(run, l);
    let over = |value| over(run, value);
    let narrow = |label: &'static str, style, colour, points| Chart {
        label,
        x_label: l.step,
        width: 460.0,
        height: 230.0,
        from_zero: true,
        series: vec![Series { name: label.into(), style, colour, points }],
    };
    let mut speed =
        narrow(l.tokens_per_second, Style::Faint, 'c', over(|s| s.tokens as f64 / s.seconds.max(1e-9)));
    let line = smoothed(&speed.series[0].points);
    speed.series[0].name = l.raw.into();
    speed.series.push(Series { name: l.smoothed.into(), style: Style::Line, colour: 'c', points: line });
    let rate = narrow(l.learning_rate, Style::Line, 'b', over(|s| s.learning_rate));
    let (loss, rate, speed) =
        (figure(&wide, l.loss_note, true), figure(&rate, "", false), figure(&speed, "", false));
    format!("{loss}<div class=\"pair\">{rate}{speed}</div>\n")
}

fn figure(chart: &Chart, note: &str, key: bool) -> String {
    let svg = chart.svg();
    if svg.is_empty() {
        return String::new();
    }
    let title = chart.label;
    let mut head = format!("<h2>{title}</h2>");
    if !note.is_empty() {
        let _ = write!(head, "<p class=\"note\">{note}</p>");
    }
    if key {
        let item = |s: &Series| {
            let class = s.style.class();
            format!("<li><i class=\"{class} {}\"></i>{}</li>", s.colour, escape(&s.name))
        };
        let items: String = chart.series.iter().filter(|s| !s.points.is_empty()).map(item).collect();
        let _ = write!(head, "<ul class=\"key\">{items}</ul>");
    }
    format!("<section>{head}<div class=\"figure\">{svg}<div class=\"tip\"></div></div></section>\n")
}

/// Returns an exponential moving average over about a fifteenth of the points, and over at most 50 points.
/// The weights are normalized, so that the first values are not pulled towards zero.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let keep = 1.0 - 1.0 / (points.len() as f64 / 15.0).clamp(1.0, 50.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mut next = |&(x, y): &(f64, f64)| {
        (sum, weight) = (keep * sum + y, keep * weight + 1.0);
        (x, sum / weight)
    };
    points.iter().map(&mut next).collect()
}

fn replies(replies: &[Reply], l: &Labels) -> String {
    if replies.is_empty() {
        return String::new();
    }
    let said = |class: &str, label: &str, text: &str| {
        let text = if text.trim().is_empty() { l.empty_reply.to_owned() } else { escape(text.trim()) };
        format!("<div class=\"said {class}\"><small>{label}</small>{text}</div>")
    };
    let mut rows = String::new();
    for reply in replies {
        let (prompt, before) = (escape(reply.prompt.trim()), said("before", l.before, &reply.before));
        let after = said("after", l.after, &reply.after);
        let pair = format!("<div class=\"pair said-pair\">{before}{after}</div>");
        let _ = write!(rows, "<div class=\"reply\"><h3>{prompt}</h3>{pair}</div>");
    }
    let (title, note) = (l.replies, l.replies_note);
    format!("<section><h2>{title}</h2><p class=\"note\">{note}</p>{rows}</section>\n")
}

fn data(run: &RunSummary, l: &Labels) -> String {
    let data = &run.data;
    let mut files =
        format!("<tr><th>{}</th><th>{}</th><th>{}</th><th>SHA-256</th></tr>", l.file, l.format, l.records);
    for file in &data.files {
        let (name, format, records) = (escape(&file.name), escape(&file.format), thousands(file.records));
        let hash: String = escape(&file.sha256).chars().take(16).collect();
        let _ = write!(
            files,
            "<tr><td>{name}</td><td>{format}</td><td>{records}</td><td><code>{hash}…</code></td></tr>"
        );
    }
    let share = 100.0 * data.trained_tokens as f64 / data.tokens.max(1) as f64;
    let tokens = format!("{} · {share:.0}% {}", thousands(data.tokens), l.trained_tokens);
    let mut rows = String::new();
    let mut row = |name: &str, value: String| {
        let _ = write!(rows, "<div>{name}<span>{value}</span></div>");
    };
    row(l.training_records, thousands(data.training_records));
    row(l.held_out_records, thousands(data.held_out_records));
    row(l.all_tokens, tokens);
    row(l.longest, format!("{} {}", thousands(data.longest), l.tokens));
    for (name, count) in [(l.shortened, data.shortened), (l.dropped, data.dropped), (l.skipped, data.skipped)]
    {
        if count > 0 {
            row(name, thousands(count));
        }
    }
    let title = l.data;
    let table = if data.files.is_empty() {
        String::new()
    } else {
        format!("<div class=\"scroll\"><table>{files}</table></div>")
    };
    format!("<section><h2>{title}</h2>{table}<div class=\"columns\">{rows}</div></section>\n")
}

fn settings(run: &RunSummary, l: &Labels) -> String {
    let mut rows = String::new();
    for (name, value) in run.settings.entries() {
        let value = escape(&value_text(&value, l.not_set));
        let _ = write!(rows, "<div><code>{name}</code><span>{value}</span></div>");
    }
    let title = l.settings;
    format!("<section><h2>{title}</h2><div class=\"columns\">{rows}</div></section>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::sample;

    #[test]
    fn the_page_asks_for_nothing_from_anywhere() {
        for language in [Language::Zh, Language::En] {
            let page = render(&sample(), language);
            for outside in ["http://", "https://", "src=", "href=", "@import", "url(", "fetch("] {
                assert!(!page.contains(outside), "{outside}");
            }
        }
    }

    #[test]
    fn what_people_wrote_is_shown_and_never_run() {
        let page = render(&sample(), Language::En);
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert!(!page.contains("<script>alert"));
        assert!(page.contains("huan&lt;huan&gt;"));
        assert!(page.contains("臣妾参见皇上 &quot;&amp;&quot;"));
        assert_eq!(escape("a\u{0}\u{1b}b\n"), "a\u{fffd}\u{fffd}b\n");
    }

    #[test]
    fn a_run_of_nothing_still_has_a_page() {
        let run = RunSummary { steps: vec![], evaluations: vec![], replies: vec![], ..sample() };
        let page = render(&run, Language::Zh);
        assert!(page.contains("训练报告") && !page.contains("<svg") && !page.contains("NaN"));
    }

    #[test]
    fn smoothing_begins_at_the_first_value_and_keeps_a_constant() {
        let points: Vec<_> = (0..100).map(|i| (f64::from(i), 3.0)).collect();
        assert!(smoothed(&points).iter().all(|p| (p.1 - 3.0).abs() < 1e-12));
        assert_eq!(smoothed(&[(1.0, 5.0)]), [(1.0, 5.0)]);
        assert_eq!(smoothed(&[]), []);
    }
}
