//! One document's generation, from its prompt to its answer.

use erank_core::backend::{Completion, DocumentError, FinishReason};
use erank_core::{AnswerFormat, Mode};

use crate::kv_cache::BlockId;
use crate::labels::{Labels, Walk};
use crate::logits::{Logits, TokenLogProb};
use crate::tokenizer::{EncodedPrompt, PromptTokenizer, TokenDecoder};

/// What all sequences of a job share.
pub(crate) struct Task<'a> {
    pub(crate) tokenizer: &'a PromptTokenizer,
    pub(crate) format: &'a AnswerFormat,
    pub(crate) labels: Labels,
    pub(crate) mode: Mode,
    pub(crate) eos_token_ids: &'a [u32],
    /// Whether the prompt ends with an open thought.
    pub(crate) opens_thought: bool,
    /// Tokens that a sequence may have in all.
    pub(crate) limit: usize,
}

/// A sequence: the tokens so far, how many of them the cache holds, and what comes next.
pub(crate) struct Sequence {
    /// The document's index in the job.
    pub(crate) index: usize,
    /// Prompt, generated and forced tokens; while the distribution is read, a probe at the end.
    pub(crate) tokens: Vec<u32>,
    /// How many of the tokens the cache holds.
    pub(crate) computed: usize,
    pub(crate) blocks: Vec<BlockId>,
    completion: Completion,
    decoder: TokenDecoder,
    /// Tokens that may still be generated before the answer is forced.
    budget: usize,
    next: Next,
}

/// What the logits behind the last token are for.
enum Next {
    /// The next token of the thought or the answer.
    Token,
    /// The first token of the answer, which is forced.
    ForcedAnswer,
    /// The distribution over the answers, which began at `start`. Then the token that the model
    /// chose there goes on, or, if the answer is forced, the most probable answer.
    Distribution { walk: Walk, start: usize, chosen: Option<TokenLogProb> },
}

/// What became of a sequence.
pub(crate) enum Outcome {
    Continues,
    Done(Result<Completion, DocumentError>),
}

impl Sequence {
    /// Begins with a prompt.
    ///
    /// # Errors
    /// If the prompt leaves no room for an answer.
    pub(crate) fn new(
        index: usize,
        prompt: EncodedPrompt,
        task: &Task<'_>,
    ) -> Result<Self, DocumentError> {
        let prompt_tokens = prompt.ids.len();
        let mut completion = Completion::new(if task.opens_thought { "<think>" } else { "" });
        completion.usage.prompt = prompt_tokens;
        completion.query_truncated = prompt.query_truncated;
        completion.document_truncated = prompt.document_truncated;
        let mut sequence = Self {
            index,
            tokens: prompt.ids,
            computed: 0,
            blocks: Vec::new(),
            completion,
            decoder: task.tokenizer.decoder(),
            budget: 0,
            next: Next::Token,
        };
        if task.mode == Mode::AnswerOnly {
            let lead = match task.opens_thought {
                true => task.format.forced_lead(&sequence.completion.text),
                false => task.format.answer_only_lead(),
            };
            sequence.force(lead, task)?;
            sequence.completion.finish = FinishReason::Answered;
        }

        let room_to_answer = LEAD_ROOM + task.labels.longest();
        let needed = sequence.tokens.len() + room_to_answer;
        if needed > task.limit {
            return Err(DocumentError::PromptTooLong { tokens: needed, limit: task.limit });
        }
        if let Mode::Reason { max_tokens } = task.mode {
            sequence.budget = max_tokens.min(task.limit - needed);
            if sequence.budget == 0 {
                sequence.force_answer(task)?;
            }
        }
        Ok(sequence)
    }

    /// Tokens that the cache does not hold yet. Never empty between steps.
    pub(crate) fn pending(&self) -> &[u32] {
        &self.tokens[self.computed..]
    }

    /// Generated tokens so far.
    pub(crate) fn generated(&self) -> usize {
        self.completion.usage.generated
    }

