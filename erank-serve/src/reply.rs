//! Replies as JSON.

use axum::http::StatusCode;
use erank_core::{Answer, AnswerFormat, DocumentError, DocumentFailure, RankedDocument, Ranking};
use serde_json::{Value, json};

use crate::problem::Problem;
use crate::request::{GivenDocument, ReplyForm, RerankRequest};
use crate::settings::Unscored;

/// Returns the reply to a request.
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
) -> Result<Value, Problem> {
    let unscored: Vec<Value> = ranking.unscored.iter().map(|d| failure(request, d)).collect();
    if let (Unscored::Error, Some(first)) = (request.reply.unscored, unscored.first()) {
        let field = format!("documents[{}]", first["index"]);
        let message = first["error"]["message"].as_str().unwrap_or_default();
        let problem = Problem::of_field(&field, message);
        let status = match first["error"]["code"].as_str() {
            Some("cancelled") => StatusCode::GATEWAY_TIMEOUT,
            Some("backend" | "not_reached" | "not_reported") => StatusCode::SERVICE_UNAVAILABLE,
            _ => problem.status,
        };
        return Err(problem.with_status(status));
    }
    let scale = Scale { answers, is_fused: request.first_stage_weight.is_some() };
    let mut results: Vec<Value> =
        ranking.documents.iter().map(|document| result(request, scale, document)).collect();
    if request.reply.unscored == Unscored::Last {
        let lowest = ranking.documents.iter().map(|document| scale.of(document.score));
        let below_all = lowest.fold(0.0, f64::min) - 1.0;
        results.extend(unscored.iter().map(|unscored| {
            let mut last = with_document(request, &unscored["index"]);
            last["relevance_score"] = below_all.into();
            last["error"] = unscored["error"].clone();
            last
        }));
    }
    results.truncate(request.top_n.unwrap_or(usize::MAX));
    if let ReplyForm::Tei { raw } = request.reply.form {
        return Ok(tei(&results, &ranking.documents, raw));
    }
    let below: Vec<Value> =
        ranking.below_min_score.iter().map(|document| result(request, scale, document)).collect();
    let mut warnings = request.warnings.clone();
    warnings.extend(unscored.iter().take(20).map(|failure| {
        let message = failure["error"]["message"].as_str().unwrap_or_default();
        format!("document {} has no score: {message}", failure["index"])
    }));
    let (prompt, generated) = (ranking.tokens.prompt, ranking.tokens.generated);
    Ok(json!({
        "id": id,
        "object": "list",
        "model": model,
        "results": results,
        "unscored": unscored,
        "below_min_score": below,
        "usage": {"prompt_tokens": prompt, "total_tokens": prompt.saturating_add(generated)},
        "meta": {
            "api_version": {"version": "2"},
            // Cohere bills one search unit for a query with up to 100 documents.
            "billed_units": {"search_units": request.documents.len().div_ceil(100)},
            "tokens": {"input_tokens": prompt, "output_tokens": generated},
            "warnings": warnings,
        },
    }))
}

/// Returns the results as text-embeddings-inference has them.
fn tei(results: &[Value], documents: &[RankedDocument], raw: bool) -> Value {
    let score = |result: &Value| {
        let ranked = documents.iter().find(|document| result["index"] == document.index);
        match ranked {
            Some(document) if raw => document.score.into(),
            _ => result["relevance_score"].clone(),
        }
    };
    let results = results.iter().map(|result| {
        let mut item = json!({"index": result["index"], "score": score(result)});
        if let Some(document) = result.get("document") {
            item["text"] = document["text"].clone();
        }
        item
    });
    results.collect()
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

fn result(request: &RerankRequest, scale: Scale<'_>, document: &RankedDocument) -> Value {
    let mut result = with_document(request, &document.index.into());
    result["relevance_score"] = scale.of(document.score).into();
    result["relevance"] = document.relevance.into();
    result["truncated"] = document.truncated.into();
    if request.reply.reasoning {
        add_answer(&mut result, scale.answers, &document.answer);
    }
    result
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
fn with_document(request: &RerankRequest, index: &Value) -> Value {
    let mut result = json!({"index": index});
    let given = index.as_u64().and_then(|index| request.documents.get(index as usize));
    if let Some(given) = given {
        if let Some(id) = &given.id {
            result["id"] = id.as_str().into();
        }
        if request.reply.documents {
            result["document"] = json!({"text": given.text});
        }
    }
    result
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
