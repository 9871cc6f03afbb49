//! From generated text and log-probabilities to an integer answer with its probability.
//!
//! ERank writes `<think>…</think><answer>N</answer>`. The text is read without a tokenizer: token
//! boundaries arrive as byte ranges of the text, so nothing here depends on how an integer or a tag
//! happens to be cut into tokens.
//!
//! A thought may quote its document, tags and all. Where the backend knows the token that ended the
//! thought, it says so ([`Completion::thought_end`]), and no quotation is taken for it.

use std::ops::Range;

use thiserror::Error;

use crate::completion::{Completion, GeneratedToken};

const THOUGHT_OPEN: &str = "<think>";
const THOUGHT_CLOSE: &str = "</think>";
const ANSWER_OPEN: &str = "<answer>";

/// The answers a prompt allows: each a label that the model writes, standing for an integer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerFormat {
    answers: Vec<(String, u32)>,
}

impl AnswerFormat {
    /// ERank's own scale, 0 to 10.
    pub fn zero_to_ten() -> Self {
        Self::integers(10)
    }

    /// The coarser scale that the paper compares with, 0 to 3 (arXiv 2509.00520, table 1).
    pub fn zero_to_three() -> Self {
        Self::integers(3)
    }

    /// Yes or no (the same table): `no` counts 0, `yes` counts 1.
    pub fn yes_no() -> Self {
        Self { answers: vec![("no".into(), 0), ("yes".into(), 1)] }
    }

    fn integers(highest: u32) -> Self {
        Self { answers: (0..=highest).map(|value| (value.to_string(), value)).collect() }
    }

    /// The labels with their values, in the order of an [`AnswerDistribution`].
    pub fn answers(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        self.answers.iter().map(|(label, value)| (label.as_str(), *value))
    }

    /// What stands in place of a thought when the model is to answer at once: an empty thought and
    /// the opening of the answer. The next token is the answer's first.
    pub fn answer_only_lead(&self) -> &'static str {
        "<think>\n\n</think>\n\n<answer>"
    }

    /// What must follow `text`, whose budget is spent, so that the next token is the answer's
    /// first: the thought is closed and the answer opened, as far as they are not yet. A backend that
    /// knows [where the thought ends](Completion::thought_end) asks with the text behind it.
    pub fn forced_lead(&self, text: &str) -> &'static str {
        if is_thinking(text) {
            "</think><answer>"
        } else if text.trim_end().ends_with(ANSWER_OPEN) {
            ""
        } else {
            "<answer>"
        }
    }

    /// Whether `text`, generated so far, already holds the answer, so that generation can end. A
    /// backend that knows [where the thought ends](Completion::thought_end) asks with the text behind
    /// it.
    pub fn is_answered(&self, text: &str) -> bool {
        !is_thinking(text) && last_complete_answer(text, after_thought(text)).is_some()
    }

    /// Reads the answer of a completion.
    ///
    /// The answer is the last complete `<answer>N<` after the thought (the closing tag's first
    /// character suffices, so a backend may end there). White space around it does not matter.
    ///
    /// # Errors
    /// An [`AnswerError`] says why there is no answer. None of them is a score of 0.
    pub fn parse(
        &self,
        completion: &Completion,
        reading: AnswerProbability,
    ) -> Result<Answer, AnswerError> {
        let text = completion.text.as_str();
        // A place that is none in the text says nothing.
        let thought_end = completion.thought_end.filter(|end| text.is_char_boundary(*end));
        let behind = thought_end.unwrap_or(0);
        if is_thinking(&text[behind..]) {
            return Err(AnswerError::ThoughtNotClosed);
        }
        let body = behind + after_thought(&text[behind..]);
        let label = last_complete_answer(text, body).ok_or({
            if text[body..].contains(ANSWER_OPEN) {
                AnswerError::CutOff
            } else {
                AnswerError::NoAnswer
            }
        })?;
        let index = self.index_of(&text[label.clone()])?;

        let distribution = completion.answer_distribution.as_ref();
        if distribution.is_some_and(|given| given.log_probs.len() != self.answers.len()) {
            return Err(AnswerError::InvalidProbability);
        }
        let probability = match (reading, distribution) {
            (AnswerProbability::Joint, Some(given)) if !given.is_bound(index) => {
                Some(given.probability(index))
            }
            _ => tokens_probability(&completion.tokens, &label, reading)?,
        };
        Ok(Answer {
            integer: self.answers[index].1,
            probability,
            expected_value: distribution.map(|given| given.expected_value(self)),
            variance: distribution.map(|given| given.variance(self)),
            entropy: distribution.map(AnswerDistribution::entropy),
            distribution: distribution.cloned(),
            reasoning: reasoning(text, thought_end).to_owned(),
        })
    }

    fn index_of(&self, found: &str) -> Result<usize, AnswerError> {
        let is_label = |label: &str| label.eq_ignore_ascii_case(found);
        if let Some(index) = self.answers.iter().position(|(label, _)| is_label(label)) {
            return Ok(index);
        }
        match found.parse::<i128>() {
            Ok(integer) => self
                .answers
                .iter()
                .position(|(label, _)| label.parse() == Ok(integer))
                .ok_or_else(|| AnswerError::OutOfRange { found: shortened(found) }),
            Err(_) => Err(AnswerError::NotAnAnswer { found: shortened(found) }),
        }
    }
}

