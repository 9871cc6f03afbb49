//! The difference between the answers of two models to the same documents.

use std::io::{self, BufWriter, Write};

use erank_candle::{CandleBackend, CandleSettings, Checkpoint};
use erank_core::metrics::kendall_tau;
use erank_core::{
    AnswerDistribution, Mode, PromptTemplate, RankedDocument, Request, Reranker, ScoringBackend,
    ScoringOptions,
};
use serde::Serialize;

use super::cost::ModelReport;
use crate::args::InspectArguments;
use crate::error::{CommandError, Exit, one_line};
use crate::input::{self, Input, InputDocument};
use crate::progress::Meter;
use crate::{demo, model, text};

/// Compares the model of the arguments with the model `reference`.
pub(super) fn run(arguments: &InspectArguments, reference: &str) -> Result<Exit, CommandError> {
    let queries = queries(arguments)?;
    let settings = model::settings(&arguments.model);
    let mut own_formats = settings.clone();
    (own_formats.weights, own_formats.kv_cache) = (None, None);
    let offline = arguments.model.offline;
    let sides = [
        Side::open(&arguments.model.model, offline, settings)?,
        Side::open(reference, offline, own_formats)?,
    ];
    let [of_model, of_reference] = [sides[0].report()?, sides[1].report()?];
    let mut out = BufWriter::new(io::stdout().lock());
    if !arguments.json {
        of_model.write_text(&mut out)?;
        writeln!(out)?;
        of_reference.write_text(&mut out)?;
        out.flush()?;
    }

    let options = options(arguments, &sides)?;
    let [side, reference] = &sides;
    // Both models get the prompt of the first one.
    let template = model::family(&arguments.model, &side.checkpoint)?.template();
    let instruction = arguments.goal.instruction(&template);
    // A model's memory is free before the next model is loaded.
    let answers = side.answers(&queries, &template, instruction, options)?;
    let reference_answers = reference.answers(&queries, &template, instruction, options)?;
    let comparison =
        Comparison::new([of_model, of_reference], &queries, &answers, &reference_answers);

    if arguments.json {
        let json = serde_json::to_string(&comparison).map_err(io::Error::from)?;
        writeln!(out, "{}", text::json(&json))?;
    } else {
        comparison.write_text(&mut out)?;
    }
    out.flush()?;
    if comparison.uncompared.is_empty() {
        return Ok(Exit::Done);
    }
    comparison.note_uncompared();
    Ok(Exit::SomeUnscored)
}

/// A query with its documents.
pub(super) struct Query {
    pub(super) text: String,
    pub(super) input: Input,
}

/// Returns the documents to score: those of `--docs`, the one of `--document`, or those of the demonstration.
fn queries(arguments: &InspectArguments) -> Result<Vec<Query>, CommandError> {
    let query = |text: &str, input| Query { text: text.to_owned(), input };
    if let Some(docs) = &arguments.docs {
        let input = input::read(docs, &arguments.fields)
            .map_err(|source| CommandError::documents(docs, source))?;
        if input.documents.is_empty() {
            return Err(CommandError::NoDocuments { what: input::shown(docs) });
        }
        return Ok(vec![query(arguments.query(), input)]);
    }
    if arguments.has_prompt() {
        let text = arguments.document().to_owned();
        let document = InputDocument { line: 1, id: None, text, score: None };
        let input = Input { documents: vec![document], ..Input::default() };
        return Ok(vec![query(arguments.query(), input)]);
    }
    Ok(demo::queries().map(|(text, input)| query(text, input)).collect())
}

/// Returns the options for both models. Both read the same text: the limits are those of the model with the
/// shorter context.
fn options(
    arguments: &InspectArguments,
    sides: &[Side<'_>],
) -> Result<ScoringOptions, CommandError> {
    let mut options = ScoringOptions::default();
    for side in sides {
        let config = side.checkpoint.config().map_err(model::failed(side.given))?;
        let limits = model::limits(&arguments.model, &config);
        options.max_query_tokens = options.max_query_tokens.min(limits.max_query_tokens);
        options.max_document_tokens = match arguments.model.max_document_tokens {
            Some(tokens) => tokens.get(),
            None => options.max_document_tokens.min(limits.max_document_tokens),
        };
    }
    options.mode = Mode::AnswerOnly;
    Ok(options)
}

/// One of the two models, not loaded.
pub(super) struct Side<'a> {
    pub(super) given: &'a str,
    pub(super) checkpoint: Checkpoint,
    pub(super) settings: CandleSettings,
}

