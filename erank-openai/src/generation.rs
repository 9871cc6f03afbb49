//! The generation of one document's completion.
//!
//! ```text
//! think: generate until <answer> ──budget spent, or the turn ended──▶ close the thought, append <answer>
//!            │ <answer>                                                      │
//!            └──────▶ one token: its log-probabilities are the distribution ◀┘
//! ```
//!
//! The answer is read in the same way in three cases: the model opened it, it was forced, or the mode is
//! answer only. A request with the prompt so far generates one token with its top log-probabilities. The
//! thought itself needs no log-probabilities, so its responses are small.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use erank_core::tags::{ANSWER_CLOSE, ANSWER_OPEN, FORCED_ANSWER_PREFIX, THINK_CLOSE, THINK_OPEN};
use erank_core::{
    AnswerError, AnswerFormat, BackendError, Completion, DocumentError, FinishReason, Mode,
    Sampling, ScoringOptions, TokenCounts,
};
use serde_json::{Value, json};

use crate::api::{self, CHAT, COMPLETIONS, Response};
use crate::capabilities::Capabilities;
use crate::client::Client;
use crate::control_tokens::ControlTokens;
use crate::error::{CapabilityError, RequestError};
use crate::labels::{LogprobSource, label_distribution};
use crate::prompts::{DocumentPrompt, Prompt};
use crate::settings::{OpenAiSettings, PromptFormat, ServerKind};
use crate::tokenizer::ClientTokenizer;

/// Number of tokens reserved for closing the thought and opening the answer. A text never has more tokens
/// than bytes.
const FORCED_TOKENS: usize = FORCED_ANSWER_PREFIX.len();
/// Number of tokens reserved for the server's chat template around a message.
const TEMPLATE_TOKENS: usize = 64;

/// The state that all documents of a job share.
pub(crate) struct JobContext {
    /// The job's client, for data that all documents share.
    pub(crate) client: Client,
    pub(crate) server: Arc<Capabilities>,
    pub(crate) settings: Arc<OpenAiSettings>,
    pub(crate) control_tokens: Arc<ControlTokens>,
    /// The id of the token that ends a thought. `None` if it is not one token, or if the server sees text.
    pub(crate) thought_end_id: Option<u32>,
    pub(crate) format: AnswerFormat,
    pub(crate) options: ScoringOptions,
    /// The first tokens of all answers, if the server accepts `logprob_token_ids`. Empty if they are
    /// unknown.
    pub(crate) label_token_ids: OnceLock<Vec<u32>>,
}

/// The reason why a document has no completion.
#[derive(Debug)]
pub(crate) enum GenerationError {
    /// An error of this document.
    Document(DocumentError),
    /// An error of the whole job.
    Job(BackendError),
}

impl From<DocumentError> for GenerationError {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

impl From<AnswerError> for GenerationError {
    fn from(error: AnswerError) -> Self {
        Self::Document(error.into())
    }
}

impl JobContext {
    /// Generates one sample of a document with the document's `client`. Reports the tokens of each
    /// response to `progress`.
    pub(crate) fn generate(
        &self,
        client: &Client,
        document: &DocumentPrompt,
        sample: usize,
        progress: &dyn Fn(TokenCounts),
    ) -> Result<Completion, GenerationError> {
        let is_thinking = document.opens_thought && !self.format.is_bare();
        let completion = Completion::new(if is_thinking { THINK_OPEN } else { "" });
        let mut generation = Generation {
            job: self,
            client,
            prompt: document.prompt.clone(),
            completion,
            sample,
            progress,
            is_first: true,
        };
        generation.completion.query_truncated = document.query_truncated;
        generation.completion.document_truncated = document.document_truncated;
        generation.completion.sample = sample;
        match generation.prompt {
            Prompt::Message(_) => generation.chat()?,
            _ => generation.complete(document.opens_thought)?,
        }
        Ok(generation.completion)
    }

