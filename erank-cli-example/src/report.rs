//! A ranking as a table for people or as JSON for programs.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use erank_core::backend::TokenCounts;
use erank_core::{DocumentError, FinishReason, RankedDocument, Ranking};
use serde::Serialize;

use crate::error::{self, Exit};
use crate::input::{BadLine, Input, InputDocument};
use crate::table::{self, Column, Table};
use crate::text;

/// Everything there is to say about one query.
pub(crate) struct Report<'a> {
    pub(crate) model: &'a str,
    pub(crate) query: &'a str,
    pub(crate) instruction: &'a str,
    pub(crate) input: &'a Input,
    pub(crate) ranking: &'a Ranking,
    pub(crate) seconds: f64,
    /// Whether it was Ctrl-C that stopped the work, if something did.
    pub(crate) interrupted: bool,
}

/// What ended the work before it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stopped {
    Interrupted,
    Timeout,
}

/// What the table shows of the thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Thoughts {
    /// A column, cut to its width.
    Column,
    /// The whole of each, below its row.
    Below,
}

impl Report<'_> {
    /// What ended the work early, if a document was left.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        let left = self.ranking.unscored.iter().any(|document| is_stopped(&document.error));
        let why = if self.interrupted { Stopped::Interrupted } else { Stopped::Timeout };
        left.then_some(why)
    }

    /// The exit code that says it.
    pub(crate) fn exit(&self) -> Exit {
        let all_ranked = self.ranking.unscored.is_empty() && self.input.bad_lines.is_empty();
        match self.stopped() {
            Some(Stopped::Interrupted) => Exit::Interrupted,
            Some(Stopped::Timeout) => Exit::TimedOut,
            None if all_ranked => Exit::Done,
            None => Exit::SomeUnscored,
        }
    }

    /// Writes the table of the ranked documents.
    pub(crate) fn write_table(&self, thoughts: Thoughts, out: &mut dyn Write) -> io::Result<()> {
        if self.ranking.documents.is_empty() {
            return Ok(());
        }
        let documents = &self.input.documents;
        let has_ids = documents.iter().any(|document| document.id.is_some());
        let first_stage = first_stage_ranks(documents);
        let reasoned = self.ranking.documents.iter().any(|document| !document.reasoning.is_empty());
        let in_column = reasoned && thoughts == Thoughts::Column;

        let mut columns = vec![Column::Number("rank"), Column::Number("score")];
        columns.extend([Column::Number("integer"), Column::Number("prob.")]);
        columns.extend((!first_stage.is_empty()).then_some(Column::Number("first")));
        columns.extend(has_ids.then_some(Column::Word("id")));
        columns.push(Column::Text("document"));
        columns.extend(in_column.then_some(Column::Text("thought")));

        let mut table = Table::new(columns);
        for (index, ranked) in self.ranking.documents.iter().enumerate() {
            let document = &documents[ranked.index];
            let mut cells = vec![(index + 1).to_string(), format!("{:.3}", ranked.score)];
            cells.push(ranked.integer.to_string());
            cells.push(ranked.probability.map_or("-".into(), |p| format!("{p:.3}")));
            if !first_stage.is_empty() {
                let rank = first_stage.get(&ranked.index);
                cells.push(rank.map_or("-".into(), usize::to_string));
            }
            cells.extend(has_ids.then(|| text::beginning(&document.name())));
            cells.push(text::beginning(&document.text));
            cells.extend(in_column.then(|| text::beginning(&ranked.reasoning)));
            let below = match thoughts {
                Thoughts::Column => String::new(),
                Thoughts::Below => text::block(&ranked.reasoning),
            };
            table.row(cells, below);
        }
        table.write(table::output_width(), out)
    }

    /// Says on standard error which documents were cut or are missing in the table, and why.
    pub(crate) fn note_problems(&self) {
        let cut = self.ranking.documents.iter().filter(|document| document.truncated).count();
        if cut > 0 {
            let documents = counted(cut);
            text::note(&format!("{documents} ranked by the beginning: the text is too long."));
        }
        let unscored = self.unscored();
        let left = unscored.iter().filter(|document| document.is_stopped).count();
        let bad = unscored.len() - left;
        if bad > 0 {
            text::note(&format!("{} could not be ranked:", counted(bad)));
        }
        for document in unscored.iter().filter(|document| !document.is_stopped) {
            let id = document.id.map(text::beginning);
            let id = id.map_or(String::new(), |id| format!(" ({id})"));
            text::note(&format!("  line {}{id}: {}", document.line, document.reason));
        }
        match self.stopped() {
            Some(Stopped::Interrupted) => {
                text::note(&format!("Interrupted: {} not done.", counted(left)));
            }
            Some(Stopped::Timeout) => {
                text::note(&format!("The time was over: {} not done.", counted(left)));
            }
            None => {}
        }
    }

    /// Writes the JSON object that `--help` describes.
    pub(crate) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let json = serde_json::to_string(&self.as_json())?;
        writeln!(out, "{}", text::json(&json))
    }

    fn as_json(&self) -> JsonReport<'_> {
        let documents = &self.input.documents;
        let first_stage = first_stage_ranks(documents);
        let ranked = self.ranking.documents.iter().enumerate().map(|(index, ranked)| {
            let document = &documents[ranked.index];
            JsonDocument::new(index + 1, ranked, document, first_stage.get(&ranked.index).copied())
        });
        let unscored = self.unscored();
        JsonReport {
            model: self.model,
            query: self.query,
            instruction: self.instruction,
            stopped: self.stopped(),
            counts: JsonCounts {
                documents: documents.len() + self.input.bad_lines.len(),
                ranked: self.ranking.documents.len(),
                beyond_top_k: self.ranking.scored - self.ranking.documents.len(),
                unscored: unscored.len(),
            },
            tokens: self.ranking.tokens.into(),
            seconds: self.seconds,
            documents: ranked.collect(),
            unscored,
        }
    }

    /// Bad lines and documents without a score, by line.
    fn unscored(&self) -> Vec<Unscored<'_>> {
        let bad = self.input.bad_lines.iter().map(|BadLine { line, id, reason }| Unscored {
            line: *line,
            id: id.as_deref(),
            reason: reason.clone(),
            is_stopped: false,
        });
        let unscored = self.ranking.unscored.iter().map(|document| Unscored {
            line: self.input.documents[document.index].line,
            id: self.input.documents[document.index].id.as_deref(),
            reason: error::one_line(&document.error),
            is_stopped: is_stopped(&document.error),
        });
        let mut all: Vec<_> = bad.chain(unscored).collect();
        all.sort_by_key(|document| document.line);
        all
    }
}

