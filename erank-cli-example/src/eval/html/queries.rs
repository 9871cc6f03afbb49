//! The queries with the largest gains and losses, and the documents that moved.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::fmt::{self, Write};

use super::super::collection::{Candidate, Query};
use super::super::markup::Excerpt;
use super::super::report::{self, Change};
use super::super::scores::Outcome;
use super::super::systems::Judgement;
use super::{MAX_ID, MAX_REASON, Page, count, signed};

/// Maximum number of relevant documents of a query.
const MAX_RELEVANT: usize = 10;
/// Maximum number of documents of a query that moved.
const MAX_MOVED: usize = 4;

/// Maximum numbers of characters.
const MAX_QUERY: usize = 600;
const MAX_TEXT: usize = 500;
const MAX_THOUGHT: usize = 3000;

/// The thoughts by query, then by document.
type Thoughts = HashMap<String, HashMap<String, String>>;

/// A query with its candidates.
pub(super) struct Listed<'a> {
    /// "gains" or "losses".
    what: &'static str,
    change: &'a Change<'a>,
    query: &'a Query,
    /// In the first stage's order.
    candidates: Vec<Ranked<'a>>,
}

/// A candidate with its ranks, from 1.
#[derive(Clone, Copy)]
struct Ranked<'a> {
    candidate: &'a Candidate,
    judgement: &'a Judgement<'a>,
    before: usize,
    after: usize,
}

impl<'a> Listed<'a> {
    /// Returns the largest gains, and then the largest losses.
    pub(super) fn of(page: &Page<'a>, changes: &'a [Change<'a>]) -> Vec<Self> {
        let mut listed = Vec::new();
        for (what, changes) in report::largest(changes) {
            for change in changes {
                let queries = &page.collection.queries;
                // A query without candidates has neither a gain nor a loss.
                let Ok(position) =
                    queries.binary_search_by(|query| query.id.as_str().cmp(change.query))
                else {
                    continue;
                };
                let query = &queries[position];
                let reranked = page.runs.reranked.ranking(&query.id);
                let after: HashMap<&str, usize> =
                    reranked.into_iter().map(|(document, _)| document).zip(1..).collect();
                let candidates = query.candidates.iter().zip(&page.judgements.of_queries[position]);
                let candidates =
                    candidates.zip(1..).filter_map(|((candidate, judgement), before)| {
                        let after = *after.get(candidate.id.as_str())?;
                        Some(Ranked { candidate, judgement, before, after })
                    });
                listed.push(Self { what, change, query, candidates: candidates.collect() });
            }
        }
        listed
    }

    /// Returns the documents whose thoughts the page shows, each with its query.
    pub(super) fn documents(listed: &[Self]) -> HashSet<(&'a str, &'a str)> {
        let of_query = |listed: &Self| {
            let query = listed.query;
            listed.moved().into_iter().map(|moved| (query.id.as_str(), moved.candidate.id.as_str()))
        };
        listed.iter().flat_map(of_query).collect()
    }

    /// Returns the candidates that moved most, by the ratio of their ranks.
    fn moved(&self) -> Vec<Ranked<'a>> {
        let ratio = |ranked: &Ranked<'_>| {
            let (before, after) = (ranked.before as f64, ranked.after as f64);
            (before / after).max(after / before)
        };
        let moved = self.candidates.iter().copied().filter(|ranked| ranked.before != ranked.after);
        let mut moved: Vec<Ranked<'a>> = moved.collect();
        moved.sort_by(|a, b| ratio(b).total_cmp(&ratio(a)));
        moved.truncate(MAX_MOVED);
        moved.sort_by_key(|ranked| ranked.after);
        moved
    }
}

