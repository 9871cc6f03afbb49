//! Readers for the files of a collection: runs, judgements, texts, and candidates with their texts.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use erank_core::trec::{EntryError, Qrels, Run};
use serde::Deserialize;
use serde_json::Value;

use super::error::EvalError;
use crate::error::one_line;
use crate::input::{self, Line, Lines};
use crate::text;

/// Reads a run in TREC's format.
pub(super) fn read_run(file: &Path) -> Result<Run, EvalError> {
    Run::read(open(file)?).map_err(|error| EvalError::file(file, one_line(&error)))
}

/// Reads judgements in TREC's format, or in BEIR's: a header line, then query id, document id and grade,
/// separated by tabs.
pub(super) fn read_qrels(file: &Path) -> Result<Qrels, EvalError> {
    let problem = |problem: String| EvalError::file(file, problem);
    let bytes = fs::read(file).map_err(|error| problem(error.to_string()))?;
    if !bytes.starts_with(b"query-id\t") {
        return Qrels::read(&bytes[..]).map_err(|error| problem(one_line(&error)));
    }
    let mut qrels = Qrels::new();
    for line in Lines::of(&bytes[..]).skip(1) {
        let line = line.map_err(|error| problem(error.to_string()))?;
        let number = line.number;
        let entry = line.text().and_then(|text| beir_grade(&text, &mut qrels));
        entry.map_err(|reason| problem(format!("line {number}: {reason}")))?;
    }
    Ok(qrels)
}

/// Adds a line of BEIR's format to `qrels`.
fn beir_grade(line: &str, qrels: &mut Qrels) -> Result<(), String> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [query, document, grade] = fields[..] else {
        return Err("expected 3 fields separated by tabs: query id, document id, grade".into());
    };
    let number = grade.parse().map_err(|_| EntryError::Grade(grade.to_owned()).to_string())?;
    qrels.insert(query, document, number).map_err(|error| error.to_string())
}

/// A text of a query or a document.
#[derive(Debug, PartialEq)]
pub(super) struct Text {
    pub(super) text: String,
    /// The query's own instruction.
    pub(super) instruction: Option<String>,
}

/// Adds the texts of a file whose ids are `wanted` to `texts`.
///
/// A line is an id, a tab and the text, or JSON. Lines that cannot be used are skipped and reported.
pub(super) fn read_texts(
    file: &Path,
    wanted: &HashSet<&str>,
    texts: &mut HashMap<String, Text>,
) -> Result<(), EvalError> {
    let mut bad = (0, String::new());
    for line in Lines::of(open(file)?) {
        let line = line.map_err(|error| EvalError::file(file, error.to_string()))?;
        let number = line.number;
        match named_text(line) {
            Ok((id, text)) if wanted.contains(id.as_str()) => {
                if texts.contains_key(&id) {
                    let problem = format!("line {number}: duplicate id {id:?}; remove one");
                    return Err(EvalError::file(file, problem));
                }
                texts.insert(id, text);
            }
            Ok(_) => {}
            Err(reason) => {
                if bad.0 == 0 {
                    bad.1 = format!("line {number}: {reason}");
                }
                bad.0 += 1;
            }
        }
    }
    if bad.0 > 0 {
        let (count, first) = bad;
        let name = text::line(&file.display().to_string());
        text::note(&format!("{name}: skipped {count} lines that cannot be used; {first}"));
    }
    Ok(())
}

#[derive(Deserialize)]
struct JsonText {
    #[serde(alias = "_id")]
    id: Value,
    #[serde(default)]
    title: Option<String>,
    #[serde(alias = "contents")]
    text: String,
    #[serde(default)]
    instruction: Option<String>,
}

/// Parses a line into an id and a text.
fn named_text(line: Line) -> Result<(String, Text), String> {
    let line = line.text()?;
    if !line.trim_start().starts_with('{') {
        let (id, text) = line.split_once('\t').ok_or("there is no tab after the id")?;
        return Ok((id.to_owned(), Text { text: text.to_owned(), instruction: None }));
    }
    let JsonText { id, title, text, instruction } =
        serde_json::from_str(&line).map_err(|error| input::not_json(&error))?;
    let id = input::json_id(id)?.ok_or("\"id\" is null")?;
    // BEIR's own rerankers join them in the same way.
    let text = match title {
        Some(title) if !title.is_empty() => format!("{title} {text}"),
        _ => text,
    };
    Ok((id, Text { text, instruction }))
}

/// A line of `--jsonl`: a query with the texts of its candidates.
pub(super) struct CandidateLine {
    pub(super) id: String,
    pub(super) query: String,
    /// The query's own instruction.
    pub(super) instruction: Option<String>,
    /// The texts by document id.
    pub(super) texts: HashMap<String, String>,
}

#[derive(Deserialize)]
struct JsonQuery {
    #[serde(alias = "_id")]
    id: Value,
    query: String,
    #[serde(default)]
    instruction: Option<String>,
    documents: Vec<JsonCandidate>,
}