    /// Goes on with the logits behind the last token.
    pub(crate) fn advance(&mut self, logits: &[f32], task: &Task<'_>) -> Outcome {
        let logits = Logits::new(logits);
        let outcome = match std::mem::replace(&mut self.next, Next::Token) {
            Next::Token => {
                let chosen = logits.greedy();
                if self.is_at_answer(task) && task.labels.begin_with(chosen.id) {
                    self.read_distribution(Walk::begin(&task.labels, &logits), Some(chosen), task)
                } else {
                    self.accept(chosen, task)
                }
            }
            Next::ForcedAnswer => {
                self.read_distribution(Walk::begin(&task.labels, &logits), None, task)
            }
            Next::Distribution { mut walk, start, chosen } => {
                walk.go_on(&task.labels, &logits);
                self.rewind(start);
                self.read_distribution(walk, chosen, task)
            }
        };
        outcome.unwrap_or_else(|error| Outcome::Done(Err(error)))
    }

    /// Whether the answer's first token comes next.
    fn is_at_answer(&self, task: &Task<'_>) -> bool {
        // Nothing would have to be forced in order to answer here.
        task.format.forced_lead(&self.completion.text).is_empty()
    }

    /// Probes the next inner node of the answers' tree; when all are known, answers.
    fn read_distribution(
        &mut self,
        walk: Walk,
        chosen: Option<TokenLogProb>,
        task: &Task<'_>,
    ) -> Result<Outcome, DocumentError> {
        if let Some(probe) = walk.next(&task.labels) {
            let start = self.tokens.len();
            self.tokens.extend(probe);
            self.next = Next::Distribution { walk, start, chosen };
            return Ok(Outcome::Continues);
        }
        let distribution = walk.distribution()?;
        let most_probable = distribution.most_probable();
        self.completion.answers = Some(distribution);
        match chosen {
            Some(chosen) => self.accept(chosen, task),
            None => {
                let log_probs = walk.token_log_probs(most_probable);
                for (id, log_prob) in task.labels.tokens(most_probable).iter().zip(log_probs) {
                    self.push(TokenLogProb { id: *id, log_prob: *log_prob as f32 });
                }
                self.completion.text.push_str("</answer>");
                Ok(self.finish())
            }
        }
    }

    /// Takes a token that the model chose.
    fn accept(&mut self, chosen: TokenLogProb, task: &Task<'_>) -> Result<Outcome, DocumentError> {
        if task.eos_token_ids.contains(&chosen.id) {
            // The model ended its turn without an answer, or it would have ended before.
            self.force_answer(task)?;
            return Ok(Outcome::Continues);
        }
        self.tokens.push(chosen.id);
        self.push(chosen);
        if task.format.is_answered(&self.completion.text) {
            self.completion.finish = FinishReason::Answered;
            return Ok(self.finish());
        }
        self.budget = self.budget.saturating_sub(1);
        if self.budget == 0 {
            self.force_answer(task)?;
        }
        Ok(Outcome::Continues)
    }

    /// Adds a token to the completion.
    fn push(&mut self, token: TokenLogProb) {
        let text = self.decoder.push(token.id);
        self.completion.push(&text, token.log_prob);
        self.completion.usage.generated += 1;
    }

    /// Ends the thought as it stands; the answer comes next.
    fn force_answer(&mut self, task: &Task<'_>) -> Result<(), DocumentError> {
        let rest = self.decoder.finish();
        self.completion.text.push_str(&rest);
        let lead = task.format.forced_lead(&self.completion.text);
        self.force(lead, task)
    }

    fn force(&mut self, lead: &str, task: &Task<'_>) -> Result<(), DocumentError> {
        self.completion.text.push_str(lead);
        self.completion.finish = FinishReason::Forced;
        self.tokens.extend(task.tokenizer.encode_trusted(lead)?);
        self.next = Next::ForcedAnswer;
        if self.pending().is_empty() {
            // Nothing had to be added: the last token is computed again for its logits.
            self.computed -= 1;
        }
        Ok(())
    }

    /// Drops a probe.
    fn rewind(&mut self, length: usize) {
        self.tokens.truncate(length);
        self.computed = self.computed.min(length);
    }

    fn finish(&mut self) -> Outcome {
        let completion = std::mem::replace(&mut self.completion, Completion::new(""));
        Outcome::Done(Ok(completion))
    }
}

/// Tokens kept free for closing the thought and opening the answer: no tokenizer makes more of it
/// than its bytes.
const LEAD_ROOM: usize = "</think><answer>".len();
