//! What servers reply: the two shapes of log-probabilities, and where each puts the thought.

use std::collections::BTreeMap;

use erank_core::{Completion, TokenCounts};
use serde::Deserialize;
use serde_json::Value;

/// A reply, as all servers give it once its shape is out of the way.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Reply {
    /// What was generated. For a chat, with the thought and its tags, wherever the server put it.
    pub(crate) text: String,
    /// The generated tokens where there are log-probabilities.
    pub(crate) tokens: Vec<Token>,
    /// The ids of the generated tokens, if the server gives all of them.
    pub(crate) ids: Option<Vec<u32>>,
    pub(crate) finish: Finish,
    /// Tokens read and generated, as the server counts them.
    pub(crate) usage: TokenCounts,
}

/// A generated token, and those that the server names as most probable in its place.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Token {
    pub(crate) bytes: Vec<u8>,
    pub(crate) log_prob: f64,
    pub(crate) alternatives: Vec<(Vec<u8>, f64)>,
}

/// Why the server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Finish {
    /// The token budget was spent.
    Length,
    /// The model ended its turn.
    EndOfText,
    /// A stop string was written.
    StopString,
    /// One of the last two; the server does not say which.
    #[default]
    CancellationToken,
}

#[derive(Deserialize)]
struct RawReply {
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
    logprobs: Option<RawLogProbs>,
    finish_reason: Option<String>,
    /// vLLM: the stop string, a token id, or null. Absent elsewhere, which is another thing.
    #[serde(default, deserialize_with = "present")]
    stop_reason: Option<Value>,
    token_ids: Option<Vec<u32>>,
}

/// A field that is there, be it null.
fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
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
enum RawLogProbs {
    Entries {
        content: Vec<RawEntry>,
    },
    Arrays {
        tokens: Vec<String>,
        token_logprobs: Vec<Option<f64>>,
        top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
    },
    /// Such as `{"content": null}`.
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

impl RawLogProbs {
    fn tokens(self) -> (Vec<Token>, Option<Vec<u32>>) {
        match self {
            Self::Nothing {} => (Vec::new(), None),
            Self::Entries { content } => {
                let ids = content.iter().map(|entry| entry.id).collect();
                let tokens = content.iter().map(|entry| Token {
                    bytes: entry.bytes(),
                    log_prob: entry.logprob.unwrap_or(f64::NEG_INFINITY),
                    alternatives: entry
                        .top_logprobs
                        .iter()
                        .filter_map(|other| Some((other.bytes(), other.logprob?)))
                        .collect(),
                });
                (tokens.collect(), ids)
            }
            Self::Arrays { tokens, token_logprobs, top_logprobs } => {
                let mut alternatives = top_logprobs.unwrap_or_default().into_iter();
                let tokens = tokens.into_iter().zip(token_logprobs).map(|(token, log_prob)| {
                    let others = alternatives.next().flatten().unwrap_or_default();
                    Token {
                        bytes: token.into_bytes(),
                        log_prob: log_prob.unwrap_or(f64::NEG_INFINITY),
                        alternatives: others
                            .into_iter()
                            .map(|(t, p)| (t.into_bytes(), p))
                            .collect(),
                    }
                });
                (tokens.collect(), None)
            }
        }
    }
}

impl RawMessage {
    /// The turn with its thought in its place.
    fn text(self) -> String {
        let content = self.content.unwrap_or_default();
        match self.reasoning.or(self.reasoning_content) {
            Some(thought) if !thought.is_empty() && !content.contains("</think>") => {
                // Content after a thought means that the thought was closed.
                let close = if content.is_empty() { "" } else { "</think>" };
                format!("<think>{thought}{close}{content}")
            }
            _ => content,
        }
    }
}

impl Reply {
    /// Reads a reply to `/v1/completions` or `/v1/chat/completions`; the error says what is wrong.
    pub(crate) fn read(reply: Value) -> Result<Self, String> {
        let raw = RawReply::deserialize(reply).map_err(|error| error.to_string())?;
        let verbose = raw.verbose.and_then(|verbose| verbose.stop_type);
        let choice = raw.choices.into_iter().next().ok_or("there is no choice in it")?;
        let finish =
            match (choice.finish_reason.as_deref(), &choice.stop_reason, verbose.as_deref()) {
                (Some("length"), ..) => Finish::Length,
                (Some("stop"), Some(Value::String(_)), _) | (Some("stop"), _, Some("word")) => {
                    Finish::StopString
                }
                (Some("stop"), Some(_), _) | (Some("stop"), _, Some("eos")) => Finish::EndOfText,
                (Some("stop"), ..) => Finish::CancellationToken,
                (other, ..) => return Err(format!("the finish_reason is {other:?}")),
            };
        let text = match (choice.text, choice.message) {
            (Some(text), _) => text,
            (None, Some(message)) => message.text(),
            (None, None) => return Err("the choice has neither text nor message".into()),
        };
        let (tokens, entry_ids) = choice.logprobs.map_or((Vec::new(), None), RawLogProbs::tokens);
        let usage = TokenCounts::new(raw.usage.prompt_tokens, raw.usage.completion_tokens);
        Ok(Self { text, tokens, ids: choice.token_ids.or(entry_ids), finish, usage })
    }

