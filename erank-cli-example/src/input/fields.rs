//! Named fields, and the names by which a document's id, title, text and score are found.

use clap::Args;

use super::{InputDocument, advice, json};
use crate::text;

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Null, in JSON.
    Null,
    /// A string, or the cell of a row.
    Text(String),
    /// A number as it is written.
    Number(String),
    /// An array, an object or a boolean, in JSON.
    Other(String),
}

/// The fields of an object or a row, in order.
#[derive(Debug, PartialEq)]
pub struct Fields(pub(super) Vec<(String, Value)>);

/// The names of fields, in the order in which they are looked for.
pub(super) type Names<'a> = &'a [&'a str];

/// BEIR and ir_datasets have `_id` and `doc_id`, MS MARCO `pid` and `docid`, TREC `docno`, Algolia `objectID`. A
/// passage of MS MARCO v2 has both a `pid` and the `docid` of the page that it comes from. The last ones are those of
/// qrels.
pub(super) const ID: Names<'_> = &[
    "id",
    "_id",
    "pid",
    "docid",
    "doc_id",
    "docno",
    "objectID",
    "document_id",
    "passage_id",
    "corpus_id",
    "corpus-id",
];
/// Anserini has `contents`, BRIGHT `content`, MS MARCO v2 `passage`, `segment` and `body`.
const TEXT: Names<'_> = &["text", "contents", "content", "passage", "segment", "body"];
const TITLE: Names<'_> = &["title"];
/// The headings of a page of MS MARCO v2, which its `segment` or `body` lacks.
const HEADINGS: Names<'_> = &["headings"];
pub(super) const SCORE: Names<'_> = &["score", "_score"];
/// Objects that hold the document of a search hit: rank_llm, Jina, Elasticsearch, Vespa, Qdrant, Weaviate and the rows
/// of Hugging Face.
const NESTED: Names<'_> = &["doc", "document", "_source", "fields", "payload", "properties", "row"];
/// Of these, the ones that may also be the text itself.
const NESTED_TEXT: Names<'_> = &["doc", "document"];

/// The fields of JSON objects, CSV and TSV.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Fields of the documents")]
pub struct FieldNames {
    /// The field with the text. By default: text, contents, content, passage, segment or body.
    #[arg(long, value_name = "NAME")]
    pub text_field: Option<String>,
    /// The field with the id. By default: id, _id, pid, docid, doc_id, docno, objectID, or a name that qrels have.
    #[arg(long, value_name = "NAME")]
    pub id_field: Option<String>,
    /// The field with the title, which is put before the text. By default: title. An empty name leaves titles out.
    #[arg(long, value_name = "NAME")]
    pub title_field: Option<String>,
}

/// The columns by which the header of a table is recognised.
#[derive(Debug, Clone)]
pub struct Columns<'a> {
    /// The names of the text.
    pub text: Vec<&'a str>,
    /// The names of other fields.
    pub others: Vec<&'a str>,
    /// The name of the text that the user gave.
    pub text_field: Option<&'a str>,
    /// The names that the user gave for other fields, with their options.
    pub given: Vec<(&'static str, &'a str)>,
}

impl Columns<'_> {
    /// Returns the name of a column in a header. Known names may be in any case there, and have spaces or hyphens, such
    /// as `Doc ID` for `doc_id`.
    pub(super) fn name(&self, cell: &str) -> String {
        let cell = cell.trim();
        let lower = cell.to_lowercase();
        let joined = lower.replace([' ', '-'], "_");
        let names = [cell, &lower, &joined].into_iter();
        let known = || self.text.iter().chain(&self.others).copied();
        names
            .clone()
            .find(|name| self.is_known(name))
            .or_else(|| known().find(|name| is_alike(name, cell)))
            .unwrap_or(cell)
            .to_owned()
    }

    /// Returns the names of the columns.
    ///
    /// # Errors
    ///
    /// Returns an error if the header lacks a field that the user named.
    pub(super) fn header(&self, cells: &[String]) -> Result<Vec<String>, String> {
        let mut header: Vec<String> = cells.iter().map(|cell| self.name(cell)).collect();
        for (option, field) in &self.given {
            if cells.iter().any(|cell| cell.trim() == *field) {
                continue;
            }
            let mut alike = (0..cells.len()).filter(|column| is_alike(&cells[*column], field));
            match (alike.next(), alike.next()) {
                (Some(column), None) => header[column] = (*field).to_owned(),
                _ => {
                    let cells: Vec<String> =
                        cells.iter().map(|cell| text::beginning(cell)).collect();
                    return Err(format!(
                        "its header lacks the field {field:?} of {option}; the fields are {}; mend the name, or leave \
                         {option} out",
                        cells.join(", ")
                    ));
                }
            }
        }
        Ok(header)
    }

    /// Returns whether the name is that of an id.
    pub(super) fn is_id(&self, name: &str) -> bool {
        ID.contains(&name) && self.is_known(name)
    }

    pub(super) fn is_text(&self, name: &str) -> bool {
        self.text.contains(&name)
    }

    pub(super) fn is_known(&self, name: &str) -> bool {
        self.is_text(name) || self.others.contains(&name)
    }
}

