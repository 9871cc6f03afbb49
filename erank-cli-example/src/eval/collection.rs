//! A judged collection. It has queries, candidates of a first stage with their texts, and relevance
//! judgements.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use erank_core::DocumentError;
use erank_core::trec::{Qrels, Run};

use super::error::EvalError;
use super::files::{self, CandidateLine, Text};
use crate::args::CollectionArguments;
use crate::text;

/// A judged collection.
pub(super) struct Collection {
    /// The judged queries that have candidates, sorted by id.
    pub(super) queries: Vec<Query>,
    pub(super) qrels: Qrels,
    /// The run of these candidates.
    pub(super) first_stage: Run,
}

/// A query and its candidates, in the first stage's order.
pub(super) struct Query {
    pub(super) id: String,
    pub(super) text: Option<String>,
    /// The query's own instruction, which replaces that of all queries.
    pub(super) instruction: Option<String>,
    pub(super) candidates: Vec<Candidate>,
}

/// A document in the first stage's run.
pub(super) struct Candidate {
    pub(super) id: String,
    pub(super) score: f64,
    pub(super) text: Option<String>,
}

/// Returns the texts of query and document, or the reason why the model cannot score them.
pub(super) fn texts<'a>(
    query: &'a Query,
    candidate: &'a Candidate,
) -> Result<(&'a str, &'a str), String> {
    let query =
        query.text.as_deref().ok_or("the texts of the queries do not contain the query's id")?;
    let document = candidate
        .text
        .as_deref()
        .ok_or("the texts of the documents do not contain the document's id")?;
    if document.trim().is_empty() {
        return Err(DocumentError::Empty.to_string());
    }
    Ok((query, document))
}

impl Collection {
    /// Reads the files of the arguments, with the best `depth` candidates of each query.
    pub(super) fn read(arguments: &CollectionArguments, depth: usize) -> Result<Self, EvalError> {
        let beir = |file: &str| arguments.beir.as_ref().map(|folder| folder.join(file));
        let (run, lines) = match (&arguments.jsonl, &arguments.run) {
            (Some(jsonl), _) => {
                let (run, lines) = files::read_candidates(jsonl)?;
                (run, Some(lines))
            }
            (None, Some(run)) => (files::read_run(run)?, None),
            (None, None) => (Run::new(), None),
        };
        let qrels = arguments.qrels.clone();
        let qrels = qrels.or_else(|| beir(&format!("qrels/{}.tsv", arguments.split)));
        let qrels = files::read_qrels(&qrels.unwrap_or_default())?;

        let mut collection = Self::without_texts(&run, qrels, depth)?;
        if let Some(lines) = lines {
            collection.add_lines(lines);
        } else {
            let queries = arguments.queries.clone().or_else(|| beir("queries.jsonl"));
            let corpus = match beir("corpus.jsonl") {
                Some(file) => vec![file],
                None => arguments.corpus.clone(),
            };
            collection.add_texts(&queries.unwrap_or_default(), &corpus)?;
        }
        Ok(collection)
    }

    /// Selects the judged queries and their candidates.
    fn without_texts(run: &Run, qrels: Qrels, depth: usize) -> Result<Self, EvalError> {
        let (judged, others): (Vec<&str>, Vec<&str>) =
            run.queries().partition(|query| qrels.has_query(query));
        if judged.is_empty() {
            return Err(EvalError::NoJudgedQuery {
                run: first(run.queries()),
                qrels: first(qrels.queries()),
            });
        }
        if !others.is_empty() {
            let (count, of) = (others.len(), run.queries().len());
            text::note(&format!(
                "{count} of the run's {of} queries are not judged and are skipped."
            ));
        }
        let (mut queries, mut first_stage) = (Vec::new(), Run::new());
        for id in judged {
            let ranking = run.ranking(id).into_iter().take(depth);
            let candidate =
                |(id, score): (&str, f64)| Candidate { id: id.to_owned(), score, text: None };
            let candidates: Vec<Candidate> = ranking.map(candidate).collect();
            for Candidate { id: document, score, .. } in &candidates {
                first_stage.insert(id, document, *score)?;
            }
            let (text, instruction) = (None, None);
            queries.push(Query { id: id.to_owned(), text, instruction, candidates });
        }
        let is_judged = |query: &Query| {
            query.candidates.iter().any(|candidate| qrels.grade(&query.id, &candidate.id).is_some())
        };
        if !queries.iter().any(is_judged) {
            let mut candidates = queries.iter().flat_map(|query| &query.candidates);
            let example = first(candidates.next().map(|candidate| candidate.id.as_str()));
            return Err(EvalError::NoJudgedCandidate { example });
        }
        Ok(Self { queries, qrels, first_stage })
    }

    /// Adds the texts of JSON lines.
    fn add_lines(&mut self, lines: Vec<CandidateLine>) {
        let mut lines: HashMap<String, CandidateLine> =
            lines.into_iter().map(|line| (line.id.clone(), line)).collect();
        for query in &mut self.queries {
            let Some(mut line) = lines.remove(&query.id) else { continue };
            for candidate in &mut query.candidates {
                candidate.text = line.texts.remove(&candidate.id);
            }
            query.text = Some(line.query);
            query.instruction = line.instruction;
        }
    }

    /// Adds the texts of the files `queries` and `corpus`.
    fn add_texts(&mut self, queries: &Path, corpus: &[PathBuf]) -> Result<(), EvalError> {
        let ids: HashSet<&str> = self.queries.iter().map(|query| query.id.as_str()).collect();
        let mut texts = HashMap::new();
        files::read_texts(queries, &ids, &mut texts)?;
        require_some(&texts, &ids, queries)?;
        let documents = self.queries.iter().flat_map(|query| &query.candidates);
        let ids: HashSet<&str> = documents.map(|candidate| candidate.id.as_str()).collect();
        let mut documents = HashMap::new();
        for file in corpus {
            files::read_texts(file, &ids, &mut documents)?;
        }
        require_some(&documents, &ids, corpus.first().map_or(Path::new(""), PathBuf::as_path))?;
        for query in &mut self.queries {
            if let Some(Text { text, instruction }) = texts.remove(&query.id) {
                (query.text, query.instruction) = (Some(text), instruction);
            }
            for candidate in &mut query.candidates {
                let document = documents.get(&candidate.id);
                candidate.text = document.map(|document| document.text.clone());
            }
        }
        Ok(())
    }
}

/// Returns the first id in quotes, or "nothing" if there is none.
fn first<'a>(ids: impl IntoIterator<Item = &'a str>) -> String {
    ids.into_iter().next().map_or("nothing".into(), |id| format!("{id:?}"))
}

/// Returns an error if no text was found at all, because then the file is probably the wrong one.
fn require_some(
    found: &HashMap<String, Text>,
    wanted: &HashSet<&str>,
    file: &Path,
) -> Result<(), EvalError> {
    match wanted.iter().min() {
        Some(example) if found.is_empty() => Err(EvalError::NoText {
            file: text::line(&file.display().to_string()),
            wanted: wanted.len(),
            example: (*example).to_owned(),
        }),
        _ => Ok(()),
    }
}
