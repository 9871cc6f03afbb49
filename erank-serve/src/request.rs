//! A request's fields, by the names of any client.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use axum::http::StatusCode;
use erank_core::{LossyString, Mode, ScoringOptions, Windows};
use serde::de::{DeserializeOwned, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Number;
use serde_json::value::{RawValue, to_raw_value};

use crate::problem::{MAX_MESSAGE_CHARS, MAX_NAME_CHARS, Problem, cut};
use crate::settings::{Settings, Unscored};

/// The largest number of documents, tokens and candidates that a request can state.
const MAX_INTEGER: u64 = 1_000_000_000;

/// The largest seed. Every language writes integers up to it exactly.
const MAX_SEED: u64 = (1 << 53) - 1;

const NULL: &str = "null";

/// The largest number of names in `rank_fields`.
const MAX_RANK_FIELDS: usize = 64;

/// The largest number of fields of a JSON object. A field takes some ten times the memory of its shortest text.
const MAX_FIELDS: usize = 10_000;

/// The largest number of warnings of a kind.
const MAX_WARNINGS: usize = 20;

/// The longest time of a request. A much longer one would exceed the clock's range.
const LONGEST_TIME: Duration = Duration::from_secs(365 * 24 * 3600);

/// The fields that concern only the reasoning. A mode does if it is `reason`.
const REASONING_FIELDS: [&str; 10] = [
    "mode",
    "max_tokens",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
];

/// A request for a ranking.
#[derive(Debug)]
pub(crate) struct RerankRequest {
    pub(crate) query: String,
    /// The goal of the search, or a definition of relevance.
    pub(crate) instruction: Option<String>,
    pub(crate) documents: Vec<GivenDocument>,
    pub(crate) options: ScoringOptions,
    /// The windows of long documents. With `None`, long documents are truncated.
    pub(crate) windows: Option<Windows>,
    /// The number of results. `None` for all.
    pub(crate) top_n: Option<usize>,
    pub(crate) min_score: Option<f64>,
    /// The weight of the documents' own scores.
    pub(crate) first_stage_weight: Option<f64>,
    pub(crate) time: Duration,
    pub(crate) reply: ReplyOptions,
    pub(crate) is_stream: bool,
    /// What the reply warns of, such as unknown fields.
    pub(crate) warnings: Vec<String>,
}

/// What a reply contains.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReplyOptions {
    pub(crate) form: ReplyForm,
    pub(crate) documents: bool,
    pub(crate) reasoning: bool,
    pub(crate) unscored: Unscored,
}

/// The form of a reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReplyForm {
    /// An object with the fields that clients of Cohere, Jina and vLLM read.
    Cohere,
    /// The array of text-embeddings-inference, with scores from 0 to 1 or, if `raw`, those of the model's scale.
    Tei { raw: bool },
}

/// A document as the request gives it.
#[derive(Debug, Default)]
pub(crate) struct GivenDocument {
    /// Empty if there is a problem.
    pub(crate) text: String,
    pub(crate) id: Option<String>,
    /// The first stage's score.
    pub(crate) score: Option<f64>,
    /// The reason that the document is unusable.
    pub(crate) problem: Option<String>,
    /// The JSON object that the reply returns, if it returns documents and the document is an object.
    pub(crate) returned: Option<Box<RawValue>>,
}

/// The fields of a JSON object, each not yet parsed. `null` counts as missing.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some((LossyString(name), raw)) = map.next_entry::<_, &RawValue>()? {
                    fields.insert(name, raw);
                    if fields.len() > MAX_FIELDS {
                        let problem = format_args!("it has more than {MAX_FIELDS} fields");
                        return Err(Error::custom(problem));
                    }
                }
                Ok(Fields(fields))
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// The first entries of a JSON list, and the number of all. A long list takes no memory.
struct List<'a> {
    first: Vec<&'a RawValue>,
    count: usize,
}

