//! One document's generation, from its prompt to its answer.

use std::sync::Arc;

use erank_core::tags::{FORCED_ANSWER_PREFIX, THINK_CLOSE, THINK_OPEN};
use erank_core::{AnswerFormat, Completion, DocumentError, FinishReason, Mode, ScoringOptions};

use super::answer_trie::{AnswerTrie, TrieWalk};
use super::prompt_lookup::draft;
use super::sampler::sample;
use crate::logits::{Logits, TokenLogProb};
use crate::model::Head;
use crate::tokenizer::{EncodedPrompt, PromptTokenizer, TokenDecoder};

/// Number of tokens reserved to close the thought and open the answer. No tokenizer makes more tokens than
/// bytes.
const PREFIX_RESERVE: usize = FORCED_ANSWER_PREFIX.len();

/// The state that all sequences of a job share.
pub(crate) struct JobContext {
    pub(crate) tokenizer: PromptTokenizer,
    pub(crate) format: AnswerFormat,
    /// The tokens of the answers. A classifier's answer is one token, the index of its label.
    pub(crate) answers: AnswerTrie,
    /// The meaning of the model's logits.
    pub(crate) head: Head,
    pub(crate) options: ScoringOptions,
    pub(crate) eos_token_ids: Vec<u32>,
    /// The token that ends a thought, if `</think>` is one token. The same characters in other tokens are a
    /// quotation.
    pub(crate) thought_end_id: Option<u32>,
    /// Whether the prompt ends with an open thought.
    pub(crate) prompt_opens_thought: bool,
    /// Whether the caller wants the text while it is generated.
    pub(crate) wants_text: bool,
    /// Maximum number of tokens of a sequence.
    pub(crate) max_tokens: usize,
}

/// A sequence: its tokens, the number of them in the KV cache, and its state.
pub(crate) struct Sequence {
    context: Arc<JobContext>,
    /// The document's index in the job.
    pub(crate) index: usize,
    /// Prompt, generated and forced tokens. While the answer distribution is read, the last tokens are a
    /// probe, the beginning of a possible answer.
    tokens: Vec<u32>,
    /// Number of tokens of the prompt, including a forced beginning of the answer.
    prompt_length: usize,
    /// Number of tokens in the KV cache.
    computed: usize,
    completion: Completion,
    /// Number of bytes of the completion's text already sent to the caller.
    reported: usize,
    decoder: TokenDecoder,
    /// Number of tokens that may still be generated before the answer is forced.
    budget: usize,
    state: State,
}

/// The use of the logits after the last token.
enum State {
    /// They choose the next token of the thought or the answer.
    Generating,
    /// They begin the answer distribution of a forced answer.
    ForcedAnswer,
    /// They continue the answer distribution of answers that begin at token `start`. `chosen` are the tokens
    /// that the model chose there, as far as an answer may begin with them. It is empty if the answer is
    /// forced.
    ReadingDistribution { walk: TrieWalk, start: usize, chosen: Vec<u32> },
}

/// A piece of a sequence's text.
pub(super) struct TextPiece {
    pub(super) index: usize,
    pub(super) sample: usize,
    pub(super) text: String,
}

/// The result of a completed sequence; `None` while the sequence is unfinished.
pub(super) type Outcome = Option<Result<Completion, DocumentError>>;

impl Sequence {
    /// Creates a sequence of a prompt.
    ///
    /// # Errors
    /// Returns [`DocumentError::PromptTooLong`] if the prompt leaves no room for an answer.
    pub(crate) fn new(
        index: usize,
        sample: usize,
        prompt: EncodedPrompt,
        context: Arc<JobContext>,
    ) -> Result<Self, DocumentError> {
        let prompt_length = prompt.ids.len();
        let is_thinking = context.prompt_opens_thought && !context.format.is_bare();
        let opening = if is_thinking { THINK_OPEN } else { "" };
        let mut completion = Completion::new(opening);
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
            reported: 0,
            decoder: context.tokenizer.decoder(),
            budget: 0,
            state: State::Generating,
            context,
        };
        let context = Arc::clone(&sequence.context);
        if context.options.mode == Mode::AnswerOnly {
            let prefix = match context.prompt_opens_thought {
                true => sequence.forced_prefix(),
                false => context.format.answer_only_prefix(),
            };
            sequence.force(prefix)?;
            sequence.prompt_length = sequence.tokens.len();
            sequence.completion.finish_reason = FinishReason::Answered;
        }

