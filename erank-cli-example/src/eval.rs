//! `erank eval`: a judged run reranked, and how much better it got.
//!
//! ```text
//! collection ─▶ scoring: the model, into scores ─▶ systems: runs ─▶ report, gains
//! ```

mod collection;
mod files;
mod gains;
mod report;
mod scores;
mod scoring;
mod systems;

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use erank_core::evaluation::UnpairedQuery;
use erank_core::trec::EntryError;
use erank_core::{Fusion, Mode, ScoreKind, ScoringOptions};
use thiserror::Error;

use crate::args::{Backend, Dtype, EvalArguments};
use crate::error::{CommandError, Exit};
use crate::interrupt::Interrupt;
use crate::model::{self, Chosen};
use crate::progress::Meter;
use crate::text;
use collection::Collection;
use report::{Report, Runs};
use scores::{ScoreFile, Settings};
use scoring::Scoring;
use systems::Judgements;

const SCORES: &str = "scores.jsonl";

/// Why nothing can be evaluated.
#[derive(Debug, Error)]
pub(crate) enum EvalError {
    #[error("{file}: {problem}")]
    File { file: String, problem: String },
    #[error(
        "no query of the run has grades: the run's first is {run}, the grades' first {qrels}; give \
         both of the same collection"
    )]
    NoJudgedQuery { run: String, qrels: String },
    #[error(
        "none of the candidates was judged, {example} for instance: do run and grades name \
         documents in the same way?"
    )]
    NoJudgedCandidate { example: String },
    #[error("{file} has none of the {wanted} texts that the run needs, {example:?} for instance")]
    NoText { file: String, wanted: usize, example: String },
    #[error("{file} holds no scores of erank eval; choose another folder with --output")]
    NoScores { file: String },
    #[error(
        "{file} holds scores that were made otherwise: {differences}. Choose another folder with \
         --output, or the same settings"
    )]
    OtherScores { file: String, differences: String },
    #[error("{file} is being written by another process; wait for it, or choose another --output")]
    InUse { file: String },
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Unpaired(#[from] UnpairedQuery),
}

impl EvalError {
    fn file(file: &Path, problem: String) -> Self {
        Self::File { file: text::line(&file.display().to_string()), problem }
    }
}

pub(crate) fn run(arguments: &EvalArguments, interrupt: &Interrupt) -> Result<Exit, CommandError> {
    let depth = arguments.depth.get();
    let collection = Collection::read(&arguments.collection, depth)?;
    let Chosen { backend, limits, fingerprint } =
        model::choose(&arguments.model, &arguments.remote, arguments.score)?;
    let mut options = limits;
    options.mode = arguments.thinking.mode(options.mode);
    let settings = settings(arguments, backend.name(), fingerprint, &options);
    let output = arguments.output.as_path();
    fs::create_dir_all(output).map_err(|error| EvalError::file(output, error.to_string()))?;
    let scores = ScoreFile::open(&output.join(SCORES), &settings)?;

    let open = scoring::open_documents(&collection, &scores);
    let all: usize = collection.queries.iter().map(|query| query.candidates.len()).sum();
    text::note(&format!(
        "{} queries, {all} documents, {open} of them to be scored.",
        collection.queries.len()
    ));
    let stop = interrupt.begin(arguments.timeout);
    let meter = Meter::new();
    meter.begin();
    let scoring = Scoring {
        backend: &*backend,
        instruction: arguments.goal.instruction(),
        options,
        stop: &stop,
        meter: &meter,
    };
    let scored = scoring.run(&collection, scores);
    let (scores, failures) = scored.inspect_err(|_| note_going_on(output))?;
    if stop.is_cancelled() {
        let open = scoring::open_documents(&collection, &scores);
        if open > 0 {
            text::note(&format!("Stopped: {} of {all} documents are done.", all - open));
            note_going_on(output);
            let pressed = interrupt.was_pressed();
            return Ok(if pressed { Exit::Interrupted } else { Exit::TimedOut });
        }
    }

    let kind: ScoreKind = arguments.score.into();
    let judgements = Judgements::new(&collection, &scores, &failures, kind);
    let runs = runs(&collection, &judgements, arguments.hybrid)?;
    let measures = &arguments.measure;
    let report = Report::new(&settings, kind, depth, measures, &collection, &judgements, &runs)
        .map_err(EvalError::from)?;
    write_files(output, &report, &runs, arguments.hybrid, &measures[0].to_string())?;
    print(&report, arguments.json)?;
    report.note_problems();
    Ok(if report.is_complete() { Exit::Done } else { Exit::SomeUnscored })
}

