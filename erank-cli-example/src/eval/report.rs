//! What came out, as tables for people and as JSON for programs.

use std::io::{self, Write};

use erank_core::ScoreKind;
use erank_core::evaluation::{Comparison, QueryValues, UnpairedQuery};
use erank_core::metrics::Measure;
use erank_core::trec::{Qrels, Run};
use serde::Serialize;

use super::collection::Collection;
use super::scores::{Outcome, Settings};
use super::systems::Judgements;
use crate::table::{self, Column, Table};
use crate::text;

/// Drawings of the randomisation test; the p-value 0.05 is then within ±0.0043 (95 %).
const ROUNDS: u32 = 10_000;
const SEED: u64 = 1;
/// Below this, a difference counts as one.
const SIGNIFICANT: f64 = 0.05;
/// Queries that the tables name on either side.
const MOST_NAMED: usize = 5;

/// `report.json`. Nothing in it depends on when, where or in how many starts it was made.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    settings: &'a Settings<'a>,
    score: &'static str,
    depth: usize,
    counts: Counts,
    tokens: Tokens,
    systems: Vec<System>,
    queries: Vec<QueryReport<'a>>,
    unscored: Vec<Unscored<'a>>,
}

#[derive(Serialize)]
struct Counts {
    /// Judged queries, over which every mean is.
    queries: usize,
    /// Those of them that the run has nothing for: they count 0.
    without_candidates: usize,
    documents: usize,
    scored: usize,
    unscored: usize,
    /// Of those scored: answers that had to be forced, and texts that were cut.
    forced: usize,
    truncated: usize,
}

#[derive(Serialize)]
struct Tokens {
    prompt: usize,
    generated: usize,
}

/// A run and its figures.
#[derive(Serialize)]
struct System {
    name: &'static str,
    /// The weight of the first stage.
    alpha: Option<f64>,
    figures: Vec<Figure>,
    #[serde(skip)]
    values: Vec<QueryValues>,
}

#[derive(Serialize)]
struct Figure {
    measure: String,
    mean: f64,
    /// Over the first stage; null for itself.
    gain: Option<Gain>,
}

#[derive(Serialize)]
struct Gain {
    mean: f64,
    wins: usize,
    ties: usize,
    losses: usize,
    /// Null if all differences are equal.
    t_test: Option<TTest>,
    randomisation_test: Option<RandomisationTest>,
}

#[derive(Serialize)]
struct TTest {
    t: f64,
    degrees_of_freedom: usize,
    p_value: f64,
}

#[derive(Serialize)]
struct RandomisationTest {
    p_value: f64,
    rounds: u32,
    seed: u64,
}

#[derive(Serialize)]
struct QueryReport<'a> {
    id: &'a str,
    query: Option<&'a str>,
    documents: usize,
    unscored: usize,
    figures: Vec<QueryFigures>,
}

#[derive(Serialize)]
struct QueryFigures {
    measure: String,
    first_stage: f64,
    reranked: f64,
    hybrid: Vec<f64>,
}

#[derive(Serialize)]
struct Unscored<'a> {
    query: &'a str,
    document: &'a str,
    reason: &'a str,
}

/// What a query's first measure was and became.
pub(super) struct Change<'a> {
    pub(super) query: &'a str,
    pub(super) text: &'a str,
    pub(super) before: f64,
    pub(super) after: f64,
}

impl Change<'_> {
    pub(super) fn gain(&self) -> f64 {
        self.after - self.before
    }
}

/// The runs to compare.
pub(super) struct Runs {
    pub(super) first_stage: Run,
    pub(super) reranked: Run,
    /// By the weight of the first stage.
    pub(super) hybrids: Vec<(f64, Run)>,
}

impl<'a> Report<'a> {
    pub(super) fn new(
        settings: &'a Settings<'a>,
        kind: ScoreKind,
        depth: usize,
        measures: &[Measure],
        collection: &'a Collection,
        judgements: &'a Judgements<'a>,
        runs: &Runs,
    ) -> Result<Self, UnpairedQuery> {
        let evaluate = |run: &Run| evaluate(measures, &collection.qrels, run);
        let before = evaluate(&runs.first_stage);
        let mut systems = vec![System::new("first stage", None, measures, before.clone(), None)?];
        let mut add = |name, alpha, run| {
            systems.push(System::new(name, alpha, measures, evaluate(run), Some(&before))?);
            Ok::<_, UnpairedQuery>(())
        };
        add("reranked", None, &runs.reranked)?;
        for (alpha, run) in &runs.hybrids {
            add("hybrid", Some(*alpha), run)?;
        }
        let (counts, tokens) = count(collection, judgements);
        let mut report = Self {
            settings,
            score: match kind {
                ScoreKind::ProbabilityWeighted => "official",
                ScoreKind::ExpectedValue => "expected",
                _ => "integer",
            },
            depth,
            counts,
            tokens,
            systems,
            queries: Vec::new(),
            unscored: unscored(collection, judgements),
        };
        let ids = collection.qrels.queries();
        report.queries =
            ids.map(|id| report.of_query(id, measures, collection, judgements)).collect();
        Ok(report)
    }

