//! A judged collection. It has queries, candidates of a first stage with their texts, and relevance
//! judgements.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use erank_core::trec::{Qrels, Run};
use erank_core::{Document, DocumentError};

use super::error::EvalError;
use super::files::{self, QueryText};
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
    /// Why the text that the file holds cannot be used.
    pub(super) problem: Option<String>,
}

/// Returns the texts of query and document, or the reason why the model cannot score them.
pub(super) fn texts<'a>(
    query: &'a Query,
    candidate: &'a Candidate,
) -> Result<(&'a str, &'a str), String> {
    let query =
        query.text.as_deref().ok_or("the texts of the queries do not contain the query's id")?;
    let missing = "the texts of the documents do not contain the document's id";
    let document = candidate
        .text
        .as_deref()
        .ok_or_else(|| candidate.problem.clone().unwrap_or_else(|| missing.into()))?;
    if Document::new(document).is_blank() {
        return Err(DocumentError::Empty.to_string());
    }
    Ok((query, document))
}

impl Collection {
    /// Reads the files of the arguments, with the best `depth` candidates of each query.
    pub(super) fn read(arguments: &CollectionArguments, depth: usize) -> Result<Self, EvalError> {
        let beir =
            |file: &str| arguments.beir.as_ref().map(|folder| plain_or_compressed(folder, file));
        let (run, queries) = match (&arguments.jsonl, &arguments.run) {
            (Some(jsonl), _) => {
                let (run, queries) = files::read_candidates(jsonl, &arguments.fields)?;
                (run, Some(queries))
            }
            (None, Some(run)) => (files::read_run(run)?, None),
            (None, None) => (Run::new(), None),
        };
        let has_texts = queries.is_some();
        let qrels = arguments.qrels.clone();
        let qrels = qrels.or_else(|| beir(&format!("qrels/{}.tsv", arguments.split)));
        let qrels = files::read_qrels(&qrels.unwrap_or_default())?;

        let judged = judged(&run, &qrels)?;
        let mut queries = match queries {
            Some(queries) => queries,
            None => {
                let file = arguments.queries.clone().or_else(|| beir("queries.jsonl"));
                let (file, ids) = (file.unwrap_or_default(), judged.iter().copied().collect());
                let queries = files::read_queries(&file, &ids)?;
                require_some(&queries, &ids, &file)?;
                queries
            }
        };
        let mut exclusion = Exclusion::new(&queries, arguments.ignores_identical_ids());
        let (selected, first_stage) = select(&run, &judged, depth, &mut exclusion)?;
        exclusion.note();
        let mut collection = Self { queries: selected, qrels, first_stage };
        collection.require_judged_candidate()?;
        for query in &mut collection.queries {
            let Some(mut found) = queries.remove(&query.id) else { continue };
            (query.text, query.instruction) = (Some(found.text), found.instruction);
            for candidate in &mut query.candidates {
                match found.documents.remove(&candidate.id) {
                    Some(Ok(text)) => candidate.text = Some(text),
                    Some(Err(problem)) => candidate.problem = Some(problem),
                    None => {}
                }
            }
        }
        if !has_texts {
            let corpus = match beir("corpus.jsonl") {
                Some(file) => vec![file],
                None => arguments.corpus.clone(),
            };
            collection.add_documents(&corpus, arguments)?;
        }
        Ok(collection)
    }

    /// Returns an error if no candidate has a grade, because then the files do not fit together.
    fn require_judged_candidate(&self) -> Result<(), EvalError> {
        let mut candidates = self.queries.iter().flat_map(|query| {
            query.candidates.iter().map(|candidate| (query.id.as_str(), candidate.id.as_str()))
        });
        let example = first(candidates.clone().next().map(|(_, document)| document));
        match candidates.any(|(query, document)| self.qrels.grade(query, document).is_some()) {
            true => Ok(()),
            false => Err(EvalError::NoJudgedCandidate { example }),
        }
    }

