//! Readers for the files of a collection: runs, judgements, texts, and candidates with their texts.

use std::collections::{HashMap, HashSet};
use std::io::BufRead;
use std::path::Path;

use erank_core::trec::{self, EntryError, Qrels, Run};

use super::error::EvalError;
use crate::error::one_line;
use crate::input::{
    self, Absent, BadLine, Columns, Content, FieldNames, Fields, InputDocument, Record, Records,
    Value,
};
use crate::text;

/// The names of a query's id: those of BEIR, rank_llm and ir_datasets.
const QUERY_ID: &[&str] = &["id", "_id", "qid", "query_id", "query-id"];
/// The names of a query's text. The topics of ir_datasets have a `title`.
const QUERY_TEXT: &[&str] = &["text", "query", "query_text", "question", "contents", "title"];

/// The name of the relevant documents of a query in BRIGHT.
const GOLD: &[&str] = &["gold_ids"];

/// Reads a run in TREC's format, or in JSON.
pub(super) fn read_run(file: &Path) -> Result<Run, EvalError> {
    let mut run = Run::new();
    let text = read_json(file, &["score"], &[], |query, document, score| {
        let number = score.parse().map_err(|_| EntryError::Score(score))?;
        run.insert(query, document, number)
    })?;
    match text {
        Some(text) => Run::read(text).map_err(|error| EvalError::file(file, one_line(&error))),
        None => Ok(run),
    }
}

/// Reads judgements in the layouts of [`Qrels::read`], or in JSON.
pub(super) fn read_qrels(file: &Path) -> Result<Qrels, EvalError> {
    let mut qrels = Qrels::new();
    let [_, _, grades] = Qrels::FIELD_NAMES;
    let text = read_json(file, grades, GOLD, |query, document, grade| {
        qrels.insert(query, document, trec::parse_grade(&grade)?)
    })?;
    match text {
        Some(text) => Qrels::read(text).map_err(|error| EvalError::file(file, one_line(&error))),
        None => Ok(qrels),
    }
}

/// Calls `add` with query, document and value of each entry of a file, if it is JSON. Returns the text otherwise.
/// `values` are the names of the value, and `lists` those of an array of documents with the value 1.
fn read_json(
    file: &Path,
    values: &[&str],
    lists: &[&str],
    mut add: impl FnMut(String, String, String) -> Result<(), EntryError>,
) -> Result<Option<Box<dyn BufRead>>, EvalError> {
    let problem = |problem: String| EvalError::file(file, problem);
    let (is_json, reader) =
        input::is_json(open(file)?).map_err(|error| problem(error.to_string()))?;
    if !is_json {
        return Ok(Some(reader));
    }
    let names = FieldNames::default();
    let records = Records::new(reader, names.columns(), Default::default());
    let records = records.map_err(|error| problem(error.to_string()))?;
    let unit = records.unit();
    for record in records {
        let record = record.map_err(|error| problem(error.to_string()))?;
        let number = record.number;
        let added = fields(record).and_then(|fields| add_entries(fields, values, lists, &mut add));
        added.map_err(|reason| problem(format!("{unit} {number}: {reason}")))?;
    }
    Ok(None)
}

