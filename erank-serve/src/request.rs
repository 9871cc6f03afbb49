//! A request's fields, by the names of any client.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use erank_core::{LossyString, Mode, ScoringOptions};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::problem::Problem;
use crate::settings::{Settings, Unscored};

/// The largest number of documents, tokens and candidates that a request can state.
const MAX_INTEGER: u64 = 1_000_000_000;

/// The largest seed. Every language writes integers up to it exactly.
const MAX_SEED: u64 = (1 << 53) - 1;

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
}

/// The fields of a JSON object, each not yet parsed.
struct Fields<'a>(BTreeMap<String, &'a RawValue>);

impl RerankRequest {
    /// Parses and checks a body.
    ///
    /// # Errors
    /// Returns 400 if the body is no JSON object, 404 for another model, and 422 with the field's name for a field that
    /// is missing or wrong. An unusable document is no error of the request.
    pub(crate) fn read(body: &[u8], model: &str, settings: &Settings) -> Result<Self, Problem> {
        let bad = |error: String| Problem::new(StatusCode::BAD_REQUEST, error);
        let text = std::str::from_utf8(body).map_err(|error| bad(format!("the body: {error}")))?;
        let object: BTreeMap<LossyString, &RawValue> = serde_json::from_str(text).map_err(|e| {
            if e.is_data() {
                return Problem::new(
                    StatusCode::UNPROCESSABLE_ENTITY,
                    "the body is no JSON object",
                );
            }
            bad(format!("the body is no valid JSON: {e}"))
        })?;
        let mut fields = Fields(object.into_iter().map(|(name, raw)| (name.0, raw)).collect());
        let is_tei = fields.0.contains_key("texts") && !fields.0.contains_key("documents");
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
            let message = format!("model: {named:?} is unknown; this service has {known:?}");
            return Err(Problem::new(StatusCode::NOT_FOUND, message).with_field("model"));
        }
        let query = fields.text("query")?.ok_or_else(|| missing("query"))?;
        let instruct = fields.text("instruct")?;
        let instruction = fields.text("instruction")?.or(instruct);
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
        let documents = fields.documents(is_tei, settings.max_documents)?;
        let needless = match settings.template.answers().is_bare() {
            true => fields.of_reasoning(),
            false => Vec::new(),
        };
        let options = fields.options(settings)?;
        let top_n = fields.integer("top_n", MAX_INTEGER)?.unwrap_or_default() as usize;
        let min_score = fields.take("min_score")?;
        let first_stage_weight = fields.take("first_stage_weight")?;
        let time = fields.take::<f64>("timeout")?.map_or(Ok(settings.request_time), |seconds| {
            let seconds = seconds.min(settings.request_time.as_secs_f64());
            Duration::try_from_secs_f64(seconds).map_err(|e| Problem::of_field("timeout", e))
        })?;
        let is_stream = fields.take("stream")?.unwrap_or(false);
        let returns_text = fields.take("return_documents")?;
        let reply = ReplyOptions {
            form: match is_tei {
                true => ReplyForm::Tei { raw: fields.take("raw_scores")?.unwrap_or(false) },
                false => ReplyForm::Cohere,
            },
            documents: match is_tei {
                true => fields.take("return_text")?.or(returns_text).unwrap_or(false),
                false => returns_text.unwrap_or(false),
            },
            reasoning: fields.take("return_reasoning")?.unwrap_or(is_stream),
            unscored: fields.take("unscored")?.unwrap_or(settings.unscored),
        };
        if is_tei {
            // A text is always truncated to its limit.
            let _: Option<bool> = fields.take("truncate")?;
        }
        let unknown = fields.0.keys();
        let mut warnings: Vec<String> =
            unknown.map(|name| format!("the unknown field {name:?} is ignored")).collect();
        warnings.extend(needless.iter().map(|name| {
            format!("the field {name:?} is ignored, because the model answers without reasoning")
        }));
        warnings.truncate(20);
        Ok(Self {
            query,
            instruction,
            documents,
            options,
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
    /// Removes a field and parses it. `null` counts as missing.
    fn take<T: Deserialize<'a>>(&mut self, name: &str) -> Result<Option<T>, Problem> {
        let Some(raw) = self.0.remove(name) else { return Ok(None) };
        serde_json::from_str(raw.get()).map_err(|error| Problem::of_field(name, plain(&error)))
    }

    fn text(&mut self, name: &str) -> Result<Option<String>, Problem> {
        Ok(self.take::<LossyString>(name)?.map(|LossyString(text)| text))
    }

    fn documents(&mut self, is_tei: bool, limit: usize) -> Result<Vec<GivenDocument>, Problem> {
        let name = if is_tei { "texts" } else { "documents" };
        let given: Vec<&RawValue> = self.take(name)?.ok_or_else(|| missing(name))?;
        if given.is_empty() {
            return Err(Problem::of_field(name, "it is empty; send at least one document"));
        }
        if given.len() > limit {
            let problem = format!("it has {} entries; the limit is {limit}", given.len());
            return Err(Problem::of_field(name, problem));
        }
        let fields: Option<Vec<String>> = self.take("rank_fields")?;
        Ok(given.into_iter().map(|raw| document(raw.get(), fields.as_deref())).collect())
    }

    /// Returns the names of the given fields that concern only the reasoning.
    fn of_reasoning(&self) -> Vec<&'static str> {
        let is_given = |name: &&str| match self.0.get(*name).map(|raw| raw.get()) {
            None | Some("null") => false,
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
        // For vLLM's clients, -1 stands for the model's own limit.
        if self.0.get("truncate_prompt_tokens").is_some_and(|raw| raw.get() == "-1") {
            self.0.remove("truncate_prompt_tokens");
        }
        if let Some(tokens) = self.integer("truncate_prompt_tokens", MAX_INTEGER)? {
            options.max_prompt_tokens = Some(tokens as usize);
        }
        let sampling = &mut options.sampling;
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
            let Some(given) = self.take::<f64>(name)? else { continue };
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
        let Some(number) = self.take::<serde_json::Number>(name)? else { return Ok(None) };
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
}

/// The modes by their names in a request.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum GivenMode {
    Reason,
    AnswerOnly,
}

/// Parses a document: a string, or an object with a text. The named fields are the text, if there are names.
fn document(json: &str, names: Option<&[String]>) -> GivenDocument {
    let read = match json.as_bytes().first() {
        Some(b'"') => string(json).map(|text| GivenDocument { text, ..GivenDocument::default() }),
        Some(b'{') => object(json, names),
        _ => Err("it is neither a string nor an object".to_owned()),
    };
    read.unwrap_or_else(|problem| GivenDocument { problem: Some(problem), ..Default::default() })
}

fn object(json: &str, names: Option<&[String]>) -> Result<GivenDocument, String> {
    let fields: BTreeMap<LossyString, &RawValue> =
        serde_json::from_str(json).map_err(|error| plain(&error))?;
    let field = |name: &str| match fields.get(&LossyString(name.to_owned())) {
        Some(raw) if raw.get() != "null" => Some(raw.get()),
        _ => None,
    };
    let text = |name: &str| {
        let json = field(name)?;
        Some(match json.as_bytes().first() {
            Some(b'"') => string(json),
            // A number or a list as the text of a field, which Cohere allows too.
            _ => Ok(json.to_owned()),
        })
    };
    let text = match names {
        Some(names) => {
            let texts: Vec<String> =
                names.iter().filter_map(|name| text(name)).collect::<Result<_, _>>()?;
            if texts.is_empty() {
                return Err(format!("it has none of the rank_fields {names:?}"));
            }
            texts.join("\n")
        }
        None => {
            let Some(json) = field("text") else {
                return Err("it has no field \"text\"; name its fields in rank_fields".to_owned());
            };
            let title = text("title").transpose()?.filter(|title| !title.is_empty());
            // BEIR's rerankers put the title before the text, too.
            title.into_iter().chain([string(json)?]).collect::<Vec<_>>().join(" ")
        }
    };
    let score = field("score").map(serde_json::from_str).transpose();
    let score = score.map_err(|error| format!("score: {}", plain(&error)))?;
    let id = field("id").map(|json| string(json).unwrap_or_else(|_| json.to_owned()));
    Ok(GivenDocument { text, id, score, problem: None })
}

fn string(json: &str) -> Result<String, String> {
    serde_json::from_str(json).map(|LossyString(text)| text).map_err(|error| plain(&error))
}

fn missing(name: &str) -> Problem {
    Problem::of_field(name, "it is missing")
}

/// Returns serde_json's message without the position, which is that within the field.
fn plain(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or(&message).to_owned()
}
