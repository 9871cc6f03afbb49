//! A ranking as a table for people or as JSON for programs.

use std::collections::HashMap;
use std::io::{self, Write};
use std::time::Duration;

use erank_core::TokenCounts;
use erank_core::{DocumentError, DocumentFailure, FinishReason, RankedDocument, Ranking};
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
    /// What ended the work early, if a document was left, or a part of what was asked for it.
    pub(crate) fn stopped(&self) -> Option<Stopped> {
        let mut lacking = self.ranking.unscored.iter().chain(&self.ranking.partially_scored);
        let left = lacking.any(|document| is_stopped(&document.error));
        let why = if self.interrupted { Stopped::Interrupted } else { Stopped::Timeout };
        left.then_some(why)
    }

    /// The exit code that says it.
    pub(crate) fn exit(&self) -> Exit {
        let Ranking { unscored, partially_scored: incomplete, .. } = self.ranking;
        let all_ranked =
            unscored.is_empty() && incomplete.is_empty() && self.input.bad_lines.is_empty();
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
        let reasoned =
            self.ranking.documents.iter().any(|document| !document.answer.reasoning.is_empty());
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
            cells.push(ranked.answer.integer.to_string());
            cells.push(ranked.answer.probability.map_or("-".into(), |p| format!("{p:.3}")));
            if !first_stage.is_empty() {
                let rank = first_stage.get(&ranked.index);
                cells.push(rank.map_or("-".into(), usize::to_string));
            }
            cells.extend(has_ids.then(|| text::beginning(&document.name())));
            cells.push(text::beginning(&document.text));
            cells.extend(in_column.then(|| text::beginning(&ranked.answer.reasoning)));
            let below = match thoughts {
                Thoughts::Column => String::new(),
                Thoughts::Below => text::block(&ranked.answer.reasoning),
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
        let (unscored, incomplete) = (self.unscored(), self.incomplete());
        note_each("could not be ranked", &unscored);
        note_each("ranked by less than was asked for", &incomplete);
        let why = match self.stopped() {
            Some(Stopped::Interrupted) => "Interrupted",
            Some(Stopped::Timeout) => "The time was over",
            None => return,
        };
        let left = |lacking: &[Lacking<'_>]| lacking.iter().filter(|d| d.is_stopped).count();
        let mut left_out = vec![format!("{} not done", counted(left(&unscored)))];
        if left(&incomplete) > 0 {
            let documents = counted(left(&incomplete));
            left_out.push(format!("{documents} ranked by less than was asked for"));
        }
        text::note(&format!("{why}: {}.", left_out.join(", ")));
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
                beyond_top_k: self.ranking.scored_count - self.ranking.documents.len(),
                unscored: unscored.len(),
                incomplete: self.ranking.partially_scored.len(),
            },
            tokens: self.ranking.tokens.into(),
            seconds: self.seconds,
            documents: ranked.collect(),
            unscored,
            incomplete: self.incomplete(),
        }
    }

    /// Bad lines and documents without a score, by line.
    fn unscored(&self) -> Vec<Lacking<'_>> {
        let bad = self.input.bad_lines.iter().map(|BadLine { line, id, reason }| Lacking {
            line: *line,
            id: id.as_deref(),
            reason: reason.clone(),
            is_stopped: false,
        });
        let unscored = self.ranking.unscored.iter().map(|document| self.lacking(document));
        let mut all: Vec<_> = bad.chain(unscored).collect();
        all.sort_by_key(|document| document.line);
        all
    }

    /// Ranked documents that lack a part of what was asked for, by line.
    fn incomplete(&self) -> Vec<Lacking<'_>> {
        let incomplete =
            self.ranking.partially_scored.iter().map(|document| self.lacking(document));
        let mut all: Vec<_> = incomplete.collect();
        all.sort_by_key(|document| document.line);
        all
    }

    fn lacking(&self, document: &DocumentFailure) -> Lacking<'_> {
        Lacking {
            line: self.input.documents[document.index].line,
            id: self.input.documents[document.index].id.as_deref(),
            reason: error::one_line(&document.error),
            is_stopped: is_stopped(&document.error),
        }
    }
}