/// Adds the entry of `{"query_id": "q1", "doc_id": "d1", "relevance": 1}`, or those of `{"q1": {"d1": 1}}` or
/// `{"id": "q1", "gold_ids": ["d1"]}`.
fn add_entries(
    mut fields: Fields,
    values: &[&str],
    lists: &[&str],
    add: &mut impl FnMut(String, String, String) -> Result<(), EntryError>,
) -> Result<(), String> {
    // A run has the same names for queries and documents.
    let [query_names, document_names, _] = Qrels::FIELD_NAMES;
    let mut add = |query: String, document: String, value: String| {
        add(query, document, value).map_err(|error| error.to_string())
    };
    let has_list = lists.iter().any(|name| fields.has(name));
    if has_list && let Some(documents) = fields.take_array(lists)? {
        let query = fields.take_id(QUERY_ID)?.ok_or("the query id is missing")?;
        let documents = documents.into_iter().filter_map(|id| id.id(lists[0]).transpose());
        let documents = documents.collect::<Result<HashSet<String>, _>>()?;
        return documents.into_iter().try_for_each(|id| add(query.clone(), id, "1".into()));
    }
    if let Some(query) = fields.take_id(query_names)? {
        let document = fields.take_id(document_names)?.ok_or("the document id is missing")?;
        let value = fields.take_id(values)?.ok_or("the grade or score is missing")?;
        return add(query, document, value);
    }
    for (query, of_query) in fields.into_entries() {
        let layout = "write {\"q1\": {\"d1\": 1}}";
        let of_query = of_query.object(&query).map_err(|reason| format!("{reason}; {layout}"))?;
        for (document, value) in of_query.into_entries() {
            let value = value.id(&document)?.ok_or("a grade or score is null")?;
            add(query.clone(), document, value)?;
        }
    }
    Ok(())
}

/// A query with what its file holds of it.
#[derive(Debug, Default, PartialEq)]
pub(super) struct QueryText {
    pub(super) text: String,
    /// The query's own instruction.
    pub(super) instruction: Option<String>,
    /// The documents that must not be found, as in BRIGHT.
    pub(super) excluded: HashSet<String>,
    /// The texts of the candidates by document id, if the file holds them, or the reasons why they cannot be used.
    pub(super) documents: HashMap<String, Result<String, String>>,
}

/// Reads the queries whose ids are `wanted`. Records that cannot be used are skipped and reported.
pub(super) fn read_queries(
    file: &Path,
    wanted: &HashSet<&str>,
) -> Result<HashMap<String, QueryText>, EvalError> {
    let (text, others) = (QUERY_TEXT.to_vec(), QUERY_ID.to_vec());
    let columns = Columns { text, others, text_field: None, given: Vec::new() };
    let failed = |error: std::io::Error| EvalError::file(file, error.to_string());
    let records = Records::open(file, columns, true).map_err(failed)?;
    let (mut queries, mut skipped) = (HashMap::new(), Skipped::new(records.unit()));
    for record in records {
        let record = record.map_err(failed)?;
        let number = record.number;
        match query(record) {
            Ok((id, query)) if wanted.contains(id.as_str()) => {
                if queries.contains_key(&id) {
                    let problem =
                        format!("{} {number}: duplicate id {id:?}; remove one", skipped.unit);
                    return Err(EvalError::file(file, problem));
                }
                queries.insert(id, query);
            }
            Ok(_) => {}
            Err(reason) => skipped.add(number, None, reason),
        }
    }
    skipped.note(file);
    Ok(queries)
}

/// Returns the id and the text of a query.
fn query(record: Record) -> Result<(String, QueryText), String> {
    let mut fields = match record.content? {
        Content::Named { id, text } if !id.is_empty() => {
            return Ok((id, QueryText { text, ..Default::default() }));
        }
        Content::Fields(fields) => fields,
        Content::Named { .. } | Content::Text(_) => return Err("there is no id".into()),
    };
    let id = fields.take_id(QUERY_ID)?.ok_or("the query's id is missing")?;
    let text = fields.take_text(QUERY_TEXT)?.ok_or("the query's text is missing")?;
    let (instruction, excluded) = (fields.take_text(&["instruction"])?, excluded(&mut fields)?);
    Ok((id, QueryText { text, instruction, excluded, ..Default::default() }))
}

/// Takes the ids of the documents that BRIGHT excludes for a query. BRIGHT writes `["N/A"]` if there are none.
fn excluded(fields: &mut Fields) -> Result<HashSet<String>, String> {
    let ids = fields.take_array(&["excluded_ids"])?.unwrap_or_default().into_iter();
    let ids = ids.filter_map(|id| id.id("excluded_ids").transpose());
    ids.filter(|id| id.as_deref() != Ok("N/A")).collect()
}