/// Returns whether two names differ only in case, spaces, hyphens and underscores.
pub(super) fn is_alike(a: &str, b: &str) -> bool {
    letters(a).eq(letters(b))
}

fn letters(name: &str) -> impl Iterator<Item = char> {
    let letters = name.chars().filter(|c| !matches!(c, ' ' | '-' | '_'));
    letters.flat_map(char::to_lowercase)
}

impl FieldNames {
    /// Returns the columns by which the header of a table is recognised.
    pub fn columns(&self) -> Columns<'_> {
        let (id, title) = (self.id_field.as_deref(), self.title_field.as_deref());
        let known = [ID, TITLE, HEADINGS, SCORE].into_iter().flatten().copied();
        Columns {
            text: self.text_field.as_deref().map_or_else(|| TEXT.to_vec(), |name| vec![name]),
            others: known.chain(id).chain(title).collect(),
            text_field: self.text_field.as_deref(),
            given: self.given().collect(),
        }
    }

    /// Returns the fields other than the text that the user named, with their options.
    fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let (id, title) = (self.id_field.as_deref(), self.title_field.as_deref());
        let given = [("--id-field", id), ("--title-field", title)].into_iter();
        given.filter_map(|(option, name)| Some((option, name.filter(|name| !name.is_empty())?)))
    }

    /// Returns the fields that the user named, and that no document has so far.
    pub fn absent(&self) -> Absent<'_> {
        Absent { names: self, fields: self.given().collect(), documents: 0 }
    }

    /// Returns the document that the fields hold, or else its id, if known, and the reason why they hold none.
    pub fn document(
        &self,
        line: usize,
        mut fields: Fields,
    ) -> Result<InputDocument, (Option<String>, String)> {
        let id = self.id(&mut fields).map_err(|reason| (None, reason))?;
        let mut document = || {
            let text = self.text(&mut fields)?;
            Ok((text, fields.score()?))
        };
        match document() {
            Ok((text, score)) => Ok(InputDocument { line, id, text, score }),
            Err(reason) => Err((id, reason)),
        }
    }

    /// Takes the id, or that of the document in a search hit. An empty one counts as absent.
    pub fn id(&self, fields: &mut Fields) -> Result<Option<String>, String> {
        let name = self.id_field.as_deref();
        let names = name.as_ref().map_or(ID, std::slice::from_ref);
        let id = fields.take_id(names)?;
        if id.is_some() || self.has_text(fields) {
            return Ok(id);
        }
        self.nested(fields).map_or(Ok(None), |(_, mut inner)| inner.take_id(names))
    }

    /// Takes the text with the title and the headings before it, separated by spaces, as BEIR's rerankers join them.
    pub fn text(&self, fields: &mut Fields) -> Result<String, String> {
        match self.find_text(fields)? {
            Some(text) => Ok(text),
            None => Err(self.missing(fields)),
        }
    }

    /// Returns the error for a text that is missing, with the names of the other fields.
    fn missing(&self, fields: &Fields) -> String {
        let wanted = self.text_field.as_deref().unwrap_or(TEXT[0]);
        if fields.0.iter().any(|(name, _)| name == wanted) {
            return format!("{wanted:?} is null");
        }
        let advice = advice::advice(fields, self);
        format!("{wanted:?} is missing; the fields are {}; {advice}", fields.names())
    }

    /// Returns whether the object itself has a text.
    pub(super) fn has_text(&self, fields: &Fields) -> bool {
        match self.text_field.as_deref() {
            Some(name) => fields.has(name),
            None => TEXT.iter().any(|name| fields.has(name)),
        }
    }

    /// Returns the document in a search hit with its name: an object with a text, or else any object.
    pub(super) fn nested(&self, fields: &Fields) -> Option<(String, Fields)> {
        let objects = NESTED.iter().filter_map(|wanted| {
            let (name, value) = fields.0.iter().find(|(name, _)| name == wanted)?;
            let fields = value.clone().object(name).ok()?;
            Some((name.clone(), fields))
        });
        let mut objects: Vec<(String, Fields)> = objects.collect();
        let best = objects.iter().position(|(_, inner)| self.has_text(inner)).unwrap_or(0);
        (best < objects.len()).then(|| objects.swap_remove(best))
    }

    /// Takes the text as [`text`](Self::text) does, or returns `None` if it is missing or null.
    pub fn find_text(&self, fields: &mut Fields) -> Result<Option<String>, String> {
        match self.own_text(fields)? {
            Some(text) => Ok(Some(text)),
            None => self.nested_text(fields),
        }
    }

    fn own_text(&self, fields: &mut Fields) -> Result<Option<String>, String> {
        let text = match self.text_field.as_deref() {
            Some(name) => fields.take(&[name])?,
            None => fields.take(TEXT)?,
        };
        let Some((name, value)) = text else { return Ok(None) };
        let text = value.text(&name)?;
        let headings = match name.as_str() {
            "body" | "segment" => fields.take_prefix(HEADINGS)?,
            _ => String::new(),
        };
        Ok(Some(self.title(fields)? + &headings + &text))
    }

    /// Takes the title with a space after it. Returns an empty string if there is none.
    fn title(&self, fields: &mut Fields) -> Result<String, String> {
        match self.title_field.as_deref() {
            None => fields.take_prefix(TITLE),
            Some("") => Ok(String::new()),
            Some(name) => fields.take_prefix(&[name]),
        }
    }

    /// Takes the text of the document in a search hit.
    fn nested_text(&self, fields: &mut Fields) -> Result<Option<String>, String> {
        if let Some((name, mut inner)) = self.nested(fields) {
            let title = match self.title(&mut inner)? {
                title if title.is_empty() => self.title(fields)?,
                title => title,
            };
            let text = self.own_text(&mut inner)?;
            return text
                .map(|text| Some(title + &text))
                .ok_or_else(|| format!("{name:?}: {}", self.missing(&inner)));
        }
        match fields.take(NESTED_TEXT)? {
            Some((_, Value::Text(text))) => Ok(Some(self.title(fields)? + &text)),
            _ => Ok(None),
        }
    }
}

