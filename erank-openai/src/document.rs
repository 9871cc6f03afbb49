//! One document's way from its prompt to its answer.
//!
//! ```text
//! think: generate until <answer> ──budget spent, or the turn ended──▶ close the thought, <answer>
//!            │ <answer>                                                      │
//!            └──────────────▶ one token: the alternatives are the distribution ◀──┘
//! ```
//!
//! The answer is read in the same way whether the model came to it, it was forced, or it was asked for
//! at once: the prompt so far, and one token with its alternatives. The thought itself needs no
//! log-probabilities, so its replies are small.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};

use erank_core::AnswerError;
use erank_core::{AnswerFormat, Sampling};
use erank_core::{
    BackendError, Completion, DocumentError, FinishReason, Mode, ScoringOptions, TokenCounts,
};
use serde_json::{Value, json};

use crate::api::{Finish, Reply};
use crate::calls::Calls;
use crate::error::{CapabilityError, RequestError};
use crate::labels::{self, Named, Reading};
use crate::prompts::{Prepared, Prompt, TokenPrompts};
use crate::server::{CHAT, COMPLETIONS, Known, Server};
use crate::settings::{OpenAiSettings, Prompts};

const ANSWER_OPEN: &str = "<answer>";
const ANSWER_CLOSE: &str = "</answer>";
/// Tokens kept free for closing the thought and opening the answer: no tokenizer makes more of it
/// than its bytes.
const LEAD_ROOM: usize = "</think><answer>".len();
/// Tokens kept free for what a server's template writes around a message.
const TEMPLATE_ROOM: usize = 64;

/// What all documents of a job share.
pub(crate) struct Work {
    pub(crate) calls: Calls,
    pub(crate) known: Known,
    pub(crate) settings: Arc<OpenAiSettings>,
    pub(crate) format: AnswerFormat,
    pub(crate) options: ScoringOptions,
    /// The first tokens of all answers, where the server takes ids; empty if they are not known.
    pub(crate) label_ids: OnceLock<Vec<u32>>,
}

/// Why a document has no completion.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It concerns this document.
    Document(DocumentError),
    /// It concerns all.
    Job(BackendError),
}

impl From<DocumentError> for Failure {
    fn from(error: DocumentError) -> Self {
        Self::Document(error)
    }
}

impl From<AnswerError> for Failure {
    fn from(error: AnswerError) -> Self {
        Self::Document(error.into())
    }
}

impl Work {
    /// Generates sample number `sample` by `calls` about this document; `progress` hears of the tokens.
    pub(crate) fn complete(
        &self,
        calls: &Calls,
        prepared: &Prepared,
        sample: usize,
        progress: &dyn Fn(TokenCounts),
    ) -> Result<Completion, Failure> {
        let completion = Completion::new(if prepared.opens_thought { "<think>" } else { "" });
        let mut turn = Turn {
            work: self,
            calls,
            prompt: prepared.prompt.clone(),
            completion,
            sample,
            progress,
            is_first: true,
        };
        turn.completion.query_truncated = prepared.query_truncated;
        turn.completion.document_truncated = prepared.document_truncated;
        turn.completion.sample = sample;
        match turn.prompt {
            Prompt::Message(_) => turn.chat()?,
            _ => turn.complete(prepared.opens_thought)?,
        }
        Ok(turn.completion)
    }

    /// What becomes of a request that failed.
    fn failed(&self, error: RequestError) -> Failure {
        let concerns_all = error.is_fatal() || self.calls.all_are_down();
        match concerns_all && !matches!(error, RequestError::Stopped) {
            true => Failure::Job(error.into()),
            false => Failure::Document(error.into()),
        }
    }

    /// The first tokens of all answers: none unless the server takes ids, gives all of these, and
    /// allows for so many.
    fn ask_label_ids(&self, calls: &Calls) -> Vec<u32> {
        const MOST: usize = 128;
        if !self.known.takes_ids {
            return Vec::new();
        }
        let first = |label: &str| match self.tokenizer() {
            Some(tokenizer) => tokenizer.encode_trusted(label).ok()?.first().copied(),
            None => calls.first_id(&self.known, label),
        };
        let ids: Option<BTreeSet<u32>> =
            self.format.answers().map(|(label, _)| first(label)).collect();
        ids.filter(|ids| ids.len() <= MOST).into_iter().flatten().collect()
    }

