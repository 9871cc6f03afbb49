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
/// The route of token ids, at llama.cpp, vLLM and SGLang.
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
    /// The prompt's and the generated tokens, as the server counts them. Otherwise the number of generated tokens
    /// in the response, and 0 for a number that is unknown.
    pub(crate) usage: TokenCounts,
}

/// A generated token with its log-probability, and the most probable tokens at its position.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) bytes: Vec<u8>,
    pub(crate) log_prob: f64,
    pub(crate) top_logprobs: Vec<(Vec<u8>, f64)>,
}

impl Token {
    /// Replaces the generated token by another one of the same position. If it is not among the most probable tokens, it
    /// gets the smallest of their log-probabilities, which is an upper bound.
    pub(crate) fn choose(&mut self, bytes: Vec<u8>) {
        if bytes == self.bytes {
            return;
        }
        let known = self.top_logprobs.iter().find(|(other, _)| *other == bytes);
        let least = self.top_logprobs.iter().map(|(_, log_prob)| *log_prob).fold(0.0, f64::min);
        self.log_prob = known.map_or(least, |(_, log_prob)| *log_prob);
        self.bytes = bytes;
    }

    /// Returns the largest log-probability at the position.
    pub(crate) fn most_probable(&self) -> f64 {
        self.top_logprobs.iter().fold(self.log_prob, |most, (_, log_prob)| most.max(*log_prob))
    }
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
    #[serde(default)]
    choices: Vec<RawChoice>,
    usage: Option<RawUsage>,
    /// The problem that a proxy reports with the status of a success.
    error: Option<RawError>,
    /// llama.cpp, on request.
    #[serde(rename = "__verbose")]
    verbose: Option<RawVerbose>,
}

#[derive(Deserialize)]
struct RawVerbose {
    stop_type: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum RawError {
    Message(String),
    Object { message: Option<String> },
}

#[derive(Deserialize, Default)]
struct RawUsage {
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
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
    /// SGLang: the stop string, or the id of a stop token. Null and absent mean that it is unknown.
    matched_stop: Option<Value>,
    token_ids: Option<Vec<u32>>,
}

/// Deserializes a field that may be null. `None` means that it is absent.
fn nullable<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

#[derive(Deserialize)]
struct RawMessage {
    content: Option<RawContent>,
    reasoning: Option<RawContent>,
    reasoning_content: Option<RawContent>,
}

/// A text, or its parts.
#[derive(Deserialize)]
#[serde(untagged)]
enum RawContent {
    Text(String),
    Parts(Vec<RawContent>),
    /// A part of the answer, or of the thought if its type is `thinking` or `reasoning`.
    Part {
        #[serde(rename = "type")]
        kind: Option<String>,
        text: Option<String>,
        thinking: Option<Box<RawContent>>,
        reasoning: Option<Box<RawContent>>,
    },
}

/// The log-probabilities of a choice. All fields are absent or null if there are none.
#[derive(Deserialize)]
struct RawLogprobs {
    /// The shape of chat completions, and of all routes of llama.cpp.
    content: Option<Vec<RawEntry>>,
    /// The shape of completions, with the next two fields.
    tokens: Option<Vec<String>>,
    token_logprobs: Option<Vec<Option<f64>>>,
    top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
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
    ///
    /// # Errors
    /// Returns a description of the problem if the server replaces the texts of tokens by their ids.
    fn tokens(self) -> Result<(Vec<Token>, Option<Vec<u32>>), String> {
        if let Some(content) = self.content {
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
            return Ok((tokens.collect(), ids));
        }
        let texts = self.tokens.unwrap_or_default();
        // No token's own text begins so, because a prefix and a number are several tokens.
        if texts.iter().any(|text| text.starts_with("token_id:")) {
            return Err("the texts of tokens are replaced by their ids; start the server without \
                        --return-tokens-as-token-ids"
                .into());
        }
        let mut top_logprobs = self.top_logprobs.unwrap_or_default().into_iter();
        let log_probs = self.token_logprobs.unwrap_or_default();
        let tokens = texts.into_iter().zip(log_probs).map(|(token, log_prob)| {
            let top = top_logprobs.next().flatten().unwrap_or_default();
            Token {
                bytes: token.into_bytes(),
                log_prob: log_prob.unwrap_or(f64::NEG_INFINITY),
                top_logprobs: top.into_iter().map(|(t, p)| (t.into_bytes(), p)).collect(),
            }
        });
        Ok((tokens.collect(), None))
    }
}

impl RawContent {
    /// Appends the text of the thought and of the answer.
    fn append_to(self, thought: &mut String, answer: &mut String) {
        match self {
            Self::Text(text) => answer.push_str(&text),
            Self::Parts(parts) => {
                parts.into_iter().for_each(|part| part.append_to(thought, answer));
            }
            Self::Part { kind, text, thinking, reasoning } => {
                for part in [thinking, reasoning].into_iter().flatten() {
                    thought.push_str(&part.joined());
                }
                let is_thought = matches!(kind.as_deref(), Some("thinking" | "reasoning"));
                let side = if is_thought { thought } else { answer };
                side.push_str(&text.unwrap_or_default());
            }
        }
    }

