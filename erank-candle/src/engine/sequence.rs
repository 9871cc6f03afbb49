//! One document's generation, from its prompt to its answer.

use std::sync::Arc;

use erank_core::backend::{Completion, DocumentError, FinishReason, ScoringOptions};
use erank_core::{AnswerFormat, Mode};

use super::draft::draft;
use super::labels::{Labels, Walk};
use super::sampler::sample;
use crate::logits::{Logits, TokenLogProb};
use crate::tokenizer::{EncodedPrompt, PromptTokenizer, TokenDecoder};

/// What all sequences of a job share.
pub(crate) struct Task {
    pub(crate) tokenizer: PromptTokenizer,
    pub(crate) format: AnswerFormat,
    pub(crate) labels: Labels,
    pub(crate) options: ScoringOptions,
    pub(crate) eos_token_ids: Vec<u32>,
    /// Whether the prompt ends with an open thought.
    pub(crate) opens_thought: bool,
    /// Tokens that a sequence may have in all.
    pub(crate) limit: usize,
}

/// A sequence: the tokens so far, how many of them the cache holds, and what comes next.
pub(crate) struct Sequence {
    task: Arc<Task>,
    /// The document's index in the job.
    pub(crate) index: usize,
    /// Prompt, generated and forced tokens; while the distribution is read, a probe at the end.
    tokens: Vec<u32>,
    /// Tokens of the prompt, with an answer's forced beginning.
    prompt_length: usize,
    /// How many of the tokens the cache holds.
    computed: usize,
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

/// A completed sequence's result; `None` while it goes on.
pub(super) type Outcome = Option<Result<Completion, DocumentError>>;

impl Sequence {
    /// Begins with a prompt.
    ///
    /// # Errors
    /// If the prompt leaves no room for an answer.
    pub(crate) fn new(
        index: usize,
        sample: usize,
        prompt: EncodedPrompt,
        task: Arc<Task>,
    ) -> Result<Self, DocumentError> {
        let prompt_length = prompt.ids.len();
        let mut completion = Completion::new(if task.opens_thought { "<think>" } else { "" });
        completion.usage.prompt = prompt_length;
        completion.query_truncated = prompt.query_truncated;
        completion.document_truncated = prompt.document_truncated;
        completion.sample = sample;
        let mut sequence = Self {
            index,
            tokens: prompt.ids,
            prompt_length,
            computed: 0,
            completion,
            decoder: task.tokenizer.decoder(),
            budget: 0,
            next: Next::Token,
            task,
        };
        let task = Arc::clone(&sequence.task);
        if task.options.mode == Mode::AnswerOnly {
            let lead = match task.opens_thought {
                true => task.format.forced_lead(&sequence.completion.text),
                false => task.format.answer_only_lead(),
            };
            sequence.force(lead)?;
            sequence.prompt_length = sequence.tokens.len();
            sequence.completion.finish = FinishReason::Answered;
        }

        let room_to_answer = LEAD_ROOM + task.labels.longest();
        let needed = sequence.tokens.len() + room_to_answer;
        if needed > task.limit {
            return Err(DocumentError::PromptTooLong { tokens: needed, limit: task.limit });
        }
        if let Mode::Reason { max_tokens } = task.options.mode {
            sequence.budget = max_tokens.min(task.limit - needed);
            if sequence.budget == 0 {
                sequence.force_answer()?;
            }
        }
        Ok(sequence)
    }

    /// Prompt, generated and forced tokens so far.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The prompt's tokens that other sequences may share: all but the last token, whose logits
    /// this sequence needs.
    pub(super) fn shareable(&self) -> &[u32] {
        &self.tokens[..self.prompt_length.min(self.tokens.len() - 1)]
    }

    /// How many of the tokens the cache holds.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// The cache holds so many of its tokens, of which it had none.
    pub(super) fn restart_at(&mut self, computed: usize) {
        self.computed = computed;
    }

    /// Tokens that the cache does not hold yet. Never empty between steps.
    pub(super) fn pending(&self) -> &[u32] {
        &self.tokens[self.computed..]
    }

    /// Generated tokens so far.
    pub(super) fn generated(&self) -> usize {
        self.completion.usage.generated
    }

    /// Tokens that may well follow the pending ones, at most about `most`: if they do, computing
    /// them in the same step saves a step.
    pub(super) fn draft(&self, most: usize) -> &[u32] {
        match self.next {
            Next::ForcedAnswer => self.task.labels.first_probe(),
            Next::Token if self.is_at_answer() => self.task.labels.first_probe(),
            Next::Token => {
                let room = self.budget.min(self.task.limit - self.tokens.len());
                draft(&self.tokens, most.min(room.saturating_sub(1)))
            }
            Next::Distribution { .. } => &[],
        }
    }

    /// The cache holds `count` of the pending tokens.
    pub(super) fn advance_prompt(&mut self, count: usize) {
        self.computed += count;
    }

