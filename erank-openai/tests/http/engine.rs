//! A fake inference engine with the HTTP APIs of llama.cpp, vLLM and SGLang.
//!
//! The fields of SGLang's API are those of its server's protocol (`sglang/srt/entrypoints/openai/protocol.py`,
//! 2026-11).
//!
//! Its model reads "relevance N" in a document, generates a thought of a few words, and answers N with
//! probability 0.75. The tokens "1" and "0" of "10" have probabilities 0.75 and 0.8.
//!
//! A prompt that ends with an empty thought, such as Qwen3-Reranker's, gets the answer "yes" or "no".

use serde_json::{Value, json};

use crate::server::{Reaction, Request};

/// The server whose API the engine imitates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    LlamaCpp,
    Vllm,
    Sglang,
}

/// The engine's settings.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Engine {
    pub(crate) shape: Shape,
    pub(crate) context: usize,
    pub(crate) log_probs: bool,
    /// Whether requests may name the token ids to return log-probabilities for, as in newer versions of
    /// vLLM.
    pub(crate) logprob_token_ids: bool,
    /// The start of the assistant turn in the chat template.
    pub(crate) turn: &'static str,
}

impl Engine {
    pub(crate) fn new(shape: Shape) -> Self {
        Self {
            shape,
            context: 4096,
            log_probs: true,
            logprob_token_ids: false,
            turn: "<|im_start|>assistant\n",
        }
    }

    /// Responds to a request.
    pub(crate) fn react(&self, request: &Request) -> Reaction {
        let body = &request.body;
        let messages = || body["messages"][0]["content"].as_str().unwrap_or_default();
        match (request.path.as_str(), self.shape) {
            ("/v1/models", _) => Reaction::ok(self.models()),
            ("/v1/completions", _) => self.completion(request),
            ("/apply-template", Shape::LlamaCpp) => {
                Reaction::ok(json!({"prompt": self.template(messages())}))
            }
            // Every character is a token.
            ("/tokenize", Shape::Vllm | Shape::Sglang) => {
                let text = match body["prompt"].as_str() {
                    Some(prompt) => prompt.to_owned(),
                    None => self.template(messages()),
                };
                let tokens: Vec<u32> = text.chars().map(u32::from).collect();
                Reaction::ok(json!({"count": tokens.len(), "tokens": tokens}))
            }
            ("/tokenize", Shape::LlamaCpp) => {
                let text = body["content"].as_str().unwrap_or_default();
                let tokens: Vec<u32> = text.chars().map(u32::from).collect();
                Reaction::ok(json!({ "tokens": tokens }))
            }
            ("/detokenize", Shape::Vllm) => {
                let ids = body["tokens"].as_array().into_iter().flatten();
                Reaction::ok(json!({"prompt": text_of(ids)}))
            }
            ("/detokenize", Shape::Sglang) => {
                let text = text_of(body["tokens"].as_array().into_iter().flatten());
                let keeps_control_tokens = body["skip_special_tokens"] == false;
                let text = if keeps_control_tokens { text } else { text.replace("<|im_", "") };
                Reaction::ok(json!({ "text": text }))
            }
            _ => Reaction::status(404, json!({"detail": "Not Found"})),
        }
    }

    fn models(&self) -> Value {
        let mut model = json!({"id": "erank", "object": "model"});
        match self.shape {
            Shape::LlamaCpp => {
                model["owned_by"] = "llamacpp".into();
                model["meta"] = json!({"n_ctx": self.context});
            }
            Shape::Vllm | Shape::Sglang => {
                model["owned_by"] =
                    if self.shape == Shape::Vllm { "vllm" } else { "sglang" }.into();
                model["max_model_len"] = self.context.into();
            }
        }
        json!({"object": "list", "data": [model]})
    }

    fn template(&self, message: &str) -> String {
        format!("<|im_start|>user\n{message}<|im_end|>\n{}", self.turn)
    }