/// Adds the texts of the documents whose ids are `wanted` to `texts`. Records that cannot be used are skipped and
/// reported.
pub(super) fn read_documents(
    file: &Path,
    names: &FieldNames,
    wanted: &HashSet<&str>,
    texts: &mut HashMap<String, String>,
) -> Result<(), EvalError> {
    let mut skipped = Skipped::new("line");
    let read = input::for_each(file, names, true, &mut |found| {
        match found {
            Ok(InputDocument { id: Some(id), text, .. }) => {
                if wanted.contains(id.as_str()) {
                    if texts.contains_key(&id) {
                        return Err(format!("duplicate id {id:?}; remove one"));
                    }
                    texts.insert(id, text);
                }
            }
            Ok(InputDocument { line, .. }) => skipped.add(line, None, "there is no id".into()),
            Err(BadLine { line, id, reason }) => skipped.add(line, id, reason),
        }
        Ok(())
    });
    let left_out = read.map_err(|error| EvalError::file(file, error.to_string()))?;
    skipped.unit = left_out.unit;
    skipped.note(file);
    left_out.note(&text::path(file));
    Ok(())
}

/// The records that cannot be used.
struct Skipped {
    unit: &'static str,
    count: usize,
    /// The number of the first one, its id or file if known, and the reason.
    first: Option<(usize, Option<String>, String)>,
}

impl Skipped {
    fn new(unit: &'static str) -> Self {
        Self { unit, count: 0, first: None }
    }

    fn add(&mut self, number: usize, id: Option<String>, reason: String) {
        self.count += 1;
        self.first.get_or_insert((number, id, reason));
    }

    fn note(&self, file: &Path) {
        if let Some((number, id, reason)) = &self.first {
            let (file, count, unit) = (text::path(file), self.count, self.unit);
            let id =
                id.as_deref().map_or(String::new(), |id| format!(" ({})", text::beginning(id)));
            text::note(&format!(
                "{file}: skipped {count} {unit}s that cannot be used; {unit} {number}{id}: {reason}"
            ));
        }
    }
}

/// Reads queries with candidates. Returns the run of the scores, and the queries by id.
pub(super) fn read_candidates(
    file: &Path,
    names: &FieldNames,
) -> Result<(Run, HashMap<String, QueryText>), EvalError> {
    let failed = |error: std::io::Error| EvalError::file(file, error.to_string());
    let columns = FieldNames::default();
    let records = Records::open(file, columns.columns(), false).map_err(failed)?;
    let unit = records.unit();
    let (mut run, mut queries, mut absent) = (Run::new(), HashMap::new(), names.absent());
    for record in records {
        let record = record.map_err(failed)?;
        let number = record.number;
        let query =
            fields(record).and_then(|fields| candidates(fields, names, &mut run, &mut absent));
        let (id, query) =
            query.map_err(|reason| EvalError::file(file, format!("{unit} {number}: {reason}")))?;
        queries.insert(id, query);
    }
    absent.remarks().for_each(|remark| text::note(&format!("{}: {remark}.", text::path(file))));
    Ok((run, queries))
}

/// Returns the fields of a record.
fn fields(record: Record) -> Result<Fields, String> {
    match record.content? {
        Content::Fields(fields) => Ok(fields),
        _ => Err("it is not a JSON object".into()),
    }
}

