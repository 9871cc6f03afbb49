//! The bar chart of each query's gain or loss, as SVG.
//!
//! The SVG is written here, because it is one kind of picture, and plotters' SVG backend has neither the
//! hatching nor the tooltips.

use std::fmt::{self, Write};

use super::markup::Escaped;
use super::report::Change;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 50.0;
/// Height of the bar of a tie, because a bar of height 0 is invisible.
const TIE: f64 = 3.0;

/// Definitions and styles. Gains are filled and losses hatched, so that the chart does not rely on colour.
const HEAD: &str = r##"<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5" fill="#fff"/><line y2="5" stroke="#a33b00" stroke-width="4"/></pattern></defs>
<style>text{font:13px sans-serif;fill:#222}.title{font-size:17px}.gain{fill:#1f5f9e;stroke:#1f5f9e}.loss{fill:url(#hatch);stroke:#a33b00}.tie{fill:#222}.grid{stroke:#ddd}.axis{stroke:#222}</style>
<rect width="100%" height="100%" fill="#fff"/>
"##;

/// The vertical axis.
struct Axis {
    /// The difference between two ticks.
    step: f64,
    /// Number of ticks above 0, and below.
    ticks: i32,
    /// The y coordinate of 0.
    zero: f64,
    /// The height of a difference of 1.
    unit: f64,
}

impl Axis {
    /// Returns the axis on which the largest gain or loss fits.
    fn new(changes: &[Change<'_>]) -> Self {
        let largest = changes.iter().map(|change| change.gain().abs()).fold(0.0, f64::max);
        let step = if largest > 0.5 {
            0.25
        } else if largest > 0.2 {
            0.1
        } else {
            0.05
        };
        let ticks = (largest / step).ceil().max(1.0);
        let half = (HEIGHT - TOP - BOTTOM) / 2.0;
        Self { step, ticks: ticks as i32, zero: TOP + half, unit: half / (ticks * step) }
    }
}

/// Draws the changes of a measure, which are sorted from the largest gain to the largest loss.
pub(super) fn draw(measure: &str, changes: &[Change<'_>]) -> Result<String, fmt::Error> {
    let axis = Axis::new(changes);
    let title = format!("{measure} of each query: reranked against the first stage");
    let (title, summary) = (Escaped(&title), summary(changes));
    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}: {summary}">"#,
    )?;
    svg.push_str(HEAD);
    writeln!(svg, r#"<text class="title" x="{LEFT}" y="26">{title}</text>"#)?;
    writeln!(svg, r#"<text class="summary" x="{LEFT}" y="48">{summary}</text>"#)?;
    draw_axis(&mut svg, &axis)?;
    draw_bars(&mut svg, &axis, changes)?;
    let (x, y) = (LEFT + (WIDTH - RIGHT - LEFT) / 2.0, HEIGHT - 16.0);
    let (queries, zero) = (changes.len(), axis.zero);
    writeln!(
        svg,
        r#"<text class="unit" x="{x}" y="{y}" text-anchor="middle">{queries} queries, from the largest gain to the largest loss</text>"#
    )?;
    writeln!(
        svg,
        r#"<text class="unit" transform="translate(18 {zero}) rotate(-90)" text-anchor="middle">difference in {}</text>"#,
        Escaped(measure),
    )?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Returns the means before and after, and the numbers of gains, ties and losses.
pub(super) fn summary(changes: &[Change<'_>]) -> String {
    let count = changes.len().max(1) as f64;
    let mean = |value: &dyn Fn(&Change<'_>) -> f64| changes.iter().map(value).sum::<f64>() / count;
    let gains = changes.iter().filter(|change| change.gain() > 0.0).count();
    let losses = changes.iter().filter(|change| change.gain() < 0.0).count();
    format!(
        "mean {:.4}, was {:.4} ({:+.4}); {gains} gains, {} ties, {losses} losses",
        mean(&|change| change.after),
        mean(&|change| change.before),
        mean(&|change| change.gain()),
        changes.len() - gains - losses,
    )
}

/// Draws the ticks with their labels.
fn draw_axis(svg: &mut String, axis: &Axis) -> fmt::Result {
    let right = WIDTH - RIGHT;
    for tick in -axis.ticks..=axis.ticks {
        let value = f64::from(tick) * axis.step;
        let y = axis.zero - value * axis.unit;
        let class = if tick == 0 { "axis" } else { "grid" };
        writeln!(
            svg,
            r#"<line class="{class}" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/>"#
        )?;
        let (x, y) = (LEFT - 8.0, y + 4.0);
        let label = if tick == 0 { "0".into() } else { format!("{value:+.2}") };
        let class = if tick == 0 || tick.abs() == axis.ticks { "major" } else { "minor" };
        writeln!(
            svg,
            r#"<text class="{class}" x="{x}" y="{y:.1}" text-anchor="end">{label}</text>"#
        )?;
    }
    Ok(())
}

/// Draws a bar with a tooltip for each query.
fn draw_bars(svg: &mut String, axis: &Axis, changes: &[Change<'_>]) -> fmt::Result {
    let slot = (WIDTH - LEFT - RIGHT) / changes.len().max(1) as f64;
    for (index, change) in changes.iter().enumerate() {
        let height = change.gain() * axis.unit;
        let (x, width) = (LEFT + (index as f64 + 0.1) * slot, slot * 0.8);
        let tooltip = format!(
            "query {}: {:.4}, was {:.4} ({:+.4}) {}",
            change.query,
            change.after,
            change.before,
            change.gain(),
            change.text,
        );
        let (class, y, height) = match change.gain() {
            gain if gain > 0.0 => ("gain", axis.zero - height, height),
            gain if gain < 0.0 => ("loss", axis.zero, -height),
            _ => ("tie", axis.zero - TIE / 2.0, TIE),
        };
        writeln!(
            svg,
            r#"<rect class="{class}" x="{x:.2}" y="{y:.2}" width="{width:.2}" height="{height:.2}"><title>{}</title></rect>"#,
            Escaped(&tooltip),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change<'a>(query: &'a str, text: &'a str, before: f64, after: f64) -> Change<'a> {
        Change { query, text, before, after }
    }

    #[test]
    fn draw_places_gains_above_and_losses_below_the_axis() {
        let changes = [
            change("q1", "a & <b>\u{1b}", 0.25, 1.0),
            change("q2", "same", 0.5, 0.5),
            change("q3", "worse", 0.5, 0.0),
        ];
        let svg = draw("nDCG(dcg='exp-log2')@10", &changes).expect("drawn");
        let of_class = |class: &str| {
            let lines =
                svg.lines().filter(|line| line.contains(&format!("<rect class=\"{class}\"")));
            lines.collect::<Vec<_>>()
        };
        let (gains, ties, losses) = (of_class("gain"), of_class("tie"), of_class("loss"));
        assert_eq!((gains.len(), ties.len(), losses.len()), (1, 1, 1));
        let zero = TOP + (HEIGHT - TOP - BOTTOM) / 2.0;
        // The axis ends at 0.75.
        let height = zero - TOP;
        let attributes = format!("y=\"{:.2}\" width=\"232.00\" height=\"{height:.2}\"", TOP);
        assert!(gains[0].contains(&attributes), "{gains:?} {attributes}");
        assert!(
            gains[0].contains("query q1: 1.0000, was 0.2500 (+0.7500) a &amp; &lt;b&gt;\\u{1b}")
        );
        let attributes = format!("y=\"{zero:.2}\" width=\"232.00\" height=\"{:.2}\"", height / 1.5);
        assert!(losses[0].contains(&attributes), "{losses:?} {attributes}");
        assert!(svg.contains("1 gains, 1 ties, 1 losses"), "{svg}");
        assert!(svg.contains("mean 0.5000, was 0.4167 (+0.0833)"), "{svg}");
    }

    #[test]
    fn draw_handles_no_queries_and_no_change() {
        for changes in [vec![], vec![change("q", "", 0.0, 0.0)]] {
            let svg = draw("AP", &changes).expect("drawn");
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