impl<'a> List<'a> {
    fn read(json: &'a str, limit: usize) -> serde_json::Result<Self> {
        struct Entries(usize);

        impl<'de> Visitor<'de> for Entries {
            type Value = List<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<List<'de>, A::Error> {
                let mut first = Vec::new();
                while first.len() < self.0 {
                    match list.next_element()? {
                        Some(entry) => first.push(entry),
                        None => return Ok(List { count: first.len(), first }),
                    }
                }
                let mut count = first.len();
                while list.next_element::<IgnoredAny>()?.is_some() {
                    count += 1;
                }
                Ok(List { first, count })
            }
        }

        serde_json::Deserializer::from_str(json).deserialize_seq(Entries(limit))
    }
}

impl RerankRequest {
    /// Parses and checks a body.
    ///
    /// # Errors
    /// Returns 400 if the body is no JSON object, 404 for another model, and 422 with the field's name for a field that
    /// is missing or wrong. An unusable document is no error of the request.
    pub(crate) fn read(body: &[u8], model: &str, settings: &Settings) -> Result<Self, Problem> {
        let bad = |error: String| Problem::new(StatusCode::BAD_REQUEST, error);
        let text = std::str::from_utf8(body)
            .map_err(|error| bad(format!("the body is not in UTF-8: {error}")))?;
        // Some programs on Windows begin a text with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut fields: Fields<'_> = serde_json::from_str(text).map_err(|error| {
            if error.is_data() {
                let message = format!("the body is unusable: {}", plain(&error));
                return Problem::new(StatusCode::UNPROCESSABLE_ENTITY, message);
            }
            let hint = if is_not_a_number(text, &error) {
                "; JSON has neither NaN nor Infinity, so send null"
            } else {
                ""
            };
            bad(format!("the body is no valid JSON: {error}{hint}"))
        })?;
        let is_tei = fields.get("texts").is_some() && fields.get("documents").is_none();
        let request = Self::take(&mut fields, is_tei, model, settings);
        request.map_err(|problem| if is_tei { problem.for_tei() } else { problem })
    }

    fn take(
        fields: &mut Fields<'_>,
        is_tei: bool,
        model: &str,
        settings: &Settings,
    ) -> Result<Self, Problem> {
        let named: String = fields.text("model")?.unwrap_or_default();
        let known = settings.aliases.iter().map(String::as_str).chain([model, ""]);
        if !known.clone().any(|known| known == named) {
            let known: Vec<&str> = known.filter(|name| !name.is_empty()).collect();
            let named = cut(named, MAX_NAME_CHARS);
            let message = format!("model: {named:?} is unknown; this service has {known:?}");
            return Err(Problem::new(StatusCode::NOT_FOUND, message).with_field("model"));
        }
        let query = fields.text("query")?.ok_or_else(|| missing("query"))?;
        // Forms send an empty text for a missing one.
        let is_given = |text: &String| !text.trim().is_empty();
        let instruct = fields.text("instruct")?.filter(is_given);
        let instruction = fields.text("instruction")?.filter(is_given).or(instruct);
        for (name, text) in [("query", Some(&query)), ("instruction", instruction.as_ref())] {
            let (bytes, limit) = (text.map_or(0, String::len), settings.max_query_bytes);
            if bytes > limit {
                let problem = format!("it has {bytes} bytes; the limit is {limit}");
                return Err(Problem::of_field(name, problem));
            }
        }
        if query.trim().is_empty() {
            return Err(Problem::of_field("query", "it is empty"));
        }
        let mut returns_documents = fields.boolean("return_documents")?;
        if is_tei {
            returns_documents = fields.boolean("return_text")?.or(returns_documents);
        }
        let returns_documents = returns_documents.unwrap_or(false);
        let documents =
            fields.documents(is_tei, settings.max_documents, returns_documents && !is_tei)?;
        let needless = match settings.template.answers().is_bare() {
            true => fields.of_reasoning(),
            false => Vec::new(),
        };
        let top_k = fields.get("top_k").and_then(|json| scalar::<f64>(json).ok());
        // vLLM's clients send 0, its default, for no limit of their own.
        fields.take_unset("max_tokens_per_doc", 0.0);
        // vLLM's clients send -1 for the model's own limit.
        fields.take_unset("truncate_prompt_tokens", -1.0);
        let truncates = ["max_tokens_per_doc", "truncate_prompt_tokens"];
        let is_truncated = truncates.iter().any(|name| fields.get(name).is_some());
        let options = fields.options(settings)?;
        let top_n = fields.integer("top_n", MAX_INTEGER)?.unwrap_or_default() as usize;
        let min_score = fields.number("min_score")?;
        let first_stage_weight = fields.number("first_stage_weight")?;
        let limit = settings.request_time.min(LONGEST_TIME);
        let time = fields.number("timeout")?.map_or(Ok(limit), |seconds| {
            let seconds = seconds.min(limit.as_secs_f64());
            Duration::try_from_secs_f64(seconds).map_err(|e| Problem::of_field("timeout", e))
        })?;
        let is_stream = fields.boolean("stream")?.unwrap_or(false);
        let reply = ReplyOptions {
            form: match is_tei {
                true => ReplyForm::Tei { raw: fields.boolean("raw_scores")?.unwrap_or(false) },
                false => ReplyForm::Cohere,
            },
            documents: returns_documents,
            reasoning: fields.boolean("return_reasoning")?.unwrap_or(is_stream),
            unscored: fields.take("unscored")?.unwrap_or(settings.unscored),
        };
        if is_tei {
            // A text is never refused for its length, and is truncated at its end, unless the service has windows.
            fields.boolean("truncate")?;
            fields.text("truncation_direction")?;
        }
        let unknown = fields.0.iter().filter(|(_, raw)| raw.get() != NULL).take(MAX_WARNINGS);
        let mut warnings: Vec<String> = unknown
            .map(|(name, _)| {
                let name = cut(name.clone(), MAX_NAME_CHARS);
                format!("the unknown field {name:?} is ignored")
            })
            .collect();
        warnings.extend(needless.iter().map(|name| {
            format!("the field {name:?} is ignored, because the model answers without reasoning")
        }));
        // Clients of Voyage and mixedbread state the number of results so.
        let has_fewer = |top_k| top_k > 0.0 && top_k < documents.len() as f64;
        if options.sampling.temperature == 0.0 && top_k.is_some_and(has_fewer) {
            let warning = "top_k is a setting of sampling and has no effect at temperature 0; \
                the number of results is top_n";
            warnings.push(warning.to_owned());
        }
        Ok(Self {
            query,
            instruction,
            documents,
            options,
            windows: settings.windows.filter(|_| !is_truncated),
            top_n: (top_n > 0).then_some(top_n),
            min_score,
            first_stage_weight,
            time,
            reply,
            is_stream,
            warnings,
        })
    }
}

