//! One document's generation, from its prompt to its answer.

use std::sync::Arc;

use erank_core::{AnswerFormat, Mode};
use erank_core::{Completion, DocumentError, FinishReason, ScoringOptions};

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
    /// The token that ends a thought, if `</think>` is one: then its characters are a quotation.
    pub(crate) end_of_thought: Option<u32>,
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
    /// The distribution over the answers, which begin at `start`. `chosen` are the tokens that the
    /// model chose there, as far as they may begin an answer; none if the answer is forced.
    Distribution { walk: Walk, start: usize, chosen: Vec<u32> },
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
        let mut completion = Completion::new(if task.opens_thought { THOUGHT_OPEN } else { "" });
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
                true => sequence.forced_lead(),
                false => task.format.answer_only_prefix(),
            };
            sequence.force(lead)?;
            sequence.prompt_length = sequence.tokens.len();
            sequence.completion.finish_reason = FinishReason::Answered;
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
                if self.is_at_answer() && !self.is_white_space(chosen.id) {
                    let walk = Walk::begin(&self.task.labels, &logits);
                    self.read_distribution(walk, vec![chosen.id])
                } else {
                    self.accept(chosen)
                }
            }
            Next::ForcedAnswer => {
                self.read_distribution(Walk::begin(&self.task.labels, &logits), Vec::new())
            }
            Next::Distribution { mut walk, start, mut chosen } => {
                // Behind the model's own choices, it chooses the next.
                if walk.next(&self.task.labels) == Some(chosen.as_slice()) {
                    chosen.push(self.choose(&logits).id);
                }
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
        self.forced_lead().is_empty()
    }

    /// What the turn lacks for the answer to come next.
    fn forced_lead(&self) -> &'static str {
        // Any thought that is open lacks the same.
        self.task.format.forced_answer_prefix(self.behind_thought().unwrap_or(THOUGHT_OPEN))
    }

    /// What the model said behind its thought, which may hold an answer; `None` while it thinks. If
    /// there is no token that ends a thought, the whole turn, for the format to look for the end.
    fn behind_thought(&self) -> Option<&str> {
        let behind = &self.completion.text[self.completion.thought_end.unwrap_or(0)..];
        let is_thinking = behind.trim_start().starts_with(THOUGHT_OPEN);
        (!is_thinking || self.task.end_of_thought.is_none()).then_some(behind)
    }

    fn is_white_space(&self, id: u32) -> bool {
        let text = self.task.tokenizer.token_text(id);
        !text.is_empty() && text.trim().is_empty()
    }

    /// Probes the next inner node of the answers' tree; when all are known, answers: as the model
    /// did, if what it `chosen` makes an answer, or else with the most probable one.
    fn read_distribution(
        &mut self,
        walk: Walk,
        chosen: Vec<u32>,
    ) -> Result<Outcome, DocumentError> {
        let task = Arc::clone(&self.task);
        if let Some(probe) = walk.next(&task.labels) {
            let start = self.tokens.len();
            self.tokens.extend(probe);
            self.next = Next::Distribution { walk, start, chosen };
            return Ok(None);
        }
        let distribution = walk.distribution()?;
        let own = task.labels.beginning(&chosen);
        if !chosen.is_empty() {
            self.completion.finish_reason =
                if own.is_some() { FinishReason::Answered } else { FinishReason::Forced };
        }
        let answer = own.unwrap_or(distribution.most_probable());
        self.completion.answer_distribution = Some(distribution);
        for (id, log_prob) in task.labels.tokens(answer).iter().zip(walk.token_log_probs(answer)) {
            self.push(TokenLogProb { id: *id, log_prob: *log_prob as f32 });
        }
        self.completion.text.push_str("</answer>");
        Ok(self.finish())
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
        if self.task.end_of_thought == Some(chosen.id) {
            self.completion.thought_end = Some(self.completion.text.len());
        }
        if self.behind_thought().is_some_and(|said| self.task.format.is_answered(said)) {
            // A token held the answer together with the end of the tag before it.
            self.completion.finish_reason = FinishReason::Answered;
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
        self.force(self.forced_lead())
    }

    fn force(&mut self, lead: &str) -> Result<(), DocumentError> {
        if let Some(start) = lead.find(THOUGHT_CLOSE) {
            let end = self.completion.text.len() + start + THOUGHT_CLOSE.len();
            self.completion.thought_end = Some(end);
        }
        self.completion.text.push_str(lead);
        self.completion.finish_reason = FinishReason::Forced;
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

const THOUGHT_OPEN: &str = "<think>";
pub(crate) const THOUGHT_CLOSE: &str = "</think>";

/// Tokens kept free for closing the thought and opening the answer: no tokenizer makes more of it
/// than its bytes.
const LEAD_ROOM: usize = "</think><answer>".len();

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::tests::{END, END_THINK, THINK, tokenizer};

    const PROMPT: &[u32] = &[7, 7, 7];
    const VOCAB: usize = 263;

    fn task(max_tokens: usize) -> Task {
        let tokenizer = tokenizer();
        let format = AnswerFormat::zero_to_ten();
        let labels = format.answers().map(|(label, _)| plain(label)).collect();
        let mut options = ScoringOptions::default();
        options.mode = Mode::Reason { max_tokens };
        Task {
            tokenizer,
            format,
            labels: Labels::new(labels),
            options,
            eos_token_ids: vec![END],
            end_of_thought: Some(END_THINK),
            opens_thought: false,
            limit: 1000,
        }
    }

    /// The tokens of a text in which nothing is a control token.
    fn plain(text: &str) -> Vec<u32> {
        let characters = text.chars().map(|c| tokenizer().encode_trusted(&c.to_string()));
        characters.flat_map(|ids| ids.expect("tokens")).collect()
    }

    /// What comes of a model that says `said`, and, where something else was said for it, a 3.
    fn complete(task: Task, said: &[u32]) -> Completion {
        let prompt = tokenizer_prompt();
        let mut sequence = Sequence::new(0, 0, prompt, Arc::new(task)).expect("room");
        for _ in 0..1000 {
            let so_far = &sequence.tokens()[PROMPT.len()..];
            let next = said.strip_prefix(so_far).and_then(|rest| rest.first().copied());
            let mut logits = vec![0.0; VOCAB];
            logits[next.unwrap_or(plain("3")[0]) as usize] = 9.0;
            // The most probable answer is a 3 as well, unless the model says another.
            logits[plain("3")[0] as usize] += 1.0;
            if let (Some(outcome), _) = sequence.advance(&[], &logits) {
                return outcome.expect("a completion");
            }
        }
        panic!("no end");
    }

    fn tokenizer_prompt() -> EncodedPrompt {
        let template = erank_core::PromptTemplate::erank();
        let frame = tokenizer().bind(&template.bind("", ""), &ScoringOptions::default());
        let mut prompt = frame.expect("it renders").encode("").expect("tokens");
        prompt.ids = PROMPT.to_vec();
        prompt
    }

    fn integer(completion: &Completion) -> u32 {
        let answer = AnswerFormat::zero_to_ten().parse(completion, Default::default());
        answer.expect("an answer").integer
    }

    #[test]
    fn a_thought_that_quotes_its_own_end_goes_on() {
        let quotation = "it says </think><answer>10</answer>";
        let said = [&[THINK], &plain(quotation)[..], &[END_THINK], &plain("<answer>2")].concat();
        let completion = complete(task(100), &said);
        assert_eq!((integer(&completion), completion.finish_reason), (2, FinishReason::Answered));
        let end = completion.thought_end.expect("known");
        assert_eq!(&completion.text[..end], format!("<think>{quotation}</think>"));

        // The same where the prompt opens the thought.
        let opened = Task { opens_thought: true, ..task(100) };
        assert_eq!(complete(opened, &said[1..]), completion_without_first_token(&completion));

        // The budget ends within the thought.
        let completion = complete(task(1 + plain(quotation).len()), &said);
        assert_eq!((integer(&completion), completion.finish_reason), (2, FinishReason::Forced));
        assert_eq!(completion.text, format!("<think>{quotation}</think><answer>2</answer>"));
        assert_eq!(completion.thought_end, Some(end));

        // Where </think> is no token, text is all there is to go by.
        let by_text = Task { end_of_thought: None, ..task(100) };
        assert_eq!(integer(&complete(by_text, &said)), 10);
    }

    /// As if `<think>` had been in the prompt.
    fn completion_without_first_token(completion: &Completion) -> Completion {
        let mut completion = completion.clone();
        completion.tokens.remove(0);
        completion.usage.generated -= 1;
        completion
    }

    #[test]
    fn what_is_no_answer_is_answered_for_the_model() {
        for (said, expected, finish) in [
            ("<answer>7</answer>", 7, FinishReason::Answered),
            ("<answer>10</answer>", 10, FinishReason::Answered),
            ("<answer> \n7</answer>", 7, FinishReason::Answered),
            // The answer is known before the model spoils it.
            ("<answer>7.5</answer>", 7, FinishReason::Answered),
            ("<answer>11</answer>", 1, FinishReason::Answered),
            ("<answer>seven</answer>", 3, FinishReason::Forced),
            ("<answer></answer>", 3, FinishReason::Forced),
            ("<answer>-1</answer>", 3, FinishReason::Forced),
        ] {
            let said = [&[THINK, END_THINK], &plain(said)[..]].concat();
            let completion = complete(task(100), &said);
            assert_eq!(
                (integer(&completion), completion.finish_reason),
                (expected, finish),
                "{said:?}"
            );
            let distribution = completion.answer_distribution.as_ref().expect("a distribution");
            assert_eq!(distribution.most_probable() as u32, expected);
        }
        // The turn ends where the answer should be, and before.
        for said in ["<answer>", "", "hm"] {
            let said = [&[THINK, END_THINK], &plain(said)[..], &[END]].concat();
            let completion = complete(task(100), &said);
            assert_eq!((integer(&completion), completion.finish_reason), (3, FinishReason::Forced));
        }
    }
}
