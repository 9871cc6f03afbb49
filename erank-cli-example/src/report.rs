//! The report of one ranking, as a table or as JSON.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use erank_core::TokenCounts;
use erank_core::{
    DocumentError, DocumentFailure, FinishReason, RankedDocument, Ranking, ScoredWindow, fusion,
};
use serde::Serialize;

use crate::error::{self, Exit};
use crate::input::{BadLine, Input, InputDocument};
use crate::table::{self, Column, Table};
use crate::text;

/// A ranking with its query, model and input.
pub(crate) struct Report<'a> {
    pub(crate) model: &'a str,
    /// The model of `--first-pass`.
    pub(crate) first_pass_model: Option<&'a str>,
    pub(crate) query: &'a str,
    /// The name of the prompt.
    pub(crate) template: &'a str,
    pub(crate) instruction: &'a str,
    pub(crate) input: &'a Input,
    /// The value of `--min-score`.
    pub(crate) min_score: Option<f64>,
    pub(crate) ranking: &'a Ranking,
    /// The time of ranking.
    pub(crate) seconds: f64,
    /// Whether Ctrl-C was pressed. If not, a cancellation means a timeout.
    pub(crate) interrupted: bool,
}

/// The reason for an early end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Stopped {
    Interrupted,
    Timeout,
}

/// The position of the reasoning in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReasoningDisplay {
    /// In a column, cut to its width.
    Column,
    /// Below the row, in full.
    Below,
}