/// The answer to one document, or the reason why there is none.
pub(super) type Answer = Result<Scored, String>;

pub(super) struct Scored {
    integer: u32,
    score: f64,
    distribution: AnswerDistribution,
}

impl<'a> Side<'a> {
    fn open(given: &'a str, offline: bool, settings: CandleSettings) -> Result<Self, CommandError> {
        Ok(Self { given, checkpoint: model::checkpoint(given, offline)?, settings })
    }

    fn report(&self) -> Result<ModelReport, CommandError> {
        let cost = self.checkpoint.cost(&self.settings).map_err(model::failed(self.given))?;
        Ok(ModelReport::new(&self.checkpoint, &cost))
    }

    /// Loads the model, scores all documents, and drops the model. Returns the answers by query and document.
    pub(super) fn answers(
        &self,
        queries: &[Query],
        template: &PromptTemplate,
        instruction: &str,
        options: ScoringOptions,
    ) -> Result<Vec<Vec<Answer>>, CommandError> {
        let backend = CandleBackend::load(&self.checkpoint, &self.settings)
            .map_err(model::failed(self.given))?;
        let meter = Meter::new();
        let on_progress = meter.clone();
        let reranker = Reranker::builder(backend)
            .template(template.clone())
            .options(options)
            .instruction(instruction)
            .on_progress(move |progress| on_progress.show(progress))
            .build()?;
        let answers = queries.iter().map(|query| self.answers_to(&reranker, query)).collect();
        meter.finish();
        answers
    }

    fn answers_to(
        &self,
        reranker: &Reranker<impl ScoringBackend>,
        query: &Query,
    ) -> Result<Vec<Answer>, CommandError> {
        let documents = query.input.documents.iter().map(InputDocument::as_document);
        let ranking = reranker.rerank(&Request::new(query.text.as_str(), documents));
        let ranking = ranking.map_err(|error| CommandError::Scoring {
            given: text::line(self.given),
            source: error.source,
        })?;
        let mut answers: Vec<Answer> =
            query.input.documents.iter().map(|_| Err("the model gave no answer".into())).collect();
        for document in ranking.documents {
            answers[document.index] = scored(&document);
        }
        for failure in ranking.unscored {
            answers[failure.index] = Err(one_line(&failure.error));
        }
        Ok(answers)
    }
}

fn scored(document: &RankedDocument) -> Answer {
    let distribution = document.answer.distribution.clone();
    let distribution =
        distribution.ok_or_else(|| "the model gave no distribution of answers".to_owned())?;
    Ok(Scored { integer: document.answer.integer, score: document.score, distribution })
}

/// The output. `--help` describes the JSON object.
#[derive(Serialize)]
struct Comparison {
    #[serde(flatten)]
    model: ModelReport,
    compared_with: ModelReport,
    documents: usize,
    kl_divergence: Option<Spread>,
    changed_integers: usize,
    kendall_tau: Option<Spread>,
    queries: Vec<ComparedQuery>,
    uncompared: Vec<Uncompared>,
}

/// The mean and the worst value: the largest divergence, or the smallest tau.
#[derive(Serialize)]
pub(super) struct Spread {
    pub(super) mean: f64,
    pub(super) worst: f64,
}

impl Spread {
    /// Returns `None` without values. `worse` returns the worse of two values.
    pub(super) fn of(values: &[f64], worse: fn(f64, f64) -> f64) -> Option<Self> {
        let worst = values.iter().copied().reduce(worse)?;
        Some(Self { mean: values.iter().sum::<f64>() / values.len() as f64, worst })
    }
}

#[derive(Serialize)]
pub(super) struct ComparedQuery {
    query: String,
    kendall_tau: Option<f64>,
    pub(super) documents: Vec<ComparedDocument>,
}

#[derive(Serialize)]
pub(super) struct ComparedDocument {
    line: usize,
    id: String,
    pub(super) kl_divergence: f64,
    pub(super) integers: [u32; 2],
    scores: [f64; 2],
}

/// A document without two answers.
#[derive(Serialize)]
pub(super) struct Uncompared {
    /// The word for what `line` counts.
    #[serde(skip)]
    unit: &'static str,
    line: usize,
    id: Option<String>,
    pub(super) reason: String,
}