    fn completion(&self, request: &Request) -> Reaction {
        let (prompt, is_ids) = match &request.body["prompt"] {
            Value::Array(ids) => (text_of(ids.iter()), true),
            text => (text.as_str().unwrap_or_default().to_owned(), false),
        };
        let prompt_tokens = prompt.chars().count();
        if prompt_tokens >= self.context {
            return self.too_long(prompt_tokens);
        }
        let mut max_tokens = request.body["max_tokens"].as_u64().unwrap_or(16) as usize;
        max_tokens = max_tokens.min(self.context - prompt_tokens);
        let turn = prompt.split_once(self.turn).map_or("", |(_, turn)| turn);
        let (mut tokens, mut top_logprobs) = match turn.ends_with("</think>\n\n") {
            true => yes_or_no(relevance(&prompt)),
            false => next_tokens(relevance(&prompt), turn),
        };
        let temperature = request.body["temperature"].as_f64().unwrap_or(1.0);
        if self.shape == Shape::Sglang && temperature > 0.0 {
            // SGLang returns the log-probabilities after the temperature.
            top_logprobs.iter_mut().for_each(|(_, p)| *p = p.powf(1.0 / temperature));
            tokens[0].1 = tokens[0].1.powf(1.0 / temperature);
        }

        let (mut text, mut generated, mut finish) = (String::new(), Vec::new(), "length");
        let stop = request.body["stop"][0].as_str();
        for (token, log_prob) in tokens.iter().map(|(token, p)| (*token, p.ln())).take(max_tokens) {
            text.push_str(token);
            generated.push((token.to_owned(), log_prob));
            if let Some(at) = stop.and_then(|stop| text.find(stop)) {
                text.truncate(at);
                finish = "stop";
                break;
            }
        }
        let log_probs = self.log_probs && request.body["logprobs"].is_u64();
        let number = request.body["logprobs"].as_u64().unwrap_or(0) as usize;
        let mut top_logprobs: Vec<(String, f64)> = top_logprobs
            .iter()
            .map(|(text, p)| ((*text).to_owned(), p.ln()))
            .take(number)
            .collect();
        if let (true, Value::Array(ids)) =
            (self.logprob_token_ids, &request.body["logprob_token_ids"])
        {
            top_logprobs = requested_logprobs(ids, relevance(&prompt), turn);
            top_logprobs.extend(generated.first().cloned());
        }
        let ids: Vec<u32> =
            generated.iter().flat_map(|(text, _)| text.chars()).map(u32::from).collect();
        let ends_at_stop_string = finish == "stop";
        let usage = json!({"prompt_tokens": prompt_tokens, "completion_tokens": generated.len()});
        let mut response = json!({"usage": usage, "object": "text_completion", "model": "erank"});
        let mut choice =
            json!({"index": 0, "text": text, "finish_reason": finish, "logprobs": null});
        match self.shape {
            Shape::Vllm | Shape::Sglang => {
                let field = if self.shape == Shape::Vllm { "stop_reason" } else { "matched_stop" };
                choice[field] = if ends_at_stop_string { json!(stop) } else { Value::Null };
                if request.body["return_token_ids"] == true {
                    choice["token_ids"] = json!(ids);
                }
                if log_probs {
                    let tops =
                        generated.iter().enumerate().map(|(index, (text, log_prob))| match index {
                            0 => top_logprobs
                                .iter()
                                .map(|(text, p)| (text.clone(), json!(p)))
                                .collect(),
                            _ => serde_json::Map::from_iter([(text.clone(), json!(log_prob))]),
                        });
                    choice["logprobs"] = json!({
                        "tokens": generated.iter().map(|(text, _)| text).collect::<Vec<_>>(),
                        "token_logprobs": generated.iter().map(|(_, p)| p).collect::<Vec<_>>(),
                        "top_logprobs": tops.collect::<Vec<serde_json::Map<String, Value>>>(),
                    });
                }
            }
            Shape::LlamaCpp => {
                if request.body["verbose"] == true {
                    let stop_type = if ends_at_stop_string { "word" } else { "limit" };
                    response["__verbose"] = json!({"stop_type": stop_type});
                }
                if log_probs {
                    // A token has one id, so a prompt of ids gets tokens of one character.
                    let generated = if is_ids { characters(&text) } else { generated };
                    let entry = |text: &String, log_prob: f64| {
                        json!({
                            "id": text.chars().next().map(u32::from), "token": text,
                            "bytes": text.as_bytes(), "logprob": log_prob,
                        })
                    };
                    let entries = generated.iter().enumerate().map(|(index, (text, log_prob))| {
                        let mut whole = entry(text, *log_prob);
                        let tops = top_logprobs.iter().map(|(text, p)| entry(text, *p));
                        whole["top_logprobs"] = match index {
                            0 => tops.collect(),
                            _ => json!([entry(text, *log_prob)]),
                        };
                        whole
                    });
                    choice["logprobs"] = json!({"content": entries.collect::<Vec<_>>()});
                }
            }
        }
        response["choices"] = json!([choice]);
        Reaction::ok(response)
    }