impl<'a> Fields<'a> {
    /// Returns a field's JSON.
    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.get(name).map(|raw| raw.get()).filter(|json| *json != NULL)
    }

    fn remove(&mut self, name: &str) -> Option<&'a str> {
        let json = self.get(name);
        self.0.remove(name);
        json
    }

    /// Removes a field and parses it.
    fn take<T: Deserialize<'a>>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        self.take_with(name, |json| serde_json::from_str(json))
    }

    fn take_with<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&'a str) -> serde_json::Result<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(json) = self.remove(name) else { return Ok(None) };
        parse(json).map(Some).map_err(|error| Problem::of_field(name, plain(&error)))
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        Ok(self.take::<LossyString>(name)?.map(|LossyString(text)| text))
    }

    fn number(&mut self, name: &str) -> Result<Option<f64>, Problem> {
        self.take_with(name, scalar)
    }

    /// Takes a boolean in any of the forms that pydantic, which many servers use, accepts.
    fn boolean(&mut self, name: &str) -> Result<Option<bool>, Problem> {
        let Some(json) = self.remove(name) else { return Ok(None) };
        let given = json.trim_matches('"');
        let is_one_of =
            |names: [&str; 6]| names.iter().any(|name| name.eq_ignore_ascii_case(given));
        if is_one_of(["true", "1", "t", "yes", "y", "on"]) {
            Ok(Some(true))
        } else if is_one_of(["false", "0", "f", "no", "n", "off"]) {
            Ok(Some(false))
        } else {
            Err(Problem::of_field(name, "it is neither true nor false"))
        }
    }

    fn documents(
        &mut self,
        is_tei: bool,
        limit: usize,
        returns_objects: bool,
    ) -> Result<Vec<GivenDocument>, Problem> {
        let name = if is_tei { "texts" } else { "documents" };
        let given = self.take_with(name, |json| List::read(json, limit))?;
        let given = given.ok_or_else(|| missing(name))?;
        if given.count == 0 {
            return Err(Problem::of_field(name, "it is empty; send at least one document"));
        }
        if given.count > limit {
            let problem = format!("it has {} entries; the limit is {limit}", given.count);
            return Err(Problem::of_field(name, problem));
        }
        let names = self.rank_fields()?;
        let document = |raw: &RawValue| document(raw.get(), &names, returns_objects);
        Ok(given.first.into_iter().map(document).collect())
    }

    /// Takes the names of the fields that make a document's text.
    fn rank_fields(&mut self) -> Result<Vec<String>, Problem> {
        const NAME: &str = "rank_fields";
        let given = self.take_with(NAME, |json| List::read(json, MAX_RANK_FIELDS))?;
        let Some(given) = given else { return Ok(Vec::new()) };
        if given.count > MAX_RANK_FIELDS {
            let problem = format!("it has {} names; the limit is {MAX_RANK_FIELDS}", given.count);
            return Err(Problem::of_field(NAME, problem));
        }
        let names = given.first.into_iter().map(|raw| string(raw.get()));
        let names: Vec<String> =
            names.collect::<Result<_, _>>().map_err(|error| Problem::of_field(NAME, error))?;
        // With repetitions, a short request could make a huge text.
        if names.iter().collect::<BTreeSet<_>>().len() < names.len() {
            return Err(Problem::of_field(NAME, "it repeats a name; state each name once"));
        }
        Ok(names)
    }

    /// Returns the names of the given fields that concern only the reasoning.
    fn of_reasoning(&self) -> Vec<&'static str> {
        let is_given = |name: &&str| match self.get(name) {
            None => false,
            Some(json) => *name != "mode" || json == "\"reason\"",
        };
        REASONING_FIELDS.into_iter().filter(is_given).collect()
    }

    /// Takes the options of the model, with the names that vLLM has for them.
    fn options(&mut self, settings: &Settings) -> Result<ScoringOptions, Problem> {
        let mut options = settings.options;
        let mode = self.take::<GivenMode>("mode")?;
        let max_tokens = self.integer("max_tokens", MAX_INTEGER)?.map(|tokens| tokens as usize);
        match mode {
            Some(GivenMode::AnswerOnly) => options.mode = Mode::AnswerOnly,
            Some(GivenMode::Reason) if !options.mode.is_reason() => {
                options.mode = ScoringOptions::default().mode;
            }
            _ => {}
        }
        if let (Mode::Reason { max_tokens }, Some(given)) = (&mut options.mode, max_tokens) {
            *max_tokens = given;
        }
        if let Some(samples) = self.integer("samples", settings.max_samples as u64)? {
            options.samples = samples as usize;
        }
        if let Some(tokens) = self.integer("max_tokens_per_doc", MAX_INTEGER)? {
            options.max_document_tokens = tokens as usize;
        }
        if let Some(tokens) = self.integer("truncate_prompt_tokens", MAX_INTEGER)? {
            options.max_prompt_tokens = Some(tokens as usize);
        }
        let sampling = &mut options.sampling;
        // vLLM's clients send -1 and 0 for all tokens.
        if self.take_unset("top_k", -1.0) {
            sampling.top_k = 0;
        }
        sampling.top_k = match self.integer("top_k", MAX_INTEGER)? {
            Some(top_k) => top_k as u32,
            None => sampling.top_k,
        };
        sampling.seed = self.integer("seed", MAX_SEED)?.unwrap_or(sampling.seed);
        // The reranker checks the smallest values. Larger ones than these are mistakes.
        let numbers = [
            ("temperature", &mut sampling.temperature, 100.0),
            ("top_p", &mut sampling.top_p, 1.0),
            ("min_p", &mut sampling.min_p, 1.0),
            ("repetition_penalty", &mut sampling.repetition_penalty, 100.0),
            ("frequency_penalty", &mut sampling.frequency_penalty, 2.0),
            ("presence_penalty", &mut sampling.presence_penalty, 2.0),
        ];
        for (name, option, limit) in numbers {
            let Some(given) = self.number(name)? else { continue };
            if given.abs() > limit {
                let problem = format!("it is {given}; the limit is {limit}");
                return Err(Problem::of_field(name, problem));
            }
            *option = given as f32;
        }
        Ok(options)
    }

    /// Takes a whole number from 0 to `limit`. Languages that have only one kind of numbers write it as `1.0`.
    fn integer(&mut self, name: &str, limit: u64) -> Result<Option<u64>, Problem> {
        let Some(number) = self.take_with(name, scalar::<Number>)? else { return Ok(None) };
        let whole = number.as_f64().filter(|float| float.fract() == 0.0 && *float >= 0.0);
        let value = number.as_u64().or(whole.map(|float| float as u64));
        match value {
            Some(value) if value <= limit => Ok(Some(value)),
            _ => {
                let problem = format!("{number} is not a whole number from 0 to {limit}");
                Err(Problem::of_field(name, problem))
            }
        }
    }

    /// Removes a number if it has the value that stands for a missing one. Returns whether it had.
    fn take_unset(&mut self, name: &str, unset: f64) -> bool {
        let given = self.get(name).and_then(|json| scalar::<f64>(json).ok());
        let is_unset = given == Some(unset);
        if is_unset {
            self.0.remove(name);
        }
        is_unset
    }
}

