//! The next step for an object without a text: where its documents are, and how to write them as lines.

use super::fields::{FieldNames, Fields, Value};
use super::json;

/// The names of arrays that hold documents in the responses of search engines.
const LISTS: [&str; 7] = ["hits", "docs", "documents", "results", "rows", "children", "points"];
/// The names of arrays of strings that are documents.
const TEXTS: [&str; 5] = ["documents", "docs", "texts", "passages", "contexts"];
/// Number of levels of objects that are searched for the array.
const MAX_DEPTH: usize = 3;

/// Returns the next step after the fields of an object without a text.
pub(super) fn advice(fields: &Fields, names: &FieldNames) -> String {
    if let Some((_, path)) = list(fields, names, MAX_DEPTH) {
        return format!(
            "if the documents are the elements of an array, write them as lines: jq -c '.{path}[]'"
        );
    }
    let values = || fields.0.iter().map(|(_, value)| value);
    let has_digit = |(name, _): &(String, Value)| name.contains(|c: char| c.is_ascii_digit());
    let name_it = "name the field of the text with --text-field";
    if fields.0.len() > 1 && values().all(|value| inner(value).is_some_and(|f| names.has_text(&f)))
    {
        let lines = "jq -c 'to_entries[] | {id: .key} + .value'";
        return format!("if the names are ids, write the documents as lines: {lines}");
    }
    let are_texts =
        fields.0.iter().all(has_digit) && values().all(|value| matches!(value, Value::Text(_)));
    if fields.0.len() > 1 && are_texts {
        let lines = "jq -c 'to_entries[] | {id: .key, text: .value}'";
        return format!(
            "{name_it}, or if the names are ids, write the documents as lines: {lines}"
        );
    }
    let mut nested = fields.0.iter().filter(|_| !fields.0.iter().any(is_sentence));
    let nested = nested.find_map(|(name, value)| {
        let mut texts = inner(value)?.0.into_iter().filter(is_sentence);
        texts.next().map(|(inner, _)| format!(", such as --text-field {name}.{inner}"))
    });
    name_it.to_owned() + &nested.unwrap_or_default()
}

/// Returns whether a field has more than one word.
fn is_sentence((_, value): &(String, Value)) -> bool {
    matches!(value, Value::Text(text) if text.trim().contains(' '))
}

/// Returns the fields of a value that is an object.
fn inner(value: &Value) -> Option<Fields> {
    match value {
        Value::Other(json) if json.starts_with('{') => json::object(json).ok(),
        _ => None,
    }
}

/// Returns the path of the array that most probably holds documents, as jq writes it, after a number that is smaller
/// the more probable it is.
fn list(fields: &Fields, names: &FieldNames, depth: usize) -> Option<(u8, String)> {
    let found = fields.0.iter().filter_map(|(name, value)| {
        let (rank, path) = match (value, inner(value)) {
            (_, Some(inner)) if depth > 1 => list(&inner, names, depth - 1)?,
            (Value::Other(array), None) if array.starts_with('[') => {
                (rank(name, array, names)?, String::new())
            }
            _ => return None,
        };
        Some((rank, format!("[{name:?}]{path}")))
    });
    found.min_by_key(|(rank, _)| *rank)
}

/// Returns how probably an array holds documents, 0 for the most probable one, or `None` if it holds none.
fn rank(name: &str, array: &str, names: &FieldNames) -> Option<u8> {
    let first = json::array(array).ok()?.into_iter().next()?;
    let Some(fields) = inner(&first) else {
        return (matches!(first, Value::Text(_)) && TEXTS.contains(&name)).then_some(2);
    };
    match () {
        () if names.has_text(&fields) || names.nested(&fields).is_some() => Some(0),
        () if LISTS.contains(&name) => Some(1),
        () if fields.0.iter().any(is_sentence) => Some(3),
        () => Some(4),
    }
}