impl Comparison {
    fn new(
        [model, compared_with]: [ModelReport; 2],
        queries: &[Query],
        answers: &[Vec<Answer>],
        reference_answers: &[Vec<Answer>],
    ) -> Self {
        let mut uncompared = Vec::new();
        let answers = answers.iter().zip(reference_answers);
        let queries: Vec<_> = queries
            .iter()
            .zip(answers)
            .map(|(query, (ours, theirs))| ComparedQuery::new(query, ours, theirs, &mut uncompared))
            .collect();
        uncompared.sort_by_key(|document: &Uncompared| document.line);
        let documents = || queries.iter().flat_map(|query| &query.documents);
        let divergences: Vec<f64> = documents().map(|document| document.kl_divergence).collect();
        let taus: Vec<f64> = queries.iter().filter_map(|query| query.kendall_tau).collect();
        Self {
            model,
            compared_with,
            documents: divergences.len(),
            kl_divergence: Spread::of(&divergences, f64::max),
            changed_integers: documents().filter(|d| d.integers[0] != d.integers[1]).count(),
            kendall_tau: Spread::of(&taus, f64::min),
            queries,
            uncompared,
        }
    }

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        let Self { documents, changed_integers, .. } = self;
        let queries = self.queries.len();
        writeln!(
            out,
            "\nDifference to {}, answers without reasoning, documents: {documents}, queries: {queries}",
            text::line(&self.compared_with.model)
        )?;
        match &self.kl_divergence {
            Some(Spread { mean, worst }) => writeln!(
                out,
                "  KL divergence of the answers     mean {mean:.2e}, largest {worst:.2e} nats"
            )?,
            None => writeln!(out, "  No document has an answer of both models.")?,
        }
        writeln!(
            out,
            "  most probable integer            differs in {changed_integers} of {documents} documents"
        )?;
        match &self.kendall_tau {
            Some(Spread { mean, worst }) => {
                let queries = self.queries.iter().filter(|query| query.kendall_tau.is_some());
                writeln!(
                    out,
                    "  Kendall's tau-b of the rankings  mean {mean:.3}, smallest {worst:.3}, queries: {}",
                    queries.count()
                )
            }
            None => writeln!(
                out,
                "  Kendall's tau-b of the rankings  undefined: no query has two documents with different \
                 scores by each model"
            ),
        }
    }

    /// Lists the documents that were not compared on standard error, with reasons.
    fn note_uncompared(&self) {
        text::note(&format!("Documents that were not compared: {}", self.uncompared.len()));
        for Uncompared { unit, line, id, reason } in &self.uncompared {
            let id = id.as_deref().map(text::beginning);
            let id = id.map_or(String::new(), |id| format!(" ({id})"));
            text::note(&format!("  {unit} {line}{id}: {reason}"));
        }
    }
}

impl ComparedQuery {
    /// Compares the answers to one query. Documents without two answers are added to `uncompared`.
    pub(super) fn new(
        query: &Query,
        ours: &[Answer],
        theirs: &[Answer],
        uncompared: &mut Vec<Uncompared>,
    ) -> Self {
        let mut documents = Vec::new();
        for (document, (ours, theirs)) in query.input.documents.iter().zip(ours.iter().zip(theirs))
        {
            match ComparedDocument::new(document, ours, theirs) {
                Ok(compared) => documents.push(compared),
                Err(reason) => uncompared.push(Uncompared {
                    unit: query.input.unit,
                    line: document.line,
                    id: document.id.clone(),
                    reason,
                }),
            }
        }
        let bad_lines = query.input.bad_lines.iter();
        uncompared.extend(bad_lines.map(|bad| Uncompared {
            unit: query.input.unit,
            line: bad.line,
            id: bad.id.clone(),
            reason: bad.reason.clone(),
        }));
        let scores = |side: usize| -> Vec<f64> {
            documents.iter().map(|document: &ComparedDocument| document.scores[side]).collect()
        };
        let kendall_tau = kendall_tau(&scores(0), &scores(1));
        Self { query: query.text.clone(), kendall_tau, documents }
    }
}

impl ComparedDocument {
    /// Returns the reason if one of the models gave no answer.
    fn new(document: &InputDocument, ours: &Answer, theirs: &Answer) -> Result<Self, String> {
        let (ours, theirs) = (ours.as_ref()?, theirs.as_ref()?);
        let kl_divergence = theirs.distribution.kl_divergence(&ours.distribution);
        Ok(Self {
            line: document.line,
            id: document.name(),
            kl_divergence: kl_divergence.ok_or("the models have different answers")?,
            integers: [ours.integer, theirs.integer],
            scores: [ours.score, theirs.score],
        })
    }
}
