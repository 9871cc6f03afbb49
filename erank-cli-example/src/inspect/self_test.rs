//! The answers of a device, or of this processor's kernels, beside those of the portable kernels.

use std::io::{self, BufWriter, Write};

use erank_candle::{
    CandleBackend, CandleSettings, Checkpoint, Device, KvCacheFormat, WeightFormat,
};
use erank_core::prompt::instructions;
use erank_core::{Mode, PromptTemplate, ScoringOptions};
use serde::Serialize;

use super::compare::{ComparedQuery, Query, Side, Spread};
use crate::args::InspectArguments;
use crate::error::{CommandError, Exit};
use crate::{demo, model, text};

/// Largest divergence of a document's answers with F32 weights, in nats.
const F32_BOUND: f64 = 1e-8;
/// Largest mean divergence with other formats, whose rounding the order of sums changes, in nats.
const ROUNDED_BOUND: f64 = 1e-3;
/// Most documents whose integers may change with such formats.
const ROUNDED_INTEGERS: usize = 1;

pub(super) fn run(arguments: &InspectArguments) -> Result<Exit, CommandError> {
    let queries: Vec<Query> =
        demo::queries().map(|(text, input)| Query { text: text.to_owned(), input }).collect();
    let settings = model::settings(&arguments.model);
    let report = Report::new(&settings, &queries)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if arguments.json {
        let json = serde_json::to_string(&report).map_err(io::Error::from)?;
        writeln!(out, "{}", text::json(&json))?;
    } else {
        report.write_text(&mut out)?;
    }
    out.flush()?;
    Ok(if report.passed { Exit::Done } else { Exit::Failed })
}

/// The output. `--help` describes the JSON object.
#[derive(Serialize)]
struct Report {
    device: String,
    description: String,
    checks: Vec<Check>,
    passed: bool,
}

/// The answers with one format of weights and cache, with or without reasoning.
#[derive(Serialize)]
struct Check {
    weights: &'static str,
    kv_cache: &'static str,
    reasoning: bool,
    documents: usize,
    changed_integers: usize,
    kl_divergence: Option<Spread>,
    passed: bool,
}

impl Report {
    fn new(settings: &CandleSettings, queries: &[Query]) -> Result<Self, CommandError> {
        use KvCacheFormat::{Bf16, F32, Int8};
        let reason = ScoringOptions::default().mode;
        let mut checks = vec![
            (WeightFormat::F32, F32, reason),
            (WeightFormat::F32, F32, Mode::AnswerOnly),
            (WeightFormat::Bf16, Bf16, Mode::AnswerOnly),
        ];
        if settings.device == Device::Cpu {
            checks.push((WeightFormat::Q8_0, Bf16, Mode::AnswerOnly));
            checks.push((WeightFormat::Bf16, Int8, Mode::AnswerOnly));
        }
        let backend = CandleBackend::load(&Checkpoint::tiny(), settings);
        let description = backend.map_err(model::failed(model::BUNDLED))?.description().to_string();
        let checks = checks
            .into_iter()
            .map(|(weights, cache, mode)| Check::new(settings, weights, cache, mode, queries))
            .collect::<Result<Vec<_>, _>>()?;
        let passed = checks.iter().all(|check| check.passed);
        Ok(Self { device: settings.device.to_string(), description, checks, passed })
    }

    fn write_text(&self, out: &mut dyn Write) -> io::Result<()> {
        writeln!(out, "{}: {}", self.device, self.description)?;
        writeln!(out, "Answers of the bundled model beside those of the portable CPU kernels:\n")?;
        writeln!(
            out,
            "weights  cache  answers    integers changed  KL divergence: mean, largest (nats)"
        )?;
        for check in &self.checks {
            let answers = if check.reasoning { "reasoned" } else { "alone" };
            let changed = format!("{} of {}", check.changed_integers, check.documents);
            let divergence = match &check.kl_divergence {
                Some(Spread { mean, worst }) => format!("{mean:.1e}, {worst:.1e}"),
                None => "unknown".into(),
            };
            let verdict = if check.passed { "passed" } else { "FAILED" };
            writeln!(
                out,
                "{:7}  {:5}  {answers:9}  {changed:16}  {divergence:36}  {verdict}",
                check.weights, check.kv_cache
            )?;
        }
        match self.passed {
            true => writeln!(out, "\nThe self-test passed."),
            false => writeln!(
                out,
                "\nThe self-test FAILED. Do not rank with this device or these kernels, and report this table with the \
                 output of --json."
            ),
        }
    }
}

impl Check {
    fn new(
        settings: &CandleSettings,
        weights: WeightFormat,
        cache: KvCacheFormat,
        mode: Mode,
        queries: &[Query],
    ) -> Result<Self, CommandError> {
        let mut settings = settings.clone();
        (settings.weights, settings.kv_cache) = (Some(weights), Some(cache));
        let mut portable = settings.clone();
        portable.device = Device::Cpu;
        portable.instruction_set = Some("portable".into());
        let mut options = ScoringOptions::default();
        options.mode = mode;
        let answers = |settings| {
            let side = Side { given: model::BUNDLED, checkpoint: Checkpoint::tiny(), settings };
            side.answers(queries, &PromptTemplate::erank(), instructions::GENERIC, options)
        };
        let (ours, theirs) = (answers(settings)?, answers(portable)?);

        let mut uncompared = Vec::new();
        let compared: Vec<_> = queries
            .iter()
            .zip(ours.iter().zip(&theirs))
            .map(|(query, (ours, theirs))| ComparedQuery::new(query, ours, theirs, &mut uncompared))
            .collect();
        let documents = || compared.iter().flat_map(|query| &query.documents);
        let changed_integers = documents().filter(|d| d.integers[0] != d.integers[1]).count();
        let divergences: Vec<f64> = documents().map(|document| document.kl_divergence).collect();
        let kl_divergence = Spread::of(&divergences, f64::max);
        let is_close = kl_divergence
            .as_ref()
            .is_some_and(|divergence| is_close(weights, divergence, changed_integers));
        Ok(Self {
            weights: weights.name(),
            kv_cache: cache.name(),
            reasoning: mode != Mode::AnswerOnly,
            documents: divergences.len(),
            changed_integers,
            kl_divergence,
            passed: is_close && uncompared.is_empty(),
        })
    }
}

/// Returns whether answers with weights of a format are as close as kernels with other orders of sums are.
fn is_close(weights: WeightFormat, divergence: &Spread, changed_integers: usize) -> bool {
    match weights {
        WeightFormat::F32 => divergence.worst <= F32_BOUND && changed_integers == 0,
        _ => divergence.mean <= ROUNDED_BOUND && changed_integers <= ROUNDED_INTEGERS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_close_refuses_divergences_and_integers_beyond_the_bounds() {
        let divergence = |mean, worst| Spread { mean, worst };
        let is_close_in =
            |format, mean, worst, changed| is_close(format, &divergence(mean, worst), changed);
        assert!(is_close_in(WeightFormat::F32, 1e-12, 1e-11, 0));
        assert!(!is_close_in(WeightFormat::F32, 1e-12, 1e-11, 1));
        assert!(!is_close_in(WeightFormat::F32, 1e-9, 1e-7, 0));
        assert!(is_close_in(WeightFormat::Bf16, 2e-4, 4e-4, 1));
        assert!(!is_close_in(WeightFormat::Bf16, 2e-4, 4e-4, 2));
        assert!(!is_close_in(WeightFormat::Bf16, 2e-3, 4e-3, 0));
        assert!(!is_close_in(WeightFormat::Bf16, f64::NAN, f64::NAN, 0));
    }
}