    /// Decides whether a failed request fails its document or the whole job.
    fn classify(&self, error: RequestError) -> GenerationError {
        let fails_job = error.is_fatal() || self.client.is_down();
        match fails_job && !matches!(error, RequestError::Cancelled) {
            true => GenerationError::Job(error.into()),
            false => GenerationError::Document(error.into()),
        }
    }

    /// Returns the first tokens of all answers, or nothing if the server does not accept token ids, an id
    /// is unknown, or there are too many.
    fn find_label_token_ids(&self, client: &Client) -> Vec<u32> {
        /// The maximum number of ids that vLLM accepts in one request.
        const MAX_IDS: usize = 128;
        if !self.server.logprob_token_ids {
            return Vec::new();
        }
        let first = |label: &str| match self.tokenizer() {
            Some(tokenizer) => tokenizer.encode_trusted(label).ok()?.first().copied(),
            None => client.first_token_id(&self.server, label),
        };
        let ids: Option<BTreeSet<u32>> =
            self.format.answers().map(|(label, _)| first(label)).collect();
        ids.filter(|ids| ids.len() <= MAX_IDS).into_iter().flatten().collect()
    }

    fn tokenizer(&self) -> Option<&dyn ClientTokenizer> {
        match &self.settings.prompt_format {
            PromptFormat::TokenIds(tokenizer) => Some(&**tokenizer),
            _ => None,
        }
    }

    /// Returns the number of bytes of the longest label, which bounds its tokens.
    fn longest_label(&self) -> usize {
        self.format.answers().map(|(label, _)| label.len()).max().unwrap_or(0)
    }
}

/// The state of one generation, with the assistant turn so far.
struct Generation<'a> {
    job: &'a JobContext,
    client: &'a Client,
    /// The prompt of the next request. It is the document's prompt and the turn so far.
    prompt: Prompt,
    completion: Completion,
    sample: usize,
    progress: &'a dyn Fn(TokenCounts),
    /// Whether no response has arrived yet.
    is_first: bool,
}

