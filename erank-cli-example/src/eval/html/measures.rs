//! The measures of all systems, with the differences from the first stage.

use std::fmt::{self, Write};

use super::super::markup::Escaped;
use super::super::report::{Figure, Gain, Interval, Report, SIGNIFICANT};
use super::{count, row, signed};

/// Writes the figures of the first measure, and a table for each measure.
pub(super) fn write(html: &mut String, report: &Report<'_>) -> fmt::Result {
    // The first system is the first stage, and the second one the reranker.
    let [first_stage, reranked, ..] = &report.systems[..] else { return Ok(()) };
    html.push_str("<section>\n<h2>Measures</h2>\n");
    for (index, figures) in first_stage.figures.iter().zip(&reranked.figures).enumerate() {
        if index == 0 {
            write_headline(html, figures)?;
            write_systems(html, report, index)?;
            continue;
        }
        let (before, after) = figures;
        let difference = after.gain.as_ref().map_or(0.0, |gain| gain.mean);
        writeln!(
            html,
            r#"<details><summary>{} <span class="number">{:.4} → {:.4} <b>{}</b></span></summary>"#,
            Escaped(&before.measure),
            before.mean,
            after.mean,
            signed(difference)
        )?;
        write_systems(html, report, index)?;
        html.push_str("</details>\n");
    }
    writeln!(
        html,
        r#"<p class="note">The difference from the first stage, with the 95 % confidence interval and the p-value of
Student's paired t-test. A * marks p &lt; {SIGNIFICANT}. A hybrid is named after the first stage's weight. The best of the
hybrids is an optimistic figure, because it is chosen on the same queries.</p>"#
    )?;
    if let Some(p_mrr) = &report.p_mrr {
        html.push_str("<h3>p-MRR</h3>\n<dl class=\"rows\">\n");
        for (system, mean) in report.systems.iter().zip(&p_mrr.means) {
            row(html, &system.label(), mean.map_or("–".into(), signed))?;
        }
        writeln!(
            html,
            r#"</dl>
<p class="note">{} pairs of queries, {} documents that are not relevant any more.</p>"#,
            count(p_mrr.pairs),
            count(p_mrr.documents)
        )?;
    }
    html.push_str("</section>\n");
    Ok(())
}

/// Writes the table of one measure, with a row for each system.
fn write_systems(html: &mut String, report: &Report<'_>, index: usize) -> fmt::Result {
    let gains = report.systems.iter().filter_map(|system| system.figures[index].gain.as_ref());
    let intervals = gains.filter_map(|gain| gain.confidence_interval);
    let extent = intervals.map(|interval| interval.high.max(-interval.low)).fold(0.0, f64::max);
    html.push_str(
            r#"<div class="wide" tabindex="0">
<table>
<thead><tr><th scope="col">system</th><th scope="col">mean</th><th scope="col">difference <span class="interval">95 % interval</span></th><td class="plot"></td><th scope="col">p</th><th scope="col">gains</th><th scope="col">ties</th><th scope="col">losses</th></tr></thead>
<tbody>
"#,
        );
    for system in &report.systems {
        let figure = &system.figures[index];
        let (label, mean) = (system.label(), figure.mean);
        write!(html, r#"<tr><th scope="row">{}</th><td>{mean:.4}</td>"#, Escaped(&label))?;
        match &figure.gain {
            Some(gain) => write_gain(html, gain, extent)?,
            None => html
                .push_str(r#"<td></td><td class="plot"></td><td></td><td></td><td></td><td></td>"#),
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</tbody>\n</table>\n</div>\n");
    Ok(())
}

/// Writes the first measure of the first stage and the reranker, in large figures.
fn write_headline(html: &mut String, (before, after): (&Figure, &Figure)) -> fmt::Result {
    let Some(gain) = &after.gain else { return Ok(()) };
    let measure = Escaped(&before.measure);
    let class = match gain.mean {
        mean if mean < 0.0 => "down",
        mean if mean > 0.0 => "up",
        _ => "",
    };
    let test = match (&gain.confidence_interval, &gain.t_test) {
        (Some(interval), Some(test)) => {
            let equals = if test.p_value < 0.001 { "" } else { "= " };
            let chance = if test.p_value < SIGNIFICANT { "" } else { "; it may be due to chance" };
            let (range, p) = (range(interval), p_value(test.p_value));
            format!("95 % interval {range}, p {equals}{p}{chance}")
        }
        _ => "all queries have the same difference".into(),
    };
    writeln!(
        html,
        r#"<dl class="headline">
<div><dt>{measure}, first stage</dt><dd>{:.4}</dd></div>
<div><dt>{measure}, reranked</dt><dd>{:.4}</dd></div>
<div><dt>difference</dt><dd class="{class}">{}</dd><dd class="note">{test}</dd></div>
</dl>"#,
        before.mean,
        after.mean,
        signed(gain.mean)
    )
}

/// Writes the cells of a difference from the first stage. The plot of its interval ends at ± `extent`.
fn write_gain(html: &mut String, gain: &Gain, extent: f64) -> fmt::Result {
    let p = gain.t_test.as_ref().map(|test| test.p_value);
    let mark = if p.is_some_and(|p| p < SIGNIFICANT) { "*" } else { "" };
    let (interval, plot) = match &gain.confidence_interval {
        Some(interval) => (range(interval), plot(gain.mean, interval, extent)),
        None => ("–".into(), String::new()),
    };
    write!(
        html,
        r#"<td>{} <span class="interval">{interval}</span></td><td class="plot">{plot}</td><td class="marked">{}<span class="mark">{mark}</span></td><td>{}</td><td>{}</td><td>{}</td>"#,
        signed(gain.mean),
        p.map_or("–".into(), p_value),
        count(gain.wins),
        count(gain.ties),
        count(gain.losses)
    )
}

/// Draws a mean and its interval around 0.
fn plot(mean: f64, interval: &Interval, extent: f64) -> String {
    let x = |value: f64| 50.0 * value / extent.max(f64::MIN_POSITIVE);
    let Interval { low, high } = interval;
    format!(
        r#"<svg viewBox="-54 -6 108 12" aria-hidden="true"><path d="M0-6V6"/><path class="span" d="M{:.1} 0H{:.1}"/><circle cx="{:.1}" r="3"/></svg>"#,
        x(*low),
        x(*high),
        x(mean)
    )
}

/// Formats the ends of an interval.
fn range(interval: &Interval) -> String {
    format!("{} to {}", signed(interval.low), signed(interval.high))
}

/// Formats a p-value as markup.
fn p_value(p: f64) -> String {
    if p < 0.001 { "&lt; 0.001".into() } else { format!("{p:.3}") }
}
