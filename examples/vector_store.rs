//! Reranks the hits of a vector store. The nearest neighbours are the candidates, and the ranking combines
//! their cosine similarity with ERank's score. The store is [USearch](https://docs.rs/usearch), which runs in
//! this process.
//!
//! ```sh
//! cargo run -p erank-examples --features vector-store --example vector_store
//! ```

use std::hash::{DefaultHasher, Hash, Hasher};

use erank_candle::CandleBackend;
use erank_core::{Document, Fusion, Request, Reranker};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

const DIMENSIONS: usize = 256;
/// Neighbours that ERank reads.
const CANDIDATES: usize = 4;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let query = "how do bees make honey";

    // The first stage: an index of vectors, whose keys are indices into `COLLECTION`.
    let options = IndexOptions {
        dimensions: DIMENSIONS,
        metric: MetricKind::Cos,
        quantization: ScalarKind::F32,
        ..IndexOptions::default()
    };
    let index = Index::new(&options)?;
    index.reserve(COLLECTION.len())?;
    for (key, text) in (0..).zip(COLLECTION) {
        index.add(key, &embed(text))?;
    }
    let hits = index.search(&embed(query), CANDIDATES)?;

    // The second stage: ERank reads the candidates.
    let candidates = hits.keys.iter().zip(&hits.distances).filter_map(|(key, distance)| {
        let text = COLLECTION.get(usize::try_from(*key).ok()?)?;
        let similarity = 1.0 - f64::from(*distance);
        Some(Document::new(*text).with_first_stage_score(similarity))
    });
    let request = Request::new(query, candidates.collect::<Vec<_>>());
    let reranker = Reranker::builder(CandleBackend::tiny()?).fusion(Fusion::hybrid()).build()?;

    println!("{:>6}  {:>5}  {:>6}  document", "score", "ERank", "cosine");
    for document in reranker.rerank(&request)?.documents {
        let similarity = document.first_stage_score.unwrap_or_default();
        let text = &request.documents[document.index].text;
        println!("{:6.3}  {:5}  {similarity:6.3}  {text}", document.score, document.answer.integer);
    }
    Ok(())
}

/// Embeds a text as hashed counts of its three-letter substrings; replace it with your embedding model.
fn embed(text: &str) -> Vec<f32> {
    let mut vector = vec![0.0; DIMENSIONS];
    let letters: Vec<char> = text.to_lowercase().chars().collect();
    for trigram in letters.windows(3) {
        let mut hasher = DefaultHasher::new();
        trigram.hash(&mut hasher);
        vector[hasher.finish() as usize % DIMENSIONS] += 1.0;
    }
    vector
}

const COLLECTION: &[&str] = &[
    "Bees make nectar into honey: they fan it dry with their wings.",
    "Maple syrup is boiled from the sap of trees.",
    "A honeymoon novel: how do I make the bed, and how do they?",
    "Bumblebees live in small nests in the ground.",
    "Honey is made by bees from nectar, which they thicken in the comb.",
    "The price of tea.",
    "Mead is an ancient drink of water and honey.",
];
