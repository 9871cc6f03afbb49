//! `erank eval`: reranks a judged run, and measures the gain.
//!
//! ```text
//! collection ─▶ scoring: the model's answers → scores ─▶ systems: runs ─▶ report, gains
//!                                                      └▶ calibration, reliability
//! report, gains, reliability and thoughts ─▶ html
//! ```

mod calibration;
mod collection;
pub(crate) mod error;
mod files;
mod followir;
mod gains;
mod html;
mod markup;
mod reliability;
mod report;
mod scores;
mod scoring;
mod systems;

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use erank_candle::WeightFormat;
use erank_core::Fusion;

use crate::args::{self, Backend, CacheFormat, EvalArguments, Score};
use crate::calibration::CalibrationFile;
use crate::error::{CommandError, Exit};
use crate::interrupt::Interrupt;
use crate::model::{self, Chosen};
use crate::progress::Meter;
use crate::text;
use calibration::{Calibrated, Labels, Scored};
use collection::Collection;
use error::EvalError;
use followir::Pairs;
use html::{Pace, Page};
use report::{Report, Runs};
use scores::{ScoreFile, Settings};
use scoring::Scoring;
use systems::Judgements;

/// The file of scores in the output folder.
const SCORES: &str = "scores.jsonl";

pub(crate) fn run(arguments: &EvalArguments, interrupt: &Interrupt) -> Result<Exit, CommandError> {
    let depth = arguments.depth.get();
    let collection = Collection::read(&arguments.collection, depth)?;
    let labels = arguments.calibrate.as_ref();
    let labels = labels.map(|_| Labels::new(&collection, arguments.relevant)).transpose()?;
    let pairs = arguments.followir.then(|| Pairs::new(&collection.qrels)).transpose()?;
    let Chosen { backend, family, limits, fingerprint, description } =
        model::choose(&arguments.model, &arguments.remote, arguments.score)?;
    let template = family.template();
    arguments.thinking.check(template.answers())?;
    let mut options = limits;
    options.mode = arguments.thinking.mode(options.mode, template.answers());
    let instruction = arguments.goal.instruction(&template);
    let settings = Settings {
        erank_eval: 1,
        model: backend.name(),
        fingerprint,
        backend: match arguments.remote.backend {
            Backend::Candle => "candle",
            Backend::Openai => "openai",
        },
        description: description.as_deref(),
        prompts: (arguments.remote.backend == Backend::Openai)
            .then(|| arguments.remote.prompts.unwrap_or_default().name()),
        logprobs: model::needs_logprobs(&arguments.remote, arguments.score),
        weights: arguments.model.weights.map(WeightFormat::name),
        kv_cache: arguments.model.kv_cache.map(CacheFormat::name),
        template: family.name(),
        instruction,
        max_tokens: args::max_tokens(options.mode),
        max_query_tokens: options.max_query_tokens,
        max_document_tokens: options.max_document_tokens,
        max_prompt_tokens: options.max_prompt_tokens,
    };
    let output = arguments.output.as_path();
    fs::create_dir_all(output).map_err(|error| EvalError::file(output, error.to_string()))?;
    // Scoring may take hours, so the folder of the path is checked first.
    arguments.calibrate.as_deref().map_or(Ok(()), CalibrationFile::check_path)?;
    let scores = ScoreFile::open(&output.join(SCORES), &settings)?;

    let open = scoring::open_documents(&collection, &scores);
    let all: usize = collection.queries.iter().map(|query| query.candidates.len()).sum();
    text::note(&format!(
        "{} queries, {all} documents, {open} of them to be scored.",
        collection.queries.len()
    ));
    let cancellation = interrupt.begin(arguments.timeout);
    let meter = Meter::new();
    meter.begin();
    let scoring = Scoring {
        backend: &*backend,
        template: &template,
        instruction,
        options,
        cancellation: &cancellation,
        meter: &meter,
    };
    let begin = Instant::now();
    let scored = scoring.run(&collection, scores);
    let (scores, failures) = scored.inspect_err(|_| note_resuming(output))?;
    let elapsed = begin.elapsed();
    let still_open = scoring::open_documents(&collection, &scores);
    let pace = Pace { documents: open - still_open, known: all - open, elapsed };
    if cancellation.is_cancelled() && still_open > 0 {
        text::note(&format!("Stopped: {} of {all} documents are scored.", all - still_open));
        note_resuming(output);
        let pressed = interrupt.was_pressed();
        return Ok(if pressed { Exit::Interrupted } else { Exit::TimedOut });
    }

    let kind = Score::kind(arguments.score, template.answers());
    let judgements = Judgements::new(&collection, &scores, &failures, kind);
    let runs = runs(&collection, &judgements, arguments.hybrid)?;
    let measures = &arguments.measure;
    let mut report = Report::new(&settings, kind, depth, measures, &collection, &judgements, &runs)
        .map_err(EvalError::from)?;
    if let Some(pairs) = pairs {
        report.add_p_mrr(&pairs, &runs).map_err(EvalError::from)?;
    }
    let mut calibration = Ok(());
    if let (Some(labels), Some(file)) = (labels, &arguments.calibrate) {
        let scored = Scored { kind, mode: options.mode, answers: template.answers() };
        match labels.calibrate(&judgements, scored) {
            Ok(calibrated) => {
                calibration = write_calibration(file, &calibrated, &settings);
                report.calibration = Some(calibrated);
            }
            Err(error) => calibration = Err(error.into()),
        }
    }
    let page = Page {
        report: &report,
        collection: &collection,
        judgements: &judgements,
        runs: &runs,
        scores: &scores,
        pace,
    };
    write_files(output, &page, arguments.hybrid, &measures[0].to_string())?;
    let printed = print(&report, arguments.json);
    report.note_problems();
    // The report does not need the calibration, so it is complete before this error.
    calibration?;
    printed?;
    Ok(if report.is_complete() { Exit::Done } else { Exit::SomeUnscored })
}

