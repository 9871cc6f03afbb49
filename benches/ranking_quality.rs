//! Measures how well a model ranks, by nDCG@10 on judged queries.
//!
//! ```sh
//! cargo run --release -p erank-benches --bin ranking-quality -- [--model FOLDER] FILE…
//! ```
//!
//! FILE has one query per line, as `training/evaluation_sets.py` writes it:
//! `{"query", "documents": [{"id", "text", "score", "grade"}, …], "grades": […]}`. `documents` are the first
//! stage's candidates, best first; `grades` are all judged grades of the query. Without `--model`, the bundled
//! model is measured. Each file's figures are printed as one line of JSON on standard output and as a table
//! on standard error.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::time::Instant;

use erank_candle::CandleBackend;
use erank_core::metrics::Measure;
use erank_core::{Document, FinishReason, Fusion, Ranking, Request, Reranker};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
struct Query {
    query: String,
    documents: Vec<Candidate>,
    grades: Vec<i32>,
}

#[derive(Deserialize)]
struct Candidate {
    text: String,
    score: f64,
    grade: i32,
}

/// A model's answer about one candidate.
struct Judged {
    probability_weighted: f64,
    expected_value: f64,
    /// `None` if the document has no score.
    integer: Option<u32>,
    /// Whether the model ended its answer itself.
    well_formed: bool,
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let backend = match arguments.iter().position(|argument| argument == "--model") {
        Some(index) => {
            let folder = arguments.get(index + 1).ok_or("--model needs a folder")?.clone();
            arguments.drain(index..index + 2);
            CandleBackend::open(folder)?
        }
        None => CandleBackend::tiny()?,
    };
    if arguments.is_empty() {
        return Err("name the files to measure; training/evaluation_sets.py writes them".into());
    }
    for file in &arguments {
        measure(&backend, file)?;
    }
    Ok(())
}

fn measure(backend: &CandleBackend, file: &str) -> Result<(), Box<dyn Error>> {
    let queries = fs::read_to_string(file)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<Vec<Query>, _>>()?;
    // Without a relevant document, nDCG is the same for every order.
    let queries: Vec<Query> =
        queries.into_iter().filter(|query| query.grades.iter().any(|grade| *grade > 0)).collect();

    let started = Instant::now();
    let think = rerank_all(&queries, Reranker::builder(backend).build()?)?;
    let seconds = started.elapsed().as_secs_f64();
    let answer_only = rerank_all(&queries, Reranker::builder(backend).answer_only().build()?)?;

    let mut integers = BTreeMap::new();
    for integer in think.iter().flatten().filter_map(|judged| judged.integer) {
        *integers.entry(integer).or_insert(0) += 1;
    }
    let documents = think.iter().map(Vec::len).sum::<usize>();
    let well_formed = think.iter().flatten().filter(|judged| judged.well_formed).count();
    let probability_weighted =
        |judged: &[Judged]| -> Vec<f64> { judged.iter().map(|j| j.probability_weighted).collect() };
    let expected_value = |judged: &[Judged]| judged.iter().map(|j| j.expected_value).collect();
    let hybrid = |judged: &[Judged], query: &Query| {
        let first_stage: Vec<f64> = query.documents.iter().map(|d| d.score).collect();
        Fusion::hybrid().fuse(&first_stage, &probability_weighted(judged))
    };
    let by = |score: &dyn Fn(usize, &Query) -> Vec<f64>| mean_ndcg(&queries, score);

    let random = by(&|_, query| vec![0.0; query.documents.len()]);
    let first_stage = by(&|_, query| query.documents.iter().map(|d| d.score).collect());
    let reranked = by(&|i, _| probability_weighted(&think[i]));
    let figures = json!({
        "file": file,
        "queries": queries.len(),
        "documents": documents,
        "seconds": seconds,
        "ndcg@10 random order": random,
        "ndcg@10 first stage": first_stage,
        "ndcg@10 reranked (N × P(N))": reranked,
        "ndcg@10 reranked (expected value)": by(&|i, _| expected_value(&think[i])),
        "ndcg@10 hybrid (0.2 first stage)": by(&|i, query| hybrid(&think[i], query)),
        "ndcg@10 answer only (expected value)": by(&|i, _| expected_value(&answer_only[i])),
        "share of the way from random to first stage": (reranked - random) / (first_stage - random),
        "well-formed": well_formed as f64 / documents as f64,
        "integers": integers,
    });
    eprintln!();
    for (name, value) in figures.as_object().into_iter().flatten() {
        eprintln!("{name:44} {value}");
    }
    println!("{figures}");
    Ok(())
}

/// Returns the model's answers about all candidates of all queries, in their order.
fn rerank_all(
    queries: &[Query],
    reranker: Reranker<&CandleBackend>,
) -> Result<Vec<Vec<Judged>>, Box<dyn Error>> {
    let mut all = Vec::new();
    for (index, query) in queries.iter().enumerate() {
        eprint!("\r{}/{} queries", index + 1, queries.len());
        let documents = query.documents.iter().map(|d| Document::new(d.text.as_str()));
        all.push(in_request_order(reranker.rerank(&Request::new(&query.query, documents))?)?);
    }
    Ok(all)
}

/// Returns the answers in the order of the request. A document without a score gets -1, to rank last.
fn in_request_order(ranking: Ranking) -> Result<Vec<Judged>, Box<dyn Error>> {
    let unscored = |_| Judged {
        probability_weighted: -1.0,
        expected_value: -1.0,
        integer: None,
        well_formed: false,
    };
    let mut all: Vec<Judged> =
        (0..ranking.documents.len() + ranking.unscored.len()).map(unscored).collect();
    for document in &ranking.documents {
        let missing = "the backend gave no distribution over the answers";
        all[document.index] = Judged {
            probability_weighted: document.answer.probability_weighted().ok_or(missing)?,
            expected_value: document.answer.expected_value.ok_or(missing)?,
            integer: Some(document.answer.integer),
            well_formed: document.finish_reason == FinishReason::Answered,
        };
    }
    Ok(all)
}

/// Returns the mean nDCG@10 over the queries and over 50 orders of each, in which ties are shuffled.
fn mean_ndcg(queries: &[Query], score: &dyn Fn(usize, &Query) -> Vec<f64>) -> f64 {
    const SHUFFLES: u64 = 50;
    let mut sum = 0.0;
    for (index, query) in queries.iter().enumerate() {
        let scores = score(index, query);
        for shuffle in 0..SHUFFLES {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            let tie_break = |i: usize| hash(shuffle << 32 | (index as u64) << 16 | i as u64);
            order.sort_by(|&a, &b| {
                scores[b].total_cmp(&scores[a]).then(tie_break(a).cmp(&tie_break(b)))
            });
            let ranked: Vec<i32> = order.iter().map(|i| query.documents[*i].grade).collect();
            sum += Measure::ndcg(10).of(&ranked, &query.grades);
        }
    }
    sum / (queries.len() as u64 * SHUFFLES) as f64
}

/// Returns a pseudo-random number to break ties by: SplitMix64's finaliser.
fn hash(number: u64) -> u64 {
    let x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