/// The fields that the user named, and that no document has so far.
pub struct Absent<'a> {
    names: &'a FieldNames,
    fields: Vec<(&'static str, &'a str)>,
    documents: usize,
}

impl Absent<'_> {
    /// Removes the fields that a document has.
    pub fn see(&mut self, fields: &Fields) {
        self.documents += 1;
        if self.fields.is_empty() {
            return;
        }
        let inner = self.names.nested(fields);
        let is_inside = |field| inner.as_ref().is_some_and(|(_, inner)| inner.has(field));
        self.fields.retain(|(_, field)| !fields.has(field) && !is_inside(field));
    }

    /// Says which fields no document has, if there are documents.
    pub fn remarks(&self) -> impl Iterator<Item = String> {
        let fields = self.fields.iter().filter(|_| self.documents > 0);
        fields.map(|(option, field)| format!("no document has the field {field:?} of {option}"))
    }
}

impl Fields {
    /// Takes the first of these fields that is there and not null, with its name. If none is there, the names may
    /// differ in case, spaces, hyphens and underscores, or have a dot: `a.b` is the field `b` of the object `a`.
    ///
    /// # Errors
    ///
    /// Returns an error if the field occurs twice, because programs differ in which of the two they read.
    pub fn take(&mut self, names: Names<'_>) -> Result<Option<(String, Value)>, String> {
        for wanted in names {
            let found = self.0.iter_mut().filter(|(name, _)| name == wanted);
            if let Some(found) = taken(wanted, found)? {
                return Ok(Some(found));
            }
        }
        for wanted in names {
            let found = self.0.iter_mut();
            let found =
                found.filter(|(name, value)| *value != Value::Null && is_alike(name, wanted));
            if let Some(found) = taken(wanted, found)? {
                return Ok(Some(found));
            }
        }
        for wanted in names {
            let Some((outer, rest)) = wanted.split_once('.') else { continue };
            let object = self.0.iter().find(|(name, value)| name == outer && value.is_object());
            if let Some((name, value)) = object
                && let Some((_, value)) = value.clone().object(name)?.take(&[rest])?
            {
                return Ok(Some(((*wanted).to_owned(), value)));
            }
        }
        Ok(None)
    }