        let needed = sequence.tokens.len() + PREFIX_RESERVE + context.answers.longest();
        if needed > context.max_tokens {
            return Err(DocumentError::PromptTooLong { tokens: needed, limit: context.max_tokens });
        }
        if let Mode::Reason { max_tokens } = context.options.mode {
            sequence.budget = max_tokens.min(context.max_tokens - needed);
            if sequence.budget == 0 {
                sequence.force_answer()?;
            }
        }
        Ok(sequence)
    }

    /// Returns the prompt, generated and forced tokens.
    pub(super) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Returns the prompt's tokens that other sequences may share. The last token is not among them, because
    /// this sequence needs its logits.
    pub(super) fn shareable(&self) -> &[u32] {
        &self.tokens[..self.prompt_length.min(self.tokens.len() - 1)]
    }

    /// Returns the number of tokens in the KV cache.
    pub(super) fn computed(&self) -> usize {
        self.computed
    }

    /// Sets the number of tokens in the KV cache, after the sequence got new blocks.
    pub(super) fn restart_at(&mut self, computed: usize) {
        self.computed = computed;
    }

    /// Returns the tokens that the KV cache lacks. Between steps there is at least one.
    pub(super) fn pending(&self) -> &[u32] {
        &self.tokens[self.computed..]
    }

    /// Returns the number of generated tokens.
    pub(super) fn generated(&self) -> usize {
        self.completion.usage.generated
    }

    /// Returns the text since the last call, if there is any and the caller wants it.
    pub(super) fn take_new_text(&mut self) -> Option<TextPiece> {
        if !self.context.wants_text {
            return None;
        }
        let text = self.completion.text.get(self.reported..).filter(|text| !text.is_empty())?;
        let piece =
            TextPiece { index: self.index, sample: self.completion.sample, text: text.to_owned() };
        self.reported = self.completion.text.len();
        Some(piece)
    }

    /// Returns up to `most` tokens that may follow the pending ones. If they do, computing them in the same
    /// step saves a step. The answer's next probe is returned whole.
    pub(super) fn draft(&self, most: usize) -> &[u32] {
        match self.state {
            State::ForcedAnswer => self.context.answers.first_probe(),
            State::Generating if self.is_at_answer() => self.context.answers.first_probe(),
            State::Generating => {
                let left = self.budget.min(self.context.max_tokens - self.tokens.len());
                draft(&self.tokens, most.min(left.saturating_sub(1)))
            }
            State::ReadingDistribution { .. } => &[],
        }
    }

    /// Records that the KV cache holds `count` of the pending tokens.
    pub(super) fn advance_prompt(&mut self, count: usize) {
        self.computed += count;
    }

    /// Advances after a step that computed all pending tokens and then the `draft`. `logits` are those after the
    /// last pending token and after each token of the draft, `[draft + 1, vocab_size]`.
    ///
    /// Advances as far as the draft agrees with the sequence. Returns the outcome and the number of accepted tokens
    /// of the draft.
    pub(super) fn advance(&mut self, draft: &[u32], logits: &[f32]) -> (Outcome, usize) {
        let vocab_size = logits.len() / (draft.len() + 1);
        let start = self.tokens.len();
        self.computed = start;
        let mut accepted = 0;
        while self.pending().is_empty() {
            let offset = accepted * vocab_size;
            if let Some(result) = self.consume(&logits[offset..offset + vocab_size]) {
                return (Some(result), accepted);
            }
            // Reading the distribution drops a probe, and may append the same tokens again.
            while let Some(next) = self.pending().first()
                && self.computed >= start
                && draft.get(self.computed - start) == Some(next)
            {
                self.computed += 1;
            }
            accepted = self.computed.saturating_sub(start);
        }
        (None, accepted)
    }

    /// Advances by the logits after the last token.
    fn consume(&mut self, logits: &[f32]) -> Outcome {
        let logits = Logits::new(logits);
        if let Err(error) = logits.check() {
            return Some(Err(DocumentError::Backend(error.into())));
        }
        let outcome = match std::mem::replace(&mut self.state, State::Generating) {
            State::Generating => {
                let chosen = self.choose(&logits);
                if self.is_at_answer() && !self.is_white_space(chosen.id) {
                    let walk = TrieWalk::begin(&self.context.answers, &logits);
                    self.read_distribution(walk, vec![chosen.id])
                } else {
                    self.accept(chosen)
                }
            }
            State::ForcedAnswer => {
                let walk = TrieWalk::begin(&self.context.answers, &logits);
                self.read_distribution(walk, Vec::new())
            }
            State::ReadingDistribution { mut walk, start, mut chosen } => {
                // If the probe is what the model chose, these logits choose its next token.
                if walk.next(&self.context.answers) == Some(chosen.as_slice()) {
                    chosen.push(self.choose(&logits).id);
                }
                walk.advance(&self.context.answers, &logits);
                self.rewind(start);
                self.read_distribution(walk, chosen)
            }
        };
        outcome.unwrap_or_else(|error| Some(Err(error)))
    }

    /// Chooses the next token by the sampling settings.
    fn choose(&self, logits: &Logits<'_>) -> TokenLogProb {
        let sampling = &self.context.options.sampling;
        if sampling.is_greedy() && !sampling.has_penalties() {
            return logits.greedy();
        }
        let (prompt, generated) = self.tokens.split_at(self.prompt_length);
        let number = self.completion.sample;
        logits.token(sample(logits.values(), sampling, prompt, generated, number))
    }

    /// Returns whether the answer's first token comes next, so that nothing would have to be forced before
    /// it.
    fn is_at_answer(&self) -> bool {
        self.forced_prefix().is_empty()
    }

    /// Returns the text that must follow so that the answer comes next.
    fn forced_prefix(&self) -> &'static str {
        // Every open thought needs the same text.
        self.context.format.forced_answer_prefix(self.after_thought().unwrap_or(THINK_OPEN))
    }

    /// Returns the text after the thought, which may hold an answer; `None` during the thought. If no single
    /// token ends a thought, returns the whole turn. The format then looks for the end in it.
    fn after_thought(&self) -> Option<&str> {
        let after = &self.completion.text[self.completion.thought_end.unwrap_or(0)..];
        let is_thinking = after.trim_start().starts_with(THINK_OPEN);
        (!is_thinking || self.context.thought_end_id.is_none()).then_some(after)
    }

    fn is_white_space(&self, id: u32) -> bool {
        let text = self.context.tokenizer.token_text(id);
        !text.is_empty() && text.trim().is_empty()
    }

    /// Probes the next inner node of the answer trie. After the last one, completes the sequence. The answer
    /// is the model's own if the `chosen` tokens make one, and otherwise the most probable one.
    fn read_distribution(
        &mut self,
        walk: TrieWalk,
        chosen: Vec<u32>,
    ) -> Result<Outcome, DocumentError> {
        let context = Arc::clone(&self.context);
        if let Some(probe) = walk.next(&context.answers) {
            let start = self.tokens.len();
            self.tokens.extend(probe);
            self.state = State::ReadingDistribution { walk, start, chosen };
            return Ok(None);
        }
        let distribution = walk.distribution()?;
        let own = context.answers.longest_prefix(&chosen);
        if !chosen.is_empty() {
            self.completion.finish_reason =
                if own.is_some() { FinishReason::Answered } else { FinishReason::Forced };
        }
        let answer = own.unwrap_or(distribution.most_probable());
        self.completion.answer_distribution = Some(distribution);
        let log_probs = walk.token_log_probs(answer);
        match context.head {
            Head::LanguageModel => {
                for (id, log_prob) in context.answers.tokens(answer).iter().zip(log_probs) {
                    self.push(TokenLogProb { id: *id, log_prob: *log_prob as f32 });
                }
            }
            Head::Classifier => {
                let label = context.format.answers().nth(answer).map_or("", |(label, _)| label);
                self.completion.push(label, log_probs.iter().sum::<f64>() as f32);
            }
        }
        self.completion.text.push_str(context.format.answer_suffix());
        Ok(self.complete())
    }

    /// Appends a token that the model chose.
    fn accept(&mut self, chosen: TokenLogProb) -> Result<Outcome, DocumentError> {
        if self.context.eos_token_ids.contains(&chosen.id) {
            // The turn ended without an answer, because an answer would have completed the sequence before.
            self.force_answer()?;
            return Ok(None);
        }
        self.tokens.push(chosen.id);
        self.push(chosen);
        if self.context.thought_end_id == Some(chosen.id) {
            self.completion.thought_end = Some(self.completion.text.len());
        }
        if self.after_thought().is_some_and(|text| self.context.format.is_answered(text)) {
            // One token held the end of the opening tag together with the answer.
            self.completion.finish_reason = FinishReason::Answered;
            return Ok(self.complete());
        }
        self.budget = self.budget.saturating_sub(1);
        if self.budget == 0 {
            self.force_answer()?;
        }
        Ok(None)
    }

    /// Appends a generated token to the completion.
    fn push(&mut self, token: TokenLogProb) {
        let text = self.decoder.push(token.id);
        self.completion.push(&text, token.log_prob);
        self.completion.usage.generated += 1;
    }

    /// Closes the thought if it is open, and opens the answer.
    fn force_answer(&mut self) -> Result<(), DocumentError> {
        let rest = self.decoder.finish();
        self.completion.text.push_str(&rest);
        self.force(self.forced_prefix())
    }

    /// Appends forced text to the assistant turn; the answer comes next.
    fn force(&mut self, prefix: &str) -> Result<(), DocumentError> {
        if let Some(start) = prefix.find(THINK_CLOSE) {
            let end = self.completion.text.len() + start + THINK_CLOSE.len();
            self.completion.thought_end = Some(end);
        }
        self.completion.text.push_str(prefix);
        self.completion.finish_reason = FinishReason::Forced;
        // A classifier reads the prompt alone.
        if self.context.head == Head::LanguageModel {
            self.tokens.extend(self.context.tokenizer.encode_trusted(prefix)?);
        }
        self.state = State::ForcedAnswer;
        if self.pending().is_empty() {
            // The prefix was empty, so the last token is computed again for its logits.
            self.computed -= 1;
        }
        Ok(())
    }

    /// Drops a probe.
    fn rewind(&mut self, length: usize) {
        self.tokens.truncate(length);
        self.computed = self.computed.min(length);
    }

    fn complete(&mut self) -> Outcome {
        let completion = std::mem::replace(&mut self.completion, Completion::new(""));
        Some(Ok(completion))
    }
}

#[cfg(test)]
mod tests;
