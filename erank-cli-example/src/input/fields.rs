//! Named fields, and the names by which a document's id, title, text and score are found.

use clap::Args;

use super::{InputDocument, json};
use crate::text;

/// The value of a field.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Text(String),
    /// A number as it is written.
    Number(String),
    /// An array, an object or a boolean, in JSON.
    Other(String),
}

/// The fields of an object or a row, in order.
#[derive(Debug, PartialEq)]
pub(crate) struct Fields(pub(super) Vec<(String, Value)>);

/// The names of fields, in the order in which they are looked for.
pub(crate) type Names<'a> = &'a [&'a str];

/// BEIR and ir_datasets have `_id` and `doc_id`, MS MARCO `pid` and `docid`, TREC `docno`. A passage of MS MARCO v2 has
/// both a `pid` and the `docid` of the page that it comes from.
pub(crate) const ID: Names<'_> = &["id", "_id", "pid", "docid", "doc_id", "docno"];
/// Anserini has `contents`, BRIGHT `content`, MS MARCO v2 `passage`, `segment` and `body`.
const TEXT: Names<'_> = &["text", "contents", "content", "passage", "segment", "body"];
const TITLE: Names<'_> = &["title"];
/// The headings of a page of MS MARCO v2, which its `segment` or `body` lacks.
const HEADINGS: Names<'_> = &["headings"];
pub(crate) const SCORE: Names<'_> = &["score", "_score"];
/// Objects that hold the document of a search hit: rank_llm, Jina and Elasticsearch.
const NESTED: Names<'_> = &["doc", "document", "_source"];

/// The fields of JSON objects, CSV and TSV.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Fields of the documents")]
pub(crate) struct FieldNames {
    /// The field with the text. By default: text, contents, content, passage, segment or body.
    #[arg(long, value_name = "NAME")]
    pub(crate) text_field: Option<String>,
    /// The field with the id. By default: id, _id, pid, docid, doc_id or docno.
    #[arg(long, value_name = "NAME")]
    pub(crate) id_field: Option<String>,
    /// The field with the title, which is put before the text. By default: title. An empty name leaves titles out.
    #[arg(long, value_name = "NAME")]
    pub(crate) title_field: Option<String>,
}

/// The columns by which the header of a table is recognised.
#[derive(Debug, Clone)]
pub(crate) struct Columns<'a> {
    /// The names of the text.
    pub(crate) text: Vec<&'a str>,
    /// The names of other fields.
    pub(crate) others: Vec<&'a str>,
    /// The name of the text that the user gave.
    pub(crate) text_field: Option<&'a str>,
}

