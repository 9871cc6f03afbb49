//! A picture of what each query gained or lost, as SVG.

use std::fmt::{self, Write};

use super::report::Change;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 70.0;
const BOTTOM: f64 = 50.0;
/// How high a bar without a difference is: what has no height is not drawn.
const TIE: f64 = 3.0;

/// Gains stand above the line and are filled, losses below and are hatched: nothing is said by
/// colour alone.
const HEAD: &str = r##"<defs><pattern id="hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect width="5" height="5" fill="#fff"/><line y2="5" stroke="#a33b00" stroke-width="4"/></pattern></defs>
<style>text{font:13px sans-serif;fill:#222}.title{font-size:17px}.gain{fill:#1f5f9e;stroke:#1f5f9e}.loss{fill:url(#hatch);stroke:#a33b00}.tie{fill:#222}.grid{stroke:#ddd}.axis{stroke:#222}</style>
<rect width="100%" height="100%" fill="#fff"/>
"##;

/// Draws the changes of a measure, the largest gain first.
pub(super) fn draw(measure: &str, changes: &[Change<'_>]) -> Result<String, fmt::Error> {
    let count = changes.len().max(1) as f64;
    let mean = |value: &dyn Fn(&Change<'_>) -> f64| changes.iter().map(value).sum::<f64>() / count;
    let wins = changes.iter().filter(|change| change.gain() > 0.0).count();
    let losses = changes.iter().filter(|change| change.gain() < 0.0).count();
    let title = format!("{measure} of each query: reranked against the first stage");
    let summary = format!(
        "mean {:.4}, was {:.4} ({:+.4}); {wins} gains, {} ties, {losses} losses",
        mean(&|change| change.after),
        mean(&|change| change.before),
        mean(&|change| change.gain()),
        changes.len() - wins - losses,
    );

    let largest = changes.iter().fold(0.0, |largest: f64, change| largest.max(change.gain().abs()));
    let step = if largest > 0.5 {
        0.25
    } else if largest > 0.2 {
        0.1
    } else {
        0.05
    };
    let steps = (largest / step).ceil().max(1.0);
    let zero = TOP + (HEIGHT - TOP - BOTTOM) / 2.0;
    let unit = (HEIGHT - TOP - BOTTOM) / 2.0 / (steps * step);
    let slot = (WIDTH - LEFT - RIGHT) / count;
    let right = WIDTH - RIGHT;

    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{}: {}">"#,
        escaped(&title),
        escaped(&summary),
    )?;
    svg.push_str(HEAD);
    writeln!(svg, r#"<text class="title" x="{LEFT}" y="26">{}</text>"#, escaped(&title))?;
    writeln!(svg, r#"<text x="{LEFT}" y="48">{}</text>"#, escaped(&summary))?;
    let most = steps as i32;
    for tick in -most..=most {
        let (value, y) = (f64::from(tick) * step, zero - f64::from(tick) * step * unit);
        let class = if tick == 0 { "axis" } else { "grid" };
        writeln!(
            svg,
            r#"<line class="{class}" x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}"/>"#
        )?;
        let (x, y) = (LEFT - 8.0, y + 4.0);
        let label = if tick == 0 { "0".into() } else { format!("{value:+.2}") };
        writeln!(svg, r#"<text x="{x}" y="{y:.1}" text-anchor="end">{label}</text>"#)?;
    }
    for (index, change) in changes.iter().enumerate() {
        let height = change.gain() * unit;
        let (x, width) = (LEFT + (index as f64 + 0.1) * slot, slot * 0.8);
        let tip = format!(
            "query {}: {:.4}, was {:.4} ({:+.4}) {}",
            change.query,
            change.after,
            change.before,
            change.gain(),
            change.text,
        );
        let (class, y) = match change.gain() {
            gain if gain > 0.0 => ("gain", zero - height),
            gain if gain < 0.0 => ("loss", zero),
            _ => ("tie", zero - TIE / 2.0),
        };
        let height = if class == "tie" { TIE } else { height.abs() };
        writeln!(
            svg,
            r#"<rect class="{class}" x="{x:.2}" y="{y:.2}" width="{width:.2}" height="{height:.2}"><title>{}</title></rect>"#,
            escaped(&tip),
        )?;
    }
    let (x, y) = (LEFT + (right - LEFT) / 2.0, HEIGHT - 16.0);
    let queries = changes.len();
    writeln!(
        svg,
        r#"<text x="{x}" y="{y}" text-anchor="middle">{queries} queries, from the largest gain to the largest loss</text>"#
    )?;
    writeln!(
        svg,
        r#"<text transform="translate(18 {zero}) rotate(-90)" text-anchor="middle">difference in {}</text>"#,
        escaped(measure),
    )?;
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Text as XML may hold it; control characters cannot stand in it at all.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\u{fffe}' | '\u{ffff}' => escaped.push('\u{fffd}'),
            c if c.is_control() => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change<'a>(query: &'a str, text: &'a str, before: f64, after: f64) -> Change<'a> {
        Change { query, text, before, after }
    }

    #[test]
    fn every_query_is_drawn_where_it_belongs() {
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
        // The scale reaches to 0.75.
        let height = zero - TOP;
        let place = format!("y=\"{:.2}\" width=\"232.00\" height=\"{height:.2}\"", TOP);
        assert!(gains[0].contains(&place), "{gains:?} {place}");
        assert!(
            gains[0].contains("query q1: 1.0000, was 0.2500 (+0.7500) a &amp; &lt;b&gt;\u{fffd}")
        );
        let place = format!("y=\"{zero:.2}\" width=\"232.00\" height=\"{:.2}\"", height / 1.5);
        assert!(losses[0].contains(&place), "{losses:?} {place}");
        assert!(svg.contains("1 gains, 1 ties, 1 losses"), "{svg}");
        assert!(svg.contains("mean 0.5000, was 0.4167 (+0.0833)"), "{svg}");
    }

    #[test]
    fn nothing_is_a_picture_too() {
        for changes in [vec![], vec![change("q", "", 0.0, 0.0)]] {
            let svg = draw("AP", &changes).expect("drawn");
            assert!(svg.ends_with("</svg>\n") && !svg.contains("NaN") && !svg.contains("inf"));
        }
    }
}
