//! A page that compares several runs: results, curves, and the settings that differ.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt::Write as _;

use danlu_train::StepMetrics;

use super::chart::{Chart, Series, Style};
use super::labels::Labels;
use super::{document, escape, figure, smoothed};
use crate::Language;
use crate::number_format::{duration, thousands};

/// CSS classes of the runs' colours, in order. If there are more runs, the colours are repeated.
const COLOURS: [char; 6] = ['a', 'b', 'c', 'd', 'e', 'f'];

/// A run in a comparison. The run may be unfinished.
#[derive(Clone, Debug, PartialEq)]
pub struct ComparedRun {
    /// Name of the run's folder.
    pub name: String,
    /// Names and values of the settings, as text.
    pub settings: Vec<(String, String)>,
    /// Metrics of each step.
    pub steps: Vec<StepMetrics>,
    /// Step and held-out loss of each evaluation.
    pub evaluations: Vec<(u64, f64)>,
}

impl ComparedRun {
    fn setting(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Returns the step and the value of the lowest held-out loss.
    fn best(&self) -> Option<(u64, f64)> {
        self.evaluations.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Returns the page that compares `runs`. Names and settings are escaped.
pub fn compare(runs: &[ComparedRun], language: Language) -> String {
    let l = language.labels();
    let names: Vec<String> = runs.iter().map(|run| escape(&run.name)).collect();
    let heading = names.join(" · ");
    let title = l.comparison;
    let header = format!("<header><p>{title}</p><h1>{heading}</h1></header>\n");
    let held_out = |run: &ComparedRun| {
        run.evaluations.iter().map(|&(step, loss)| (step as f64, loss)).collect::<Vec<_>>()
    };
    let training = |run: &ComparedRun| {
        smoothed(&run.steps.iter().map(|step| (step.step as f64, step.loss)).collect::<Vec<_>>())
    };
    let body = [
        header,
        results(runs, l),
        figure(&chart(runs, l.held_out_loss, l.step, Style::Points, held_out), l.held_out_note, true),
        figure(&chart(runs, l.train_loss, l.step, Style::Line, training), l.smoothed_note, true),
        differences(runs, l),
    ];
    document(l, &format!("{heading} · {title}"), &body.concat(), env!("CARGO_PKG_VERSION"), None)
}

fn chart(
    runs: &[ComparedRun],
    label: &'static str,
    x_label: &'static str,
    style: Style,
    points: impl Fn(&ComparedRun) -> Vec<(f64, f64)>,
) -> Chart {
    let series = runs.iter().enumerate().map(|(i, run)| Series {
        name: Cow::Owned(run.name.clone()),
        style,
        colour: COLOURS[i % COLOURS.len()],
        points: points(run),
    });
    Chart { label, x_label, width: 940.0, height: 340.0, from_zero: false, series: series.collect() }
}

/// Returns the table of results. The lowest held-out loss is in bold.
fn results(runs: &[ComparedRun], l: &Labels) -> String {
    let lowest = runs.iter().filter_map(ComparedRun::best).map(|best| best.1).min_by(f64::total_cmp);
    let mut rows = String::new();
    for (i, run) in runs.iter().enumerate() {
        let (name, colour) = (escape(&run.name), COLOURS[i % COLOURS.len()]);
        let best = run.best().map_or_else(
            || "–".to_owned(),
            |(step, loss)| {
                let text = format!("{loss:.4} ({} {step})", l.step);
                if Some(loss) == lowest { format!("<b>{text}</b>") } else { text }
            },
        );
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), |it| format!("{it:.4}"));
        let last = number(run.evaluations.last().map(|it| it.1));
        let training = number(
            smoothed(&run.steps.iter().map(|s| (0.0, s.loss)).collect::<Vec<_>>()).last().map(|p| p.1),
        );
        let seconds: f64 = run.steps.iter().map(|step| step.seconds).sum();
        let (steps, time) = (thousands(run.steps.len() as u64), duration(seconds));
        let _ = write!(
            rows,
            "<tr><th><i class=\"dot {colour}\"></i>{name}</th><td>{best}</td><td>{last}</td><td>{training}</td>\
             <td>{steps}</td><td>{time}</td></tr>"
        );
    }
    let heads: String = ["", l.best_held_out, l.last_held_out, l.train_loss, l.steps, l.time]
        .map(|head| format!("<th>{head}</th>"))
        .concat();
    let title = l.results;
    format!(
        "<section><h2>{title}</h2><div class=\"scroll\"><table class=\"runs\"><tr>{heads}</tr>{rows}</table></div></section>\n"
    )
}

/// Returns the table of settings that differ between the runs.
fn differences(runs: &[ComparedRun], l: &Labels) -> String {
    let names: BTreeSet<&str> =
        runs.iter().flat_map(|run| &run.settings).map(|(name, _)| name.as_str()).collect();
    let mut rows = String::new();
    for name in names {
        let values: Vec<Option<&str>> = runs.iter().map(|run| run.setting(name)).collect();
        if values.windows(2).all(|pair| pair[0] == pair[1]) {
            continue;
        }
        let cells: String = values
            .iter()
            .map(|value| format!("<td>{}</td>", value.map_or_else(|| l.not_set.to_owned(), escape)))
            .collect();
        let _ = write!(rows, "<tr><th><code>{}</code></th>{cells}</tr>", escape(name));
    }
    let (title, equal) = (l.differences, l.no_differences);
    if rows.is_empty() {
        return format!("<section><h2>{title}</h2><p class=\"note\">{equal}</p></section>\n");
    }
    let heads: String = runs.iter().map(|run| format!("<th>{}</th>", escape(&run.name))).collect();
    format!(
        "<section><h2>{title}</h2><div class=\"scroll\"><table class=\"runs\"><tr><th></th>{heads}</tr>{rows}</table></div></section>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::summary::tests::sample;

    fn run(name: &str, rank: &str, loss: f64) -> ComparedRun {
        let settings = [("lora_r", rank), ("seed", "42")];
        ComparedRun {
            name: name.to_owned(),
            settings: settings.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec(),
            steps: sample().steps,
            evaluations: vec![(0, 5.0), (20, loss), (40, loss + 0.1)],
        }
    }

    #[test]
    fn a_comparison_shows_the_best_run_and_only_what_differs() {
        let page = compare(&[run("small", "8", 3.5), run("<b>large", "64", 3.25)], Language::En);
        assert!(
            page.contains("<b>3.2500 (step 20)</b>") && page.contains("<td>3.5000 (step 20)</td>"),
            "{page}"
        );
        assert!(page.contains("<code>lora_r</code></th><td>8</td><td>64</td>"), "{page}");
        assert!(!page.contains("<code>seed</code>") && !page.contains("<b>large"));
        assert!(page.contains("&lt;b&gt;large") && page.matches("<svg").count() == 2);
    }

    #[test]
    fn runs_without_steps_still_have_a_page() {
        let empty = ComparedRun { steps: vec![], evaluations: vec![], ..run("new", "8", 1.0) };
        let page = compare(&[empty.clone(), empty], Language::Zh);
        assert!(page.contains("设置完全相同") && !page.contains("NaN") && !page.contains("<svg"));
    }
}