/// Writes the sections of the largest gains and losses.
pub(super) fn write(
    html: &mut String,
    page: &Page<'_>,
    listed: &[Listed<'_>],
    thoughts: &Thoughts,
) -> fmt::Result {
    for queries in listed.chunk_by(|a, b| a.what == b.what) {
        writeln!(html, "<section>\n<h2>Largest {}</h2>", queries[0].what)?;
        for (index, listed) in queries.iter().enumerate() {
            let open = if index == 0 { " open" } else { "" };
            let Change { before, after, .. } = listed.change;
            let gain = listed.change.gain();
            let class = if gain > 0.0 { "up" } else { "down" };
            writeln!(
                html,
                r#"<details class="query"{open}>
<summary><span class="asked" dir="auto">{}</span> <span class="number">{before:.4} → {after:.4} <b class="{class}">{}</b></span></summary>"#,
                Excerpt { text: listed.change.text, max_chars: MAX_QUERY },
                signed(gain)
            )?;
            write!(html, r#"<p class="note">Query <bdi>{}</bdi></p>"#, id(&listed.query.id))?;
            if let Some(instruction) = &listed.query.instruction {
                write!(
                    html,
                    r#"<p class="note">Instruction of this query: <bdi>{}</bdi></p>"#,
                    Excerpt { text: instruction, max_chars: MAX_QUERY }
                )?;
            }
            write_relevant(html, page, listed)?;
            write_moved(html, page, listed, thoughts)?;
            html.push_str("</details>\n");
        }
        html.push_str("</section>\n");
    }
    Ok(())
}

/// Writes the ranks of the relevant documents.
fn write_relevant(html: &mut String, page: &Page<'_>, listed: &Listed<'_>) -> fmt::Result {
    let candidates: HashMap<&str, &Ranked<'_>> =
        listed.candidates.iter().map(|ranked| (ranked.candidate.id.as_str(), ranked)).collect();
    let relevant = page.collection.qrels.grades(&listed.query.id).filter(|(_, grade)| *grade > 0);
    let relevant = relevant.map(|(document, grade)| (document, grade, candidates.get(document)));
    let mut relevant: Vec<_> = relevant.collect();
    let rank = |ranked: Option<&&Ranked<'_>>| ranked.map_or(usize::MAX, |ranked| ranked.after);
    relevant.sort_by_key(|(_, grade, ranked)| (Reverse(*grade), rank(*ranked)));
    html.push_str(
        r#"<h3>Relevant documents</h3>
<div class="wide" tabindex="0">
<table>
<thead><tr><th scope="col">document</th><th scope="col">grade</th><th scope="col">first stage</th><th scope="col">reranked</th></tr></thead>
<tbody>
"#,
    );
    for (document, grade, ranked) in relevant.iter().take(MAX_RELEVANT) {
        write!(html, r#"<tr><th scope="row"><bdi>{}</bdi></th><td>{grade}</td>"#, id(document))?;
        match ranked {
            Some(Ranked { before, after, .. }) => {
                let class = direction(*before, *after);
                writeln!(html, r#"<td>{before}</td><td class="{class}">{after}</td></tr>"#)?;
            }
            None => html.push_str(r#"<td colspan="2" class="muted">not a candidate</td></tr>"#),
        }
    }
    html.push_str("</tbody>\n</table>\n</div>\n");
    match relevant.len().saturating_sub(MAX_RELEVANT) {
        0 => Ok(()),
        rest => writeln!(html, r#"<p class="note">and {} more</p>"#, count(rest)),
    }
}

/// Writes the documents that moved most.
fn write_moved(
    html: &mut String,
    page: &Page<'_>,
    listed: &Listed<'_>,
    thoughts: &Thoughts,
) -> fmt::Result {
    html.push_str(
        "<h3>Documents that moved most, by the ratio of their ranks</h3>\n<ol class=\"cards\">\n",
    );
    let query = listed.query.id.as_str();
    for Ranked { candidate, judgement, before, after } in listed.moved() {
        let grade = match page.collection.qrels.grade(query, &candidate.id) {
            Some(grade) if grade >= 0 => format!("grade {grade}"),
            _ => "not judged".into(),
        };
        let class = direction(before, after);
        write!(
            html,
            r#"<li>
<div class="ranks"><b class="{class}">{after}</b> <span class="muted">was {before}</span></div>
<div class="figures">{}<span class="muted">{grade}</span></div>
<div class="body"><p class="muted"><bdi>{}</bdi></p>
<p class="words" dir="auto">{}</p>
"#,
            figures(judgement),
            id(&candidate.id),
            Excerpt { text: candidate.text.as_deref().unwrap_or_default(), max_chars: MAX_TEXT }
        )?;
        if let Err(reason) = &judgement.score {
            writeln!(
                html,
                r#"<p class="muted">{}</p>"#,
                Excerpt { text: reason, max_chars: MAX_REASON }
            )?;
        }
        // The file may hold the thought about an earlier text of a document that now has no score.
        let thoughts = thoughts.get(query).filter(|_| judgement.score.is_ok());
        let thought = thoughts.and_then(|thoughts| thoughts.get(&candidate.id));
        let thought = thought.map_or("", |thought| thought.trim());
        if !thought.is_empty() {
            writeln!(
                html,
                r#"<details><summary>Thought</summary><p class="thought" dir="auto">{}</p></details>"#,
                Excerpt { text: thought, max_chars: MAX_THOUGHT }
            )?;
        }
        html.push_str("</div>\n</li>\n");
    }
    html.push_str("</ol>\n");
    Ok(())
}

/// Returns the answer and the score of a document as markup.
fn figures(judgement: &Judgement<'_>) -> String {
    match (judgement.outcome, &judgement.score) {
        (Some(Outcome::Answered(answer)), Ok(score)) => {
            let forced = if answer.is_forced() { ", forced" } else { "" };
            let truncated = if answer.is_truncated() { ", truncated" } else { "" };
            format!(
                r#"<b>{score:.3}</b> <span class="muted">answer {}{forced}{truncated}</span> "#,
                answer.integer
            )
        }
        _ => r#"<span class="muted">no score</span> "#.into(),
    }
}

/// Returns the class of a document that moved up or down.
fn direction(before: usize, after: usize) -> &'static str {
    match after.cmp(&before) {
        std::cmp::Ordering::Less => "up",
        std::cmp::Ordering::Equal => "",
        std::cmp::Ordering::Greater => "down",
    }
}

/// Returns the markup of an id.
fn id(id: &str) -> Excerpt<'_> {
    Excerpt { text: id, max_chars: MAX_ID }
}
