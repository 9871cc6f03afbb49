//! `report.html`: the report as one page, which needs no other file and no script.
//!
//! Texts of documents, queries and the model are written as [`Escaped`] or [`Excerpt`] only, so none of them can become
//! markup. The policy in the page's head forbids scripts and requests as well.

mod measures;
mod queries;

use std::fmt::{self, Display, Write};
use std::io;
use std::time::Duration;

use indicatif::HumanCount;

use super::calibration::{self, Calibrated};
use super::collection::Collection;
use super::gains;
use super::markup::{Escaped, Excerpt, beginning};
use super::reliability;
use super::report::{Change, MAX_LISTED_UNSCORED, Report, Runs};
use super::scores::ScoreFile;
use super::systems::Judgements;
use crate::error::CommandError;
use queries::Listed;

const STYLE: &str = include_str!("html/page.css");

/// Maximum numbers of characters of texts in the page.
const MAX_ID: usize = 80;
const MAX_SETTING: usize = 2000;
const MAX_REASON: usize = 300;
/// A chart has a tooltip for each query, so their texts are short.
const MAX_TOOLTIP_ID: usize = 40;
const MAX_TOOLTIP_TEXT: usize = 80;

/// The content of report.html.
pub(super) struct Page<'a> {
    pub(super) report: &'a Report<'a>,
    pub(super) collection: &'a Collection,
    pub(super) judgements: &'a Judgements<'a>,
    pub(super) runs: &'a Runs,
    pub(super) scores: &'a ScoreFile,
    pub(super) pace: Pace,
}

/// The documents that this start of the command scored, and the time for it.
#[derive(Clone, Copy)]
pub(super) struct Pace {
    pub(super) documents: usize,
    /// The number of documents that earlier starts had scored.
    pub(super) known: usize,
    pub(super) elapsed: Duration,
}