impl Report<'_> {
    /// Returns the reason for an early end, or `None` if no document or sample was cancelled.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        let mut failures = self.ranking.unscored.iter().chain(&self.ranking.partially_scored);
        let is_cut_short = failures.any(|document| is_cancelled(&document.error));
        let reason = if self.interrupted { Stopped::Interrupted } else { Stopped::Timeout };
        is_cut_short.then_some(reason)
    }

    /// Returns the exit code for this outcome.
    pub(crate) fn exit(&self) -> Exit {
        let Ranking { unscored, partially_scored, .. } = self.ranking;
        let all_ranked =
            unscored.is_empty() && partially_scored.is_empty() && self.input.bad_lines.is_empty();
        match self.stopped() {
            Some(Stopped::Interrupted) => Exit::Interrupted,
            Some(Stopped::Timeout) => Exit::TimedOut,
            None if all_ranked => Exit::Done,
            None => Exit::SomeUnscored,
        }
    }

    /// Writes the table of the ranked documents, and another one of those below the minimum score.
    pub(crate) fn write_table(
        &self,
        reasoning: ReasoningDisplay,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let Ranking { documents, below_min_score, .. } = self.ranking;
        let ranks = (1..).map(|rank: usize| rank.to_string());
        if !documents.is_empty() {
            let rows = ranks.zip(documents);
            self.table(rows, reasoning).write(table::output_width(), out)?;
        }
        if let (Some(min_score), false) = (self.min_score, below_min_score.is_empty()) {
            let gap = if documents.is_empty() { "" } else { "\n" };
            writeln!(out, "{gap}{} below {min_score}:", counted(below_min_score.len()))?;
            let rows = below_min_score.iter().map(|document| ("-".to_owned(), document));
            self.table(rows, reasoning).write(table::output_width(), out)?;
        }
        Ok(())
    }

    /// Returns the table of documents with their ranks.
    fn table<'b>(
        &self,
        ranked: impl Iterator<Item = (String, &'b RankedDocument)>,
        reasoning: ReasoningDisplay,
    ) -> Table<'static> {
        let documents = &self.input.documents;
        let has_ids = documents.iter().any(|document| document.id.is_some());
        let first_stage = first_stage_ranks(documents);
        let has_reasoning = self.scored().any(|document| !document.answer.reasoning.is_empty());
        let has_probability =
            self.scored().any(|document| document.relevance_probability.is_some());
        let in_column = has_reasoning && reasoning == ReasoningDisplay::Column;
        let best_window = |ranked: &RankedDocument| Some(ranked.windows.first()?.bytes.clone());
        let is_part = |ranked: &RankedDocument| {
            best_window(ranked)
                .is_some_and(|bytes| bytes.len() < documents[ranked.index].text.len())
        };
        let has_parts = self.scored().any(is_part);

        let mut columns = vec![Column::Number("rank"), Column::Number("score")];
        columns.extend(match self.min_score {
            _ if has_probability => Some(Column::Number("P(relevant)")),
            Some(_) => Some(Column::Number("relevance")),
            None => None,
        });
        columns.extend([Column::Number("integer"), Column::Number("prob.")]);
        columns.extend((!first_stage.is_empty()).then_some(Column::Number("first")));
        columns.extend(has_ids.then_some(Column::Word("id")));
        columns.extend(has_parts.then_some(Column::Number("bytes")));
        columns.push(Column::Text("document"));
        columns.extend(in_column.then_some(Column::Text("thought")));

        let mut table = Table::new(columns);
        let number =
            |number: Option<f64>| number.map_or("-".into(), |number| format!("{number:.3}"));
        for (rank, ranked) in ranked {
            let document = &documents[ranked.index];
            let mut cells = vec![rank, number(Some(ranked.score))];
            if has_probability {
                cells.push(number(ranked.relevance_probability));
            } else if self.min_score.is_some() {
                cells.push(number(ranked.relevance));
            }
            cells.push(ranked.answer.integer.to_string());
            cells.push(number(ranked.answer.probability));
            if !first_stage.is_empty() {
                let rank = first_stage.get(&ranked.index);
                cells.push(rank.map_or("-".into(), usize::to_string));
            }
            cells.extend(has_ids.then(|| text::beginning(&document.name())));
            let bytes = best_window(ranked).unwrap_or(0..document.text.len());
            cells.extend(has_parts.then(|| format!("{}-{}", bytes.start, bytes.end)));
            cells.push(text::beginning(&document.text[bytes]));
            cells.extend(in_column.then(|| text::beginning(&ranked.answer.reasoning)));
            let below = match reasoning {
                ReasoningDisplay::Column => String::new(),
                ReasoningDisplay::Below => text::block(&ranked.answer.reasoning),
            };
            table.row(cells, below);
        }
        table
    }

    /// Returns the ranked documents, and those below the minimum score.
    fn scored(&self) -> impl Iterator<Item = &RankedDocument> {
        self.ranking.documents.iter().chain(&self.ranking.below_min_score)
    }

    /// Lists truncated, unranked and partially scored documents on standard error, with reasons.
    pub(crate) fn note_problems(&self) {
        let truncated = self.scored().filter(|document| document.truncated).count();
        if truncated > 0 {
            let documents = counted(truncated);
            text::note(&format!(
                "{documents} scored by the beginning, because the text is too long."
            ));
        }
        let (unscored, partially_scored) = (self.unscored(), self.partially_scored());
        let unit = self.input.unit;
        note_each("could not be ranked", unit, &unscored);
        note_each("ranked with less than was requested", unit, &partially_scored);
        let reason = match self.stopped() {
            Some(Stopped::Interrupted) => "Interrupted",
            Some(Stopped::Timeout) => "The timeout expired",
            None => return,
        };
        let cancelled =
            |failures: &[Failure<'_>]| failures.iter().filter(|f| f.is_cancelled).count();
        let mut parts = vec![format!("{} not ranked", counted(cancelled(&unscored)))];
        if cancelled(&partially_scored) > 0 {
            let documents = counted(cancelled(&partially_scored));
            parts.push(format!("{documents} ranked with less than was requested"));
        }
        text::note(&format!("{reason}: {}.", parts.join(", ")));
    }

    /// Writes the JSON object that `--help` describes.
    pub(crate) fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        let json = serde_json::to_string(&self.as_json())?;
        writeln!(out, "{}", text::json(&json))
    }

    fn as_json(&self) -> JsonReport<'_> {
        let documents = &self.input.documents;
        let first_stage = first_stage_ranks(documents);
        let Ranking { documents: ranked, below_min_score, scored_count, .. } = self.ranking;
        let ranks = (1..).map(Some).zip(ranked);
        let below = below_min_score.iter().map(|document| (None, document));
        let unscored = self.unscored();
        JsonReport {
            model: self.model,
            first_pass_model: self.first_pass_model,
            query: self.query,
            template: self.template,
            instruction: self.instruction,
            stopped: self.stopped(),
            counts: JsonCounts {
                documents: documents.len() + self.input.bad_lines.len(),
                ranked: ranked.len(),
                beyond_top_k: scored_count - ranked.len() - below_min_score.len(),
                below_min_score: below_min_score.len(),
                unscored: unscored.len(),
                partially_scored: self.ranking.partially_scored.len(),
            },
            tokens: self.ranking.tokens.into(),
            seconds: self.seconds,
            min_score: self.min_score,
            documents: ranks.map(|(rank, d)| self.document(rank, d, &first_stage)).collect(),
            below_min_score: below.map(|(rank, d)| self.document(rank, d, &first_stage)).collect(),
            unscored,
            partially_scored: self.partially_scored(),
        }
    }

    /// Returns the JSON of a document.
    fn document<'b>(
        &'b self,
        rank: Option<usize>,
        ranked: &'b RankedDocument,
        first_stage: &HashMap<usize, usize>,
    ) -> JsonDocument<'b> {
        let document = &self.input.documents[ranked.index];
        JsonDocument::new(rank, ranked, document, first_stage.get(&ranked.index).copied())
    }

    /// Returns bad lines and documents without a score, sorted by line.
    fn unscored(&self) -> Vec<Failure<'_>> {
        let bad = self.input.bad_lines.iter().map(|BadLine { line, id, reason }| Failure {
            line: *line,
            id: id.as_deref(),
            reason: reason.clone(),
            is_cancelled: false,
        });
        let unscored = self.ranking.unscored.iter().map(|document| self.failure(document));
        let mut all: Vec<_> = bad.chain(unscored).collect();
        all.sort_by_key(|document| document.line);
        all
    }

    /// Returns ranked documents that lack reasoning or samples, sorted by line.
    fn partially_scored(&self) -> Vec<Failure<'_>> {
        let partially_scored =
            self.ranking.partially_scored.iter().map(|document| self.failure(document));
        let mut all: Vec<_> = partially_scored.collect();
        all.sort_by_key(|document| document.line);
        all
    }

    fn failure(&self, document: &DocumentFailure) -> Failure<'_> {
        Failure {
            line: self.input.documents[document.index].line,
            id: self.input.documents[document.index].id.as_deref(),
            reason: error::one_line(&document.error),
            is_cancelled: is_cancelled(&document.error),
        }
    }
}