/// Whether `text` begins with a thought that is not closed.
fn is_thinking(text: &str) -> bool {
    text.trim_start().starts_with(THOUGHT_OPEN) && !text.contains(THOUGHT_CLOSE)
}

/// The byte at which the part after the thought begins.
fn after_thought(text: &str) -> usize {
    text.find(THOUGHT_CLOSE).map_or(0, |start| start + THOUGHT_CLOSE.len())
}

/// The byte range of the last answer after `body` that is followed by `<`, without white space.
fn last_complete_answer(text: &str, body: usize) -> Option<Range<usize>> {
    text[body..].rmatch_indices(ANSWER_OPEN).find_map(|(open, tag)| {
        let start = body + open + tag.len();
        let length = text[start..].find('<')?;
        let inner = &text[start..start + length];
        let start = start + (inner.len() - inner.trim_start().len());
        Some(start..start + inner.trim().len())
    })
}

/// The model's thought, without its tags.
fn reasoning(text: &str, thought_end: Option<usize>) -> &str {
    let end = thought_end.unwrap_or_else(|| {
        text.find(THOUGHT_CLOSE).or_else(|| text.find(ANSWER_OPEN)).unwrap_or(text.len())
    });
    let thought = text[..end].trim();
    let thought = thought.strip_suffix(THOUGHT_CLOSE).unwrap_or(thought);
    thought.strip_prefix(THOUGHT_OPEN).unwrap_or(thought).trim()
}

/// The probability of the tokens that overlap the answer's bytes; `None` if the backend gave none.
fn tokens_probability(
    tokens: &[GeneratedToken],
    label: &Range<usize>,
    reading: AnswerProbability,
) -> Result<Option<f64>, AnswerError> {
    let mut own = tokens
        .iter()
        .filter(|token| token.bytes.start < label.end && label.start < token.bytes.end)
        .map(|token| f64::from(token.log_prob))
        .peekable();
    if own.peek().is_none() {
        return Ok(None);
    }
    let log_prob: f64 = match reading {
        AnswerProbability::Joint => own.sum(),
        AnswerProbability::FirstToken => own.take(1).sum(),
    };
    check_log_prob(log_prob).map(|log_prob| Some(log_prob.exp()))
}

/// Rounding may put a logarithm a little over 0; anything more, or NaN, is no probability.
fn check_log_prob(log_prob: f64) -> Result<f64, AnswerError> {
    const ROUNDING: f64 = 1e-3;
    if log_prob <= ROUNDING { Ok(log_prob.min(0.0)) } else { Err(AnswerError::InvalidProbability) }
}

/// Keeps an error message readable whatever the model wrote.
fn shortened(found: &str) -> String {
    const LONGEST: usize = 40;
    match found.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &found[..end]),
        None => found.to_owned(),
    }
}