#[derive(Deserialize)]
struct JsonCandidate {
    #[serde(alias = "_id")]
    id: Value,
    #[serde(default)]
    text: Option<String>,
    score: f64,
}

/// Reads queries with candidates. Returns the run of the scores, and the lines.
pub(super) fn read_candidates(file: &Path) -> Result<(Run, Vec<CandidateLine>), EvalError> {
    let (mut run, mut queries) = (Run::new(), Vec::new());
    for line in Lines::of(open(file)?) {
        let line = line.map_err(|error| EvalError::file(file, error.to_string()))?;
        let number = line.number;
        let query = line.text().and_then(|text| candidate_line(&text, &mut run));
        let query =
            query.map_err(|reason| EvalError::file(file, format!("line {number}: {reason}")))?;
        queries.push(query);
    }
    Ok((run, queries))
}

/// Parses a line, and adds its scores to `run`.
fn candidate_line(line: &str, run: &mut Run) -> Result<CandidateLine, String> {
    let JsonQuery { id, query, instruction, documents } =
        serde_json::from_str(line).map_err(|error| input::not_json(&error))?;
    let id = input::json_id(id)?.ok_or("\"id\" is null")?;
    if run.has_query(&id) {
        return Err(format!("duplicate query {id:?}; remove one"));
    }
    let mut texts = HashMap::new();
    for JsonCandidate { id: document, text, score } in documents {
        let document = input::json_id(document)?.ok_or("a document's \"id\" is null")?;
        run.insert(&id, &document, score).map_err(|error| error.to_string())?;
        texts.extend(text.map(|text| (document, text)));
    }
    Ok(CandidateLine { id, query, instruction, texts })
}

fn open(file: &Path) -> Result<BufReader<File>, EvalError> {
    let opened = File::open(file).map_err(|error| EvalError::file(file, error.to_string()))?;
    Ok(BufReader::new(opened))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn read_qrels_accepts_both_formats() {
        let trec = written("q1 0 d1 2\nq1 0 d2 0\n");
        let beir = written("query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\n\r\nq1\td2\t0\r\n");
        let expected = read_qrels(trec.path()).expect("qrels");
        assert_eq!(read_qrels(beir.path()).expect("qrels"), expected);
        for (bad, said) in [
            ("q1\td1\n", "line 2: expected 3 fields"),
            ("q1\td1\t1.5\n", "line 2: the grade \"1.5\""),
            ("q1\td1\t1\nq1\td1\t1\n", "line 3: query \"q1\" has document \"d1\" twice"),
        ] {
            let file = written(&format!("query-id\tcorpus-id\tscore\n{bad}"));
            let error = read_qrels(file.path()).expect_err(bad).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn read_texts_accepts_tsv_and_json() {
        let file = written(
            "1\tone\ttab\nno tab\n{\"_id\": \"2\", \"title\": \"A\", \"text\": \"two\"}\n\
             {\"id\": 3, \"contents\": \"three\", \"metadata\": {}}\n\
             {\"_id\": \"4\", \"title\": \"\", \"text\": \"four\", \"instruction\": \"goal\"}\n\
             {\"_id\": \"5\"}\n6\tsix\n",
        );
        let mut texts = HashMap::new();
        let wanted = HashSet::from(["1", "2", "3", "4", "5"]);
        read_texts(file.path(), &wanted, &mut texts).expect("read");
        let expected = [("1", "one\ttab"), ("2", "A two"), ("3", "three"), ("4", "four")];
        let expected = expected.map(|(id, text)| {
            let instruction = (id == "4").then(|| "goal".to_owned());
            (id.to_owned(), Text { text: text.to_owned(), instruction })
        });
        assert_eq!(texts, HashMap::from(expected));
        let error = read_texts(file.path(), &wanted, &mut texts).expect_err("twice").to_string();
        assert!(error.ends_with("line 1: duplicate id \"1\"; remove one"), "{error}");
    }

    #[test]
    fn read_candidates_names_the_invalid_line() {
        let line =
            |documents: &str| format!(r#"{{"id": 1, "query": "x", "documents": {documents}}}"#);
        let good = r#"[{"id": "a", "text": "x", "score": 1}, {"id": "b", "score": 2}]"#;
        let (run, queries) = read_candidates(written(&line(good)).path()).expect("read");
        assert_eq!(run.ranking("1"), [("b", 2.0), ("a", 1.0)]);
        assert_eq!(queries[0].texts.len(), 1);
        for (bad, said) in [
            (line(r#"[{"id": "a", "text": "x"}]"#), "missing field `score`"),
            (line(r#"[{"id": "a b", "score": 1}]"#), "cannot be a document id"),
            (line(r#"[{"id": "a", "score": 1}, {"id": "a", "score": 2}]"#), "\"a\" twice"),
            (line(r#"[{"id": [], "score": 1}]"#), "neither a string nor a number"),
            (format!("{}\n{}", line(good), line(good)), "line 2: duplicate query \"1\""),
        ] {
            let error = read_candidates(written(&bad).path()).err().expect("refused").to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
