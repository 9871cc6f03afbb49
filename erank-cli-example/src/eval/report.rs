//! The report of an evaluation, as tables and as JSON.

use std::io::{self, Write};

use erank_core::ScoreKind;
use erank_core::evaluation::{Comparison, QueryValues, UnpairedQuery};
use erank_core::metrics::Measure;
use erank_core::trec::{EntryError, Qrels, Run};
use serde::Serialize;

use super::calibration::Calibrated;
use super::collection::Collection;
use super::followir::Pairs;
use super::scores::{Outcome, Settings};
use super::systems::Judgements;
use crate::table::{self, Column, Table};
use crate::text;

/// Number of rounds of the randomisation test. The 95 % confidence interval of p = 0.05 is then ±0.0043.
const ROUNDS: u32 = 10_000;
const SEED: u64 = 1;
/// The significance level.
pub(super) const SIGNIFICANT: f64 = 0.05;
/// Maximum number of queries in the tables of gains and losses.
const MAX_LISTED_QUERIES: usize = 5;
/// Maximum number of listed documents without a score.
pub(super) const MAX_LISTED_UNSCORED: usize = 20;

/// The object of `report.json`. It does not depend on times or the number of starts.
#[derive(Serialize)]
pub(super) struct Report<'a> {
    pub(super) settings: &'a Settings<'a>,
    pub(super) score: &'static str,
    pub(super) depth: usize,
    pub(super) counts: Counts,
    pub(super) tokens: Tokens,
    pub(super) systems: Vec<System>,
    /// p-MRR over pairs of queries. It is null without `--followir`.
    pub(super) p_mrr: Option<PMrr>,
    /// It is null without `--calibrate`, and if the calibration cannot be fitted.
    pub(super) calibration: Option<Calibrated>,
    queries: Vec<QueryReport<'a>>,
    pub(super) unscored: Vec<Unscored<'a>>,
}

/// p-MRR of each system.
#[derive(Serialize)]
pub(super) struct PMrr {
    /// Number of pairs of queries, over which each mean is computed.
    pub(super) pairs: usize,
    /// Pairs that lack candidates, which are left out.
    pub(super) without_candidates: usize,
    /// Number of documents of these pairs that are not relevant any more.
    pub(super) documents: usize,
    /// The means of the systems, in their order. They are null if all pairs lack candidates.
    pub(super) means: Vec<Option<f64>>,
    queries: Vec<PMrrOfPair>,
}

/// p-MRR of one pair.
#[derive(Serialize)]
struct PMrrOfPair {
    /// The common part of the ids.
    id: String,
    /// The values of the systems, in their order.
    values: Vec<f64>,
}

#[derive(Serialize)]
pub(super) struct Counts {
    /// Number of judged queries, over which each mean is computed.
    pub(super) queries: usize,
    /// Judged queries that are not in the run, whose measures are 0.
    pub(super) without_candidates: usize,
    pub(super) documents: usize,
    pub(super) scored: usize,
    pub(super) unscored: usize,
    /// Scored documents whose answer was forced.
    pub(super) forced: usize,
    /// Scored documents whose query or text was truncated.
    pub(super) truncated: usize,
}

#[derive(Serialize)]
pub(super) struct Tokens {
    pub(super) prompt: usize,
    pub(super) generated: usize,
}

/// A run and its figures.
#[derive(Serialize)]
pub(super) struct System {
    name: &'static str,
    /// The first stage's weight in a hybrid. It is null for other systems.
    alpha: Option<f64>,
    pub(super) figures: Vec<Figure>,
    #[serde(skip)]
    values: Vec<QueryValues>,
}

#[derive(Serialize)]
pub(super) struct Figure {
    pub(super) measure: String,
    pub(super) mean: f64,
    /// The gain over the first stage. It is null for the first stage itself.
    pub(super) gain: Option<Gain>,
}

/// A 95 % confidence interval of a mean gain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Interval {
    pub(super) low: f64,
    pub(super) high: f64,
}

impl From<(f64, f64)> for Interval {
    fn from((low, high): (f64, f64)) -> Self {
        Self { low, high }
    }
}

#[derive(Serialize)]
pub(super) struct Gain {
    pub(super) mean: f64,
    pub(super) wins: usize,
    pub(super) ties: usize,
    pub(super) losses: usize,
    /// The paired t-test. It is null if all differences are equal.
    pub(super) t_test: Option<TTest>,
    /// The 95 % interval of the mean. It is null if all differences are equal.
    pub(super) confidence_interval: Option<Interval>,
    randomisation_test: Option<RandomisationTest>,
}

#[derive(Serialize)]
pub(super) struct TTest {
    t: f64,
    degrees_of_freedom: usize,
    pub(super) p_value: f64,
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
pub(super) struct Unscored<'a> {
    pub(super) query: &'a str,
    pub(super) document: &'a str,
    pub(super) reason: &'a str,
}

/// The first measure of a query before and after reranking.
pub(super) struct Change<'a> {
    pub(super) query: &'a str,
    pub(super) text: &'a str,
    pub(super) before: f64,
    pub(super) after: f64,
}