/// How the probability of an answer is read from token probabilities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum AnswerProbability {
    /// The product over all of the answer's tokens: "10" is two tokens with Qwen's tokenizer, and
    /// the first alone mixes the answers 1 and 10. Where the backend gives an
    /// [`AnswerDistribution`], its value.
    #[default]
    Joint,
    /// The answer's first token alone, the plain reading of `P(token = N)` in the paper.
    FirstToken,
}

/// What the model answered.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Answer {
    /// The integer, one of the [`AnswerFormat`]'s values.
    pub integer: u32,
    /// Its probability in `[0, 1]`, if the backend gave log-probabilities.
    pub probability: Option<f64>,
    /// `Σ i·P(i)` over the allowed answers, if the backend gave their distribution.
    pub expected_value: Option<f64>,
    /// `Σ (i − expected)²·P(i)` over the allowed answers, likewise.
    pub variance: Option<f64>,
    /// `−Σ P(i)·ln P(i)` over the allowed answers, in nats, likewise: 0 if the model is sure.
    pub entropy: Option<f64>,
    /// The log-probability of every allowed answer, if the backend gave them.
    pub distribution: Option<AnswerDistribution>,
    /// The thought, without its tags.
    pub reasoning: String,
}

impl Answer {
    /// ERank's score, `N × P(N)` (arXiv 2509.00520, §3.2).
    pub fn probability_weighted(&self) -> Option<f64> {
        self.probability.map(|probability| f64::from(self.integer) * probability)
    }

    /// The expected value, or what comes nearest to it of what the backend gave.
    pub(crate) fn best_estimate(&self) -> f64 {
        self.expected_value.or(self.probability_weighted()).unwrap_or(f64::from(self.integer))
    }
}

/// What a backend knows of one answer's natural log-probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AnswerLogProb {
    /// Its value.
    Exact(f64),
    /// A bound: it is this or less. A server that names only its most probable tokens leaves it at
    /// that for an answer that is not among them.
    UpperBound(f64),
}

/// The log-probability of every allowed answer at the place of the answer.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswerDistribution {
    log_probs: Vec<f64>,
    /// By answer: whether its log-probability is a bound.
    bounds: Vec<bool>,
}

impl AnswerDistribution {
    /// From natural logarithms, in the order of [`AnswerFormat::answers`]. They need not add up to
    /// one: the rest is what the model would have written instead of an answer.
    ///
    /// # Errors
    /// [`AnswerError::InvalidProbability`] if one is NaN or above 0 or if all are zero.
    pub fn new(log_probs: impl IntoIterator<Item = f64>) -> Result<Self, AnswerError> {
        Self::with_bounds(log_probs.into_iter().map(AnswerLogProb::Exact))
    }

    /// As [`new`](Self::new), where some of the answers have only a bound. The most probable answer
    /// and all moments are those of the known answers: a bound is neither a probability nor a zero.
    ///
    /// # Errors
    /// [`AnswerError::InvalidProbability`] if one is NaN or above 0, or if all known ones are zero.
    pub fn with_bounds(
        log_probs: impl IntoIterator<Item = AnswerLogProb>,
    ) -> Result<Self, AnswerError> {
        let (mut values, mut bounds) = (Vec::new(), Vec::new());
        for log_prob in log_probs {
            let (value, is_bound) = match log_prob {
                AnswerLogProb::Exact(value) => (value, false),
                AnswerLogProb::UpperBound(bound) => (bound, true),
            };
            values.push(check_log_prob(value)?);
            bounds.push(is_bound);
        }
        let distribution = Self { log_probs: values, bounds };
        let some_is_possible = distribution.known().any(|(_, value)| value > f64::NEG_INFINITY);
        if some_is_possible { Ok(distribution) } else { Err(AnswerError::InvalidProbability) }
    }

    /// Whether the log-probability of the answer at `index` is a bound that it does not exceed.
    pub fn is_bound(&self, index: usize) -> bool {
        self.bounds.get(index).is_some_and(|is_bound| *is_bound)
    }