/// The modes by their names in a request.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GivenMode {
    Reason,
    AnswerOnly,
}

/// Parses a document: a string, or an object with a text. The named fields are the text, if there are names.
fn document(json: &str, names: &[String], returns_objects: bool) -> GivenDocument {
    let mut document = GivenDocument::default();
    let text = match json.as_bytes().first() {
        Some(b'"') => string(json),
        Some(b'{') => match serde_json::from_str(json) {
            Ok(fields) => document.read_object(&fields, names, returns_objects),
            Err(error) => Err(plain(&error)),
        },
        _ => Err("it is neither a string nor an object".to_owned()),
    };
    match text {
        Ok(text) => document.text = text,
        Err(problem) => document.problem = Some(problem),
    }
    document
}

impl GivenDocument {
    /// Reads the fields of an object. Returns its text.
    fn read_object(
        &mut self,
        fields: &Fields<'_>,
        names: &[String],
        is_returned: bool,
    ) -> Result<String, String> {
        self.id = fields.get("id").map(|json| string(json).unwrap_or_else(|_| json.to_owned()));
        let text = fields.ranked_text(names);
        if is_returned {
            self.returned = Some(fields.with_text(text.as_deref().unwrap_or_default()));
        }
        let score = fields.get("score").map(scalar).transpose();
        self.score = score.map_err(|error| format!("score: {}", plain(&error)))?;
        text
    }
}