    /// Returns all text, without a distinction between thought and answer.
    fn joined(self) -> String {
        let (mut thought, mut answer) = (String::new(), String::new());
        self.append_to(&mut thought, &mut answer);
        thought + &answer
    }
}

impl RawMessage {
    /// Returns the text of the assistant turn, with the thought before the content.
    fn text(self) -> String {
        let (mut thought, mut content) = (String::new(), String::new());
        if let Some(parts) = self.content {
            parts.append_to(&mut thought, &mut content);
        }
        // Some servers fill both fields with the same thought, and others leave one of them empty.
        for field in [self.reasoning, self.reasoning_content] {
            if thought.is_empty() {
                thought = field.map(RawContent::joined).unwrap_or_default();
            }
        }
        if thought.is_empty() || content.contains(THINK_CLOSE) {
            return content;
        }
        // If there is content after the thought, the thought was closed.
        let close = if content.is_empty() { "" } else { THINK_CLOSE };
        format!("{THINK_OPEN}{thought}{close}{content}")
    }
}

impl Response {
    /// Parses the body of a response of `/v1/completions` or `/v1/chat/completions`.
    ///
    /// # Errors
    /// Returns a description of the problem.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, String> {
        let raw: RawResponse = parse_json(body)?;
        let stop_type = raw.verbose.and_then(|verbose| verbose.stop_type);
        let Some(choice) = raw.choices.into_iter().next() else {
            let message = match raw.error {
                Some(RawError::Message(message) | RawError::Object { message: Some(message) }) => {
                    message
                }
                Some(RawError::Object { message: None }) => "an error without a message".into(),
                None => return Err("there is no choice".into()),
            };
            return Err(format!("the status is a success, but there is an error: {message}"));
        };
        let reported = choice.finish_reason.unwrap_or_default().to_ascii_lowercase();
        let stop_reason = choice.matched_stop.or(choice.stop_reason);
        let finish_reason = match (reported.as_str(), &stop_reason, stop_type.as_deref()) {
            ("length" | "max_tokens" | "max_length" | "model_length", ..) => FinishReason::Length,
            // The text may end anywhere.
            ("abort" | "aborted" | "cancelled" | "error" | "timeout" | "content_filter", ..) => {
                return Err(format!("the finish_reason is {reported:?}"));
            }
            ("stop", Some(Value::String(_)), _) | ("stop", _, Some("word")) => {
                FinishReason::StopString
            }
            ("stop", Some(_), _) | ("stop", _, Some("eos")) => FinishReason::EndOfTurn,
            ("eos" | "eos_token" | "end_turn", ..) => FinishReason::EndOfTurn,
            // Includes null and names that are not known here.
            _ => FinishReason::Stop,
        };
        let text = match (choice.text, choice.message) {
            (Some(text), _) => text,
            (None, Some(message)) => message.text(),
            (None, None) => return Err("the choice has neither text nor message".into()),
        };
        let (tokens, entry_ids) = match choice.logprobs {
            Some(log_probs) => log_probs.tokens()?,
            None => (Vec::new(), None),
        };
        let token_ids = choice.token_ids.or(entry_ids);
        let usage = raw.usage.unwrap_or_default();
        let counted = token_ids.as_ref().map_or(tokens.len(), Vec::len);
        let usage = TokenCounts::new(
            usage.prompt_tokens.unwrap_or(0),
            usage.completion_tokens.unwrap_or(counted),
        );
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

/// Parses the body of a response as JSON.
///
/// # Errors
/// Returns a description of the problem, with the beginning of a body that is not JSON.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    const SHOWN_BYTES: usize = 100;
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => error.to_string(),
        _ => {
            let start = String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]);
            format!("not JSON: {error}; it begins with {start:?}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn parse(response: &Value) -> Result<Response, String> {
        Response::parse(response.to_string().as_bytes())
    }