/// Lists failures on standard error, except cancellations. `unit` is what the numbers count.
fn note_each(what: &str, unit: &str, failures: &[Failure<'_>]) {
    // More would hide the first ones.
    const MAX_LISTED: usize = 100;
    let failures: Vec<_> = failures.iter().filter(|document| !document.is_cancelled).collect();
    if !failures.is_empty() {
        text::note(&format!("{} {what}:", counted(failures.len())));
    }
    for document in failures.iter().take(MAX_LISTED) {
        let id = document.id.map(text::beginning);
        let id = id.map_or(String::new(), |id| format!(" ({id})"));
        text::note(&format!("  {unit} {}{id}: {}", document.line, document.reason));
    }
    if failures.len() > MAX_LISTED {
        let others = failures.len() - MAX_LISTED;
        text::note(&format!("  and {others} others, which --json lists"));
    }
}

fn is_cancelled(error: &DocumentError) -> bool {
    matches!(error, DocumentError::Cancelled)
}

fn counted(documents: usize) -> String {
    if documents == 1 { "1 document".into() } else { format!("{documents} documents") }
}

/// Returns the rank of each document by its first-stage score, from 1. Ties keep the input order.
fn first_stage_ranks(documents: &[InputDocument]) -> HashMap<usize, usize> {
    let scored = documents.iter().enumerate();
    let scored = scored.filter_map(|(index, document)| Some((index, document.score?)));
    let (indices, scores): (Vec<usize>, Vec<f64>) = scored.unzip();
    let order = fusion::best_first(&scores);
    order.into_iter().zip(1..).map(|(position, rank)| (indices[position], rank)).collect()
}

#[derive(Serialize)]
struct JsonReport<'a> {
    model: &'a str,
    first_pass_model: Option<&'a str>,
    query: &'a str,
    template: &'a str,
    instruction: &'a str,
    stopped: Option<Stopped>,
    counts: JsonCounts,
    tokens: JsonTokens,
    seconds: f64,
    min_score: Option<f64>,
    documents: Vec<JsonDocument<'a>>,
    below_min_score: Vec<JsonDocument<'a>>,
    unscored: Vec<Failure<'a>>,
    partially_scored: Vec<Failure<'a>>,
}