    /// Adds the texts of the documents in the files or folders `corpus`.
    fn add_documents(
        &mut self,
        corpus: &[PathBuf],
        arguments: &CollectionArguments,
    ) -> Result<(), EvalError> {
        let documents = self.queries.iter().flat_map(|query| &query.candidates);
        let ids: HashSet<&str> = documents.map(|candidate| candidate.id.as_str()).collect();
        let mut texts = HashMap::new();
        for file in corpus {
            files::read_documents(file, &arguments.fields, &ids, &mut texts)?;
        }
        require_some(&texts, &ids, corpus.first().map_or(Path::new(""), PathBuf::as_path))?;
        for candidate in self.queries.iter_mut().flat_map(|query| &mut query.candidates) {
            candidate.text = texts.get(&candidate.id).cloned();
        }
        Ok(())
    }
}

/// Returns the path of a file, or that of its compressed form if only this one is there.
fn plain_or_compressed(folder: &Path, file: &str) -> PathBuf {
    let named = |ending: &str| folder.join(file.to_owned() + ending);
    let compressed = || [".gz", ".zst"].map(named).into_iter().find(|path| path.exists());
    Some(named("")).filter(|path| path.exists()).or_else(compressed).unwrap_or_else(|| named(""))
}

/// Returns the queries of the run that are judged, sorted by id. Says how many others there are.
fn judged<'a>(run: &'a Run, qrels: &Qrels) -> Result<Vec<&'a str>, EvalError> {
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
        text::note(&format!("{count} of the run's {of} queries are not judged and are skipped."));
    }
    Ok(judged)
}

/// Selects the best `depth` candidates of the judged queries that are not excluded. Returns the queries, and the run of
/// their candidates.
fn select(
    run: &Run,
    judged: &[&str],
    depth: usize,
    exclusion: &mut Exclusion<'_>,
) -> Result<(Vec<Query>, Run), EvalError> {
    let (mut queries, mut first_stage) = (Vec::new(), Run::new());
    for &id in judged {
        let ranking = run.ranking(id).into_iter();
        let ranking = ranking.filter(|(document, _)| !exclusion.excludes(id, document)).take(depth);
        let candidate = |(id, score): (&str, f64)| Candidate {
            id: id.to_owned(),
            score,
            text: None,
            problem: None,
        };
        let candidates: Vec<Candidate> = ranking.map(candidate).collect();
        for Candidate { id: document, score, .. } in &candidates {
            first_stage.insert(id, document, *score)?;
        }
        let (text, instruction) = (None, None);
        queries.push(Query { id: id.to_owned(), text, instruction, candidates });
    }
    Ok((queries, first_stage))
}

/// The candidates that are left out before the depth is counted.
struct Exclusion<'a> {
    queries: &'a HashMap<String, QueryText>,
    ignores_identical_ids: bool,
    /// Number of candidates with the id of their query.
    identical: usize,
    /// Number of candidates that are excluded by `excluded_ids`.
    excluded: usize,
}

impl<'a> Exclusion<'a> {
    fn new(queries: &'a HashMap<String, QueryText>, ignores_identical_ids: bool) -> Self {
        Self { queries, ignores_identical_ids, identical: 0, excluded: 0 }
    }

    /// Returns whether the candidate is left out, and counts it.
    fn excludes(&mut self, query: &str, document: &str) -> bool {
        let of_query = self.queries.get(query);
        let is_excluded = of_query.is_some_and(|query| query.excluded.contains(document));
        let is_identical = query == document;
        self.excluded += usize::from(is_excluded);
        self.identical += usize::from(is_identical && !is_excluded);
        is_excluded || (is_identical && self.ignores_identical_ids)
    }

    /// Says how many candidates are left out.
    fn note(&self) {
        if self.excluded > 0 {
            let count = self.excluded;
            text::note(&format!("Left out {count} candidates that \"excluded_ids\" names."));
        }
        match (self.identical, self.ignores_identical_ids) {
            (0, _) => {}
            (count, true) => {
                text::note(&format!("Left out {count} candidates with the id of their query."));
            }
            (count, false) => text::note(&format!(
                "{count} candidates have the id of their query. If they are the query itself, leave them out with \
                 --ignore-identical-ids."
            )),
        }
    }
}

/// Returns the first id in quotes, or "nothing" if there is none.
fn first<'a>(ids: impl IntoIterator<Item = &'a str>) -> String {
    ids.into_iter().next().map_or("nothing".into(), |id| format!("{id:?}"))
}

/// Returns an error if no text was found at all, because then the file is probably the wrong one.
fn require_some<T>(
    found: &HashMap<String, T>,
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
