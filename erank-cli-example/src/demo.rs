//! The demonstration. `erank` without arguments reranks a few queries with the bundled model.

mod queries;

use std::io::{self, BufWriter, Write};
use std::time::Instant;

use erank_candle::CandleBackend;
use erank_core::prompt::instructions;
use erank_core::{CancellationToken, PromptFamily, Reranker, ScoringBackend};

use crate::error::{CommandError, Exit};
use crate::input::{Input, InputDocument};
use crate::interrupt::Interrupt;
use crate::model;
use crate::progress::Meter;
use crate::report::{self, ReasoningDisplay, Report};
use crate::rerank::rank;
use queries::{Candidate, QUERIES};

const INTRODUCTION: &str = "\
A search engine's first stage found candidates for each query. The bundled model reads each candidate,
writes its reasoning, and answers with a relevance from 0 to 10. The score is the answer times its
probability. \"first\" is the candidate's rank in the first stage.";

/// The meaning of the reasoning, and the limits of the model.
const LEGEND: &str = "\
The bundled model is a tiny demonstration that compares words only. Its reasoning marks each word of the
query: - missing, + found, ++ found more than once, * next to the previous word; ! and !! are rare words.
For real use, load ERank, which reasons in sentences:
  erank rerank --model Alibaba-NLP/ERank-4B --query \"…\" --docs FILE";

pub(crate) fn run(interrupt: &Interrupt) -> Result<Exit, CommandError> {
    let meter = Meter::new();
    let on_progress = meter.clone();
    let reranker = Reranker::builder(model::bundled()?)
        .on_progress(move |progress| on_progress.show(progress))
        .build()?;

    let cancellation = interrupt.begin(None);
    let mut out = BufWriter::new(io::stdout().lock());
    writeln!(out, "{INTRODUCTION}")?;
    for (query, input) in queries() {
        let exit = show(&reranker, query, &input, interrupt, &cancellation, &meter, &mut out)?;
        out.flush()?;
        if exit != Exit::Done {
            return Ok(exit);
        }
    }
    writeln!(out, "\n{LEGEND}")?;
    out.flush()?;
    Ok(Exit::Done)
}

/// Ranks the candidates of one query, and writes the table.
fn show(
    reranker: &Reranker<CandleBackend>,
    query: &str,
    input: &Input,
    interrupt: &Interrupt,
    cancellation: &CancellationToken,
    meter: &Meter,
    out: &mut dyn Write,
) -> Result<Exit, CommandError> {
    let begin = Instant::now();
    meter.begin();
    let (ranking, failure) = rank(reranker, query, input, cancellation);
    meter.finish();
    let report = Report {
        model: reranker.backend().name(),
        first_pass_model: None,
        query,
        template: PromptFamily::Erank.name(),
        instruction: instructions::GENERIC,
        input,
        min_score: None,
        ranking: &ranking,
        seconds: report::seconds(begin.elapsed()),
        interrupted: interrupt.was_pressed(),
    };
    writeln!(out, "\n{query}")?;
    report.write_table(ReasoningDisplay::Column, out)?;
    report.note_problems();
    failure.map_or(Ok(report.exit()), Err)
}

/// Returns the queries of the demonstration with their candidates.
pub(crate) fn queries() -> impl Iterator<Item = (&'static str, Input)> {
    QUERIES.iter().map(|(query, candidates)| (*query, input(candidates)))
}

/// Returns the candidates in the first stage's order.
fn input(candidates: &[Candidate]) -> Input {
    let document = |(index, (score, text)): (usize, &Candidate)| InputDocument {
        line: index + 1,
        id: None,
        text: (*text).to_owned(),
        score: Some(*score),
    };
    let documents = candidates.iter().enumerate().map(document).collect();
    Input { documents, ..Input::default() }
}

#[cfg(test)]
mod tests {
    use erank_candle::{CandleSettings, Checkpoint, Device, KvCacheFormat, WeightFormat};
    use erank_core::metrics::kendall_tau;
    use erank_core::prompt::PromptTemplate;
    use erank_core::{Document, Mode, Request, ScoreKind, ScoringOptions};

    use super::*;

    fn settings(weights: WeightFormat) -> CandleSettings {
        let mut settings = CandleSettings::default();
        settings.weights = Some(weights);
        settings
    }

    fn with_8_bit_cache() -> CandleSettings {
        let mut settings = settings(WeightFormat::F32);
        settings.kv_cache = Some(KvCacheFormat::Int8);
        settings
    }

    fn load(settings: &CandleSettings) -> CandleBackend {
        CandleBackend::load(&Checkpoint::tiny(), settings).expect("bundled")
    }

    /// Runs all queries at once. Returns the integer and the reasoning of each candidate, by query.
    fn answers(settings: &CandleSettings) -> Vec<Vec<(u32, String)>> {
        let reranker = Reranker::builder(load(settings)).build().expect("valid");
        let of_query = |query: &str, candidates: &[Candidate]| {
            let documents = candidates.iter().map(|(_, text)| Document::new(*text));
            let ranking = reranker.rerank(&Request::new(query, documents)).expect("a ranking");
            let mut documents = ranking.documents;
            assert_eq!(documents.len(), candidates.len());
            documents.sort_by_key(|document| document.index);
            documents
                .into_iter()
                .map(|document| (document.answer.integer, document.answer.reasoning))
                .collect()
        };
        std::thread::scope(|scope| {
            let calls: Vec<_> = QUERIES
                .iter()
                .map(|(query, candidates)| scope.spawn(|| of_query(query, candidates)))
                .collect();
            calls.into_iter().map(|call| call.join().expect("no panic")).collect()
        })
    }