impl Change<'_> {
    /// Returns the difference.
    pub(super) fn gain(&self) -> f64 {
        self.after - self.before
    }
}

/// The runs to compare.
pub(super) struct Runs {
    pub(super) first_stage: Run,
    pub(super) reranked: Run,
    /// Hybrids with their first stage's weight.
    pub(super) hybrids: Vec<(f64, Run)>,
}

impl<'a> Report<'a> {
    /// Measures all runs.
    ///
    /// # Errors
    ///
    /// Returns an error if two runs were measured on different queries.
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
            score: kind.name(),
            depth,
            counts,
            tokens,
            systems,
            p_mrr: None,
            calibration: None,
            queries: Vec::new(),
            unscored: unscored(collection, judgements),
        };
        let ids = collection.qrels.queries();
        report.queries =
            ids.map(|id| report.query_report(id, measures, collection, judgements)).collect();
        Ok(report)
    }

    /// Adds p-MRR of each system.
    pub(super) fn add_p_mrr(&mut self, pairs: &Pairs, runs: &Runs) -> Result<(), EntryError> {
        let all = [&runs.first_stage, &runs.reranked].into_iter();
        let all = all.chain(runs.hybrids.iter().map(|(_, run)| run));
        let systems = all.map(|run| pairs.p_mrr(run)).collect::<Result<Vec<QueryValues>, _>>()?;
        // All runs have the same queries.
        let ids: Vec<&str> = systems[0].iter().map(|(id, _)| id).collect();
        let queries = ids.iter().map(|id| PMrrOfPair {
            id: (*id).to_owned(),
            values: systems.iter().filter_map(|system| system.get(id)).collect(),
        });
        self.p_mrr = Some(PMrr {
            pairs: ids.len(),
            without_candidates: pairs.count() - ids.len(),
            documents: ids.iter().map(|id| pairs.documents(id)).sum(),
            means: systems.iter().map(QueryValues::mean).collect(),
            queries: queries.collect(),
        });
        Ok(())
    }

    /// Returns the figures of one query.
    fn query_report(
        &self,
        id: &'a str,
        measures: &[Measure],
        collection: &'a Collection,
        judgements: &Judgements<'_>,
    ) -> QueryReport<'a> {
        let position = collection.queries.binary_search_by(|query| query.id.as_str().cmp(id)).ok();
        let query = position.map(|position| &collection.queries[position]);
        let judgements = position.map_or(&[][..], |position| &judgements.of_queries[position]);
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

    /// Returns whether all documents were scored.
    pub(super) fn is_complete(&self) -> bool {
        self.unscored.is_empty()
    }

    /// Returns each query's change in the first measure by reranking, the largest gain first.
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

    /// Returns `report.json`: an object on one line.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        Ok(format!("{}\n", text::json(&serde_json::to_string(self)?)))
    }

    /// Writes the tables of systems, gains and losses.
    ///
    /// # Errors
    ///
    /// Returns any I/O error of the writer.
    pub(super) fn write_tables(&self, out: &mut dyn Write) -> io::Result<()> {
        self.write_systems(out)?;
        let changes = self.changes();
        let measure = &self.systems[0].figures[0].measure;
        for (what, changes) in largest(&changes) {
            if changes.is_empty() {
                continue;
            }
            writeln!(out, "\nThe largest {what} in {measure} by reranking")?;
            let columns =
                [Column::Word("query"), Column::Number("first"), Column::Number("reranked")];
            let columns = columns.into_iter().chain([Column::Number("gain"), Column::Text("text")]);
            let mut table = Table::new(columns.collect());
            for change in changes {
                let numbers = [three(change.before), three(change.after), signed(change.gain())];
                let cells = [vec![text::beginning(change.query)], numbers.to_vec()].concat();
                table.row([cells, vec![text::beginning(change.text)]].concat(), String::new());
            }
            table.write(table::output_width(), out)?;
        }
        self.calibration.as_ref().map_or(Ok(()), |calibration| calibration.write_tables(out))
    }

    /// Writes the table of systems.
    fn write_systems(&self, out: &mut dyn Write) -> io::Result<()> {
        let measures: Vec<&str> =
            self.systems[0].figures.iter().map(|figure| figure.measure.as_str()).collect();
        let mut columns = vec![Column::Word("system"), Column::Number(measures[0])];
        columns.extend(["gain", "p", "wins", "ties", "losses"].map(Column::Number));
        columns.extend(measures[1..].iter().map(|measure| Column::Number(measure)));
        columns.extend(self.p_mrr.as_ref().map(|_| Column::Number("p-MRR")));
        let mut table = Table::new(columns);
        for (position, system) in self.systems.iter().enumerate() {
            let (first, others) = (&system.figures[0], &system.figures[1..]);
            let mut cells = vec![system.label(), first.cell()];
            cells.extend(first.gain.as_ref().map_or_else(
                || vec![String::new(); 5],
                |gain| {
                    let p = gain.t_test.as_ref().map_or("-".into(), |test| p_value(test.p_value));
                    let counts = [gain.wins, gain.ties, gain.losses].map(|count| count.to_string());
                    [vec![signed(gain.mean), p], counts.to_vec()].concat()
                },
            ));
            cells.extend(others.iter().map(Figure::cell));
            cells.extend(self.p_mrr.as_ref().map(|p_mrr| {
                p_mrr.means[position].map_or("-".into(), |mean| format!("{mean:+.4}"))
            }));
            table.row(cells, String::new());
        }
        table.write(table::output_width(), out)?;
        let Counts { queries, documents, .. } = self.counts;
        writeln!(
            out,
            "{queries} queries, {documents} documents. hybrid: with the first stage's weight. \
             * p < {SIGNIFICANT}, paired t-test against the first stage."
        )?;
        match &self.p_mrr {
            Some(PMrr { pairs, documents, .. }) => writeln!(
                out,
                "p-MRR: {pairs} pairs of queries, {documents} documents that are not relevant any more."
            ),
            None => Ok(()),
        }
    }

    /// Returns what is missing or partial, each with the number of cases, which is not 0.
    pub(super) fn problems(&self) -> impl Iterator<Item = (usize, &'static str)> {
        let Counts { without_candidates, forced, truncated, unscored, .. } = self.counts;
        let problems = [
            (without_candidates, "judged queries are not in the run, and count as 0"),
            (
                self.p_mrr.as_ref().map_or(0, |p_mrr| p_mrr.without_candidates),
                "pairs of queries lack candidates, and do not count for p-MRR",
            ),
            (forced, "answers were forced at --max-tokens, or after the model ended its turn"),
            (
                truncated,
                "documents were scored by the beginning, because query or text is too long",
            ),
            (unscored, "documents could not be scored; they rank last, in the first stage's order"),
        ];
        problems.into_iter().filter(|(count, _)| *count > 0)
    }

    /// Lists missing queries and unscored documents on standard error, with reasons.
    pub(super) fn note_problems(&self) {
        for (count, what) in self.problems() {
            text::note(&format!("{count} {what}."));
        }
        for Unscored { query, document, reason } in self.unscored.iter().take(MAX_LISTED_UNSCORED) {
            let (query, document) = (text::beginning(query), text::beginning(document));
            text::note(&format!("  query {query}, document {document}: {}", text::line(reason)));
        }
        let rest = self.unscored.len().saturating_sub(MAX_LISTED_UNSCORED);
        if rest > 0 {
            text::note(&format!("  and {rest} more: see report.json."));
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

    /// Returns the name, with the weight of a hybrid.
    pub(super) fn label(&self) -> String {
        self.alpha.map_or(self.name.into(), |alpha| format!("{} {alpha}", self.name))
    }
}

impl Figure {
    /// Returns the mean with four decimals, marked if the gain is significant.
    fn cell(&self) -> String {
        let p = self.gain.as_ref().and_then(|gain| Some(gain.t_test.as_ref()?.p_value));
        let mark = if p.is_some_and(|p| p < SIGNIFICANT) { "*" } else { " " };
        format!("{:.4}{mark}", self.mean)
    }
}

impl Gain {
    /// Compares the values of each query before and after.
    fn between(before: &QueryValues, after: &QueryValues) -> Result<Self, UnpairedQuery> {
        let comparison = Comparison::between(before, after)?;
        let count = |condition: &dyn Fn(f64) -> bool| {
            comparison.differences().filter(|(_, difference)| condition(*difference)).count()
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
            confidence_interval: comparison.confidence_interval(0.95).map(Interval::from),
            randomisation_test: randomised.map(|p_value| RandomisationTest {
                p_value,
                rounds: ROUNDS,
                seed: SEED,
            }),
        })
    }
}