impl Page<'_> {
    /// Returns the page.
    ///
    /// # Errors
    ///
    /// Returns an error if the file of scores, which holds the thoughts, cannot be read again.
    pub(super) fn html(&self) -> Result<String, CommandError> {
        let changes = self.report.changes();
        let listed = Listed::of(self, &changes);
        let thoughts = self.scores.reasoning(&Listed::documents(&listed))?;
        let mut html = String::new();
        let mut write = || {
            self.write_head(&mut html)?;
            self.write_subject(&mut html)?;
            self.write_problems(&mut html)?;
            measures::write(&mut html, self.report)?;
            self.write_chart(&mut html, &changes)?;
            queries::write(&mut html, self, &listed, &thoughts)?;
            self.write_cost(&mut html)?;
            if let Some(calibrated) = &self.report.calibration {
                write_calibration(&mut html, calibrated)?;
            }
            self.write_settings(&mut html)?;
            html.write_str("</body>\n</html>\n")
        };
        write().map_err(io::Error::other)?;
        Ok(html)
    }

    /// Writes the head and the heading.
    fn write_head(&self, html: &mut String) -> fmt::Result {
        let model = Escaped(beginning(self.report.settings.model, MAX_ID));
        write!(
            html,
            r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Evaluation of {model}</title>
<style>
{STYLE}</style>
</head>
<body>
<h1>Evaluation of <bdi>{model}</bdi></h1>
"#
        )
    }

    /// Writes what was evaluated.
    fn write_subject(&self, html: &mut String) -> fmt::Result {
        let Report { settings, counts, .. } = self.report;
        let own =
            self.collection.queries.iter().filter(|query| query.instruction.is_some()).count();
        let queries = match own {
            0 => count(counts.queries),
            own => format!(
                "{}, of which {} have an instruction of their own",
                count(counts.queries),
                count(own)
            ),
        };
        let documents = count(counts.documents);
        let depth = count(self.report.depth);
        let mode = match settings.max_tokens {
            Some(tokens) => format!("after a thought of at most {} tokens", count(tokens)),
            None => "without a thought".into(),
        };
        html.push_str("<dl class=\"rows\">\n");
        row(html, "Queries", queries)?;
        row(html, "Documents", format!("{documents}, at most {depth} of each query"))?;
        row(html, "Prompt", Escaped(settings.template))?;
        row(html, "Instruction", Excerpt { text: settings.instruction, max_chars: MAX_SETTING })?;
        let score = self.report.score.replace('_', " ");
        row(html, "Score", format!("{}, {mode}", Escaped(&score)))?;
        let weights = settings
            .description
            .unwrap_or("a remote model, whose server does not report its weights");
        row(html, "Weights", Excerpt { text: weights, max_chars: MAX_SETTING })?;
        html.push_str("</dl>\n");
        Ok(())
    }

    /// Writes what is missing or partial.
    fn write_problems(&self, html: &mut String) -> fmt::Result {
        let mut problems = self.report.problems().peekable();
        if problems.peek().is_none() {
            return Ok(());
        }
        html.push_str("<div class=\"warning\">\n");
        for (number, what) in problems {
            writeln!(html, "<p>{} {}.</p>", count(number), Escaped(what))?;
        }
        let unscored = &self.report.unscored;
        if !unscored.is_empty() {
            html.push_str("<details><summary>Documents without a score</summary>\n<ul>\n");
            for document in unscored.iter().take(MAX_LISTED_UNSCORED) {
                let excerpt = |text, max_chars| Excerpt { text, max_chars };
                writeln!(
                    html,
                    "<li>query <bdi>{}</bdi>, document <bdi>{}</bdi>: <bdi>{}</bdi></li>",
                    excerpt(document.query, MAX_ID),
                    excerpt(document.document, MAX_ID),
                    excerpt(document.reason, MAX_REASON)
                )?;
            }
            let rest = unscored.len().saturating_sub(MAX_LISTED_UNSCORED);
            if rest > 0 {
                writeln!(html, "<li>and {} more: see report.json.</li>", count(rest))?;
            }
            html.push_str("</ul>\n</details>\n");
        }
        html.push_str("</div>\n");
        Ok(())
    }

    /// Writes the chart of gains and losses. The texts of its tooltips are cut.
    fn write_chart(&self, html: &mut String, changes: &[Change<'_>]) -> fmt::Result {
        let short = changes.iter().map(|change| Change {
            query: beginning(change.query, MAX_TOOLTIP_ID),
            text: beginning(change.text, MAX_TOOLTIP_TEXT),
            ..*change
        });
        let short: Vec<Change<'_>> = short.collect();
        let Some(figure) = self.report.systems[0].figures.first() else { return Ok(()) };
        let measure = &figure.measure;
        write!(
            html,
            r#"<section>
<h2>Gain of each query</h2>
<figure class="chart gains">
{}<figcaption>{} of each query, reranked against the first stage, from the largest gain to the largest
loss: {}.</figcaption>
</figure>
</section>
"#,
            gains::draw(measure, &short)?,
            Escaped(measure),
            gains::summary(changes)
        )
    }

    /// Writes tokens and times.
    fn write_cost(&self, html: &mut String) -> fmt::Result {
        let Report { counts, tokens, .. } = self.report;
        let each = |tokens: usize| {
            format!(
                "{}, {:.1} a document",
                count(tokens),
                tokens as f64 / counts.scored.max(1) as f64
            )
        };
        html.push_str("<section>\n<h2>Cost</h2>\n<dl class=\"rows\">\n");
        row(
            html,
            "Scored documents",
            format!("{} of {}", count(counts.scored), count(counts.documents)),
        )?;
        row(html, "Prompt tokens", each(tokens.prompt))?;
        row(html, "Generated tokens", each(tokens.generated))?;
        let Pace { documents, known, elapsed } = self.pace;
        let time = match documents {
            0 => "not recorded, because this start of the command scored no document".into(),
            documents => {
                let seconds = elapsed.as_secs_f64();
                let rate = documents as f64 / seconds.max(1e-3);
                let rate = format!(
                    "{seconds:.1} s for {} documents, {rate:.1} documents a second",
                    count(documents)
                );
                match known {
                    0 => rate,
                    _ => format!(
                        "{rate}, in the last start of the command; times of earlier starts are not recorded"
                    ),
                }
            }
        };
        row(html, "Time", time)?;
        html.push_str("</dl>\n</section>\n");
        Ok(())
    }

    /// Writes all settings, as in report.json.
    fn write_settings(&self, html: &mut String) -> fmt::Result {
        let settings = self.report.settings.fields().map_err(|_| fmt::Error)?;
        html.push_str("<section>\n<h2>Settings</h2>\n<details><summary>All settings that scores depend on</summary>\n<dl class=\"rows\">\n");
        for (name, value) in &settings {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            row(html, name, Excerpt { text: &value, max_chars: MAX_SETTING })?;
        }
        html.push_str("</dl>\n</details>\n</section>\n");
        Ok(())
    }
}

/// Writes how well the probabilities of relevance agree with the judgements.
fn write_calibration(html: &mut String, calibrated: &Calibrated) -> fmt::Result {
    let Calibrated { fitted, checked, .. } = calibrated;
    write!(
        html,
        r#"<section>
<h2>Calibration</h2>
<p class="note">Fitted on {} queries with {} judged documents, and checked on {} others with {}.</p>
<dl class="rows">
"#,
        count(fitted.queries),
        count(fitted.documents),
        count(checked.queries),
        count(checked.documents)
    )?;
    for (name, reliability) in calibrated.reliabilities() {
        row(html, name, calibration::summary(reliability))?;
    }
    write!(
        html,
        "</dl>\n<figure class=\"chart square\">\n{}</figure>\n</section>\n",
        reliability::draw(calibrated)?
    )
}

/// Writes a row of a list of names and values. The value is markup.
fn row(html: &mut String, name: &str, value: impl Display) -> fmt::Result {
    writeln!(html, "<div><dt>{}</dt><dd dir=\"auto\">{value}</dd></div>", Escaped(name))
}

/// Formats a count with thousands separators.
fn count(number: usize) -> String {
    HumanCount(number as u64).to_string()
}

/// Formats a difference with its sign and four decimals.
fn signed(value: f64) -> String {
    // Adding 0 makes −0 positive.
    format!("{:+.4}", value + 0.0).replace('-', "−")
}