    /// Appends the generated tokens to `completion`; without log-probabilities, the text.
    pub(crate) fn append_to(&self, completion: &mut Completion) {
        if self.tokens.is_empty() {
            completion.text.push_str(&self.text);
            return;
        }
        // Characters may be cut by tokens; each goes to the token that completes it.
        let mut held: Vec<u8> = Vec::new();
        for token in &self.tokens {
            held.extend(&token.bytes);
            let whole = match str::from_utf8(&held) {
                Ok(text) => text.len(),
                // What no further byte could make valid is not held back.
                Err(error) if error.error_len().is_some() => held.len(),
                Err(error) => error.valid_up_to(),
            };
            let rest = held.split_off(whole);
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

    fn choice(choice: Value) -> Result<Reply, String> {
        Reply::read(json!({
            "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        }))
    }

    #[test]
    fn both_shapes_of_log_probabilities_read_alike() {
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
        .expect("a reply");
        let arrays = choice(json!({
            "text": "7<", "finish_reason": "length", "stop_reason": null, "token_ids": [22, 27],
            "logprobs": {
                "text_offset": [0, 1], "tokens": ["7", "<"], "token_logprobs": [-0.1, -0.2],
                "top_logprobs": [{"7": -0.1, "8": -2.5}, null],
            },
        }));
        assert_eq!(Ok(&entries), arrays.as_ref());
        assert_eq!(entries.ids.as_deref(), Some(&[22, 27][..]));
        assert_eq!(entries.usage, TokenCounts::new(7, 2));
        assert_eq!(entries.tokens[0].alternatives.len(), 2, "a null is none");
    }

    #[test]
    fn the_thought_is_found_wherever_the_server_puts_it() {
        let text = |message: Value| {
            choice(json!({"message": message, "finish_reason": "stop"})).expect("a reply").text
        };
        let whole = "<think>hm</think><answer>7</answer>";
        assert_eq!(text(json!({"content": whole})), whole);
        for field in ["reasoning", "reasoning_content"] {
            assert_eq!(text(json!({"content": "<answer>7</answer>", field: "hm"})), whole);
            assert_eq!(text(json!({"content": null, field: "hm"})), "<think>hm");
            assert_eq!(text(json!({"content": whole, field: "hm"})), whole, "not twice");
        }
        assert_eq!(
            text(json!({"content": "<answer>7</answer>", "reasoning": null})),
            "<answer>7</answer>"
        );
        assert_eq!(text(json!({})), "");
    }

    #[test]
    fn the_end_is_told_apart_where_the_server_tells_it() {
        let finish = |extra: Value, verbose: Value| {
            let mut choice = json!({"text": "", "finish_reason": "stop"});
            choice
                .as_object_mut()
                .expect("an object")
                .extend(extra.as_object().cloned().unwrap_or_default());
            Reply::read(json!({"choices": [choice], "__verbose": verbose}))
                .map(|reply| reply.finish)
        };
        let none = json!({});
        assert_eq!(finish(none.clone(), Value::Null), Ok(Finish::CancellationToken));
        assert_eq!(finish(json!({"stop_reason": "<answer>"}), Value::Null), Ok(Finish::StopString));
        assert_eq!(finish(json!({"stop_reason": null}), Value::Null), Ok(Finish::EndOfText));
        assert_eq!(finish(json!({"stop_reason": 151643}), Value::Null), Ok(Finish::EndOfText));
        assert_eq!(finish(none.clone(), json!({"stop_type": "word"})), Ok(Finish::StopString));
        assert_eq!(finish(none.clone(), json!({"stop_type": "eos"})), Ok(Finish::EndOfText));
        assert_eq!(finish(json!({"finish_reason": "length"}), Value::Null), Ok(Finish::Length));
        assert!(finish(json!({"finish_reason": "abort"}), Value::Null).is_err());
        assert!(finish(json!({"finish_reason": null}), Value::Null).is_err());
    }

    #[test]
    fn what_is_no_reply_is_an_error_that_says_why() {
        for reply in
            [json!(null), json!([]), json!({}), json!({"choices": []}), json!({"choices": [{}]})]
        {
            assert!(Reply::read(reply.clone()).is_err(), "{reply}");
        }
    }

    #[test]
    fn tokens_that_cut_characters_cover_the_whole_text() {
        let token =
            |bytes: &[u8]| Token { bytes: bytes.into(), log_prob: -1.0, alternatives: vec![] };
        let reply = Reply {
            tokens: vec![token(b"a\xc3"), token(b"\xa9b"), token(b"\xff"), token(b"\xe2\x82")],
            ..Reply::default()
        };
        let mut completion = Completion::new("é");
        reply.append_to(&mut completion);
        assert_eq!(completion.text, "éaéb\u{fffd}\u{fffd}");
        let ranges: Vec<_> = completion.tokens.iter().map(|token| token.bytes.clone()).collect();
        assert_eq!(ranges, [2..3, 3..6, 6..9, 9..9]);

        let plain = Reply { text: "no log-probabilities".into(), ..Reply::default() };
        let mut completion = Completion::new("");
        plain.append_to(&mut completion);
        assert_eq!(
            (completion.text.as_str(), completion.tokens.len()),
            ("no log-probabilities", 0)
        );
    }
}