    fn of_query(
        &self,
        id: &'a str,
        measures: &[Measure],
        collection: &'a Collection,
        judgements: &Judgements<'_>,
    ) -> QueryReport<'a> {
        let place = collection.queries.binary_search_by(|query| query.id.as_str().cmp(id)).ok();
        let query = place.map(|place| &collection.queries[place]);
        let judgements = place.map_or(&[][..], |place| &judgements.of_queries[place]);
        let value = |system: &System, index: usize| system.values[index].get(id).unwrap_or(0.0);
        let figures = measures.iter().enumerate().map(|(index, measure)| QueryFigures {
            measure: measure.to_string(),
            first_stage: value(&self.systems[0], index),
            reranked: value(&self.systems[1], index),
            hybrid: self.systems[2..].iter().map(|system| value(system, index)).collect(),
        });
        QueryReport {
            id,
            query: query.and_then(|query| query.text.as_deref()),
            documents: query.map_or(0, |query| query.candidates.len()),
            unscored: judgements.iter().filter(|judgement| judgement.score.is_err()).count(),
            figures: figures.collect(),
        }
    }

    /// Whether every document was scored.
    pub(super) fn is_complete(&self) -> bool {
        self.unscored.is_empty()
    }

    /// The first measure's changes by reranking, the largest gain first.
    pub(super) fn changes(&self) -> Vec<Change<'_>> {
        let changes = self.queries.iter().filter_map(|query| {
            let figures = query.figures.first()?;
            Some(Change {
                query: query.id,
                text: query.query.unwrap_or_default(),
                before: figures.first_stage,
                after: figures.reranked,
            })
        });
        let mut changes: Vec<_> = changes.collect();
        changes.sort_by(|a, b| b.gain().total_cmp(&a.gain()));
        changes
    }

    /// The object of `report.json`, on one line.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        Ok(format!("{}\n", text::json(&serde_json::to_string(self)?)))
    }

    pub(super) fn write_tables(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_systems(out)?;
        let changes = self.changes();
        let measure = &self.systems[0].figures[0].measure;
        let gains: Vec<_> = changes.iter().filter(|change| change.gain() > 0.0).collect();
        let losses: Vec<_> = changes.iter().rev().filter(|change| change.gain() < 0.0).collect();
        for (what, changes) in [("gains", gains), ("losses", losses)] {
            if changes.is_empty() {
                continue;
            }
            writeln!(out, "\nThe largest {what} in {measure} by reranking")?;
            let columns =
                [Column::Word("query"), Column::Number("first"), Column::Number("reranked")];
            let columns = columns.into_iter().chain([Column::Number("gain"), Column::Text("text")]);
            let mut table = Table::new(columns.collect());
            for change in changes.into_iter().take(MOST_NAMED) {
                let numbers = [three(change.before), three(change.after), signed(change.gain())];
                let cells = [vec![text::beginning(change.query)], numbers.to_vec()].concat();
                table.row([cells, vec![text::beginning(change.text)]].concat(), String::new());
            }
            table.write(table::output_width(), out)?;
        }
        Ok(())
    }

    fn write_systems(&self, out: &mut dyn Write) -> io::Result<()> {
        let measures: Vec<&str> =
            self.systems[0].figures.iter().map(|figure| figure.measure.as_str()).collect();
        let mut columns = vec![Column::Word("system"), Column::Number(measures[0])];
        columns.extend(["gain", "p", "wins", "ties", "losses"].map(Column::Number));
        columns.extend(measures[1..].iter().map(|measure| Column::Number(measure)));
        let mut table = Table::new(columns);
        for system in &self.systems {
            let (first, others) = (&system.figures[0], &system.figures[1..]);
            let mut cells = vec![system.label(), first.shown()];
            cells.extend(first.gain.as_ref().map_or_else(
                || vec![String::new(); 5],
                |gain| {
                    let p = gain.t_test.as_ref().map_or("-".into(), |test| p_value(test.p_value));
                    let counts = [gain.wins, gain.ties, gain.losses].map(|count| count.to_string());
                    [vec![signed(gain.mean), p], counts.to_vec()].concat()
                },
            ));
            cells.extend(others.iter().map(Figure::shown));
            table.row(cells, String::new());
        }
        table.write(table::output_width(), out)?;
        let Counts { queries, documents, .. } = self.counts;
        writeln!(
            out,
            "{queries} queries, {documents} documents. hybrid: weight of the first stage. \
             * p < {SIGNIFICANT}, paired t-test against the first stage."
        )
    }

    /// Says on standard error what is missing, and why.
    pub(super) fn note_problems(&self) {
        const MOST: usize = 20;
        let Counts { without_candidates, forced, truncated, unscored, .. } = self.counts;
        for (count, what) in [
            (without_candidates, "judged queries are not in the run, and count 0"),
            (forced, "answers had to be forced: --max-tokens was reached, or the end of the text"),
            (truncated, "documents were judged by the beginning: query or text is too long"),
            (
                unscored,
                "documents could not be scored; they rank last, as the first stage had them",
            ),
        ] {
            if count > 0 {
                text::note(&format!("{count} {what}."));
            }
        }
        for Unscored { query, document, reason } in self.unscored.iter().take(MOST) {
            let (query, document) = (text::beginning(query), text::beginning(document));
            text::note(&format!("  query {query}, document {document}: {}", text::line(reason)));
        }
        if unscored > MOST {
            text::note(&format!("  and {} more: see report.json.", unscored - MOST));
        }
    }
}

