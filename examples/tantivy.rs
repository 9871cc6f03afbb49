//! Reranks the hits of a tantivy index. BM25 selects the candidates, ERank scores them, and the ranking
//! combines both scores.
//!
//! ```sh
//! cargo run -p erank-examples --example tantivy -- "how do bees make honey"
//! ```

use erank_candle::CandleBackend;
use erank_core::{Document, Fusion, Request, Reranker};
use tantivy::collector::TopDocs;
use tantivy::query::QueryParser;
use tantivy::schema::{STORED, STRING, Schema, TEXT, Value};
use tantivy::{Index, TantivyDocument, doc};

/// Hits that ERank reads.
const CANDIDATES: usize = 20;
/// Documents to print.
const SHOWN: usize = 5;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let query = std::env::args().nth(1).unwrap_or_else(|| "how do bees make honey".into());

    // An ordinary index: each document has an id and a text.
    let mut schema = Schema::builder();
    let id = schema.add_text_field("id", STRING | STORED);
    let text = schema.add_text_field("text", TEXT | STORED);
    let index = Index::create_in_ram(schema.build());
    let mut writer = index.writer(50_000_000)?;
    for (name, body) in COLLECTION {
        writer.add_document(doc!(id => *name, text => *body))?;
    }
    writer.commit()?;

    // The first stage. A question in natural language may not be valid query syntax, so the lenient
    // parser ignores the parts that it cannot parse.
    let searcher = index.reader()?.searcher();
    let (bm25, _) = QueryParser::for_index(&index, vec![text]).parse_query_lenient(&query);
    let hits = searcher.search(&bm25, &TopDocs::with_limit(CANDIDATES).order_by_score())?;

    // The second stage: ERank reads the candidates.
    let mut documents = Vec::new();
    for (score, address) in hits {
        let hit: TantivyDocument = searcher.doc(address)?;
        let stored =
            |field| hit.get_first(field).and_then(|value| value.as_str().map(String::from));
        documents.push(
            Document::new(stored(text).unwrap_or_default())
                .with_id(stored(id).unwrap_or_default())
                .with_first_stage_score(score.into()),
        );
    }
    let reranker = Reranker::builder(CandleBackend::tiny()?)
        .fusion(Fusion::hybrid()) // z-scores, weighted 0.2 (BM25) and 0.8 (ERank)
        .top_k(SHOWN)
        .build()?;
    let ranking = reranker.rerank(&Request::new(query, documents))?;

    println!("{:>6}  {:>5}  {:>6}  id", "score", "ERank", "BM25");
    for document in ranking.documents {
        let bm25 = document.first_stage_score.unwrap_or_default();
        let id = document.id.unwrap_or_default();
        println!("{:6.3}  {:5}  {bm25:6.3}  {id}", document.score, document.answer.integer);
    }
    Ok(())
}

const COLLECTION: &[(&str, &str)] = &[
    ("honey", "Honey is made by bees from nectar, which they thicken in the comb."),
    ("drying", "Bees make nectar into honey: they fan it dry with their wings."),
    ("honeymoon", "Honey, how do you make the bed? How do I? How do they? A honeymoon novel."),
    ("mead", "Mead is an ancient drink of water and honey."),
    ("bumblebee", "Bumblebees live in small nests in the ground."),
    ("syrup", "Maple syrup is boiled from the sap of trees."),
];