    /// GPUs run candle's own operations. The weights are F32, because BF16 rounding changes the reasoning
    /// where two tokens are nearly equally probable.
    #[test]
    fn candle_operations_give_the_answers_of_the_kernels() {
        let mut on_candle = settings(WeightFormat::F32);
        on_candle.device = Device::CpuCandle;
        assert_eq!(answers(&on_candle), answers(&settings(WeightFormat::F32)));
    }

    #[test]
    fn q8_0_weights_and_8_bit_cache_change_at_most_one_integer() {
        let integers = |settings: &CandleSettings| -> Vec<u32> {
            answers(settings).into_iter().flatten().map(|(integer, _)| integer).collect()
        };
        let f32 = integers(&settings(WeightFormat::F32));
        for (name, settings) in
            [("Q8_0 weights", settings(WeightFormat::Q8_0)), ("8-bit cache", with_8_bit_cache())]
        {
            let integers = integers(&settings);
            let changed = f32.iter().zip(&integers).filter(|(a, b)| a != b).count();
            println!("{name}: {changed} of {} integers changed", f32.len());
            assert!(changed <= 1, "{name}: {f32:?}\n{integers:?}");
        }
    }

    #[test]
    fn q8_0_weights_and_8_bit_cache_hardly_change_the_distributions_of_tokens() {
        for (name, settings) in
            [("Q8_0 weights", settings(WeightFormat::Q8_0)), ("8-bit cache", with_8_bit_cache())]
        {
            let (mean, positions) = divergence(&load(&settings));
            println!("{name}: the mean divergence over {positions} positions is {mean:.1e}");
            assert!((0.0..2e-3).contains(&mean), "{name}: {mean:e}");
        }
    }

    /// Returns the mean Kullback–Leibler divergence of the next token's distribution from that of F32 weights, over all
    /// positions of the prompt of each query's first candidate, and the number of these positions.
    fn divergence(backend: &CandleBackend) -> (f64, u32) {
        let f32 = load(&settings(WeightFormat::F32));
        let vocab_size = f32.config().vocab_size;
        let (mut sum, mut positions) = (0.0, 0);
        for (query, candidates) in QUERIES {
            let template = PromptTemplate::erank();
            let bound = template.bind(instructions::GENERIC, query);
            let options = ScoringOptions::default();
            let frame = f32.tokenizer().bind(&bound, &options).expect("renderable");
            let ids = frame.encode(candidates[0].1).expect("encodable").ids;
            let distributions = |backend: &CandleBackend| {
                let mut all = backend.most_probable(&ids, vocab_size).expect("distributions");
                all.iter_mut().for_each(|tokens| tokens.sort_by_key(|token| token.id));
                all
            };
            for (exact, quantised) in distributions(&f32).iter().zip(&distributions(backend)) {
                let terms = exact.iter().zip(quantised).map(|(exact, quantised)| {
                    assert_eq!(exact.id, quantised.id);
                    let log_prob = f64::from(exact.log_prob);
                    log_prob.exp() * (log_prob - f64::from(quantised.log_prob))
                });
                sum += terms.sum::<f64>();
                positions += 1;
            }
        }
        (sum / f64::from(positions), positions)
    }

    /// Kendall's tau over the candidates of all queries together, because one exchanged pair of a query's seven
    /// candidates changes the query's tau by 0.1. The scores are expected values without reasoning, which have no
    /// ties.
    #[test]
    fn q8_0_weights_and_8_bit_cache_hardly_change_the_rankings() {
        let scores = |settings: &CandleSettings| -> Vec<f64> {
            let backend = load(settings);
            let mut options = ScoringOptions::default();
            options.mode = Mode::AnswerOnly;
            let reranker = Reranker::builder(backend)
                .options(options)
                .score(ScoreKind::ExpectedValue)
                .build()
                .expect("valid");
            let of_query = |(query, candidates): &(&str, &[Candidate])| {
                let documents = candidates.iter().map(|(_, text)| Document::new(*text));
                let request = Request::new(*query, documents);
                let mut documents = reranker.rerank(&request).expect("a ranking").documents;
                documents.sort_by_key(|document| document.index);
                documents.into_iter().map(|document| document.score).collect::<Vec<f64>>()
            };
            QUERIES.iter().flat_map(of_query).collect()
        };
        let exact = scores(&settings(WeightFormat::F32));
        assert_eq!(exact.len(), 41);
        for (name, settings) in [
            ("BF16 weights", settings(WeightFormat::Bf16)),
            ("Q8_0 weights", settings(WeightFormat::Q8_0)),
            ("8-bit cache", with_8_bit_cache()),
        ] {
            let tau = kendall_tau(&exact, &scores(&settings)).expect("different scores");
            println!("{name}: tau with F32 weights is {tau:.4}");
            assert!(tau > 0.98, "{name}: {tau}");
        }
    }

    #[test]
    fn candidates_are_in_first_stage_order() {
        for (query, candidates) in QUERIES {
            assert!((6..=8).contains(&candidates.len()), "{query}");
            assert!(candidates.is_sorted_by(|(a, _), (b, _)| a > b), "{query}");
        }
    }
}
