//! Replies as JSON.

use axum::http::StatusCode;
use erank_core::{
    Answer, AnswerFormat, DocumentError, DocumentFailure, RankedDocument, Ranking, ScoredWindow,
};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::request::{GivenDocument, ReplyForm, RerankRequest};
use crate::settings::Unscored;

/// A reply in the form of Cohere, Jina and vLLM.
#[derive(Serialize)]
struct CohereReply<'a> {
    id: &'a str,
    object: &'a str,
    model: &'a str,
    results: Vec<Entry<'a>>,
    unscored: Vec<Value>,
    below_min_score: Vec<Entry<'a>>,
    usage: Value,
    meta: Value,
}

/// A result.
#[derive(Serialize)]
struct Entry<'a> {
    #[serde(flatten)]
    fields: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<ReturnedDocument<'a>>,
}

/// A document as the reply returns it. JSON stays text, because a parsed value takes many times the memory.
#[derive(Serialize)]
#[serde(untagged)]
enum ReturnedDocument<'a> {
    Object(&'a RawValue),
    Text { text: &'a str },
}

/// Returns the reply to a request as JSON.
///
/// # Errors
/// Returns an error if a document has no score and the request asks for an error in this case. It is 504 for a document
/// that was not reached in time, 503 for a failure of the backend, and otherwise 422.
pub(crate) fn reply(
    id: &str,
    model: &str,
    answers: &AnswerFormat,
    request: &RerankRequest,
    ranking: &Ranking,
) -> Result<String, Problem> {
    let unscored: Vec<Value> = ranking.unscored.iter().map(|d| failure(request, d)).collect();
    if let (Unscored::Error, Some(first)) = (request.reply.unscored, unscored.first()) {
        let field = format!("documents[{}]", first["index"]);
        let message = first["error"]["message"].as_str().unwrap_or_default();
        let problem = Problem::of_field(&field, message);
        let status = match ranking.unscored.first().map(|first| first.error.without_window()) {
            Some(DocumentError::Cancelled) => StatusCode::GATEWAY_TIMEOUT,
            Some(
                DocumentError::Backend(_) | DocumentError::NotReached | DocumentError::NotReported,
            ) => StatusCode::SERVICE_UNAVAILABLE,
            _ => problem.status,
        };
        return Err(problem.with_status(status));
    }
    let scale = Scale { answers, is_fused: request.first_stage_weight.is_some() };
    let mut results: Vec<Entry<'_>> =
        ranking.documents.iter().map(|document| result(request, scale, document)).collect();
    if request.reply.unscored == Unscored::Last {
        let lowest = ranking.documents.iter().map(|document| scale.of(document.score));
        let below_all = lowest.fold(0.0, f64::min) - 1.0;
        results.extend(unscored.iter().map(|unscored| {
            let mut last = with_document(request, &unscored["index"]);
            last.fields["relevance_score"] = below_all.into();
            last.fields["error"] = unscored["error"].clone();
            last
        }));
    }
    results.truncate(request.top_n.unwrap_or(usize::MAX));
    if let ReplyForm::Tei { raw } = request.reply.form {
        return to_json(&tei(request, &results, &ranking.documents, raw));
    }
    let below = ranking.below_min_score.iter().map(|document| result(request, scale, document));
    let mut warnings = request.warnings.clone();
    warnings.extend(unscored.iter().take(20).map(|failure| {
        let message = failure["error"]["message"].as_str().unwrap_or_default();
        format!("document {} has no score: {message}", failure["index"])
    }));
    let (prompt, generated) = (ranking.tokens.prompt, ranking.tokens.generated);
    to_json(&CohereReply {
        id,
        object: "list",
        model,
        results,
        below_min_score: below.collect(),
        usage: json!({"prompt_tokens": prompt, "total_tokens": prompt.saturating_add(generated)}),
        meta: json!({
            "api_version": {"version": "2"},
            // Cohere bills one search unit for a query with up to 100 documents.
            "billed_units": {"search_units": request.documents.len().div_ceil(100)},
            "tokens": {"input_tokens": prompt, "output_tokens": generated},
            "warnings": warnings,
        }),
        unscored,
    })
}

fn to_json(reply: &impl Serialize) -> Result<String, Problem> {
    serde_json::to_string(reply).map_err(|_| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the reply cannot be written as JSON")
    })
}