    fn tokenizer(&self) -> Option<&dyn TokenPrompts> {
        match &self.settings.prompts {
            Prompts::TokenIds(tokenizer) => Some(&**tokenizer),
            _ => None,
        }
    }
}

/// The assistant's turn while it comes about.
struct Turn<'a> {
    work: &'a Work,
    calls: &'a Calls,
    /// What the server is sent: the prompt, and the turn so far.
    prompt: Prompt,
    completion: Completion,
    sample: usize,
    progress: &'a dyn Fn(TokenCounts),
    /// Whether no request was answered yet.
    is_first: bool,
}

impl Turn<'_> {
    /// By raw prompts.
    fn complete(&mut self, opens_thought: bool) -> Result<(), Failure> {
        let format = &self.work.format;
        let budget = self.budget()?;
        let came_to_it = self.think(budget)?;
        let at_once = self.work.options.mode == Mode::AnswerOnly;
        let lead = match at_once && !opens_thought {
            true => format.answer_only_prefix(),
            false => format.forced_answer_prefix(&self.completion.text),
        };
        self.say(lead)?;
        self.completion.finish_reason =
            if at_once || came_to_it { FinishReason::Answered } else { FinishReason::Forced };
        if self.work.settings.log_probs {
            self.answer(came_to_it)
        } else {
            self.answer_without_log_probs(came_to_it)
        }
    }

    /// Tokens to think in, with room for the answer; 0 if it is to be given at once.
    fn budget(&self) -> Result<usize, Failure> {
        let wanted = match self.work.options.mode {
            Mode::Reason { max_tokens } => max_tokens,
            _ => 0,
        };
        let Some(limit) = self.work.known.context else { return Ok(wanted) };
        let longest = self.work.format.answers().map(|(label, _)| label.len()).max().unwrap_or(0);
        let room = LEAD_ROOM + longest;
        let tokens = match &self.prompt {
            Prompt::Ids(ids) => ids.len(),
            // No tokenizer makes more tokens of a text than it has bytes.
            Prompt::Text(text) | Prompt::Message(text) if text.len() + room + wanted <= limit => {
                return Ok(wanted);
            }
            Prompt::Text(text) | Prompt::Message(text) => {
                let count = self.work.known.count(self.calls, text);
                match count.map_err(|error| self.work.failed(error))? {
                    Some(count) => count,
                    None => {
                        // The server has the last word on whether it fits.
                        let tokens = text.len() as f64 / self.work.settings.bytes_per_token;
                        let left = limit.saturating_sub(tokens as usize + room);
                        return Ok(wanted.min(left.max(1)));
                    }
                }
            }
        };
        match limit.checked_sub(tokens + room) {
            Some(left) => Ok(wanted.min(left)),
            None => Err(DocumentError::PromptTooLong { tokens: tokens + room, limit }.into()),
        }
    }

    /// Generates until the answer begins: true. False if it has to be forced.
    fn think(&mut self, mut budget: usize) -> Result<bool, Failure> {
        while budget > 0 {
            let mut fields = json!({
                "prompt": self.prompt.value(), "max_tokens": budget, "stop": [ANSWER_OPEN],
            });
            match self.work.known.server {
                // Otherwise it does not say whether it met the stop string or the end of the turn.
                Server::LlamaCpp => {
                    merge(&mut fields, json!({"verbose": true, "response_fields": ["stop_type"]}))
                }
                Server::Vllm | Server::Other => {}
            }
            if matches!(self.prompt, Prompt::Ids(_)) {
                // vLLM gives ids when it is asked, llama.cpp with log-probabilities.
                merge(&mut fields, json!({"return_token_ids": true, "logprobs": 1}));
            }
            let reply = self.generate(COMPLETIONS, fields, &self.work.options.sampling)?;
            budget = budget.saturating_sub(reply.usage.generated.max(1));
            self.hear(&reply)?;
            let begins_answer = {
                let said = format!("{}{ANSWER_OPEN}", self.completion.text);
                self.work.format.forced_answer_prefix(&said).is_empty()
            };
            match reply.finish {
                Finish::Length | Finish::EndOfText => return Ok(false),
                Finish::StopString | Finish::CancellationToken if begins_answer => {
                    self.say(ANSWER_OPEN)?;
                    return Ok(true);
                }
                // The tag stands inside the thought, which goes on.
                Finish::StopString => self.say(ANSWER_OPEN)?,
                // The tag, or the end of the turn: what comes next is certain only after the latter.
                Finish::CancellationToken => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Reads the distribution over the answers, and takes the one that the model chose, if it came to
    /// the answer by itself, or else the most probable.
    fn answer(&mut self, came_to_it: bool) -> Result<(), Failure> {
        let greedy = Sampling::default();
        let work = self.work;
        let sampling = if came_to_it { &work.options.sampling } else { &greedy };
        let reading: Reading = labels::read(&work.format, came_to_it, |beginning| {
            let prompt = self.prompt_and(beginning)?;
            let mut fields = json!({
                "prompt": prompt.value(), "max_tokens": 1, "logprobs": work.settings.alternatives,
            });
            let mut named = Named::MostProbable;
            // What comes behind the first token is likely enough to be among the most probable.
            let ids = work.label_ids.get_or_init(|| work.ask_label_ids(self.calls));
            if beginning.is_empty() && !ids.is_empty() {
                merge(&mut fields, json!({"logprobs": 1, "logprob_token_ids": ids}));
                named = Named::Answers;
            }
            let reply = self.generate(COMPLETIONS, fields, sampling)?;
            // A server that ends the turn here may give no token.
            let token = reply.tokens.into_iter().next();
            let token = token.ok_or_else(|| Failure::from(AnswerError::NoAnswer));
            token.map(|token| (token, named))
        })?;
        let chosen = reading.chosen.filter(|_| came_to_it);
        if came_to_it && chosen.is_none() {
            self.completion.finish_reason = FinishReason::Forced;
        }
        let answer = chosen.unwrap_or(reading.distribution.most_probable());
        for (text, log_prob) in &reading.tokens[answer] {
            self.completion.push(text, *log_prob as f32);
        }
        self.completion.usage.generated += reading.tokens[answer].len();
        self.completion.text.push_str(ANSWER_CLOSE);
        self.completion.answer_distribution = Some(reading.distribution);
        Ok(())
    }

    /// Has the answer written out.
    fn answer_without_log_probs(&mut self, came_to_it: bool) -> Result<(), Failure> {
        let greedy = Sampling::default();
        let sampling = if came_to_it { &self.work.options.sampling } else { &greedy };
        let longest = self.work.format.answers().map(|(label, _)| label.len()).max().unwrap_or(0);
        let fields = json!({
            "prompt": self.prompt.value(), "max_tokens": longest + 1, "stop": ["<"],
        });
        let reply = self.generate(COMPLETIONS, fields, sampling)?;
        self.completion.text.push_str(&reply.text);
        self.completion.usage.generated += reply.usage.generated;
        self.completion.text.push_str(ANSWER_CLOSE);
        Ok(())
    }

    /// By a message: all at once, as the server sees fit.
    fn chat(&mut self) -> Result<(), Failure> {
        let Mode::Reason { max_tokens: wanted } = self.work.options.mode else {
            // Refused before any work.
            return Err(DocumentError::from(AnswerError::NoAnswer).into());
        };
        let max_tokens = match self.budget()? {
            // The server's template has not been counted.
            less if less < wanted => less.saturating_sub(TEMPLATE_ROOM).max(1),
            enough => enough,
        };
        let mut fields = json!({
            "messages": [{"role": "user", "content": self.prompt.value()}],
            "max_tokens": max_tokens,
            "stop": [ANSWER_CLOSE],
        });
        if self.work.settings.log_probs {
            merge(&mut fields, json!({"logprobs": true, "top_logprobs": 1}));
        }
        let reply = self.generate(CHAT, fields, &self.work.options.sampling)?;
        reply.append_to(&mut self.completion);
        self.completion.usage.generated = reply.usage.generated;
        if reply.finish != Finish::Length && !self.work.format.is_answered(&self.completion.text) {
            // The stop string is not part of the text.
            self.completion.text.push_str(ANSWER_CLOSE);
        }
        if self.work.format.is_answered(&self.completion.text) {
            self.completion.finish_reason = FinishReason::Answered;
        }
        Ok(())
    }

    /// Sends a request, and keeps count.
    fn generate(
        &mut self,
        route: &str,
        mut fields: Value,
        sampling: &Sampling,
    ) -> Result<Reply, Failure> {
        merge(&mut fields, self.work.known.sampling_fields(sampling, self.sample));
        let reply = self.calls.generate(route, &self.work.known.request(fields));
        let reply = reply.map_err(|error| self.work.failed(error))?;
        let mut tokens = reply.usage;
        if std::mem::take(&mut self.is_first) {
            self.completion.usage.prompt = tokens.prompt;
        } else {
            // Read before, but for a few.
            tokens.prompt = 0;
        }
        (self.progress)(tokens);
        Ok(reply)
    }

    /// Takes what was generated into the turn.
    fn hear(&mut self, reply: &Reply) -> Result<(), Failure> {
        self.completion.usage.generated += reply.usage.generated;
        let Some(tokenizer) = self.work.tokenizer() else {
            // Servers leave the stop string out; one that does not shall do no harm.
            let text = reply.text.split(ANSWER_OPEN).next().unwrap_or_default();
            return self.say(text);
        };
        let no_ids = || Failure::Job(CapabilityError::NoTokenIds.into());
        let ids = reply.ids.as_deref().ok_or_else(no_ids)?;
        let (ids, rest) = spoken(tokenizer, ids);
        self.completion.text.push_str(&tokenizer.decode(ids));
        if let Prompt::Ids(prompt) = &mut self.prompt {
            prompt.extend(ids);
        }
        self.say(&rest)
    }

    /// Puts text into the model's mouth.
    fn say(&mut self, text: &str) -> Result<(), Failure> {
        self.prompt = self.prompt_and(text)?;
        self.completion.text.push_str(text);
        Ok(())
    }

    fn prompt_and(&self, text: &str) -> Result<Prompt, Failure> {
        let mut prompt = self.prompt.clone();
        match (&mut prompt, self.work.tokenizer()) {
            (_, _) if text.is_empty() => {}
            (Prompt::Text(whole) | Prompt::Message(whole), _) => whole.push_str(text),
            (Prompt::Ids(ids), Some(tokenizer)) => {
                ids.extend(tokenizer.encode_trusted(text).map_err(DocumentError::Backend)?);
            }
            (Prompt::Ids(_), None) => {}
        }
        Ok(prompt)
    }
}

/// The ids before `<answer>` and the end of the turn, and what text before it they do not cover
/// because a token holds the end of the one and the beginning of the other.
fn spoken<'a>(tokenizer: &dyn TokenPrompts, ids: &'a [u32]) -> (&'a [u32], String) {
    let text = tokenizer.decode(ids);
    let end = text.find(ANSWER_OPEN).unwrap_or(text.len());
    let mut kept = ids;
    let mut length = text.len();
    while let [before @ .., _] = kept {
        let shorter = tokenizer.decode(before).len();
        // Beyond the end, or, at the end, nothing that is heard.
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

    use crate::prompts::TokenPrompt;

    /// Ids are characters, but 0 ends the turn and 1 is ">\n".
    struct Characters;

    impl TokenPrompts for Characters {
        fn encode(
            &self,
            _: &BoundPrompt<'_>,
            _: &str,
            _: &ScoringOptions,
        ) -> Result<TokenPrompt, Cause> {
            Ok(TokenPrompt::default())
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
    fn ids_are_kept_up_to_the_answers_tag_or_the_end_of_the_turn() {
        for (generated, kept, rest) in [
            (ids("a</think>"), "a</think>", ""),
            ([ids("a</think>"), vec![0]].concat(), "a</think>", ""),
            (ids("a</think><answer>7"), "a</think>", ""),
            ([ids("a</think"), vec![1], ids("<answer>")].concat(), "a</think>\n", ""),
            ([ids("a<answer"), vec![1]].concat(), "a", ""),
            (ids(""), "", ""),
        ] {
            let (heard, left) = spoken(&Characters, &generated);
            assert_eq!((Characters.decode(heard).as_str(), left.as_str()), (kept, rest));
        }
    }

    #[test]
    fn text_that_shares_a_token_with_the_tag_is_not_lost() {
        /// One token holds "b<answer>".
        struct Merged;
        impl TokenPrompts for Merged {
            fn encode(
                &self,
                _: &BoundPrompt<'_>,
                _: &str,
                _: &ScoringOptions,
            ) -> Result<TokenPrompt, Cause> {
                Ok(TokenPrompt::default())
            }

            fn encode_trusted(&self, _: &str) -> Result<Vec<u32>, Cause> {
                Ok(Vec::new())
            }

            fn decode(&self, ids: &[u32]) -> String {
                ids.iter().map(|id| ["a", "b<answer>"][*id as usize]).collect()
            }
        }
        assert_eq!(spoken(&Merged, &[0, 1]), (&[0][..], "b".to_owned()));
    }
}