/// Parses a query with its candidates, in erank's layout or rank_llm's, and adds their scores to `run`.
fn candidates(
    mut fields: Fields,
    names: &FieldNames,
    run: &mut Run,
    absent: &mut Absent<'_>,
) -> Result<(String, QueryText), String> {
    let documents = fields.take_array(&["documents", "candidates", "hits"])?;
    let documents = documents
        .ok_or_else(|| format!("\"documents\" is missing; the fields are {}", fields.names()))?;
    let documents = documents.into_iter();
    let documents = documents.map(|document| match document.is_object() {
        true => document.object("documents"),
        false => Err("an element of \"documents\" is not an object".into()),
    });
    let mut documents: Vec<Fields> = documents.collect::<Result<_, _>>()?;

    let mut id = fields.take_id(QUERY_ID)?;
    let text = match fields.take(&["query", "text", "question"])? {
        Some((name, Value::Other(object))) => {
            let mut query = Value::Other(object).object(&name)?;
            id = id.or(query.take_id(QUERY_ID)?);
            query.take_text(QUERY_TEXT)?
        }
        Some((name, value)) => Some(value.text(&name)?),
        None => None,
    };
    let text = text.ok_or("\"query\" is missing")?;
    // Files of rank_llm had the query's id in its hits.
    if id.is_none()
        && let Some(first) = documents.first_mut()
    {
        id = first.take_id(&["qid"])?;
    }
    let id = id.ok_or("the query's \"id\" is missing or null")?;
    if run.has_query(&id) {
        return Err(format!("duplicate query {id:?}; remove one"));
    }
    let (instruction, excluded) = (fields.take_text(&["instruction"])?, excluded(&mut fields)?);
    let mut texts = HashMap::new();
    for mut document in documents {
        absent.see(&document);
        let document_id =
            names.id(&mut document)?.ok_or("a document's \"id\" is missing or null")?;
        let score = document.score()?.ok_or_else(|| {
            format!("the \"score\" of document {document_id:?} is missing or null")
        })?;
        run.insert(&id, &document_id, score).map_err(|error| error.to_string())?;
        texts.extend(names.find_text(&mut document).transpose().map(|text| (document_id, text)));
    }
    Ok((id, QueryText { text, instruction, excluded, documents: texts }))
}