    /// Returns whether [`take`](Self::take) finds this field.
    pub fn has(&self, wanted: &str) -> bool {
        let mut fields = self.0.iter().filter(|(_, value)| *value != Value::Null);
        fields.any(|(name, value)| {
            let inner = wanted.split_once('.').filter(|(outer, _)| outer == name);
            let has_inner = |(_, rest): (&str, &str)| {
                value.clone().object(name).is_ok_and(|inner| inner.has(rest))
            };
            is_alike(name, wanted) || inner.is_some_and(has_inner)
        })
    }

    /// Returns the names with their values.
    pub fn into_entries(self) -> impl Iterator<Item = (String, Value)> {
        self.0.into_iter()
    }

    /// Takes an id: a string or a number. An empty one counts as absent.
    pub fn take_id(&mut self, names: Names<'_>) -> Result<Option<String>, String> {
        self.take(names)?.map_or(Ok(None), |(name, value)| value.id(&name))
    }

    /// Takes a string.
    pub fn take_text(&mut self, names: Names<'_>) -> Result<Option<String>, String> {
        self.take(names)?.map(|(name, value)| value.text(&name)).transpose()
    }

    /// Takes a string or a number, such as the title `1984`, with a space after it. Returns an empty string if it is
    /// missing or blank.
    fn take_prefix(&mut self, names: Names<'_>) -> Result<String, String> {
        let prefix = match self.take(names)? {
            Some((_, Value::Number(number))) => number,
            Some((name, value)) => value.text(&name)?,
            None => String::new(),
        };
        Ok(if prefix.trim().is_empty() { String::new() } else { prefix + " " })
    }

    /// Takes the elements of an array.
    pub fn take_array(&mut self, names: Names<'_>) -> Result<Option<Vec<Value>>, String> {
        let Some((name, value)) = self.take(names)? else { return Ok(None) };
        match value {
            Value::Other(json) if json.starts_with('[') => json::array(&json).map(Some),
            _ => Err(format!("{name:?} is not an array")),
        }
    }

    /// Takes the score.
    pub fn score(&mut self) -> Result<Option<f64>, String> {
        let Some((name, value)) = self.take(SCORE)? else { return Ok(None) };
        let score = match value {
            Value::Text(score) if score.trim().is_empty() => return Ok(None),
            Value::Text(score) | Value::Number(score) => {
                score.trim().parse().ok().or_else(|| decimal_comma(score.trim()))
            }
            _ => None,
        };
        let score = score.filter(|score: &f64| score.is_finite());
        score.map(Some).ok_or_else(|| format!("{name:?} is not a number; write one such as 12.5"))
    }

    /// Returns the names of the first fields.
    pub fn names(&self) -> String {
        const MAX_LISTED: usize = 10;
        let listed = self.0.iter().take(MAX_LISTED);
        let mut names: Vec<String> = listed.map(|(name, _)| text::beginning(name)).collect();
        if self.0.len() > MAX_LISTED {
            names.push("…".into());
        }
        names.join(", ")
    }
}

/// Takes the only one of the fields that were found for this name.
fn taken<'a>(
    wanted: &str,
    mut found: impl Iterator<Item = &'a mut (String, Value)>,
) -> Result<Option<(String, Value)>, String> {
    let Some((name, value)) = found.next() else { return Ok(None) };
    if found.next().is_some() {
        return Err(format!("the field {wanted:?} occurs twice; remove one"));
    }
    match std::mem::replace(value, Value::Null) {
        Value::Null => Ok(None),
        value => Ok(Some((name.clone(), value))),
    }
}

/// Parses a number with a decimal comma. Three digits after the comma may also be thousands, and are refused.
fn decimal_comma(number: &str) -> Option<f64> {
    let (_, fraction) = number.split_once(',')?;
    let is_clear = fraction.len() != 3 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    is_clear.then(|| number.replace(',', ".").parse().ok()).flatten()
}

