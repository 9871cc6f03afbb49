//! `erank rerank`: documents from a file or standard input, ranked.

use std::io::{self, BufWriter, Write};
use std::num::NonZeroUsize;
use std::time::Instant;

use erank_core::{
    CancellationToken, Cascade, Fusion, Ranking, Request, Reranker, ScoringBackend, ScoringOptions,
};

use crate::args::RerankArguments;
use crate::error::{CommandError, Exit};
use crate::input::{self, Input};
use crate::interrupt::Interrupt;
use crate::model;
use crate::progress::Meter;
use crate::report::{self, Report, Thoughts};
use crate::text;

pub(crate) fn run(
    arguments: &RerankArguments,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    rank_and_report(arguments, input::read(&arguments.docs)?, interrupt)
}

/// Ranks what was read, and prints it.
pub(crate) fn rank_and_report(
    arguments: &RerankArguments,
    input: Input,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    if input.documents.is_empty() && input.bad_lines.is_empty() {
        text::note("There are no documents to rank; give one a line with --docs FILE.");
    }
    let meter = Meter::new();
    let model::Chosen { backend, limits, .. } =
        model::choose(&arguments.model, &arguments.remote, arguments.score)?;
    let reranker = reranker(arguments, backend, limits, meter.clone())?;

    let stop = interrupt.begin(arguments.timeout);
    let begin = Instant::now();
    meter.begin();
    let (ranking, failure) = rank(&reranker, &arguments.query, &input, &stop);
    meter.finish();
    let report = Report {
        model: reranker.backend().name(),
        query: &arguments.query,
        instruction: arguments.goal.instruction(),
        input: &input,
        ranking: &ranking,
        seconds: report::seconds(begin.elapsed()),
        interrupted: interrupt.was_pressed(),
    };
    write(&report, arguments)?;
    failure.map_or(Ok(report.exit()), Err)
}

/// The reranker that the arguments ask for.
fn reranker(
    arguments: &RerankArguments,
    backend: Box<dyn ScoringBackend>,
    mut options: ScoringOptions,
    meter: Meter,
) -> Result<Reranker<Box<dyn ScoringBackend>>, CommandError> {
    options.mode = arguments.thinking.mode(options.mode);
    options.sampling.temperature = arguments.temperature.unwrap_or_default();
    options.sampling.seed = arguments.seed.unwrap_or_default();
    options.samples = arguments.samples.map_or(1, NonZeroUsize::get);
    let mut builder = Reranker::builder(backend)
        .options(options)
        .instruction(arguments.goal.instruction())
        .score(arguments.score.into())
        .on_progress(move |progress| meter.show(progress));
    if let Some(top_k) = arguments.top_k {
        builder = builder.top_k(top_k.get());
    }
    if let Some(most) = arguments.think_about {
        builder = builder.cascade(Cascade::best(most.get()));
    }
    if let Some(first_stage_weight) = arguments.hybrid {
        builder = builder.fusion(Fusion::ZScore { first_stage_weight });
    }
    Ok(builder.build()?)
}

/// The ranking, and what ended it if the model failed: then it is what was done until there.
pub(crate) fn rank(
    reranker: &Reranker<impl ScoringBackend>,
    query: &str,
    input: &Input,
    stop: &CancellationToken,
) -> (Ranking, Option<CommandError>) {
    let documents = input.documents.iter().map(|document| document.as_document());
    match reranker.rerank_with_cancellation(&Request::new(query, documents), stop) {
        Ok(ranking) => (ranking, None),
        Err(error) => (*error.partial, Some(error.source.into())),
    }
}

fn write(report: &Report<'_>, arguments: &RerankArguments) -> Result<(), CommandError> {
    let mut out = BufWriter::new(io::stdout().lock());
    if arguments.json {
        report.write_json(&mut out)?;
    } else {
        let thoughts = if arguments.explain { Thoughts::Below } else { Thoughts::Column };
        report.write_table(thoughts, &mut out)?;
    }
    out.flush()?;
    if !arguments.json {
        report.note_problems();
    }
    Ok(())
}