/// Returns the largest gains and the largest losses, each with its name, of changes that are sorted by gain.
pub(super) fn largest<'c, 'a>(
    changes: &'c [Change<'a>],
) -> [(&'static str, Vec<&'c Change<'a>>); 2] {
    let gains = changes.iter().filter(|change| change.gain() > 0.0);
    let losses = changes.iter().rev().filter(|change| change.gain() < 0.0);
    [
        ("gains", gains.take(MAX_LISTED_QUERIES).collect()),
        ("losses", losses.take(MAX_LISTED_QUERIES).collect()),
    ]
}

/// Returns the values of each measure for all judged queries.
fn evaluate(measures: &[Measure], qrels: &Qrels, run: &Run) -> Vec<QueryValues> {
    measures.iter().map(|measure| measure.evaluate(qrels, run)).collect()
}

/// Counts documents and tokens.
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

/// Returns the documents without a score.
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

/// Formats a value with three decimals.
fn three(value: f64) -> String {
    format!("{value:.3}")
}

/// Formats a difference with its sign and three decimals.
fn signed(value: f64) -> String {
    format!("{value:+.3}")
}

/// Formats a p-value, marked if significant.
fn p_value(p: f64) -> String {
    let mark = if p < SIGNIFICANT { "*" } else { " " };
    if p < 0.001 { format!("<.001{mark}") } else { format!("{p:.3}{mark}") }
}
