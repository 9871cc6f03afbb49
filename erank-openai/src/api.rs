//! OpenAI's API: its routes, and the parsing of responses.
//!
//! Servers differ in the shape of log-probabilities and in the field that holds the thought.

use std::collections::BTreeMap;

use erank_core::tags::{THINK_CLOSE, THINK_OPEN};
use erank_core::{Completion, TokenCounts};
use serde::Deserialize;
use serde_json::Value;

/// The route of the list of models.
pub(crate) const MODELS: &str = "/v1/models";
/// The route of raw prompts.
pub(crate) const COMPLETIONS: &str = "/v1/completions";
/// The route of chat messages.
pub(crate) const CHAT: &str = "/v1/chat/completions";
/// The route of token ids, at llama.cpp and vLLM.
pub(crate) const TOKENIZE: &str = "/tokenize";

/// The response to a generation request, independent of the server's shape.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Response {
    /// The generated text. For a chat it includes the thought with its tags, no matter which field the server
    /// uses for it.
    pub(crate) text: String,
    /// The generated tokens, if there are log-probabilities.
    pub(crate) tokens: Vec<Token>,
    /// The ids of the generated tokens, if the server returns all of them.
    pub(crate) token_ids: Option<Vec<u32>>,
    pub(crate) finish_reason: FinishReason,
    /// The prompt's and the generated tokens, as the server counts them.
    pub(crate) usage: TokenCounts,
}

/// A generated token with its log-probability, and the most probable tokens at its position.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) bytes: Vec<u8>,
    pub(crate) log_prob: f64,
    pub(crate) top_logprobs: Vec<(Vec<u8>, f64)>,
}

/// The reason why the server ended the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FinishReason {
    /// The token budget was spent.
    Length,
    /// The model ended its turn.
    EndOfTurn,
    /// The model generated a stop string.
    StopString,
    /// One of the last two. The server does not report which.
    #[default]
    Stop,
}

#[derive(Deserialize)]
struct RawResponse {
    choices: Vec<RawChoice>,
    #[serde(default)]
    usage: RawUsage,
    /// llama.cpp, on request.
    #[serde(rename = "__verbose")]
    verbose: Option<RawVerbose>,
}