impl Columns<'_> {
    /// Returns the name of a column in a header. Known names may be in any case there, and have spaces or hyphens, such
    /// as `Doc ID` for `doc_id`.
    pub(super) fn name(&self, cell: &str) -> String {
        let cell = cell.trim();
        let lower = cell.to_lowercase();
        let joined = lower.replace([' ', '-'], "_");
        let names = [cell, &lower, &joined].into_iter();
        names.clone().find(|name| self.is_known(name)).unwrap_or(cell).to_owned()
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

impl FieldNames {
    /// Returns the columns by which the header of a table is recognised.
    pub(crate) fn columns(&self) -> Columns<'_> {
        let (id, title) = (self.id_field.as_deref(), self.title_field.as_deref());
        let known = [ID, TITLE, HEADINGS, SCORE].into_iter().flatten().copied();
        Columns {
            text: self.text_field.as_deref().map_or_else(|| TEXT.to_vec(), |name| vec![name]),
            others: known.chain(id).chain(title).collect(),
            text_field: self.text_field.as_deref(),
        }
    }

    /// Returns the document that the fields hold, or else its id, if known, and the reason why they hold none.
    pub(crate) fn document(
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

    /// Takes the id. An empty one counts as absent.
    pub(crate) fn id(&self, fields: &mut Fields) -> Result<Option<String>, String> {
        match self.id_field.as_deref() {
            Some(name) => fields.take_id(&[name]),
            None => fields.take_id(ID),
        }
    }

    /// Takes the text with the title and the headings before it, separated by spaces, as BEIR's rerankers join them.
    pub(crate) fn text(&self, fields: &mut Fields) -> Result<String, String> {
        match self.find_text(fields)? {
            Some(text) => Ok(text),
            None => Err(fields.missing(self.wanted_text())),
        }
    }

    /// Returns the name of the text for messages.
    fn wanted_text(&self) -> &str {
        self.text_field.as_deref().unwrap_or(TEXT[0])
    }

    /// Takes the text as [`text`](Self::text) does, or returns `None` if it is missing or null.
    pub(crate) fn find_text(&self, fields: &mut Fields) -> Result<Option<String>, String> {
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
        match fields.take(NESTED)? {
            Some((_, Value::Text(text))) => Ok(Some(self.title(fields)? + &text)),
            Some((name, Value::Other(object))) if object.starts_with('{') => {
                let mut inner = json::object(&object)?;
                let title = match self.title(&mut inner)? {
                    title if title.is_empty() => self.title(fields)?,
                    title => title,
                };
                let text = self.own_text(&mut inner)?;
                text.map(|text| Some(title + &text))
                    .ok_or_else(|| format!("{name:?}: {}", inner.missing(self.wanted_text())))
            }
            _ => Ok(None),
        }
    }
}

impl Fields {
    /// Takes the first of these fields that is there and not null, with its name.
    ///
    /// # Errors
    ///
    /// Returns an error if the field occurs twice, because programs differ in which of the two they read.
    pub(crate) fn take(&mut self, names: Names<'_>) -> Result<Option<(String, Value)>, String> {
        for wanted in names {
            let mut found = self.0.iter_mut().filter(|(name, _)| name == wanted);
            let Some((name, value)) = found.next() else { continue };
            if found.next().is_some() {
                return Err(format!("the field {wanted:?} occurs twice; remove one"));
            }
            match std::mem::replace(value, Value::Null) {
                Value::Null => {}
                value => return Ok(Some((name.clone(), value))),
            }
        }
        Ok(None)
    }

    /// Returns the names with their values.
    pub(crate) fn into_entries(self) -> impl Iterator<Item = (String, Value)> {
        self.0.into_iter()
    }

    /// Takes an id: a string or a number. An empty one counts as absent.
    pub(crate) fn take_id(&mut self, names: Names<'_>) -> Result<Option<String>, String> {
        self.take(names)?.map_or(Ok(None), |(name, value)| value.id(&name))
    }

    /// Takes a string.
    pub(crate) fn take_text(&mut self, names: Names<'_>) -> Result<Option<String>, String> {
        self.take(names)?.map(|(name, value)| value.text(&name)).transpose()
    }

    /// Takes a string with a space after it. Returns an empty string if it is missing or blank.
    fn take_prefix(&mut self, names: Names<'_>) -> Result<String, String> {
        let prefix = self.take_text(names)?.filter(|text| !text.trim().is_empty());
        Ok(prefix.map_or(String::new(), |text| text + " "))
    }

    /// Takes the elements of an array.
    pub(crate) fn take_array(&mut self, names: Names<'_>) -> Result<Option<Vec<Value>>, String> {
        let Some((name, value)) = self.take(names)? else { return Ok(None) };
        match value {
            Value::Other(json) if json.starts_with('[') => json::array(&json).map(Some),
            _ => Err(format!("{name:?} is not an array")),
        }
    }

    /// Takes the score.
    pub(crate) fn score(&mut self) -> Result<Option<f64>, String> {
        let Some((name, value)) = self.take(SCORE)? else { return Ok(None) };
        let score = match value {
            Value::Text(score) if score.trim().is_empty() => return Ok(None),
            Value::Text(score) | Value::Number(score) => score.trim().parse().ok(),
            _ => None,
        };
        let score = score.filter(|score: &f64| score.is_finite());
        score.map(Some).ok_or_else(|| format!("{name:?} is not a number"))
    }

    /// Returns the path of the first array, as jq writes it: that of a field, or of a field of an object, as in a
    /// response of Elasticsearch.
    fn array(&self) -> Option<String> {
        self.0.iter().find_map(|(name, value)| match value {
            Value::Other(json) if json.starts_with('[') => Some(format!("[{name:?}]")),
            Value::Other(json) if json.starts_with('{') => {
                let inner = json::object(json).ok()?.0.into_iter();
                let mut arrays = inner.filter(
                    |(_, value)| matches!(value, Value::Other(json) if json.starts_with("[{")),
                );
                arrays.next().map(|(inner, _)| format!("[{name:?}][{inner:?}]"))
            }
            _ => None,
        })
    }

    /// Returns the error for a field that is missing, with the names of the others.
    fn missing(&self, wanted: &str) -> String {
        if self.0.iter().any(|(name, _)| name == wanted) {
            return format!("{wanted:?} is null");
        }
        let advice = match self.array() {
            Some(path) => format!(
                "; if the documents are the elements of an array, write them as lines: jq -c '.{path}[]'"
            ),
            None if !self.0.is_empty() && self.0.iter().all(|(_, value)| value.is_object()) => {
                "; if the names are ids, write the documents as lines: jq -c 'to_entries[] | {id: .key} + .value'".into()
            }
            None => "; name the field of the text with --text-field".into(),
        };
        format!("{wanted:?} is missing; the fields are {}{advice}", self.names())
    }

    /// Returns the names of the first fields.
    pub(crate) fn names(&self) -> String {
        const MAX_LISTED: usize = 10;
        let listed = self.0.iter().take(MAX_LISTED);
        let mut names: Vec<String> = listed.map(|(name, _)| text::beginning(name)).collect();
        if self.0.len() > MAX_LISTED {
            names.push("…".into());
        }
        names.join(", ")
    }
}

impl Value {
    pub(crate) fn text(self, name: &str) -> Result<String, String> {
        match self {
            Self::Text(text) => Ok(text),
            _ => Err(format!("{name:?} is not a string")),
        }
    }

    /// Returns a string or a number as it is written. Null and an empty string are no id.
    pub(crate) fn id(self, name: &str) -> Result<Option<String>, String> {
        match self {
            Self::Null => Ok(None),
            Self::Text(id) | Self::Number(id) => Ok(Some(id).filter(|id| !id.is_empty())),
            Self::Other(_) => Err(format!("{name:?} is neither a string nor a number")),
        }
    }

    pub(crate) fn is_object(&self) -> bool {
        matches!(self, Self::Other(json) if json.starts_with('{'))
    }

    /// Returns the fields of an object.
    pub(crate) fn object(self, name: &str) -> Result<Fields, String> {
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