    fn known(&self) -> impl Iterator<Item = (usize, f64)> {
        let log_probs = self.log_probs.iter().copied().enumerate();
        log_probs.filter(|(index, _)| !self.bounds[*index])
    }

    /// The log-probabilities, or [bounds](Self::is_bound) of them, in the order of
    /// [`AnswerFormat::answers`].
    pub fn log_probs(&self) -> &[f64] {
        &self.log_probs
    }

    /// The index of the most probable known answer; the first of equals.
    pub fn most_probable(&self) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (index, log_prob) in self.known() {
            if log_prob > best.1 {
                best = (index, log_prob);
            }
        }
        best.0
    }

    /// The probability of the answer at `index`, or a [bound](Self::is_bound) of it; 0 for an index
    /// that is not there.
    pub fn probability(&self, index: usize) -> f64 {
        self.log_probs.get(index).map_or(0.0, |log_prob| log_prob.exp())
    }

    /// `Σ i·P(i) / Σ P(i)` over the allowed answers.
    pub fn expected_value(&self, format: &AnswerFormat) -> f64 {
        let values = format.answers().map(|(_, value)| f64::from(value));
        self.shares().zip(values).map(|(share, value)| share * value).sum()
    }

    /// The variance of the answer's value, with probabilities that add up to one as in
    /// [`expected_value`](Self::expected_value).
    pub fn variance(&self, format: &AnswerFormat) -> f64 {
        let mean = self.expected_value(format);
        let deviations = format.answers().map(|(_, value)| (f64::from(value) - mean).powi(2));
        self.shares().zip(deviations).map(|(share, deviation)| share * deviation).sum()
    }

    /// `−Σ P(i)·ln P(i)` in nats, likewise: from 0, one answer is certain, to the logarithm of the
    /// number of answers.
    pub fn entropy(&self) -> f64 {
        let terms = self.shares().filter(|share| *share > 0.0).map(|share| -share * share.ln());
        terms.sum::<f64>().max(0.0)
    }

    /// The known probabilities, scaled so that they add up to one; 0 in the place of a bound.
    fn shares(&self) -> impl Iterator<Item = f64> {
        // Relative to the largest, so that the sum cannot vanish.
        let largest = self.log_probs[self.most_probable()];
        let total: f64 = self.known().map(|(_, log_prob)| (log_prob - largest).exp()).sum();
        self.log_probs.iter().zip(&self.bounds).map(move |(log_prob, is_bound)| match is_bound {
            true => 0.0,
            false => (log_prob - largest).exp() / total,
        })
    }
}

