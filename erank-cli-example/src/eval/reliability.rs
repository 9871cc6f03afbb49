//! The reliability diagram, as SVG: the relevant fraction of the documents by their probability.

use std::fmt::{self, Write};

use erank_core::Reliability;

use super::calibration::{Calibrated, bins, summary};

const SIZE: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 84.0;
const BOTTOM: f64 = 50.0;

/// Styles. Marks are hollow before the calibration and filled after it, so that the diagram does not rely on colour.
const HEAD: &str = r##"<style>text{font:13px sans-serif;fill:#222}.title{font-size:17px}.before{fill:#fff;stroke:#a33b00;stroke-width:2}.after{fill:#1f5f9e;stroke:#1f5f9e}.line{fill:none}.grid{stroke:#ddd}.axis{stroke:#222}.ideal{stroke:#222;stroke-dasharray:4}</style>
<rect width="100%" height="100%" fill="#fff"/>
"##;

/// Draws the relevant fraction of each bin of the documents that the calibration was checked on.
pub(super) fn draw(calibrated: &Calibrated) -> Result<String, fmt::Error> {
    let (width, height) = (LEFT + SIZE + RIGHT, TOP + SIZE + BOTTOM);
    let title = "Reliability of the probability of relevance";
    let mut svg = String::new();
    writeln!(
        svg,
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" aria-label="{title}">"#
    )?;
    svg.push_str(HEAD);
    writeln!(svg, r#"<text class="title" x="20" y="26">{title}</text>"#)?;
    draw_axes(&mut svg)?;
    for ((name, reliability), y) in calibrated.reliabilities().zip([48.0, 68.0]) {
        let marker = y - 4.0;
        writeln!(svg, r#"<circle class="{name}" cx="28" cy="{marker}" r="5"/>"#)?;
        writeln!(svg, r#"<text x="42" y="{y}">{name}: {}</text>"#, summary(reliability))?;
        draw_bins(&mut svg, name, reliability)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

/// Returns the x coordinate of a probability.
fn x(probability: f64) -> f64 {
    LEFT + probability * SIZE
}

/// Returns the y coordinate of a fraction.
fn y(fraction: f64) -> f64 {
    TOP + (1.0 - fraction) * SIZE
}

/// Draws the axes, the grid and the diagonal, on which probabilities agree with the judgements.
fn draw_axes(svg: &mut String) -> fmt::Result {
    for tick in 0..=5 {
        let value = f64::from(tick) / 5.0;
        let class = if tick == 0 { "axis" } else { "grid" };
        let (left, right, low, high) = (x(0.0), x(1.0), y(0.0), y(1.0));
        let (at_x, at_y) = (x(value), y(value));
        writeln!(
            svg,
            r#"<line class="{class}" x1="{left}" x2="{right}" y1="{at_y:.1}" y2="{at_y:.1}"/><line class="{class}" x1="{at_x:.1}" x2="{at_x:.1}" y1="{low}" y2="{high}"/>"#
        )?;
        let (label_x, label_y, below) = (left - 8.0, at_y + 4.0, low + 18.0);
        writeln!(
            svg,
            r#"<text x="{label_x}" y="{label_y:.1}" text-anchor="end">{value}</text><text x="{at_x:.1}" y="{below}" text-anchor="middle">{value}</text>"#
        )?;
    }
    let (left, right, low, high) = (x(0.0), x(1.0), y(0.0), y(1.0));
    writeln!(svg, r#"<line class="ideal" x1="{left}" y1="{low}" x2="{right}" y2="{high}"/>"#)?;
    let (middle_x, middle_y, below) = (x(0.5), y(0.5), low + 38.0);
    writeln!(
        svg,
        r#"<text x="{middle_x}" y="{below}" text-anchor="middle">mean probability</text>"#
    )?;
    writeln!(
        svg,
        r#"<text transform="translate(18 {middle_y}) rotate(-90)" text-anchor="middle">relevant fraction</text>"#
    )
}

/// Draws a line through the bins that are not empty, and a mark with a tooltip for each.
fn draw_bins(svg: &mut String, name: &str, reliability: &Reliability) -> fmt::Result {
    let points = bins(reliability).filter_map(|(range, bin)| {
        Some((range, bin.documents, bin.mean_probability?, bin.relevant_fraction?))
    });
    let points: Vec<_> = points.collect();
    let line =
        points.iter().map(|(_, _, mean, fraction)| format!("{:.1},{:.1}", x(*mean), y(*fraction)));
    let line: Vec<String> = line.collect();
    writeln!(svg, r#"<polyline class="{name} line" points="{}"/>"#, line.join(" "))?;
    for (range, documents, mean, fraction) in points {
        writeln!(
            svg,
            r#"<circle class="{name}" cx="{:.1}" cy="{:.1}" r="5"><title>{name}, {range}: {documents} documents, mean probability {mean:.3}, relevant {fraction:.3}</title></circle>"#,
            x(mean),
            y(fraction)
        )?;
    }
    Ok(())
}