impl Generation<'_> {
    /// Generates with raw prompts.
    fn complete(&mut self, opens_thought: bool) -> Result<(), GenerationError> {
        let format = &self.job.format;
        let budget = self.thinking_budget()?;
        let opened_answer = self.think(budget)?;
        let answer_only = self.job.options.mode == Mode::AnswerOnly;
        let prefix = match answer_only && !opens_thought {
            true => format.answer_only_prefix(),
            false => format.forced_answer_prefix(self.after_thought().unwrap_or(THINK_OPEN)),
        };
        if let Some(start) = prefix.find(THINK_CLOSE) {
            let end = self.completion.text.len() + start + THINK_CLOSE.len();
            self.completion.thought_end = Some(end);
        }
        self.append(prefix)?;
        self.completion.finish_reason = match answer_only || opened_answer {
            true => FinishReason::Answered,
            false => FinishReason::Forced,
        };
        if self.job.settings.logprobs {
            self.answer(opened_answer)
        } else {
            self.answer_without_logprobs(opened_answer)
        }
    }

    /// Returns the maximum number of tokens of the thought, with tokens for the answer reserved. It is 0
    /// in answer-only mode.
    fn thinking_budget(&self) -> Result<usize, GenerationError> {
        let wanted = match self.job.options.mode {
            Mode::Reason { max_tokens } => max_tokens,
            _ => 0,
        };
        let Some(limit) = self.job.server.context_length else { return Ok(wanted) };
        let reserved = FORCED_TOKENS + self.job.longest_label();
        let tokens = match &self.prompt {
            Prompt::TokenIds(ids) => ids.len(),
            // A text never has more tokens than bytes.
            Prompt::Text(text) | Prompt::Message(text)
                if text.len() + reserved + wanted <= limit =>
            {
                return Ok(wanted);
            }
            Prompt::Text(text) | Prompt::Message(text) => {
                let count = self.client.count_tokens(&self.job.server, text);
                match count.map_err(|error| self.job.classify(error))? {
                    Some(count) => count,
                    None => {
                        // Only the server can tell whether the prompt fits, so request one token at
                        // least.
                        let tokens = text.len() as f64 / self.job.settings.bytes_per_token;
                        let left = limit.saturating_sub(tokens as usize + reserved);
                        return Ok(wanted.min(left.max(1)));
                    }
                }
            }
        };
        match limit.checked_sub(tokens + reserved) {
            Some(left) => Ok(wanted.min(left)),
            None => Err(DocumentError::PromptTooLong { tokens: tokens + reserved, limit }.into()),
        }
    }

    /// Generates the thought. Returns whether the model opened the answer; otherwise the answer must be
    /// forced.
    fn think(&mut self, mut budget: usize) -> Result<bool, GenerationError> {
        while budget > 0 {
            let mut fields = json!({
                "prompt": self.prompt.to_json(), "max_tokens": budget, "stop": [ANSWER_OPEN],
            });
            match self.job.server.kind {
                // Otherwise llama.cpp does not distinguish a stop string from the end of the turn.
                ServerKind::LlamaCpp => {
                    merge(&mut fields, json!({"verbose": true, "response_fields": ["stop_type"]}))
                }
                ServerKind::Vllm | ServerKind::Sglang | ServerKind::Other => {}
            }
            if matches!(self.prompt, Prompt::TokenIds(_)) {
                // vLLM returns ids on request, llama.cpp with log-probabilities.
                merge(&mut fields, json!({"return_token_ids": true, "logprobs": 1}));
            }
            let response = self.request(COMPLETIONS, fields, &self.job.options.sampling)?;
            budget = budget.saturating_sub(response.usage.generated.max(1));
            self.append_response(&response)?;
            let opens_answer = self.after_thought().is_some_and(|text| {
                self.job.format.forced_answer_prefix(&format!("{text}{ANSWER_OPEN}")).is_empty()
            });
            match response.finish_reason {
                api::FinishReason::Length | api::FinishReason::EndOfTurn => return Ok(false),
                api::FinishReason::StopString | api::FinishReason::Stop if opens_answer => {
                    self.append(ANSWER_OPEN)?;
                    return Ok(true);
                }
                // The tag is part of an open thought, which continues.
                api::FinishReason::StopString => self.append(ANSWER_OPEN)?,
                // The reason is either the tag inside the thought or the end of the turn. Only the latter is
                // safe to assume.
                api::FinishReason::Stop => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Reads the distribution over the answers. The answer is the generated one if the model opened the
    /// answer itself, and otherwise the most probable one.
    fn answer(&mut self, opened_answer: bool) -> Result<(), GenerationError> {
        let greedy = Sampling::default();
        let job = self.job;
        let sampling = if opened_answer { &job.options.sampling } else { &greedy };
        let labels = label_distribution(&job.format, opened_answer, |prefix| {
            let prompt = self.prompt_with(prefix)?;
            let mut fields = json!({
                "prompt": prompt.to_json(), "max_tokens": 1, "logprobs": job.settings.top_logprobs,
            });
            let mut source = LogprobSource::TopLogprobs;
            // Further tokens of a label are probable enough to be among the most probable ones.
            let ids = job.label_token_ids.get_or_init(|| job.find_label_token_ids(self.client));
            if prefix.is_empty() && !ids.is_empty() {
                merge(&mut fields, json!({"logprobs": 1, "logprob_token_ids": ids}));
                source = LogprobSource::RequestedIds;
            }
            let mut token = self.request_token(fields.clone(), sampling)?;
            if job.server.logprobs_depend_on(sampling) {
                // The sampled token counts, with the model's own log-probabilities.
                let sampled = token.bytes;
                token = self.request_token(fields, &greedy)?;
                token.choose(sampled);
            }
            Ok::<_, GenerationError>((token, source))
        })?;
        let generated = labels.generated.filter(|_| opened_answer);
        if opened_answer && generated.is_none() {
            self.completion.finish_reason = FinishReason::Forced;
        }
        let answer = generated.unwrap_or(labels.distribution.most_probable());
        for (text, log_prob) in &labels.tokens[answer] {
            self.completion.push(text, *log_prob as f32);
        }
        self.completion.usage += TokenCounts::new(0, labels.tokens[answer].len());
        self.completion.text.push_str(job.format.answer_suffix());
        self.completion.answer_distribution = Some(labels.distribution);
        Ok(())
    }

    /// Generates one token.
    fn request_token(
        &mut self,
        fields: Value,
        sampling: &Sampling,
    ) -> Result<api::Token, GenerationError> {
        let response = self.request(COMPLETIONS, fields, sampling)?;
        // A server that ends the turn here may return no token.
        response.tokens.into_iter().next().ok_or_else(|| AnswerError::NoAnswer.into())
    }

    /// Generates the answer as text, without a distribution.
    fn answer_without_logprobs(&mut self, opened_answer: bool) -> Result<(), GenerationError> {
        let greedy = Sampling::default();
        let sampling = if opened_answer { &self.job.options.sampling } else { &greedy };
        let fields = json!({
            "prompt": self.prompt.to_json(),
            "max_tokens": self.job.longest_label() + 1,
            "stop": ["<"],
        });
        let response = self.request(COMPLETIONS, fields, sampling)?;
        self.completion.text.push_str(&response.text);
        self.completion.usage += TokenCounts::new(0, response.usage.generated);
        self.completion.text.push_str(self.job.format.answer_suffix());
        Ok(())
    }

    /// Generates the whole turn from a chat message.
    fn chat(&mut self) -> Result<(), GenerationError> {
        let Mode::Reason { max_tokens: wanted } = self.job.options.mode else {
            // The backend refuses answer-only mode before any request.
            return Err(DocumentError::from(AnswerError::NoAnswer).into());
        };
        let max_tokens = match self.thinking_budget()? {
            // The token count does not include the server's chat template.
            less if less < wanted => less.saturating_sub(TEMPLATE_TOKENS).max(1),
            enough => enough,
        };
        let mut fields = json!({
            "messages": [{"role": "user", "content": self.prompt.to_json()}],
            "max_tokens": max_tokens,
            "stop": [ANSWER_CLOSE],
        });
        if self.job.settings.logprobs {
            merge(&mut fields, json!({"logprobs": true, "top_logprobs": 1}));
        }
        let response = self.request(CHAT, fields, &self.job.options.sampling)?;
        response.append_to(&mut self.completion);
        self.completion.usage.generated = response.usage.generated;
        let format = &self.job.format;
        if response.finish_reason != api::FinishReason::Length
            && !format.is_answered(&self.completion.text)
        {
            // The response does not include the stop string.
            self.completion.text.push_str(ANSWER_CLOSE);
        }
        if format.is_answered(&self.completion.text) {
            self.completion.finish_reason = FinishReason::Answered;
        }
        Ok(())
    }

    /// Sends a request, and counts its tokens.
    fn request(
        &mut self,
        route: &str,
        mut fields: Value,
        sampling: &Sampling,
    ) -> Result<Response, GenerationError> {
        merge(&mut fields, self.job.server.sampling_fields(sampling, self.sample));
        if self.job.server.kind == ServerKind::Vllm {
            // The server's own setting may replace the texts of tokens, which labels are compared with.
            merge(&mut fields, json!({"return_tokens_as_token_ids": false}));
            if route == COMPLETIONS {
                // The prompt has all tokens that the model expects.
                merge(&mut fields, json!({"add_special_tokens": false}));
            }
        }
        let response = self.client.generate(route, &self.job.server.request(fields));
        let response = response.map_err(|error| self.job.classify(error))?;
        let mut tokens = response.usage;
        if std::mem::take(&mut self.is_first) {
            self.completion.usage.prompt = tokens.prompt;
        } else {
            // Nearly all of these prompt tokens were counted with an earlier request.
            tokens.prompt = 0;
        }
        (self.progress)(tokens);
        Ok(response)
    }

    /// Appends the generated text, up to `<answer>`, to the turn.
    fn append_response(&mut self, response: &Response) -> Result<(), GenerationError> {
        self.completion.usage += TokenCounts::new(0, response.usage.generated);
        let Some(tokenizer) = self.job.tokenizer() else {
            // Most servers omit the stop string. Remove it if a server does not.
            let text = response.text.split(ANSWER_OPEN).next().unwrap_or_default();
            self.append_generated(text);
            return Ok(());
        };
        let no_ids = || GenerationError::Job(CapabilityError::NoTokenIds.into());
        let ids = response.token_ids.as_deref().ok_or_else(no_ids)?;
        let (ids, rest) = truncate_at_answer(tokenizer, ids);
        let end = ids.iter().position(|id| Some(*id) == self.job.thought_end_id);
        if let (Some(end), None) = (end, self.completion.thought_end) {
            let thought = tokenizer.decode(&ids[..=end]);
            self.completion.thought_end = Some(self.completion.text.len() + thought.len());
        }
        self.completion.text.push_str(&tokenizer.decode(ids));
        if let Prompt::TokenIds(prompt) = &mut self.prompt {
            prompt.extend(ids);
        }
        self.append(&rest)
    }

    /// Appends text that the model generated to the turn. The model may have quoted control tokens of a document,
    /// and the server would read them as such in the next prompt. So they are neutralized there.
    fn append_generated(&mut self, text: &str) {
        if let Prompt::Text(whole) | Prompt::Message(whole) = &mut self.prompt {
            let start = whole.len();
            let data = quoted(&self.completion.text, text)
                .map(|range| start + range.start..start + range.end);
            let extended = std::mem::take(whole) + text;
            *whole = self.job.control_tokens.neutralize(extended, &data);
        }
        self.completion.text.push_str(text);
    }

    /// Returns the text after the thought, which may hold an answer; `None` during the thought. If no single
    /// token ends a thought, returns the whole turn. The format then looks for the end in it.
    fn after_thought(&self) -> Option<&str> {
        let after = &self.completion.text[self.completion.thought_end.unwrap_or(0)..];
        let is_thinking = after.trim_start().starts_with(THINK_OPEN);
        (!is_thinking || self.job.thought_end_id.is_none()).then_some(after)
    }

    /// Appends forced text to the assistant turn.
    fn append(&mut self, text: &str) -> Result<(), GenerationError> {
        self.prompt = self.prompt_with(text)?;
        self.completion.text.push_str(text);
        Ok(())
    }

    /// Returns the prompt with `text` appended.
    fn prompt_with(&self, text: &str) -> Result<Prompt, GenerationError> {
        let mut prompt = self.prompt.clone();
        match (&mut prompt, self.job.tokenizer()) {
            (_, _) if text.is_empty() => {}
            (Prompt::Text(whole) | Prompt::Message(whole), _) => whole.push_str(text),
            (Prompt::TokenIds(ids), Some(tokenizer)) => {
                ids.extend(tokenizer.encode_trusted(text).map_err(DocumentError::Backend)?);
            }
            (Prompt::TokenIds(_), None) => {}
        }
        Ok(prompt)
    }
}

/// Returns the ranges of generated `text` that may quote a document. `turn` is the turn before it. The model's own
/// tags are the `<think>` that begins the turn and the last `</think>`, which ends the thought.
fn quoted(turn: &str, text: &str) -> [Range<usize>; 2] {
    let mut start = 0;
    if turn.trim_start().is_empty() && text.trim_start().starts_with(THINK_OPEN) {
        start = text.len() - text.trim_start().len() + THINK_OPEN.len();
    }
    match text[start..].rfind(THINK_CLOSE).filter(|_| !turn.contains(THINK_CLOSE)) {
        Some(length) => {
            let end = start + length;
            [start..end, end + THINK_CLOSE.len()..text.len()]
        }
        None => [start..text.len(), text.len()..text.len()],
    }
}

/// Returns the ids before `<answer>` or the end of the turn. Also returns the text before `<answer>` that
/// these ids do not cover, because one token holds both the end of that text and the start of the tag.
fn truncate_at_answer<'a>(tokenizer: &dyn ClientTokenizer, ids: &'a [u32]) -> (&'a [u32], String) {
    let text = tokenizer.decode(ids);
    let end = text.find(ANSWER_OPEN).unwrap_or(text.len());
    let mut kept = ids;
    let mut length = text.len();
    while let [before @ .., _] = kept {
        let shorter = tokenizer.decode(before).len();
        // Remove the last token if it extends beyond the end, or has no text at the end.
        if length > end || (length == end && shorter == length) {
            (kept, length) = (before, shorter);
        } else {
            break;
        }
    }
    (kept, text.get(length..end).unwrap_or_default().to_owned())
}

/// Adds `more` to the fields of a request.
fn merge(fields: &mut Value, more: Value) {
    if let (Value::Object(fields), Value::Object(more)) = (fields, more) {
        fields.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use erank_core::Cause;
    use erank_core::prompt::BoundPrompt;

    use crate::tokenizer::TokenizedPrompt;

    /// A tokenizer whose ids are characters, except that 0 ends the turn and 1 is ">\n".
    struct Characters;

    impl ClientTokenizer for Characters {
        fn encode(
            &self,
            _: &BoundPrompt<'_>,
            _: &str,
            _: &ScoringOptions,
        ) -> Result<TokenizedPrompt, Cause> {
            Ok(TokenizedPrompt::default())
        }

        fn token_ends(&self, _: &str, _: usize) -> Result<Vec<usize>, Cause> {
            Ok(Vec::new())
        }

        fn encode_trusted(&self, text: &str) -> Result<Vec<u32>, Cause> {
            Ok(text.chars().map(u32::from).collect())
        }

        fn decode(&self, ids: &[u32]) -> String {
            let text = |id: &u32| match id {
                0 => String::new(),
                1 => ">\n".to_owned(),
                id => char::from_u32(*id).into_iter().collect(),
            };
            ids.iter().map(text).collect()
        }
    }

    fn ids(text: &str) -> Vec<u32> {
        Characters.encode_trusted(text).expect("infallible")
    }

    #[test]
    fn truncate_at_answer_keeps_ids_before_tag_or_end_of_turn() {
        for (generated, kept, rest) in [
            (ids("a</think>"), "a</think>", ""),
            ([ids("a</think>"), vec![0]].concat(), "a</think>", ""),
            (ids("a</think><answer>7"), "a</think>", ""),
            ([ids("a</think"), vec![1], ids("<answer>")].concat(), "a</think>\n", ""),
            ([ids("a<answer"), vec![1]].concat(), "a", ""),
            (ids(""), "", ""),
        ] {
            let (found, text) = truncate_at_answer(&Characters, &generated);
            assert_eq!((Characters.decode(found).as_str(), text.as_str()), (kept, rest));
        }
    }

    #[test]
    fn truncate_at_answer_returns_text_that_shares_a_token_with_tag() {
        /// A tokenizer with "b<answer>" as one token.
        struct Merged;
        impl ClientTokenizer for Merged {
            fn encode(
                &self,
                _: &BoundPrompt<'_>,
                _: &str,
                _: &ScoringOptions,
            ) -> Result<TokenizedPrompt, Cause> {
                Ok(TokenizedPrompt::default())
            }

            fn token_ends(&self, _: &str, _: usize) -> Result<Vec<usize>, Cause> {
                Ok(Vec::new())
            }

            fn encode_trusted(&self, _: &str) -> Result<Vec<u32>, Cause> {
                Ok(Vec::new())
            }

            fn decode(&self, ids: &[u32]) -> String {
                ids.iter().map(|id| ["a", "b<answer>"][*id as usize]).collect()
            }
        }
        assert_eq!(truncate_at_answer(&Merged, &[0, 1]), (&[0][..], "b".to_owned()));
    }
}