#[derive(Deserialize)]
struct RawVerbose {
    stop_type: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawUsage {
    #[serde(default)]
    prompt_tokens: usize,
    #[serde(default)]
    completion_tokens: usize,
}

#[derive(Deserialize)]
struct RawChoice {
    text: Option<String>,
    message: Option<RawMessage>,
    logprobs: Option<RawLogprobs>,
    finish_reason: Option<String>,
    /// vLLM: the stop string, a token id, or null. Other servers omit the field, so null and absent
    /// differ.
    #[serde(default, deserialize_with = "nullable")]
    stop_reason: Option<Value>,
    token_ids: Option<Vec<u32>>,
}

/// Deserializes a field that may be null. `None` means that it is absent.
fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct RawMessage {
    content: Option<String>,
    reasoning: Option<String>,
    reasoning_content: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawLogprobs {
    /// The shape of chat completions, and of all routes of llama.cpp.
    Entries { content: Vec<RawEntry> },
    /// The shape of completions.
    Arrays {
        tokens: Vec<String>,
        token_logprobs: Vec<Option<f64>>,
        top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
    },
    /// Any other object, such as `{"content": null}`.
    Nothing {},
}

#[derive(Deserialize)]
struct RawEntry {
    id: Option<u32>,
    token: String,
    bytes: Option<Vec<u8>>,
    logprob: Option<f64>,
    #[serde(default)]
    top_logprobs: Vec<RawEntry>,
}

impl RawEntry {
    fn bytes(&self) -> Vec<u8> {
        self.bytes.clone().unwrap_or_else(|| self.token.clone().into_bytes())
    }
}

impl RawLogprobs {
    /// Returns the tokens, and their ids if every token has one.
    fn tokens(self) -> (Vec<Token>, Option<Vec<u32>>) {
        match self {
            Self::Nothing {} => (Vec::new(), None),
            Self::Entries { content } => {
                let ids = content.iter().map(|entry| entry.id).collect();
                let tokens = content.iter().map(|entry| Token {
                    bytes: entry.bytes(),
                    log_prob: entry.logprob.unwrap_or(f64::NEG_INFINITY),
                    top_logprobs: entry
                        .top_logprobs
                        .iter()
                        .filter_map(|other| Some((other.bytes(), other.logprob?)))
                        .collect(),
                });
                (tokens.collect(), ids)
            }
            Self::Arrays { tokens, token_logprobs, top_logprobs } => {
                let mut top_logprobs = top_logprobs.unwrap_or_default().into_iter();
                let tokens = tokens.into_iter().zip(token_logprobs).map(|(token, log_prob)| {
                    let top = top_logprobs.next().flatten().unwrap_or_default();
                    Token {
                        bytes: token.into_bytes(),
                        log_prob: log_prob.unwrap_or(f64::NEG_INFINITY),
                        top_logprobs: top.into_iter().map(|(t, p)| (t.into_bytes(), p)).collect(),
                    }
                });
                (tokens.collect(), None)
            }
        }
    }
}

impl RawMessage {
    /// Returns the text of the assistant turn, with the thought before the content.
    fn text(self) -> String {
        let content = self.content.unwrap_or_default();
        match self.reasoning.or(self.reasoning_content) {
            Some(thought) if !thought.is_empty() && !content.contains(THINK_CLOSE) => {
                // If there is content after the thought, the thought was closed.
                let close = if content.is_empty() { "" } else { THINK_CLOSE };
                format!("{THINK_OPEN}{thought}{close}{content}")
            }
            _ => content,
        }
    }
}

impl Response {
    /// Parses a response of `/v1/completions` or `/v1/chat/completions`.
    ///
    /// # Errors
    /// Returns a description of the problem.
    pub(crate) fn parse(response: Value) -> Result<Self, String> {
        let raw = RawResponse::deserialize(response).map_err(|error| error.to_string())?;
        let stop_type = raw.verbose.and_then(|verbose| verbose.stop_type);
        let choice = raw.choices.into_iter().next().ok_or("there is no choice")?;
        let finish_reason =
            match (choice.finish_reason.as_deref(), &choice.stop_reason, stop_type.as_deref()) {
                (Some("length"), ..) => FinishReason::Length,
                (Some("stop"), Some(Value::String(_)), _) | (Some("stop"), _, Some("word")) => {
                    FinishReason::StopString
                }
                (Some("stop"), Some(_), _) | (Some("stop"), _, Some("eos")) => {
                    FinishReason::EndOfTurn
                }
                (Some("stop"), ..) => FinishReason::Stop,
                (other, ..) => return Err(format!("the finish_reason is {other:?}")),
            };
        let text = match (choice.text, choice.message) {
            (Some(text), _) => text,
            (None, Some(message)) => message.text(),
            (None, None) => return Err("the choice has neither text nor message".into()),
        };
        let (tokens, entry_ids) = choice.logprobs.map_or((Vec::new(), None), RawLogprobs::tokens);
        let usage = TokenCounts::new(raw.usage.prompt_tokens, raw.usage.completion_tokens);
        let token_ids = choice.token_ids.or(entry_ids);
        Ok(Self { text, tokens, token_ids, finish_reason, usage })
    }

    /// Appends the generated tokens to `completion`, or the text if there are no log-probabilities.
    pub(crate) fn append_to(&self, completion: &mut Completion) {
        if self.tokens.is_empty() {
            completion.text.push_str(&self.text);
            return;
        }
        // A character may span several tokens. It is assigned to the token that completes it.
        let mut held: Vec<u8> = Vec::new();
        for token in &self.tokens {
            held.extend(&token.bytes);
            let complete = match str::from_utf8(&held) {
                Ok(text) => text.len(),
                // Invalid UTF-8 that no further byte can complete is not held back.
                Err(error) if error.error_len().is_some() => held.len(),
                Err(error) => error.valid_up_to(),
            };
            let rest = held.split_off(complete);
            completion.push(&String::from_utf8_lossy(&held), token.log_prob as f32);
            held = rest;
        }
        completion.text.push_str(&String::from_utf8_lossy(&held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn choice(choice: Value) -> Result<Response, String> {
        Response::parse(json!({
            "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        }))
    }

    #[test]
    fn parse_reads_both_shapes_of_log_probabilities() {
        let entries = choice(json!({
            "text": "7<", "finish_reason": "length",
            "logprobs": {"content": [
                {"id": 22, "token": "7", "bytes": [55], "logprob": -0.1, "top_logprobs": [
                    {"id": 22, "token": "7", "bytes": [55], "logprob": -0.1},
                    {"id": 23, "token": "8", "bytes": null, "logprob": -2.5},
                    {"id": 24, "token": "9", "bytes": [57], "logprob": null},
                ]},
                {"id": 27, "token": "<", "bytes": [60], "logprob": -0.2},
            ]},
        }))
        .expect("a response");
        let arrays = choice(json!({
            "text": "7<", "finish_reason": "length", "stop_reason": null, "token_ids": [22, 27],
            "logprobs": {
                "text_offset": [0, 1], "tokens": ["7", "<"], "token_logprobs": [-0.1, -0.2],
                "top_logprobs": [{"7": -0.1, "8": -2.5}, null],
            },
        }));
        assert_eq!(Ok(&entries), arrays.as_ref());
        assert_eq!(entries.token_ids.as_deref(), Some(&[22, 27][..]));
        assert_eq!(entries.usage, TokenCounts::new(7, 2));
        assert_eq!(entries.tokens[0].top_logprobs.len(), 2, "null is skipped");
    }

    #[test]
    fn parse_prepends_thought_from_any_field() {
        let text = |message: Value| {
            choice(json!({"message": message, "finish_reason": "stop"})).expect("a response").text
        };
        let whole = "<think>hm</think><answer>7</answer>";
        assert_eq!(text(json!({"content": whole})), whole);
        for field in ["reasoning", "reasoning_content"] {
            assert_eq!(text(json!({"content": "<answer>7</answer>", field: "hm"})), whole);
            assert_eq!(text(json!({"content": null, field: "hm"})), "<think>hm");
            assert_eq!(
                text(json!({"content": whole, field: "hm"})),
                whole,
                "the thought is not repeated"
            );
        }
        assert_eq!(
            text(json!({"content": "<answer>7</answer>", "reasoning": null})),
            "<answer>7</answer>"
        );
        assert_eq!(text(json!({})), "");
    }

    #[test]
    fn parse_distinguishes_end_of_turn_from_stop_string() {
        let finish = |extra: Value, verbose: Value| {
            let mut choice = json!({"text": "", "finish_reason": "stop"});
            choice
                .as_object_mut()
                .expect("an object")
                .extend(extra.as_object().cloned().unwrap_or_default());
            Response::parse(json!({"choices": [choice], "__verbose": verbose}))
                .map(|response| response.finish_reason)
        };
        let none = json!({});
        assert_eq!(finish(none.clone(), Value::Null), Ok(FinishReason::Stop));
        assert_eq!(
            finish(json!({"stop_reason": "<answer>"}), Value::Null),
            Ok(FinishReason::StopString)
        );
        assert_eq!(finish(json!({"stop_reason": null}), Value::Null), Ok(FinishReason::EndOfTurn));
        assert_eq!(
            finish(json!({"stop_reason": 151643}), Value::Null),
            Ok(FinishReason::EndOfTurn)
        );
        assert_eq!(
            finish(none.clone(), json!({"stop_type": "word"})),
            Ok(FinishReason::StopString)
        );
        assert_eq!(finish(none.clone(), json!({"stop_type": "eos"})), Ok(FinishReason::EndOfTurn));
        assert_eq!(
            finish(json!({"finish_reason": "length"}), Value::Null),
            Ok(FinishReason::Length)
        );
        assert!(finish(json!({"finish_reason": "abort"}), Value::Null).is_err());
        assert!(finish(json!({"finish_reason": null}), Value::Null).is_err());
    }

    #[test]
    fn parse_rejects_other_json() {
        for response in
            [json!(null), json!([]), json!({}), json!({"choices": []}), json!({"choices": [{}]})]
        {
            assert!(Response::parse(response.clone()).is_err(), "{response}");
        }
    }

    #[test]
    fn append_to_assigns_split_characters_to_completing_token() {
        let token =
            |bytes: &[u8]| Token { bytes: bytes.into(), log_prob: -1.0, top_logprobs: vec![] };
        let response = Response {
            tokens: vec![token(b"a\xc3"), token(b"\xa9b"), token(b"\xff"), token(b"\xe2\x82")],
            ..Response::default()
        };
        let mut completion = Completion::new("é");
        response.append_to(&mut completion);
        assert_eq!(completion.text, "éaéb\u{fffd}\u{fffd}");
        let ranges: Vec<_> = completion.tokens.iter().map(|token| token.bytes.clone()).collect();
        assert_eq!(ranges, [2..3, 3..6, 6..9, 9..9]);

        let plain = Response { text: "no log-probabilities".into(), ..Response::default() };
        let mut completion = Completion::new("");
        plain.append_to(&mut completion);
        assert_eq!(
            (completion.text.as_str(), completion.tokens.len()),
            ("no log-probabilities", 0)
        );
    }
}