impl Fields<'_> {
    /// Returns the text of a document that is ranked.
    fn ranked_text(&self, names: &[String]) -> Result<String, String> {
        let text = |name: &str| {
            let json = self.get(name)?;
            Some(match json.as_bytes().first() {
                Some(b'"') => string(json),
                // A number or a list as the text of a field, which Cohere allows too.
                _ => Ok(json.to_owned()),
            })
        };
        if !names.is_empty() {
            let texts: Vec<String> =
                names.iter().filter_map(|name| text(name)).collect::<Result<_, _>>()?;
            if texts.is_empty() {
                return Err("it has none of the rank_fields".to_owned());
            }
            return Ok(texts.join("\n"));
        }
        let Some(json) = self.get("text") else {
            return Err("it has no field \"text\"; name its fields in rank_fields".to_owned());
        };
        let title = text("title").transpose()?.filter(|title| !title.is_empty());
        // BEIR's rerankers put the title before the text, too.
        Ok(title.into_iter().chain([string(json)?]).collect::<Vec<_>>().join(" "))
    }

    /// Returns the object with the field `text`: its own, or else the ranked text.
    fn with_text(&self, ranked: &str) -> Box<RawValue> {
        let value = |json: &str| match string(json) {
            Ok(text) => to_raw_value(&text),
            Err(_) => RawValue::from_string(compact(json)),
        };
        let own = self.0.iter().filter_map(|(name, raw)| Some((name, value(raw.get()).ok()?)));
        let mut fields: BTreeMap<&str, Cow<'_, RawValue>> =
            own.map(|(name, value)| (name.as_str(), Cow::Owned(value))).collect();
        if !fields.get("text").is_some_and(|text| text.get().starts_with('"'))
            && let Ok(text) = to_raw_value(ranked)
        {
            fields.insert("text", Cow::Owned(text));
        }
        to_raw_value(&fields).unwrap_or_default()
    }
}