impl Value {
    /// Returns a string. The error says what the field `name` is instead.
    pub fn text(self, name: &str) -> Result<String, String> {
        let problem = format!("{name:?} is not a string");
        match self {
            Self::Text(text) => Ok(text),
            Self::Other(json) if json.starts_with('{') => {
                let names = json::object(&json)?.names();
                Err(format!(
                    "{problem} but an object with the fields {names}; name one of them as --text-field {name}.NAME"
                ))
            }
            Self::Other(json) if json.starts_with('[') => Err(format!(
                "{problem} but an array; if it has strings, join them: jq -c '.[{name:?}] |= join(\" \")'"
            )),
            _ => Err(problem),
        }
    }

    /// Returns a string or a number as it is written, or the string of MongoDB's `{"$oid": "…"}`. Null and an empty
    /// string are no id.
    pub fn id(self, name: &str) -> Result<Option<String>, String> {
        match self {
            Self::Other(json) if json.contains("\"$oid\"") => {
                json::object(&json)?.take_id(&["$oid"])
            }
            Self::Null => Ok(None),
            Self::Text(id) | Self::Number(id) => Ok(Some(id).filter(|id| !id.is_empty())),
            Self::Other(_) => Err(format!("{name:?} is neither a string nor a number")),
        }
    }

    /// Returns whether it is an object, in JSON.
    pub fn is_object(&self) -> bool {
        matches!(self, Self::Other(json) if json.starts_with('{'))
    }