#[derive(Serialize)]
struct JsonCounts {
    documents: usize,
    ranked: usize,
    beyond_top_k: usize,
    below_min_score: usize,
    unscored: usize,
    partially_scored: usize,
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
    /// The rank. It is null below the minimum score.
    rank: Option<usize>,
    line: usize,
    id: String,
    score: f64,
    relevance: Option<f64>,
    relevance_probability: Option<f64>,
    std_dev: f64,
    integer: u32,
    probability: Option<f64>,
    probability_weighted: Option<f64>,
    expected_value: Option<f64>,
    entropy: Option<f64>,
    first_stage_score: Option<f64>,
    first_stage_rank: Option<usize>,
    reasoning: &'a str,
    mode: &'static str,
    samples: usize,
    truncated: bool,
    windows: Vec<JsonWindow>,
    finish_reason: &'static str,
    tokens: JsonTokens,
}

#[derive(Serialize)]
struct JsonWindow {
    start: usize,
    end: usize,
    score: f64,
}

impl From<&ScoredWindow> for JsonWindow {
    fn from(window: &ScoredWindow) -> Self {
        Self { start: window.bytes.start, end: window.bytes.end, score: window.score }
    }
}

impl<'a> JsonDocument<'a> {
    fn new(
        rank: Option<usize>,
        ranked: &'a RankedDocument,
        document: &InputDocument,
        first_stage_rank: Option<usize>,
    ) -> Self {
        Self {
            rank,
            line: document.line,
            id: document.name(),
            score: ranked.score,
            relevance: ranked.relevance,
            relevance_probability: ranked.relevance_probability,
            std_dev: ranked.std_dev,
            integer: ranked.answer.integer,
            probability: ranked.answer.probability,
            probability_weighted: ranked.answer.probability_weighted(),
            expected_value: ranked.answer.expected_value,
            entropy: ranked.answer.entropy,
            first_stage_score: ranked.first_stage_score,
            first_stage_rank,
            reasoning: &ranked.answer.reasoning,
            mode: if ranked.mode.is_reason() { "reason" } else { "answer_only" },
            samples: ranked.samples.len().max(1),
            truncated: ranked.truncated,
            windows: ranked.windows.iter().map(JsonWindow::from).collect(),
            finish_reason: match ranked.finish_reason {
                FinishReason::Answered => "answered",
                FinishReason::EndOfTurn => "end_of_turn",
                FinishReason::Forced => "forced",
                _ => "other",
            },
            tokens: ranked.tokens.into(),
        }
    }
}

/// A document that could not be ranked, or that was ranked without some of its reasoning or samples.
#[derive(Serialize)]
struct Failure<'a> {
    line: usize,
    id: Option<&'a str>,
    reason: String,
    #[serde(skip)]
    is_cancelled: bool,
}