fn open(file: &Path) -> Result<Box<dyn BufRead>, EvalError> {
    input::open(file).map_err(|error| EvalError::file(file, error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), text).expect("written");
        file
    }

    #[test]
    fn read_qrels_accepts_all_layouts() {
        let expected = read_qrels(written("q1 0 7 2\nq1 0 d2 0\n").path()).expect("qrels");
        for text in [
            "\u{feff}query-id\tcorpus-id\tscore\r\nq1\t7\t2\r\n\r\nq1\td2\t0\r\n",
            "query_id\tdoc_id\tscore\nq1\t7\t2.0\nq1\td2\t0.0\n",
            "{\"query_id\": \"q1\", \"doc_id\": 7, \"relevance\": 2}\n\
             {\"query_id\": \"q1\", \"doc_id\": \"d2\", \"relevance\": 0, \"iteration\": \"0\"}\n",
            "[{\"query-id\": \"q1\", \"corpus-id\": \"7\", \"score\": 2.0},\n\
              {\"query-id\": \"q1\", \"corpus-id\": \"d2\", \"score\": 0}]",
            "{\"q1\": {\"7\": 2, \"d2\": 0}}",
            " \n\n{\"q1\": {\"7\": 2, \"d2\": 0}}",
            "{\n  \"q1\": {\n    \"7\": 2,\n    \"d2\": 0\n  }\n}\n",
        ] {
            assert_eq!(read_qrels(written(text).path()).expect(text), expected, "{text}");
        }
        let gold =
            "{\"query\": \"x\", \"id\": 1, \"gold_ids\": [\"d1\", \"d2\"], \"excluded_ids\": []}\n";
        let gold = read_qrels(written(gold).path()).expect("BRIGHT's");
        assert_eq!(gold.grades("1").collect::<Vec<_>>(), [("d1", 1), ("d2", 1)]);
        let braces = read_qrels(written("{q1} 0 d1 1\n[q2] 0 d1 0\n").path()).expect("TREC");
        assert!(braces.has_query("{q1}") && braces.has_query("[q2]"));
        for (bad, said) in [
            ("query-id\tcorpus-id\tscore\nq1\td1\n", "line 2: found 2 fields instead of"),
            ("q1\td1\t1\nq1\td1\t1.5\n", "line 2: the grade \"1.5\""),
            ("q1\td1\t1\nq1\td1\t1\n", "line 2: query \"q1\" has document \"d1\" twice"),
            ("{\"qid\": \"q1\", \"rel\": 1}", "line 1: the document id is missing"),
            ("{\"q1\": {\"d1\": \"high\"}}", "line 1: the grade \"high\""),
            ("{\"q1\": 7}", "line 1: \"q1\" is not an object; write {\"q1\": {\"d1\": 1}}"),
        ] {
            let error = read_qrels(written(bad).path()).expect_err(bad).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn read_run_accepts_json() {
        let expected =
            read_run(written("q1 Q0 7 1 2.5 x\nq1 Q0 d2 2 -1e-3 x\n").path()).expect("TREC");
        for text in [
            "{\"q1\": {\"7\": 2.5, \"d2\": -0.001}}",
            "{\n  \"q1\": {\n    \"7\": 2.5,\n    \"d2\": -1e-3\n  }\n}\n",
            "{\"query_id\": \"q1\", \"doc_id\": 7, \"score\": 2.5}\n\
             {\"query_id\": \"q1\", \"doc_id\": \"d2\", \"score\": -0.001}\n",
        ] {
            assert_eq!(read_run(written(text).path()).expect(text), expected, "{text}");
        }
        for (bad, said) in [
            ("{\"q1\": {\"d1\": \"high\"}}", "line 1: the score \"high\" is not a finite number"),
            ("{\"q1\": {\"d1\": NaN}}", "line 1: a grade or score is null"),
            ("{\"q1\": {\"d1\": 1e999}}", "line 1: the score \"inf\" is not a finite number"),
            ("{\"q1\": [\"d1\"]}", "line 1: \"q1\" is not an object"),
        ] {
            let error = read_run(written(bad).path()).expect_err(bad).to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn read_documents_accepts_lines_with_ids() {
        let file = written("1\tone\ttab\nno tab\n2\ttwo\n6\tsix\n");
        let mut texts = HashMap::new();
        let wanted = HashSet::from(["1", "2", "3"]);
        let names = FieldNames::default();
        read_documents(file.path(), &names, &wanted, &mut texts).expect("read");
        let json = written(
            "{\"_id\": \"3\", \"title\": \"A\", \"text\": \"three\"}\n{\"_id\": \"4\"}\n{\"text\": \"\"}\n",
        );
        read_documents(json.path(), &names, &wanted, &mut texts).expect("read");
        let expected = [("1", "one\ttab"), ("2", "two"), ("3", "A three")];
        assert_eq!(texts, expected.map(|(id, text)| (id.to_owned(), text.to_owned())).into());
        let error = read_documents(file.path(), &names, &wanted, &mut texts).expect_err("twice");
        assert!(error.to_string().ends_with("line 1: duplicate id \"1\"; remove one"), "{error}");
    }

    #[test]
    fn read_queries_accepts_the_layouts_of_beir_ir_datasets_and_bright() {
        let wanted = HashSet::from(["1", "1e3", "q"]);
        let read = |text: &str| read_queries(written(text).path(), &wanted).expect("read");
        let query = |id: &str, text: &str| {
            (id.to_owned(), QueryText { text: text.into(), ..Default::default() })
        };
        let both = HashMap::from([query("1", "one"), query("1e3", "two")]);
        for text in [
            "1\tone\n1e3\ttwo\n2\tthree\n",
            "{\"_id\": \"1\", \"text\": \"one\", \"metadata\": {}}\n{\"_id\": 1e3, \"text\": \"two\"}\n",
            "query_id,text\n1,one\n1e3,two\n",
            "qid\tquery\n1\tone\n1e3\ttwo\n",
            "qid\tquery_text\tnarrative\n1\tone\tx\n1e3\ttwo\ty\n",
            "[{\"query_id\": \"1\", \"title\": \"one\"}, {\"qid\": \"1e3\", \"query\": \"two\"}]",
        ] {
            assert_eq!(read(text), both, "{text}");
        }
        let bright = read(
            "{\"id\": \"q\", \"query\": \"x\", \"excluded_ids\": [\"a\", 7], \"instruction\": \"i\"}\n\
             {\"id\": \"1\", \"query\": \"y\", \"excluded_ids\": [\"N/A\"]}\n{\"id\": \"1e3\"}\n",
        );
        assert_eq!(bright["q"].excluded, HashSet::from(["a".to_owned(), "7".to_owned()]));
        assert_eq!(bright["q"].instruction.as_deref(), Some("i"));
        assert_eq!((bright["1"].excluded.len(), bright.len()), (0, 2));
    }

    #[test]
    fn read_candidates_names_the_invalid_line() {
        let line =
            |documents: &str| format!(r#"{{"id": 1, "query": "x", "documents": {documents}}}"#);
        let good = r#"[{"id": "a", "text": "x", "score": 1}, {"id": "b", "score": 2}]"#;
        let names = FieldNames::default();
        let (run, queries) = read_candidates(written(&line(good)).path(), &names).expect("read");
        assert_eq!(run.ranking("1"), [("b", 2.0), ("a", 1.0)]);
        assert_eq!(queries["1"].documents.len(), 1);
        let unusable =
            r#"[{"id": "a", "text": true, "score": 1}, {"id": "b", "text": "x", "score": 2}]"#;
        let file = written(&line(unusable));
        let documents = &read_candidates(file.path(), &names).expect("read").1["1"].documents;
        assert_eq!(documents["a"], Err("\"text\" is not a string".to_owned()));
        assert_eq!(documents["b"], Ok("x".to_owned()));
        for (bad, said) in [
            (line(r#"[{"id": "a", "text": "x"}]"#), "the \"score\" of document \"a\" is missing"),
            (line(r#"[{"id": "a b", "score": 1}]"#), "cannot be a document id"),
            (line(r#"[{"id": "a", "score": 1}, {"id": "a", "score": 2}]"#), "\"a\" twice"),
            (line(r#"[{"id": [], "score": 1}]"#), "neither a string nor a number"),
            (line(r#"[{"score": 1}]"#), "a document's \"id\" is missing"),
            (line("[7]"), "line 1: an element of \"documents\" is not an object"),
            (
                "{\"id\": 1, \"ctxs\": []}".into(),
                "\"documents\" is missing; the fields are id, ctxs",
            ),
            (line("7"), "\"documents\" is not an array"),
            ("{\"id\": 1, \"documents\": []}".into(), "\"query\" is missing"),
            ("one\ntwo\n".into(), "line 1: it is not a JSON object"),
            (format!("{}\n{}", line(good), line(good)), "line 2: duplicate query \"1\""),
        ] {
            let error = read_candidates(written(&bad).path(), &names).expect_err("refused");
            assert!(error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn read_candidates_accepts_the_layouts_of_rank_llm() {
        let names = FieldNames::default();
        for text in [
            r#"[{"query": "x", "hits": [{"content": "A", "qid": 7, "docid": "a", "rank": 1, "score": 2.5},
                                        {"content": "B \ud83d", "qid": 7, "docid": "b", "rank": 2, "score": 1.5}]}]"#,
            "{\"query\": {\"text\": \"x\", \"qid\": \"7\"}, \"candidates\": [\
             {\"docid\": \"a\", \"score\": 2.5, \"doc\": {\"contents\": \"A\"}}, \
             {\"docid\": \"b\", \"score\": 1.5, \"doc\": {\"segment\": \"B \\ud83d\", \"title\": \"\"}}]}\n",
        ] {
            let (run, queries) = read_candidates(written(text).path(), &names).expect(text);
            assert_eq!(run.ranking("7"), [("a", 2.5), ("b", 1.5)]);
            let query = &queries["7"];
            assert_eq!((query.text.as_str(), &query.documents["a"]), ("x", &Ok("A".to_owned())));
            assert_eq!(query.documents["b"], Ok("B \u{fffd}".to_owned()));
        }
    }
}