    /// Returns the fields of an object.
    pub fn object(self, name: &str) -> Result<Fields, String> {
        match self {
            Self::Other(json) if json.starts_with('{') => json::object(&json),
            _ => Err(format!("{name:?} is not an object")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(names: &FieldNames, json: &str) -> Result<(Option<String>, String), String> {
        let document = names.document(1, json::object(json).expect("JSON"));
        document.map(|document| (document.id, document.text)).map_err(|(_, reason)| reason)
    }

    #[test]
    fn document_knows_the_fields_of_public_collections() {
        for (json, id, text) in [
            (
                r#"{"_id": "d1", "title": "Tides", "text": "They turn.", "metadata": {}}"#,
                "d1",
                "Tides They turn.",
            ),
            (r#"{"_id": "d1", "title": "", "text": "They turn."}"#, "d1", "They turn."),
            (r#"{"id": 7, "contents": "They turn."}"#, "7", "They turn."),
            (
                r#"{"pid": "p", "passage": "They turn.", "spans": "()", "docid": "d"}"#,
                "p",
                "They turn.",
            ),
            (
                r#"{"docid": "d", "url": "u", "title": "T", "headings": "H", "body": "B"}"#,
                "d",
                "T H B",
            ),
            (r#"{"docid": "d", "title": "T", "headings": "", "segment": "S"}"#, "d", "T S"),
            (r#"{"docid": "d", "score": 3, "doc": {"title": "T", "segment": "S"}}"#, "d", "T S"),
            (r#"{"docid": "d", "title": "O", "doc": {"title": "T", "text": "x"}}"#, "d", "T x"),
            (r#"{"docid": "d", "title": "O", "doc": {"text": "x"}}"#, "d", "O x"),
            (r#"{"_id": "d", "_score": 3, "_source": {"id": "x", "content": "C"}}"#, "d", "C"),
            (r#"{"doc_id": "d", "document": "D"}"#, "d", "D"),
            (r#"{"doc_id": "d", "title": "T", "document": "D"}"#, "d", "T D"),
            (r#"{"docno": "d", "text": null, "contents": "C"}"#, "d", "C"),
            (r#"{"document": {"id": "d", "text": "T"}, "text_match": 1}"#, "d", "T"),
            (r#"{"corpus-id": "d", "Text": "T"}"#, "d", "T"),
            (r#"{"docId": "d", "text": "T"}"#, "d", "T"),
            (r#"{"objectID": "d", "text": "T", "title": 1984}"#, "d", "1984 T"),
            (r#"{"id": "d", "payload": {"title": "T", "text": "x"}}"#, "d", "T x"),
            (r#"{"id": "d", "relevance": 1, "fields": {"sddocname": "s", "body": "B"}}"#, "d", "B"),
            (r#"{"row_idx": 0, "row": {"_id": "d", "text": "T"}}"#, "d", "T"),
            (r#"{"_id": {"$oid": "d"}, "text": "T"}"#, "d", "T"),
            (r#"{"ID": "d", "text": "T", "score": "12,5"}"#, "d", "T"),
        ] {
            let expected = Ok((Some(id.to_owned()), text.to_owned()));
            assert_eq!(document(&FieldNames::default(), json), expected, "{json}");
        }
    }

    #[test]
    fn document_takes_the_fields_that_are_named() {
        let mut names = FieldNames::default();
        (names.text_field, names.id_field) = (Some("abstract".into()), Some("key".into()));
        let json = r#"{"key": "k", "id": "i", "title": "T", "text": "x", "abstract": "A"}"#;
        assert_eq!(document(&names, json), Ok((Some("k".into()), "T A".into())));
        names.title_field = Some(String::new());
        assert_eq!(document(&names, json), Ok((Some("k".into()), "A".into())));
        names.title_field = Some("id".into());
        assert_eq!(document(&names, json), Ok((Some("k".into()), "i A".into())));
        names.title_field = None;
        names.text_field = Some("meta.abstract".into());
        let json = r#"{"key": "k", "meta": {"abstract": "A"}, "text": "x"}"#;
        assert_eq!(document(&names, json), Ok((Some("k".into()), "A".into())));
        names.text_field = Some("abstract".into());
        let missing = document(&names, r#"{"text": "x"}"#).expect_err("missing");
        assert!(missing.starts_with("\"abstract\" is missing; the fields are text; "), "{missing}");
        let missing = document(&names, r#"{"doc": {"text": "x"}}"#).expect_err("missing");
        assert!(missing.starts_with("\"doc\": \"abstract\" is missing"), "{missing}");
    }

    #[test]
    fn document_names_the_field_that_is_wrong() {
        for (json, said) in [
            ("{}", "\"text\" is missing"),
            (r#"{"text": null}"#, "\"text\" is null"),
            (r#"{"text": 3}"#, "\"text\" is not a string"),
            (r#"{"text": "a", "title": []}"#, "\"title\" is not a string"),
            (r#"{"text": "a", "id": true}"#, "\"id\" is neither a string nor a number"),
            (r#"{"text": "a", "score": "high"}"#, "\"score\" is not a number"),
            (r#"{"text": "a", "score": 1e999}"#, "\"score\" is not a number"),
            (r#"{"text": "a", "text": "b"}"#, "the field \"text\" occurs twice"),
            (r#"{"query": "q", "documents": ["a"]}"#, "jq -c '.[\"documents\"][]'"),
            (r#"{"took": 3, "hits": {"hits": [{"_id": "a"}]}}"#, r#"jq -c '.["hits"]["hits"][]'"#),
            (
                r#"{"_shards": {"failures": [{"shard": 0}]}, "hits": { "hits": [ { "_source": {} } ] } }"#,
                r#"jq -c '.["hits"]["hits"][]'"#,
            ),
            (
                r#"{"response": {"docs": [{"id": "1", "text": ["a"]}]}}"#,
                r#"jq -c '.["response"]["docs"][]'"#,
            ),
            (r#"{"facet_counts": [], "hits": [{"document": {}}]}"#, r#"jq -c '.["hits"][]'"#),
            (
                r#"{"features": [{"name": "text"}], "rows": [{"row": {"text": "a"}}]}"#,
                r#"jq -c '.["rows"][]'"#,
            ),
            (
                r#"{"data": {"Get": {"Page": [{"content": "a"}]}}}"#,
                r#"jq -c '.["data"]["Get"]["Page"][]'"#,
            ),
            (r#"{"ids": [["a"]], "abstract": ["One.", "Two."]}"#, "text with --text-field"),
            (r#"{"d1": "one", "d2": "two"}"#, "jq -c 'to_entries[] | {id: .key, text: .value}'"),
            (r#"{"id": 1, "meta": {"abstract": "A leaf"}}"#, "such as --text-field meta.abstract"),
            (
                r#"{"text": {"en": "a"}}"#,
                "an object with the fields en; name one of them as --text-field text.NAME",
            ),
            (r#"{"text": "a", "score": "1,234"}"#, "\"score\" is not a number; write one"),
            (
                r#"{"d1": {"text": "a"}, "d2": {"text": "b"}}"#,
                "jq -c 'to_entries[] | {id: .key} + .value'",
            ),
            (r#"{"doc": {"title": "T"}}"#, "\"doc\": \"text\" is missing; the fields are title"),
        ] {
            let reason = document(&FieldNames::default(), json).expect_err(json);
            assert!(reason.contains(said), "{reason}");
        }
    }
}