/// Says which documents lack something, but those that were only stopped.
fn note_each(what: &str, lacking: &[Lacking<'_>]) {
    let bad: Vec<_> = lacking.iter().filter(|document| !document.is_stopped).collect();
    if !bad.is_empty() {
        text::note(&format!("{} {what}:", counted(bad.len())));
    }
    for document in bad {
        let id = document.id.map(text::beginning);
        let id = id.map_or(String::new(), |id| format!(" ({id})"));
        text::note(&format!("  line {}{id}: {}", document.line, document.reason));
    }
}

fn is_stopped(error: &DocumentError) -> bool {
    matches!(error, DocumentError::Cancelled)
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
    unscored: Vec<Lacking<'a>>,
    incomplete: Vec<Lacking<'a>>,
}

#[derive(Serialize)]
struct JsonCounts {
    documents: usize,
    ranked: usize,
    beyond_top_k: usize,
    unscored: usize,
    incomplete: usize,
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
    mode: &'static str,
    samples: usize,
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
            spread: ranked.std_dev,
            integer: ranked.answer.integer,
            probability: ranked.answer.probability,
            official: ranked.answer.probability_weighted(),
            expected: ranked.answer.expected_value,
            entropy: ranked.answer.entropy,
            first_stage_score: ranked.first_stage_score,
            first_stage_rank,
            reasoning: &ranked.answer.reasoning,
            mode: if ranked.mode.is_reason() { "reason" } else { "answer_only" },
            samples: ranked.samples.len().max(1),
            truncated: ranked.truncated,
            finish: match ranked.finish_reason {
                FinishReason::Answered => "answered",
                FinishReason::EndOfTurn => "end_of_text",
                FinishReason::Forced => "forced",
                _ => "other",
            },
            tokens: ranked.tokens.into(),
        }
    }
}

/// A document without a score, or without a part of what was asked for.
#[derive(Serialize)]
struct Lacking<'a> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rerank::rank;
    use erank_core::{BackendError, Completion, Job, ScoringBackend, Sink};
    use erank_core::{CancellationToken, Cascade, Reranker, Sampling, ScoreKind};

    /// Answers at once, but is stopped when it should think; of two samples, one has no answer.
    struct Hasty;

    impl ScoringBackend for Hasty {
        fn name(&self) -> &str {
            "hasty"
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

    /// How the command ends with three lines of which the second has the id "b", and its JSON.
    fn report(reranker: &Reranker<Hasty>, interrupted: bool) -> (Exit, serde_json::Value) {
        let documents = [None, Some("b".to_owned()), None].into_iter().zip(1..);
        let documents = documents.map(|(id, line)| {
            let text = "text".to_owned();
            InputDocument { line, id, text, score: None }
        });
        let input = Input { documents: documents.collect(), ..Input::default() };
        let (ranking, failure) = rank(reranker, "q", &input, &CancellationToken::new());
        assert!(failure.is_none());
        let (model, query, instruction, seconds) = ("m", "q", "i", 0.0);
        let (input, ranking) = (&input, &ranking);
        let report = Report { model, query, instruction, input, ranking, seconds, interrupted };
        let mut out = Vec::new();
        report.write_json(&mut out).expect("written");
        (report.exit(), serde_json::from_slice(&out).expect("JSON"))
    }

    #[test]
    fn a_stop_while_a_cascade_thinks_is_told() {
        let builder = Reranker::builder(Hasty).score(ScoreKind::Integer);
        let reranker = builder.cascade(Cascade::best(2)).build().expect("valid");
        let (exit, json) = report(&reranker, false);
        assert_eq!((exit, &json["stopped"]), (Exit::TimedOut, &"timeout".into()));
        assert_eq!(json["counts"]["ranked"], 3);
        assert_eq!(
            (&json["counts"]["unscored"], &json["counts"]["incomplete"]),
            (&0.into(), &2.into())
        );
        assert_eq!(
            (&json["incomplete"][1]["line"], &json["incomplete"][1]["id"]),
            (&2.into(), &"b".into())
        );
        assert_eq!(json["documents"][0]["mode"], "answer_only");
        let (exit, json) = report(&reranker, true);
        assert_eq!((exit, &json["stopped"]), (Exit::Interrupted, &"interrupted".into()));
    }

    #[test]
    fn a_sample_without_an_answer_is_told() {
        let builder = Reranker::builder(Hasty).score(ScoreKind::Integer);
        let sampled = builder.sampling(Sampling::with_temperature(1.0)).samples(2);
        let (exit, json) = report(&sampled.build().expect("valid"), false);
        assert_eq!((exit, &json["stopped"]), (Exit::SomeUnscored, &serde_json::Value::Null));
        let reason = json["incomplete"][0]["reason"].as_str().expect("a reason");
        assert!(reason.contains("no <answer>"), "{reason}");
        let document = &json["documents"][0];
        assert_eq!((&document["mode"], &document["samples"]), (&"reason".into(), &1.into()));
    }
}