fn is_stopped(error: &DocumentError) -> bool {
    matches!(error, DocumentError::Stopped)
}

fn counted(documents: usize) -> String {
    if documents == 1 { "1 document".into() } else { format!("{documents} documents") }
}

/// The rank of each document by the first stage's score, from 1; ties keep their order.
fn first_stage_ranks(documents: &[InputDocument]) -> HashMap<usize, usize> {
    let scored = documents.iter().enumerate();
    let mut scored: Vec<(usize, f64)> =
        scored.filter_map(|(index, document)| Some((index, document.score?))).collect();
    scored.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    scored.into_iter().enumerate().map(|(rank, (index, _))| (index, rank + 1)).collect()
}

#[derive(Serialize)]
struct JsonReport<'a> {
    model: &'a str,
    query: &'a str,
    instruction: &'a str,
    stopped: Option<Stopped>,
    counts: JsonCounts,
    tokens: JsonTokens,
    seconds: f64,
    documents: Vec<JsonDocument<'a>>,
    unscored: Vec<Unscored<'a>>,
}

#[derive(Serialize)]
struct JsonCounts {
    documents: usize,
    ranked: usize,
    beyond_top_k: usize,
    unscored: usize,
}

#[derive(Serialize)]
struct JsonTokens {
    prompt: usize,
    generated: usize,
}

impl From<TokenCounts> for JsonTokens {
    fn from(counts: TokenCounts) -> Self {
        Self { prompt: counts.prompt, generated: counts.generated }
    }
}

#[derive(Serialize)]
struct JsonDocument<'a> {
    rank: usize,
    line: usize,
    id: String,
    score: f64,
    spread: f64,
    integer: u32,
    probability: Option<f64>,
    official: Option<f64>,
    expected: Option<f64>,
    entropy: Option<f64>,
    first_stage_score: Option<f64>,
    first_stage_rank: Option<usize>,
    reasoning: &'a str,
    truncated: bool,
    finish: &'static str,
    tokens: JsonTokens,
}

impl<'a> JsonDocument<'a> {
    fn new(
        rank: usize,
        ranked: &'a RankedDocument,
        document: &InputDocument,
        first_stage_rank: Option<usize>,
    ) -> Self {
        Self {
            rank,
            line: document.line,
            id: document.name(),
            score: ranked.score,
            spread: ranked.spread,
            integer: ranked.integer,
            probability: ranked.probability,
            official: ranked.official,
            expected: ranked.expected,
            entropy: ranked.entropy,
            first_stage_score: ranked.first_stage_score,
            first_stage_rank,
            reasoning: &ranked.reasoning,
            truncated: ranked.truncated,
            finish: match ranked.finish {
                FinishReason::Answered => "answered",
                FinishReason::EndOfText => "end_of_text",
                FinishReason::Forced => "forced",
                _ => "other",
            },
            tokens: ranked.tokens.into(),
        }
    }
}

#[derive(Serialize)]
struct Unscored<'a> {
    line: usize,
    id: Option<&'a str>,
    reason: String,
    #[serde(skip)]
    is_stopped: bool,
}

/// Seconds, as precise as is of interest.
pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}
