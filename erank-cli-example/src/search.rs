//! `erank search`: selects candidates with BM25, and reranks them as `erank rerank` does.

use tantivy::collector::TopDocs;
use tantivy::query::QueryParser;
use tantivy::schema::{FAST, INDEXED, STORED, Schema, TEXT, Value};
use tantivy::{Index, TantivyDocument, TantivyError};

use crate::args::SearchArguments;
use crate::error::{CommandError, Exit};
use crate::input::{self, Input};
use crate::interrupt::Interrupt;
use crate::rerank;
use crate::text;

/// Memory in which tantivy collects documents before it writes a segment.
const INDEX_BYTES: usize = 64 << 20;

pub(crate) fn run(
    arguments: &SearchArguments,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let mut input = input::read(&arguments.rerank.docs)?;
    let searched = input.documents.len();
    let (query, candidates) = (&arguments.rerank.query, arguments.candidates.get());
    keep_candidates(&mut input, query, candidates).map_err(Box::new)?;
    if input.documents.is_empty() && searched > 0 {
        text::note(&format!("None of {searched} documents contains a word of the query."));
    } else if searched > 0 {
        text::note(&format!("BM25 selected {} of {searched} documents.", input.documents.len()));
    }
    rerank::rank_and_report(&arguments.rerank, input, interrupt)
}

/// Keeps the `candidates` documents with the highest BM25 scores for `query`, best first, and sets their
/// scores.
fn keep_candidates(input: &mut Input, query: &str, candidates: usize) -> Result<(), TantivyError> {
    let mut schema = Schema::builder();
    let position = schema.add_u64_field("position", INDEXED | STORED | FAST);
    let body = schema.add_text_field("text", TEXT);
    let index = Index::create_in_ram(schema.build());
    let mut writer = index.writer_with_num_threads(1, INDEX_BYTES)?;
    for (number, document) in (0..).zip(&input.documents) {
        let mut indexed = TantivyDocument::new();
        indexed.add_u64(position, number);
        indexed.add_text(body, &document.text);
        writer.add_document(indexed)?;
    }
    writer.commit()?;

    let searcher = index.reader()?.searcher();
    // The lenient parser is used, because a question may contain characters that are invalid in the query
    // syntax.
    let (query, _) = QueryParser::for_index(&index, vec![body]).parse_query_lenient(query);
    let hits = searcher.search(&query, &TopDocs::with_limit(candidates).order_by_score())?;
    let mut documents: Vec<_> =
        std::mem::take(&mut input.documents).into_iter().map(Some).collect();
    for (score, address) in hits {
        let hit: TantivyDocument = searcher.doc(address)?;
        let number = hit.get_first(position).and_then(|value| value.as_u64());
        let found =
            number.and_then(|number| documents.get_mut(usize::try_from(number).ok()?)?.take());
        if let Some(mut document) = found {
            document.score = Some(score.into());
            input.documents.push(document);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::InputDocument;

    fn found(texts: &[&str], query: &str, candidates: usize) -> Vec<(usize, f64)> {
        let documents = (1..).zip(texts).map(|(line, text)| {
            let (id, text) = (None, (*text).into());
            InputDocument { line, id, text, score: Some(-1.0) }
        });
        let mut input = Input { documents: documents.collect(), bad_lines: Vec::new() };
        keep_candidates(&mut input, query, candidates).expect("searched");
        let found = input.documents.iter();
        found.map(|document| (document.line, document.score.expect("a score"))).collect()
    }

    #[test]
    fn keep_candidates_computes_bm25() {
        let found = found(&["a jet flies", "", "tea", "jet, jet and noise!"], "JET noise?", 10);
        // k1 = 1.2, b = 0.75; idf = ln(1 + (N - n + 0.5) / (n + 0.5)); lengths 3, 0, 1, 4, mean 2.
        let idf = |n: f64| (1.0 + (4.0 - n + 0.5) / (n + 0.5)).ln();
        let term = |n, times: f64, length: f64| {
            idf(n) * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * length / 2.0))
        };
        let expected = [(4, term(2.0, 2.0, 4.0) + term(1.0, 1.0, 4.0)), (1, term(2.0, 1.0, 3.0))];
        for ((line, score), (expected_line, expected)) in found.iter().zip(expected) {
            assert_eq!(*line, expected_line);
            assert!((score - expected).abs() < 1e-5, "{score} {expected}");
        }
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn keep_candidates_obeys_limit_and_accepts_any_syntax() {
        let texts = ["jet one", "jet two jet", "jet three"];
        assert_eq!(found(&texts, "jet", 1).len(), 1);
        assert_eq!(found(&texts, "jet", 1)[0].0, 2);
        for query in ["", "\"jet", "what: is (a jet", "jet AND", "+-*", "text:jet^", "🛩"] {
            found(&texts, query, 3);
        }
        assert_eq!(found(&texts, "what is: a (jet", 3).len(), 3);
    }
}
