//! `erank rerank`: ranks the documents of a file, a folder or standard input.

use std::io::{self, BufWriter, Write};
use std::time::Instant;

use erank_candle::WeightFormat;
use erank_core::{
    CancellationToken, Cascade, FirstPass, Fusion, PromptTemplate, Ranking, Request, Reranker,
    RerankerBuilder, ScoringBackend, ScoringOptions,
};
use serde_json::json;

use crate::args::{self, RerankArguments, Score};
use crate::calibration::CalibrationFile;
use crate::error::{CommandError, Exit};
use crate::input::{self, Input};
use crate::interrupt::Interrupt;
use crate::model;
use crate::progress::Meter;
use crate::report::{self, ReasoningDisplay, Report};
use crate::text;

pub(crate) fn run(
    arguments: &RerankArguments,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    rank_and_report(arguments, read(arguments)?, interrupt)
}

/// Reads the documents of `--docs`. Says so if there are none.
pub(crate) fn read(arguments: &RerankArguments) -> Result<Input, CommandError> {
    let input = input::read(&arguments.docs, &arguments.fields)
        .map_err(|source| CommandError::documents(&arguments.docs, source))?;
    if input.documents.is_empty() && input.bad_lines.is_empty() {
        let what = input::shown(&arguments.docs);
        text::note(&format!("{what} has no documents to rank; --docs names the file or folder."));
    }
    Ok(input)
}

/// Ranks the documents of `input`, and prints the report.
pub(crate) fn rank_and_report(
    arguments: &RerankArguments,
    input: Input,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let meter = Meter::new();
    let calibration = match &arguments.calibration {
        Some(path) => Some((path, CalibrationFile::read(path)?)),
        None => None,
    };
    let model::Chosen { backend, family, limits, fingerprint, .. } =
        model::choose(&arguments.model, &arguments.remote, arguments.score)?;
    let template = family.template();
    let instruction = arguments.goal.instruction(&template).to_owned();
    let mode = arguments.thinking.mode(limits.mode, template.answers());
    let mut now = json!({
        "model": backend.name(),
        "fingerprint": fingerprint,
        "template": family.name(),
        "instruction": instruction,
        "weights": arguments.model.weights.map(WeightFormat::name),
        "max_tokens": args::max_tokens(mode),
        "max_query_tokens": limits.max_query_tokens,
        "max_document_tokens": limits.max_document_tokens,
        "max_prompt_tokens": limits.max_prompt_tokens,
    });
    let mut builder = configure(arguments, backend, template, limits, meter.clone())?;
    if let Some((path, file)) = &calibration {
        file.check(path, &now)?;
        builder = builder.calibration(file.calibration.clone());
    }
    let mut window_tokens = limits.max_document_tokens;
    let mut first_pass_model = None;
    if let Some(given) = &arguments.first_pass {
        let first = model::first_pass(given, &arguments.model)?;
        first_pass_model = Some(first.backend.name().to_owned());
        window_tokens = window_tokens.min(first.limits.max_document_tokens);
        builder = builder.first_pass(first_pass(first, arguments));
    }
    if let Some(windows) = arguments.long_documents.windows(window_tokens) {
        now["windows"] = windows.tokens.into();
        builder = builder.windows(windows);
    }
    let sampling: Vec<&str> = arguments.sampling.given().collect();
    if !sampling.is_empty() {
        now["sampling"] = sampling.join(", ").into();
    }
    let reranker = builder.build()?;
    if let Some((_, file)) = &calibration {
        file.note_differences(&now);
    }

    let cancellation = interrupt.begin(arguments.timeout);
    let begin = Instant::now();
    meter.begin();
    let (ranking, failure) = rank(&reranker, &arguments.query, &input, &cancellation);
    meter.finish();
    let report = Report {
        model: reranker.backend().name(),
        first_pass_model: first_pass_model.as_deref(),
        query: &arguments.query,
        template: family.name(),
        instruction: &instruction,
        input: &input,
        min_score: arguments.min_score,
        ranking: &ranking,
        seconds: report::seconds(begin.elapsed()),
        interrupted: interrupt.was_pressed(),
    };
    write(&report, arguments)?;
    failure.map_or(Ok(report.exit()), Err)
}

/// Returns the pass over all documents by the model of `--first-pass`.
fn first_pass(first: model::Chosen, arguments: &RerankArguments) -> FirstPass {
    let template = first.family.template();
    let instruction = arguments.goal.instruction(&template).to_owned();
    FirstPass::new(first.backend, template).with_instruction(instruction).with_options(first.limits)
}

/// Returns a builder of the reranker with the arguments, except `--first-pass`.
fn configure(
    arguments: &RerankArguments,
    backend: Box<dyn ScoringBackend>,
    template: PromptTemplate,
    mut options: ScoringOptions,
    meter: Meter,
) -> Result<RerankerBuilder<Box<dyn ScoringBackend>>, CommandError> {
    let answers = template.answers();
    arguments.thinking.check(answers)?;
    options.mode = arguments.thinking.mode(options.mode, answers);
    arguments.sampling.set(&mut options, answers)?;
    let mut builder = Reranker::builder(backend)
        .options(options)
        .instruction(arguments.goal.instruction(&template))
        .score(Score::kind(arguments.score, answers))
        .template(template)
        .on_progress(move |progress| meter.show(progress));
    if let Some(top_k) = arguments.top_k {
        builder = builder.top_k(top_k.get());
    }
    if let Some(min_score) = arguments.min_score {
        builder = builder.min_score(min_score);
    }
    if let Some(count) = arguments.think_about {
        builder = builder.cascade(Cascade::best(count.get()));
    }
    if let Some(first_stage_weight) = arguments.hybrid {
        builder = builder.fusion(Fusion::ZScore { first_stage_weight });
    }
    Ok(builder)
}

/// Ranks the documents of `input`. If the backend fails, returns the partial ranking and the error.
pub(crate) fn rank(
    reranker: &Reranker<impl ScoringBackend>,
    query: &str,
    input: &Input,
    cancellation: &CancellationToken,
) -> (Ranking, Option<CommandError>) {
    let documents = input.documents.iter().map(|document| document.as_document());
    match reranker.rerank_with_cancellation(&Request::new(query, documents), cancellation) {
        Ok(ranking) => (ranking, None),
        Err(error) => (*error.partial, Some(error.source.into())),
    }
}

/// Prints the report to standard output.
fn write(report: &Report<'_>, arguments: &RerankArguments) -> Result<(), CommandError> {
    let mut out = BufWriter::new(io::stdout().lock());
    if arguments.json {
        report.write_json(&mut out)?;
    } else {
        let reasoning =
            if arguments.explain { ReasoningDisplay::Below } else { ReasoningDisplay::Column };
        report.write_table(reasoning, &mut out)?;
    }
    out.flush()?;
    if !arguments.json {
        report.note_problems();
    }
    Ok(())
}
