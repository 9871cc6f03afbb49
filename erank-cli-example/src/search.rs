//! `erank search`: selects candidates with BM25, and reranks them as `erank rerank` does.

use tantivy::collector::TopDocs;
use tantivy::query::{BooleanQuery, Query, QueryParser, TermQuery};
use tantivy::schema::{FAST, Field, INDEXED, IndexRecordOption, STORED, Schema, TEXT, Value};
use tantivy::{Index, TantivyDocument, TantivyError, Term};

use crate::args::SearchArguments;
use crate::error::{CommandError, Exit};
use crate::input::Input;
use crate::interrupt::Interrupt;
use crate::rerank;
use crate::text;

/// Memory in which tantivy collects documents before it writes a segment.
const INDEX_BYTES: usize = 64 << 20;

pub(crate) fn run(
    arguments: &SearchArguments,
    interrupt: &Interrupt,
) -> Result<Exit, CommandError> {
    let mut input = rerank::read(&arguments.rerank)?;
    let searched = input.documents.len();
    keep_candidates(
        &mut input,
        &arguments.rerank.query,
        arguments.query_syntax,
        arguments.candidates.get(),
    )?;
    if input.documents.is_empty() && searched > 0 {
        text::note(&format!("0 of {searched} documents match the query."));
    } else if searched > 0 {
        text::note(&format!("BM25 selected {} of {searched} documents.", input.documents.len()));
    }
    rerank::rank_and_report(&arguments.rerank, input, interrupt)
}

/// Keeps the `candidates` documents with the highest BM25 scores for `query`, best first, and sets their
/// scores.
fn keep_candidates(
    input: &mut Input,
    query: &str,
    has_syntax: bool,
    candidates: usize,
) -> Result<(), CommandError> {
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
    let query = match has_syntax {
        true => {
            let parsed = QueryParser::for_index(&index, vec![body]).parse_query(query);
            parsed.map_err(|source| CommandError::QuerySyntax(Box::new(source)))?
        }
        false => any_word(&index, body, query)?,
    };
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

/// Returns a query for the documents that contain any word of `text`.
fn any_word(index: &Index, field: Field, text: &str) -> Result<Box<dyn Query>, TantivyError> {
    let mut tokenizer = index.tokenizer_for_field(field)?;
    let (mut words, mut tokens) = (Vec::<Box<dyn Query>>::new(), tokenizer.token_stream(text));
    while let Some(token) = tokens.next() {
        let word = Term::from_field_text(field, &token.text);
        words.push(Box::new(TermQuery::new(word, IndexRecordOption::WithFreqs)));
    }
    Ok(Box::new(BooleanQuery::union(words)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::InputDocument;

    fn search(
        texts: &[&str],
        query: &str,
        has_syntax: bool,
        candidates: usize,
    ) -> Result<Vec<(usize, f64)>, CommandError> {
        let documents = (1..).zip(texts).map(|(line, text)| {
            let (id, text) = (None, (*text).into());
            InputDocument { line, id, text, score: Some(-1.0) }
        });
        let mut input = Input { documents: documents.collect(), ..Input::default() };
        keep_candidates(&mut input, query, has_syntax, candidates)?;
        let found = input.documents.iter();
        Ok(found.map(|document| (document.line, document.score.expect("a score"))).collect())
    }

    fn found(texts: &[&str], query: &str, candidates: usize) -> Vec<(usize, f64)> {
        search(texts, query, false, candidates).expect("searched")
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
    fn keep_candidates_obeys_limit() {
        let texts = ["jet one", "jet two jet", "jet three"];
        assert_eq!(found(&texts, "jet", 1).len(), 1);
        assert_eq!(found(&texts, "jet", 1)[0].0, 2);
    }

    #[test]
    fn keep_candidates_reads_a_question_as_words() {
        let texts = ["jet one", "jet two and", "or three not", "text body"];
        let lines = |query: &str| {
            let mut lines: Vec<usize> =
                found(&texts, query, 9).into_iter().map(|(line, _)| line).collect();
            lines.sort_unstable();
            lines
        };
        for (query, expected) in [
            ("-jet", &[1, 2][..]),
            ("+jet +three", &[1, 2, 3]),
            ("\"one jet\"", &[1, 2]),
            ("\"jet", &[1, 2]),
            ("what: is (a jet) [to", &[1, 2]),
            ("one AND three", &[1, 2, 3]),
            ("NOT one", &[1, 3]),
            ("one OR three", &[1, 3]),
            ("text:one body:two", &[1, 2, 4]),
            ("on*", &[]),
            ("jet^9 ~3 three?", &[1, 2, 3]),
            ("*", &[]),
            ("", &[]),
            ("+-*\\ 🛩", &[]),
        ] {
            assert_eq!(lines(query), expected, "{query}");
        }
    }

    #[test]
    fn keep_candidates_reads_query_syntax_if_asked() {
        let texts = ["jet one", "jet two", "three"];
        let lines = |query: &str| {
            let found = search(&texts, query, true, 9).expect("searched").into_iter();
            found.map(|(line, _)| line).collect::<Vec<_>>()
        };
        assert_eq!(lines("+jet -two"), [1]);
        assert_eq!(lines("\"jet two\""), [2]);
        let invalid = search(&texts, "what: is (a jet", true, 9).expect_err("refused");
        assert!(matches!(invalid, CommandError::QuerySyntax(_)), "{invalid:?}");
    }
}