/// Returns the results as text-embeddings-inference has them.
fn tei(
    request: &RerankRequest,
    results: &[Entry<'_>],
    documents: &[RankedDocument],
    raw: bool,
) -> Value {
    let item = |Entry { fields, .. }: &Entry<'_>| {
        let index = &fields["index"];
        let ranked = documents.iter().find(|document| *index == document.index);
        let score = match ranked {
            Some(document) if raw => document.score.into(),
            _ => fields["relevance_score"].clone(),
        };
        let mut item = json!({"index": index, "score": score});
        if let (true, Some(given)) = (request.reply.documents, given(request, index)) {
            item["text"] = given.text.as_str().into();
        }
        item
    };
    results.iter().map(item).collect()
}

/// The scale of `relevance_score`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scale<'a> {
    pub(crate) answers: &'a AnswerFormat,
    /// Whether the score is fused with the first stage's, and so has no bounds.
    pub(crate) is_fused: bool,
}

impl Scale<'_> {
    /// Returns a score from 0 to 1, as clients expect, or the score itself if it has no bounds.
    pub(crate) fn of(self, score: f64) -> f64 {
        let bounded = if self.is_fused { None } else { self.answers.relevance(score) };
        bounded.unwrap_or(score)
    }
}

fn result<'a>(
    request: &'a RerankRequest,
    scale: Scale<'_>,
    document: &RankedDocument,
) -> Entry<'a> {
    let mut result = with_document(request, &document.index.into());
    let fields = &mut result.fields;
    fields["relevance_score"] = scale.of(document.score).into();
    fields["relevance"] = document.relevance.into();
    fields["truncated"] = document.truncated.into();
    if request.windows.is_some() {
        fields["windows"] =
            document.windows.iter().map(|window| window_json(scale, window)).collect();
    }
    if request.reply.reasoning {
        add_answer(fields, scale.answers, &document.answer);
    }
    result
}

/// Describes a window by its bytes in the document's text in UTF-8.
fn window_json(scale: Scale<'_>, window: &ScoredWindow) -> Value {
    // A window's score is that before fusion.
    let score = Scale { is_fused: false, ..scale }.of(window.score);
    json!({"start": window.bytes.start, "end": window.bytes.end, "relevance_score": score})
}

/// Adds the answer with its reasoning and its distribution to a result.
pub(crate) fn add_answer(result: &mut Value, answers: &AnswerFormat, answer: &Answer) {
    let distribution = answer.distribution.as_ref().map(|distribution| {
        let answers = answers.answers().enumerate();
        let entry = |(index, (label, value))| {
            json!({"answer": value, "label": label, "probability": distribution.probability(index)})
        };
        answers.map(entry).collect::<Vec<Value>>()
    });
    result["answer"] = answer.integer.into();
    result["probability"] = answer.probability.into();
    result["reasoning"] = answer.reasoning.as_str().into();
    result["distribution"] = distribution.into();
}

/// Returns a result with its index, and with its document if the request asks for it.
fn with_document<'a>(request: &'a RerankRequest, index: &Value) -> Entry<'a> {
    let mut fields = json!({"index": index});
    let given = given(request, index);
    if let Some(id) = given.and_then(|given| given.id.as_deref()) {
        fields["id"] = id.into();
    }
    let document = given.filter(|_| request.reply.documents).map(|given| match &given.returned {
        Some(object) => ReturnedDocument::Object(object),
        None => ReturnedDocument::Text { text: &given.text },
    });
    Entry { fields, document }
}

fn given<'a>(request: &'a RerankRequest, index: &Value) -> Option<&'a GivenDocument> {
    index.as_u64().and_then(|index| request.documents.get(index as usize))
}

/// Describes a document without a score.
fn failure(request: &RerankRequest, failure: &DocumentFailure) -> Value {
    let given = &request.documents[failure.index];
    let error = document_error(given, &failure.error);
    json!({"index": failure.index, "id": given.id, "error": error})
}

/// Describes the error of a document. An unusable document was empty for the reranker.
pub(crate) fn document_error(given: &GivenDocument, error: &DocumentError) -> Value {
    match &given.problem {
        Some(problem) => json!({"code": "invalid_document", "message": problem}),
        None => serde_json::to_value(error).unwrap_or_default(),
    }
}