/// Says where the scores are, and how to resume.
fn note_resuming(output: &Path) {
    let scores = text::line(&output.join(SCORES).display().to_string());
    text::note(&format!("Scores are kept in {scores}. The same command resumes from there."));
}

/// Builds the runs to compare, with hybrids for the weights 0.1 to 0.9 and `alpha`.
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

/// Writes the calibration with the settings of its scores.
fn write_calibration(
    path: &Path,
    calibrated: &Calibrated,
    settings: &Settings<'_>,
) -> Result<(), CommandError> {
    let Calibrated { calibration, all, .. } = calibrated;
    let file = CalibrationFile {
        erank_calibration: CalibrationFile::VERSION,
        calibration: calibration.clone(),
        settings: settings.fields().map_err(io::Error::from)?,
        fitted_on: *all,
    };
    file.write(path)
}

/// Writes the runs, the report, the pictures and the page to the output folder.
fn write_files(
    output: &Path,
    page: &Page<'_>,
    alpha: f64,
    measure: &str,
) -> Result<(), CommandError> {
    let Page { report, runs, .. } = *page;
    let write = |name: &str, bytes: &[u8]| {
        // After a failure, an earlier file stays whole.
        let (file, part) = (output.join(name), output.join(format!("{name}.part")));
        let written = fs::write(&part, bytes).and_then(|()| fs::rename(&part, &file));
        written.map_err(|error| {
            // The first error is reported.
            let _ = fs::remove_file(&part);
            EvalError::file(&file, error.to_string())
        })
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
    if let Some(calibrated) = &report.calibration {
        let picture = reliability::draw(calibrated).map_err(io::Error::other)?;
        write("reliability.svg", picture.as_bytes())?;
    }
    write("report.html", page.html()?.as_bytes())?;
    Ok(())
}

/// Prints the report to standard output.
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