    fn choice(choice: Value) -> Result<Response, String> {
        parse(&json!({
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
        assert_eq!(
            text(
                json!({"content": "<answer>7</answer>", "reasoning": "", "reasoning_content": "hm"})
            ),
            whole
        );
    }

    #[test]
    fn parse_joins_the_parts_of_a_message() {
        let whole = "<think>hm so</think><answer>7</answer>";
        for content in [
            json!([
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}, {"type": "text", "text": " so"}]},
                {"type": "text", "text": "<answer>7"}, {"type": "text", "text": "</answer>"},
            ]),
            json!([{"type": "thinking", "thinking": "hm so"}, {"type": "text", "text": "<answer>7</answer>"}]),
            json!([{"type": "reasoning", "reasoning": "hm so"}, "<answer>7</answer>"]),
            json!([{"type": "reasoning", "text": "hm so"}, {"type": "output_text", "text": "<answer>7</answer>"}]),
            json!([{"type": "text", "text": whole}, {"type": "image_url", "image_url": {}}]),
            json!({"type": "text", "text": whole}),
        ] {
            let response =
                choice(json!({"message": {"content": content}, "finish_reason": "stop"}));
            assert_eq!(response.map(|response| response.text).as_deref(), Ok(whole));
        }
    }

    #[test]
    fn parse_counts_tokens_itself_if_usage_is_unknown() {
        let log_probs = json!({"tokens": ["7", "<"], "token_logprobs": [-0.1, -0.2]});
        for (usage, expected) in [
            (json!(null), TokenCounts::new(0, 2)),
            (json!({"prompt_tokens": null, "completion_tokens": null}), TokenCounts::new(0, 2)),
            (json!({"prompt_tokens": 7}), TokenCounts::new(7, 2)),
            (json!({"prompt_tokens": 7, "completion_tokens": 3}), TokenCounts::new(7, 3)),
        ] {
            let choice = json!({"text": "7<", "finish_reason": "length", "logprobs": log_probs});
            let response = parse(&json!({"choices": [choice], "usage": usage}));
            assert_eq!(response.map(|response| response.usage), Ok(expected), "{usage}");
        }
    }

    #[test]
    fn parse_rejects_ids_in_the_place_of_texts() {
        let log_probs = json!({"tokens": ["token_id:22"], "token_logprobs": [-0.1]});
        let response =
            choice(json!({"text": "7", "finish_reason": "length", "logprobs": log_probs}));
        assert!(response.expect_err("an error").contains("--return-tokens-as-token-ids"));
    }

    #[test]
    fn parse_names_errors_of_proxies() {
        for (error, expected) in [
            (json!({"message": "no such model", "code": 404}), "no such model"),
            (json!("overloaded"), "overloaded"),
        ] {
            let problem = parse(&json!({ "error": error })).expect_err("an error");
            assert!(problem.ends_with(expected), "{problem}");
        }
        let problem = Response::parse(b"<html>Bad Gateway</html>").expect_err("an error");
        assert!(problem.starts_with("not JSON") && problem.contains("<html>Bad"), "{problem}");
    }

    #[test]
    fn parse_distinguishes_end_of_turn_from_stop_string() {
        let finish = |extra: Value, verbose: Value| {
            let mut choice = json!({"text": "", "finish_reason": "stop"});
            choice
                .as_object_mut()
                .expect("an object")
                .extend(extra.as_object().cloned().unwrap_or_default());
            parse(&json!({"choices": [choice], "__verbose": verbose}))
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
        for (reason, expected) in [
            (json!("eos_token"), FinishReason::EndOfTurn),
            (json!("end_turn"), FinishReason::EndOfTurn),
            (json!("MAX_TOKENS"), FinishReason::Length),
            (json!("STOP"), FinishReason::Stop),
            (json!("stop_sequence"), FinishReason::Stop),
            (json!(""), FinishReason::Stop),
            (json!(null), FinishReason::Stop),
            (json!("unheard of"), FinishReason::Stop),
        ] {
            let found = finish(json!({"finish_reason": reason}), Value::Null);
            assert_eq!(found, Ok(expected), "{reason}");
        }
        assert!(finish(json!({"finish_reason": "abort"}), Value::Null).is_err());
        assert!(finish(json!({"finish_reason": "content_filter"}), Value::Null).is_err());
    }

    #[test]
    fn parse_rejects_other_json() {
        for response in
            [json!(null), json!([]), json!({}), json!({"choices": []}), json!({"choices": [{}]})]
        {
            assert!(parse(&response).is_err(), "{response}");
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