    /// The cache holds all pending tokens and behind them those of `draft`; `logits` are those
    /// behind the last pending token and behind each of the draft's, one after another. Goes on as
    /// far as the draft agrees with what comes. Also gives how many tokens of the draft did.
    pub(super) fn advance(&mut self, draft: &[u32], logits: &[f32]) -> (Outcome, usize) {
        let vocab_size = logits.len() / (draft.len() + 1);
        let start = self.tokens.len();
        self.computed = start;
        let mut agreed = 0;
        while self.pending().is_empty() {
            let place = agreed * vocab_size;
            if let Some(result) = self.go_on(&logits[place..place + vocab_size]) {
                return (Some(result), agreed);
            }
            // Reading the distribution takes a step back, and perhaps the same step again.
            while let Some(next) = self.pending().first()
                && self.computed >= start
                && draft.get(self.computed - start) == Some(next)
            {
                self.computed += 1;
            }
            agreed = self.computed.saturating_sub(start);
        }
        (None, agreed)
    }

    /// Goes on with the logits behind the last token.
    fn go_on(&mut self, logits: &[f32]) -> Outcome {
        let logits = Logits::new(logits);
        let outcome = match std::mem::replace(&mut self.next, Next::Token) {
            Next::Token => {
                let chosen = self.choose(&logits);
                if self.is_at_answer() && self.task.labels.begin_with(chosen.id) {
                    let walk = Walk::begin(&self.task.labels, &logits);
                    self.read_distribution(walk, Some(chosen))
                } else {
                    self.accept(chosen)
                }
            }
            Next::ForcedAnswer => {
                self.read_distribution(Walk::begin(&self.task.labels, &logits), None)
            }
            Next::Distribution { mut walk, start, chosen } => {
                walk.go_on(&self.task.labels, &logits);
                self.rewind(start);
                self.read_distribution(walk, chosen)
            }
        };
        outcome.unwrap_or_else(|error| Some(Err(error)))
    }

    /// The next token, as the sampling settings choose it.
    fn choose(&self, logits: &Logits<'_>) -> TokenLogProb {
        let sampling = &self.task.options.sampling;
        if sampling.is_greedy() && !sampling.has_penalties() {
            return logits.greedy();
        }
        let (prompt, generated) = self.tokens.split_at(self.prompt_length);
        let number = self.completion.sample;
        logits.token(sample(logits.values(), sampling, prompt, generated, number))
    }

    /// Whether the answer's first token comes next.
    fn is_at_answer(&self) -> bool {
        // Nothing would have to be forced in order to answer here.
        self.task.format.forced_lead(&self.completion.text).is_empty()
    }

    /// Probes the next inner node of the answers' tree; when all are known, answers.
    fn read_distribution(
        &mut self,
        walk: Walk,
        chosen: Option<TokenLogProb>,
    ) -> Result<Outcome, DocumentError> {
        let task = Arc::clone(&self.task);
        if let Some(probe) = walk.next(&task.labels) {
            let start = self.tokens.len();
            self.tokens.extend(probe);
            self.next = Next::Distribution { walk, start, chosen };
            return Ok(None);
        }
        let distribution = walk.distribution()?;
        let most_probable = distribution.most_probable();
        self.completion.answers = Some(distribution);
        match chosen {
            Some(chosen) => self.accept(chosen),
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
    fn accept(&mut self, chosen: TokenLogProb) -> Result<Outcome, DocumentError> {
        if self.task.eos_token_ids.contains(&chosen.id) {
            // The model ended its turn without an answer, or it would have ended before.
            self.force_answer()?;
            return Ok(None);
        }
        self.tokens.push(chosen.id);
        self.push(chosen);
        if self.task.format.is_answered(&self.completion.text) {
            self.completion.finish = FinishReason::Answered;
            return Ok(self.finish());
        }
        self.budget = self.budget.saturating_sub(1);
        if self.budget == 0 {
            self.force_answer()?;
        }
        Ok(None)
    }

    /// Adds a token to the completion.
    fn push(&mut self, token: TokenLogProb) {
        let text = self.decoder.push(token.id);
        self.completion.push(&text, token.log_prob);
        self.completion.usage.generated += 1;
    }

    /// Ends the thought as it stands; the answer comes next.
    fn force_answer(&mut self) -> Result<(), DocumentError> {
        let rest = self.decoder.finish();
        self.completion.text.push_str(&rest);
        let lead = self.task.format.forced_lead(&self.completion.text);
        self.force(lead)
    }

    fn force(&mut self, lead: &str) -> Result<(), DocumentError> {
        self.completion.text.push_str(lead);
        self.completion.finish = FinishReason::Forced;
        self.tokens.extend(self.task.tokenizer.encode_trusted(lead)?);
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
        Some(Ok(completion))
    }
}

/// Tokens kept free for closing the thought and opening the answer: no tokenizer makes more of it
/// than its bytes.
const LEAD_ROOM: usize = "</think><answer>".len();