impl System {
    fn new(
        name: &'static str,
        alpha: Option<f64>,
        measures: &[Measure],
        values: Vec<QueryValues>,
        before: Option<&[QueryValues]>,
    ) -> Result<Self, UnpairedQuery> {
        let mut figures = Vec::new();
        for (index, (measure, values)) in measures.iter().zip(&values).enumerate() {
            let gain = before.map(|before| Gain::between(&before[index], values)).transpose()?;
            let mean = values.mean().unwrap_or(0.0);
            figures.push(Figure { measure: measure.to_string(), mean, gain });
        }
        Ok(Self { name, alpha, figures, values })
    }

    fn label(&self) -> String {
        self.alpha.map_or(self.name.into(), |alpha| format!("{} {alpha}", self.name))
    }
}

impl Figure {
    fn shown(&self) -> String {
        let p = self.gain.as_ref().and_then(|gain| Some(gain.t_test.as_ref()?.p_value));
        let mark = if p.is_some_and(|p| p < SIGNIFICANT) { "*" } else { " " };
        format!("{:.4}{mark}", self.mean)
    }
}

impl Gain {
    fn between(before: &QueryValues, after: &QueryValues) -> Result<Self, UnpairedQuery> {
        let comparison = Comparison::between(before, after)?;
        let count = |is: &dyn Fn(f64) -> bool| {
            comparison.differences().filter(|(_, difference)| is(*difference)).count()
        };
        let t_test = comparison.t_test();
        let randomised = comparison.randomisation_test(ROUNDS, SEED);
        Ok(Self {
            mean: comparison.mean().unwrap_or(0.0),
            wins: count(&|difference| difference > 0.0),
            ties: count(&|difference| difference == 0.0),
            losses: count(&|difference| difference < 0.0),
            t_test: t_test.map(|test| TTest {
                t: test.t,
                degrees_of_freedom: test.degrees_of_freedom,
                p_value: test.p_value,
            }),
            randomisation_test: randomised.map(|p_value| RandomisationTest {
                p_value,
                rounds: ROUNDS,
                seed: SEED,
            }),
        })
    }
}

fn evaluate(measures: &[Measure], qrels: &Qrels, run: &Run) -> Vec<QueryValues> {
    measures.iter().map(|measure| measure.evaluate(qrels, run)).collect()
}

fn count(collection: &Collection, judgements: &Judgements<'_>) -> (Counts, Tokens) {
    let all = || judgements.of_queries.iter().flatten();
    let scored = all().filter(|judgement| judgement.score.is_ok()).count();
    let answers = || {
        all().filter_map(|judgement| match judgement.outcome {
            Some(Outcome::Answered(score)) => Some(score),
            _ => None,
        })
    };
    let queries = collection.qrels.queries().len();
    let counts = Counts {
        queries,
        without_candidates: queries - collection.queries.len(),
        documents: all().count(),
        scored,
        unscored: all().count() - scored,
        forced: answers().filter(|score| score.is_forced()).count(),
        truncated: answers().filter(|score| score.is_truncated()).count(),
    };
    let tokens = Tokens {
        prompt: answers().map(|score| score.prompt_tokens).sum(),
        generated: answers().map(|score| score.generated_tokens).sum(),
    };
    (counts, tokens)
}

fn unscored<'a>(collection: &'a Collection, judgements: &'a Judgements<'_>) -> Vec<Unscored<'a>> {
    let queries = collection.queries.iter().zip(&judgements.of_queries);
    let documents = queries.flat_map(|(query, judgements)| {
        query.candidates.iter().zip(judgements).filter_map(move |(candidate, judgement)| {
            let reason = judgement.score.as_ref().err()?;
            Some(Unscored { query: &query.id, document: &candidate.id, reason })
        })
    });
    documents.collect()
}

fn three(value: f64) -> String {
    format!("{value:.3}")
}

fn signed(value: f64) -> String {
    format!("{value:+.3}")
}

fn p_value(p: f64) -> String {
    let mark = if p < SIGNIFICANT { "*" } else { " " };
    if p < 0.001 { format!("<.001{mark}") } else { format!("{p:.3}{mark}") }
}