    fn too_long(&self, tokens: usize) -> Reaction {
        let limit = self.context;
        let error = match self.shape {
            Shape::LlamaCpp => json!({
                "code": 400, "type": "exceed_context_size_error",
                "message": format!("request ({tokens} tokens) exceeds the context size ({limit})"),
                "n_prompt_tokens": tokens, "n_ctx": limit,
            }),
            // SGLang's error has no field around it.
            Shape::Sglang => {
                let error = json!({
                    "object": "error", "type": "BadRequestError", "param": null, "code": 400,
                    "message": format!(
                        "The input ({tokens} tokens) is longer than the model's context length \
                         ({limit} tokens)."
                    ),
                });
                return Reaction::status(400, error);
            }
            Shape::Vllm => json!({
                "message": format!(
                    "This model's maximum context length is {limit} tokens. However, your prompt \
                     contains at least {tokens} input tokens. (parameter=input_tokens)"
                ),
                "type": "BadRequestError", "param": "input_tokens", "code": 400,
            }),
        };
        Reaction::status(400, json!({ "error": error }))
    }
}

/// Responds to a request as a vLLM server with the default settings.
pub(crate) fn react_as_vllm(request: &Request) -> Reaction {
    Engine::new(Shape::Vllm).react(request)
}

/// Returns the text of token ids, each a character.
fn text_of<'a>(ids: impl Iterator<Item = &'a Value>) -> String {
    ids.filter_map(|id| char::from_u32(u32::try_from(id.as_u64()?).ok()?)).collect()
}

/// Returns the log-probabilities of the tokens with these ids at the answer position.
fn requested_logprobs(ids: &[Value], relevance: u32, turn: &str) -> Vec<(String, f64)> {
    let (_, known) = next_tokens(relevance, turn);
    let log_prob = |text: &str| {
        let found = known.iter().find(|(token, _)| *token == text);
        found.map_or(1e-6_f64, |(_, p)| *p).ln()
    };
    let texts = ids.iter().map(|id| text_of(std::iter::once(id)));
    texts.map(|text| (text.clone(), log_prob(&text))).collect()
}

/// Returns the characters of a text as tokens.
fn characters(text: &str) -> Vec<(String, f64)> {
    text.chars().map(|character| (character.to_string(), -0.5)).collect()
}

/// Returns the number after the last "relevance" in the prompt that has one.
pub(crate) fn relevance(prompt: &str) -> u32 {
    let numbers = prompt.match_indices("relevance ").filter_map(|(at, word)| {
        let rest = &prompt[at + word.len()..];
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    });
    numbers.last().unwrap_or(0)
}

/// Tokens with their probabilities.
type Tokens = Vec<(&'static str, f64)>;

/// Returns the answer, and the probabilities of both answers: "yes" has 0.08 for each unit of relevance.
fn yes_or_no(relevance: u32) -> (Tokens, Tokens) {
    let yes = (0.08 * f64::from(relevance)).clamp(0.001, 0.799);
    let mut answers = vec![("yes", yes), ("no", 0.8 - yes), ("maybe", 0.2)];
    answers.sort_by(|a, b| b.1.total_cmp(&a.1));
    (answers[..1].to_vec(), answers)
}

/// Returns the tokens that the model generates next, and the most probable tokens at the first position.
fn next_tokens(relevance: u32, turn: &str) -> (Tokens, Tokens) {
    const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
    let digit = DIGITS[if relevance == 10 { 1 } else { relevance as usize % 10 }];
    if turn.ends_with("<answer>") {
        let other = if digit == "5" { "6" } else { "5" };
        return (
            vec![(digit, 0.75), ("</", 0.9), ("answer>", 0.9)],
            vec![(digit, 0.75), (other, 0.125), (" ", 0.0625)],
        );
    }
    if turn.ends_with("<answer>1") {
        let ten = if relevance == 10 { 0.8 } else { 0.125 };
        let tokens = vec![("0", ten), ("</", 1.0 - ten)];
        let first = if relevance == 10 { tokens[0] } else { tokens[1] };
        return (vec![first], tokens);
    }
    let mut thought =
        vec![("<think>", 1.0), ("so", 0.5), (" it", 0.5), (" is", 0.5), ("</think>", 1.0)];
    thought.extend([("\n<", 1.0), ("answer>", 1.0)]);
    // Skips the part of the thought that the turn already holds.
    let mut skipped = String::new();
    while !thought.is_empty() && turn.len() > skipped.len() && turn.starts_with(&skipped) {
        skipped.push_str(thought.remove(0).0);
    }
    thought.extend([(digit, 0.75), ("</", 0.9), ("answer>", 0.9)]);
    let first = thought[0];
    (thought, vec![first, (" hm", 0.1)])
}