/// Why a completion holds no usable answer.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The text ended inside the thought.
    #[error("the model was still thinking when the text ended; raise the token budget")]
    ThoughtNotClosed,
    /// No `<answer>` stands after the thought.
    #[error("the model wrote no <answer>; use a model that was trained to, such as ERank")]
    NoAnswer,
    /// The text ended inside the answer.
    #[error("the text ended inside the <answer>; raise the token budget")]
    CutOff,
    /// An integer that is not among the allowed answers.
    #[error(
        "the model answered {found}, which is not among the allowed answers; ask for \
         them in the prompt"
    )]
    OutOfRange {
        /// What stands in the answer.
        found: String,
    },
    /// Something other than an allowed answer.
    #[error(
        "the model answered {found:?} where one of the allowed answers belongs; ask \
         for them in the prompt"
    )]
    NotAnAnswer {
        /// What stands in the answer.
        found: String,
    },
    /// A log-probability is NaN or above zero, or there are too many or too few of them.
    #[error(
        "the backend gave log-probabilities that are none, or not one for each answer; \
         correct the backend"
    )]
    InvalidProbability,
    /// The chosen score needs a probability that the backend did not give.
    #[error(
        "the backend gave no {0}, which the chosen score needs; rank by the integer, or \
         have the backend give it"
    )]
    NoProbability(&'static str),
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> Result<Answer, AnswerError> {
        AnswerFormat::zero_to_ten().parse(&Completion::new(text), AnswerProbability::Joint)
    }

    fn integer(text: &str) -> Result<u32, AnswerError> {
        parse(text).map(|answer| answer.integer)
    }

    /// A completion whose tokens are `pieces`, with these probabilities.
    fn completion(pieces: &[(&str, f32)]) -> Completion {
        let mut completion = Completion::new("");
        for (piece, probability) in pieces {
            completion.push(piece, probability.ln());
        }
        completion
    }

    #[test]
    fn reads_what_erank_writes() {
        let answer = parse("<think>\nIt fits.\n</think>\n<answer>7</answer>").expect("an answer");
        assert_eq!((answer.integer, answer.reasoning.as_str()), (7, "It fits."));
        assert_eq!((answer.probability, answer.probability_weighted()), (None, None));
    }

    #[test]
    fn odd_texts_have_typed_outcomes() {
        let not_an_answer = |found: &str| Err(AnswerError::NotAnAnswer { found: found.into() });
        let out_of_range = |found: &str| Err(AnswerError::OutOfRange { found: found.into() });
        for (text, outcome) in [
            ("<think>a</think><answer>10</answer>", Ok(10)),
            ("<think>a</think>\n\n<answer>\n 3 \n</answer>", Ok(3)),
            // The answer is known as soon as its closing tag begins.
            ("<think>a</think><answer>0<", Ok(0)),
            // The last complete one counts.
            ("<think>a</think><answer>2</answer> or <answer>4</answer>", Ok(4)),
            ("<think>a</think><answer>2</answer> or <answer>4", Ok(2)),
            ("<think>a</think><answer>2<answer>4</answer>", Ok(4)),
            // Quoted inside the thought.
            ("<think>say <answer>9</answer>?</think><answer>1</answer>", Ok(1)),
            ("<think>say <answer>9</answer>?</think>", Err(AnswerError::NoAnswer)),
            // A thought that is not closed, and none at all.
            ("<think>say <answer>9</answer>", Err(AnswerError::ThoughtNotClosed)),
            ("It fits. <answer>5</answer>", Ok(5)),
            ("reasons</think><answer>5</answer>", Ok(5)),
            ("", Err(AnswerError::NoAnswer)),
            ("<think>a</think>7", Err(AnswerError::NoAnswer)),
            ("<think>a</think><answer>1", Err(AnswerError::CutOff)),
            ("<think>a</think><answer>", Err(AnswerError::CutOff)),
            ("<think>a</think><answer>11</answer>", out_of_range("11")),
            ("<think>a</think><answer>-1</answer>", out_of_range("-1")),
            ("<think>a</think><answer>7.5</answer>", not_an_answer("7.5")),
            ("<think>a</think><answer></answer>", not_an_answer("")),
            ("<think>a</think><answer>seven</answer>", not_an_answer("seven")),
            ("<think>a</think><answer>٧</answer>", not_an_answer("٧")),
        ] {
            assert_eq!(integer(text), outcome, "{text}");
        }
        let long = format!("<answer>{}</answer>", "é".repeat(1000));
        let expected = format!("{}…", "é".repeat(40));
        assert_eq!(integer(&long), not_an_answer(&expected));
    }

    #[test]
    fn a_quoted_end_of_the_thought_is_none_where_the_backend_knows_the_real_one() {
        let quoting = "<think>it says </think><answer>10</answer>, a trick</think>";
        let mut completion = Completion::new(format!("{quoting}<answer>0</answer>"));
        completion.thought_end = Some(quoting.len());
        let read = |completion: &Completion| {
            AnswerFormat::zero_to_ten().parse(completion, AnswerProbability::Joint)
        };
        let answer = read(&completion).expect("an answer");
        assert_eq!(answer.integer, 0);
        assert_eq!(answer.reasoning, "it says </think><answer>10</answer>, a trick");
        // The answer is looked for behind the thought, and nowhere else.
        completion.text.truncate(quoting.len());
        assert_eq!(read(&completion), Err(AnswerError::NoAnswer));
        // A place that is none in the text says nothing.
        for nowhere in [completion.text.len() + 1, usize::MAX] {
            completion.thought_end = Some(nowhere);
            assert_eq!(read(&completion).map(|answer| answer.integer), Ok(10));
        }
    }

    #[test]
    fn ten_is_the_product_of_its_tokens() {
        let text = completion(&[
            ("<think>", 1.0),
            ("a</think><answer>", 0.9),
            ("1", 0.5),
            ("0", 0.5),
            ("</answer>", 0.1),
        ]);
        let format = AnswerFormat::zero_to_ten();
        let joint = format.parse(&text, AnswerProbability::Joint).expect("an answer");
        assert_eq!(joint.integer, 10);
        assert!((joint.probability.expect("given") - 0.25).abs() < 1e-6);
        assert!((joint.probability_weighted().expect("given") - 2.5).abs() < 1e-5);
        let first = format.parse(&text, AnswerProbability::FirstToken).expect("an answer");
        assert!((first.probability.expect("given") - 0.5).abs() < 1e-6);
    }

    #[test]
    fn tokens_that_straddle_the_answer_count_once() {
        let text = completion(&[("<answer", 0.3), ("> 7", 0.5), (" </answer>", 0.2)]);
        let answer = AnswerFormat::zero_to_ten().parse(&text, AnswerProbability::Joint);
        assert!((answer.expect("an answer").probability.expect("given") - 0.5).abs() < 1e-6);
    }

    #[test]
    fn a_bound_is_neither_a_probability_nor_a_zero() {
        use AnswerLogProb::{Exact, UpperBound};
        let format = AnswerFormat::zero_to_three();
        let bounded = AnswerDistribution::with_bounds([
            UpperBound(0.9_f64.ln()),
            Exact(0.2_f64.ln()),
            Exact(f64::NEG_INFINITY),
            Exact(0.6_f64.ln()),
        ]);
        let bounded = bounded.expect("probabilities");
        assert_eq!(
            (bounded.is_bound(0), bounded.is_bound(3), bounded.is_bound(9)),
            (true, false, false)
        );
        assert_eq!(bounded.most_probable(), 3);
        assert!((bounded.probability(0) - 0.9).abs() < 1e-12, "the bound");
        assert!((bounded.expected_value(&format) - 2.5).abs() < 1e-12, "(1·0.2 + 3·0.6) / 0.8");
        assert!((bounded.variance(&format) - 0.75).abs() < 1e-12);
        assert!(bounded.entropy().is_finite());

        // The answer's own tokens are asked where there is but a bound.
        let mut text = Completion::new("<think>a</think><answer>");
        text.push("0", 0.5_f32.ln());
        text.push("</answer>", 0.0);
        text.answer_distribution = Some(bounded);
        let answer = format.parse(&text, AnswerProbability::Joint).expect("an answer");
        assert!((answer.probability.expect("a probability") - 0.5).abs() < 1e-6);

        for unusable in [[UpperBound(-1.0); 2], [UpperBound(f64::NAN), Exact(-1.0)]] {
            let distribution = AnswerDistribution::with_bounds(unusable);
            assert_eq!(distribution, Err(AnswerError::InvalidProbability));
        }
    }

    #[test]
    fn the_distribution_gives_probability_and_expected_value() {
        let format = AnswerFormat::zero_to_three();
        let mut text = completion(&[("<answer>", 1.0), ("3", 0.9), ("<", 1.0)]);
        let log_probs = [0.1f64, 0.1, 0.2, 0.4].map(f64::ln);
        text.answer_distribution = Some(AnswerDistribution::new(log_probs).expect("probabilities"));
        let answer = format.parse(&text, AnswerProbability::Joint).expect("an answer");
        assert!((answer.probability.expect("given") - 0.4).abs() < 1e-12);
        let near = |given: Option<f64>, expected: f64| {
            assert!((given.expect("given") - expected).abs() < 1e-12, "{given:?}");
        };
        near(answer.expected_value, 1.7 / 0.8);
        // Of 1/8, 1/8, 2/8, 4/8.
        near(answer.variance, (1.0 + 8.0 + 36.0) / 8.0 - (17.0f64 / 8.0).powi(2));
        near(answer.entropy, 1.75 * 2f64.ln());
        assert_eq!(answer.distribution, text.answer_distribution);
    }

    #[test]
    fn what_is_no_probability_is_an_error_and_never_nan() {
        let zero_to_ten = AnswerFormat::zero_to_ten();
        for bad in [f32::NAN, f32::INFINITY, 2.0] {
            let mut text = Completion::new("<answer>");
            text.push("7", bad);
            text.push("<", 0.0);
            let read = zero_to_ten.parse(&text, AnswerProbability::Joint);
            assert_eq!(read, Err(AnswerError::InvalidProbability));
        }
        let none = [f64::NEG_INFINITY; 11];
        assert_eq!(AnswerDistribution::new(none), Err(AnswerError::InvalidProbability));
        assert_eq!(AnswerDistribution::new([f64::NAN]), Err(AnswerError::InvalidProbability));
        // A distribution over another number of answers.
        let mut text = Completion::new("<answer>7<");
        text.answer_distribution = AnswerDistribution::new([0.0]).ok();
        let read = zero_to_ten.parse(&text, AnswerProbability::Joint);
        assert_eq!(read, Err(AnswerError::InvalidProbability));
        // The smallest probabilities still have a mean.
        let tiny = AnswerDistribution::new([-5000.0; 11]).expect("probabilities");
        assert!((tiny.expected_value(&zero_to_ten) - 5.0).abs() < 1e-12);
    }

    #[test]
    fn yes_and_no_are_read_whatever_their_case() {
        let read = |text: &str| {
            AnswerFormat::yes_no().parse(&Completion::new(text), AnswerProbability::Joint)
        };
        assert_eq!(read("<answer>Yes</answer>").expect("an answer").integer, 1);
        assert_eq!(read("<answer> no</answer>").expect("an answer").integer, 0);
        assert!(matches!(
            read("<answer>1</answer>"),
            Err(AnswerError::NotAnAnswer { .. }) | Err(AnswerError::OutOfRange { .. })
        ));
    }

    #[test]
    fn leads_bring_the_text_to_the_answer() {
        let format = AnswerFormat::zero_to_ten();
        for text in ["<think>a b", "<think>a</think> hm", "no tags", "", "<think>a</think><answer>"]
        {
            let text = format!("{text}{}", format.forced_lead(text));
            assert!(!format.is_answered(&text));
            assert_eq!(integer(&format!("{text}8</answer>")), Ok(8), "{text}");
        }
        let text = format!("{}8</answer>", format.answer_only_lead());
        assert_eq!(parse(&text).map(|answer| answer.reasoning), Ok(String::new()));
    }

    proptest! {
        /// No text panics, and what stops generation can be read.
        #[test]
        fn any_text_is_read_or_refused(
            pieces in proptest::collection::vec(
                prop_oneof![
                    Just("<think>".to_owned()), Just("</think>".to_owned()),
                    Just("<answer>".to_owned()), Just("</answer>".to_owned()),
                    Just("10".to_owned()), Just(" ".to_owned()), Just("<".to_owned()),
                    "\\PC{0,4}",
                ],
                0..12,
            ),
            thought_end in proptest::option::of(0..40usize),
        ) {
            let format = AnswerFormat::zero_to_ten();
            let mut text = Completion::new("");
            for piece in &pieces {
                text.push(piece, -0.5);
            }
            text.thought_end = thought_end;
            let behind = thought_end.and_then(|end| text.text.get(end..)).unwrap_or(&text.text);
            let read = format.parse(&text, AnswerProbability::Joint);
            if let Ok(answer) = &read {
                prop_assert!(answer.integer <= 10);
                prop_assert!(answer.probability_weighted().is_none_or(|score| score.is_finite()));
                prop_assert!(format.is_answered(behind));
            }
            if format.is_answered(behind) {
                let unreadable = matches!(
                    read,
                    Ok(_) | Err(AnswerError::OutOfRange { .. } | AnswerError::NotAnAnswer { .. })
                );
                prop_assert!(unreadable);
            }
        }
    }
}