/// Returns JSON without the white space between its tokens. An event of a stream must not contain line breaks.
fn compact(json: &str) -> String {
    let (mut is_string, mut is_escaped) = (false, false);
    let is_kept = |c: &char| {
        if is_string {
            is_string = is_escaped || *c != '"';
            is_escaped = !is_escaped && *c == '\\';
            return true;
        }
        is_string = *c == '"';
        !c.is_ascii_whitespace()
    };
    json.chars().filter(is_kept).collect()
}

fn string(json: &str) -> Result<String, String> {
    serde_json::from_str(json).map(|LossyString(text)| text).map_err(|error| plain(&error))
}

/// Parses a number. Some clients write numbers as strings.
fn scalar<T: DeserializeOwned>(json: &str) -> serde_json::Result<T> {
    let text = serde_json::from_str::<&str>(json).ok();
    let number = text.and_then(|text| serde_json::from_str(text.trim()).ok());
    number.map_or_else(|| serde_json::from_str(json), Ok)
}

/// Returns whether an error is at NaN or Infinity, which Python writes into JSON.
fn is_not_a_number(json: &str, error: &serde_json::Error) -> bool {
    let line = json.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
    // The column is that of the word's beginning, or one beside it.
    let near = line.as_bytes().get(error.column().saturating_sub(2)..).unwrap_or_default();
    let words = (0..3).filter_map(|skipped| near.get(skipped..));
    words.into_iter().any(|word| word.starts_with(b"NaN") || word.starts_with(b"Infinity"))
}

fn missing(name: &str) -> Problem {
    Problem::of_field(name, "it is missing")
}

/// Returns the beginning of serde_json's message, which may quote the request, without the position within the field.
fn plain(error: &serde_json::Error) -> String {
    let mut message = error.to_string();
    if let Some(end) = message.rfind(" at line ") {
        message.truncate(end);
    }
    cut(message, MAX_MESSAGE_CHARS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_keeps_strings_and_drops_white_space() {
        let json = "{\"a b\" : [1,\r\n \"c \\\" d\\\\\" , \" \"]\t}";
        assert_eq!(compact(json), "{\"a b\":[1,\"c \\\" d\\\\\",\" \"]}");
    }
}