fn note_going_on(output: &Path) {
    let scores = text::line(&output.join(SCORES).display().to_string());
    text::note(&format!("Scores are kept in {scores}; the same command goes on from there."));
}

fn settings<'a>(
    arguments: &'a EvalArguments,
    model: &'a str,
    fingerprint: Option<u32>,
    options: &ScoringOptions,
) -> Settings<'a> {
    Settings {
        erank_eval: 1,
        model,
        fingerprint,
        backend: match arguments.remote.backend {
            Backend::Candle => "candle",
            Backend::Openai => "openai",
        },
        dtype: arguments.model.dtype.map(|dtype| match dtype {
            Dtype::F32 => "f32",
            Dtype::Bf16 => "bf16",
        }),
        instruction: arguments.goal.instruction(),
        max_tokens: match options.mode {
            Mode::Reason { max_tokens } => Some(max_tokens),
            _ => None,
        },
        max_query_tokens: options.max_query_tokens,
        max_document_tokens: options.max_document_tokens,
    }
}

/// The runs to compare, with hybrids of the weights 0.1 to 0.9 and `alpha`.
fn runs(
    collection: &Collection,
    judgements: &Judgements<'_>,
    alpha: f64,
) -> Result<Runs, EvalError> {
    let mut alphas: Vec<f64> = (1..10).map(|tenth| f64::from(tenth) / 10.0).collect();
    if !alphas.contains(&alpha) {
        alphas.push(alpha);
        alphas.sort_by(f64::total_cmp);
    }
    let fused = |fusion| systems::fused(collection, judgements, fusion);
    let hybrid = |alpha| Ok((alpha, fused(Fusion::ZScore { first_stage_weight: alpha })?));
    Ok(Runs {
        first_stage: collection.first_stage.clone(),
        reranked: fused(Fusion::None)?,
        hybrids: alphas.into_iter().map(hybrid).collect::<Result<_, EvalError>>()?,
    })
}

fn write_files(
    output: &Path,
    report: &Report<'_>,
    runs: &Runs,
    alpha: f64,
    measure: &str,
) -> Result<(), CommandError> {
    let write = |name: &str, bytes: &[u8]| {
        let file = output.join(name);
        fs::write(&file, bytes).map_err(|error| EvalError::file(&file, error.to_string()))
    };
    let hybrid = runs.hybrids.iter().find(|(other, _)| *other == alpha).map(|(_, run)| run);
    let files = [
        ("first_stage.run", Some(&runs.first_stage), "first-stage".to_owned()),
        ("reranked.run", Some(&runs.reranked), "erank".to_owned()),
        ("hybrid.run", hybrid, format!("erank-hybrid-{alpha}")),
    ];
    for (name, run, tag) in files {
        let Some(run) = run else { continue };
        let mut bytes = Vec::new();
        run.write(&mut bytes, &tag)?;
        write(name, &bytes)?;
    }
    write("report.json", report.json().map_err(io::Error::from)?.as_bytes())?;
    let picture = gains::draw(measure, &report.changes()).map_err(io::Error::other)?;
    write("gains.svg", picture.as_bytes())?;
    Ok(())
}

fn print(report: &Report<'_>, as_json: bool) -> Result<(), CommandError> {
    let mut out = io::BufWriter::new(io::stdout().lock());
    if as_json {
        out.write_all(report.json().map_err(io::Error::from)?.as_bytes())?;
    } else {
        report.write_tables(&mut out)?;
    }
    out.flush()?;
    Ok(())
}