/// Returns seconds, rounded to milliseconds.
pub(crate) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use erank_core::{BackendError, Completion, Job, ScoringBackend, Sink};
    use erank_core::{Cascade, Request, Reranker, Sampling, ScoreKind};

    /// Scores without reasoning, but reports reasoning as cancelled. If there are two samples, one has no
    /// answer.
    struct AnswerOnly;

    impl ScoringBackend for AnswerOnly {
        fn name(&self) -> &str {
            "answer-only"
        }

        fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            let answer = || Ok(Completion::new("<answer>5</answer>"));
            for index in 0..job.documents.len() {
                if job.options.samples == 2 {
                    sink.completed(index, Ok(Completion::new("hm")));
                    sink.completed(index, answer());
                } else if job.options.mode.is_reason() {
                    sink.completed(index, Err(DocumentError::Cancelled));
                } else {
                    sink.completed(index, answer());
                }
            }
            Ok(())
        }
    }

    /// Ranks three lines. The second has the id "b". Returns the exit code and the JSON.
    fn report(reranker: &Reranker<AnswerOnly>, interrupted: bool) -> (Exit, serde_json::Value) {
        let documents = [None, Some("b".to_owned()), None].into_iter().zip(1..);
        let documents = documents.map(|(id, line)| {
            let text = "text".to_owned();
            InputDocument { line, id, text, score: None }
        });
        let input = Input { documents: documents.collect(), ..Input::default() };
        let documents = input.documents.iter().map(InputDocument::as_document);
        let ranking = reranker.rerank(&Request::new("q", documents)).expect("a ranking");
        let (model, query, template, instruction) = ("m", "q", "erank", "i");
        let (input, ranking, seconds) = (&input, &ranking, 0.0);
        let first_pass_model = None;
        let report = Report {
            model,
            first_pass_model,
            query,
            template,
            instruction,
            input,
            min_score: None,
            ranking,
            seconds,
            interrupted,
        };
        let mut out = Vec::new();
        report.write_json(&mut out).expect("written");
        (report.exit(), serde_json::from_slice(&out).expect("JSON"))
    }

    #[test]
    fn report_lists_documents_whose_reasoning_was_cancelled() {
        let builder = Reranker::builder(AnswerOnly).score(ScoreKind::Integer);
        let reranker = builder.cascade(Cascade::best(2)).build().expect("valid");
        let (exit, json) = report(&reranker, false);
        assert_eq!((exit, &json["stopped"]), (Exit::TimedOut, &"timeout".into()));
        assert_eq!(json["counts"]["ranked"], 3);
        assert_eq!(
            (&json["counts"]["unscored"], &json["counts"]["partially_scored"]),
            (&0.into(), &2.into())
        );
        assert_eq!(
            (&json["partially_scored"][1]["line"], &json["partially_scored"][1]["id"]),
            (&2.into(), &"b".into())
        );
        assert_eq!(json["documents"][0]["mode"], "answer_only");
        let (exit, json) = report(&reranker, true);
        assert_eq!((exit, &json["stopped"]), (Exit::Interrupted, &"interrupted".into()));
    }

    #[test]
    fn report_lists_samples_without_an_answer() {
        let builder = Reranker::builder(AnswerOnly).score(ScoreKind::Integer);
        let sampled = builder.sampling(Sampling::with_temperature(1.0)).samples(2);
        let (exit, json) = report(&sampled.build().expect("valid"), false);
        assert_eq!((exit, &json["stopped"]), (Exit::SomeUnscored, &serde_json::Value::Null));
        let reason = json["partially_scored"][0]["reason"].as_str().expect("a reason");
        assert!(reason.contains("no <answer>"), "{reason}");
        let document = &json["documents"][0];
        assert_eq!((&document["mode"], &document["samples"]), (&"reason".into(), &1.into()));
    }
}
