//! The distribution over the allowed answers, from the top log-probabilities of a server.
//!
//! Each answer has a text, its label. The server describes its tokens only by their texts. One request reads
//! the distribution where the answer begins. One more request follows for each text that begins a label
//! without completing it. With Qwen's tokenizer, "10" is "1" and then "0", so one more request follows for
//! "1".
//!
//! ```text
//! P(10) = P("1") · P("0" | "1")
//! P(1)  = P("1") · (1 − P("0" | "1"))      a label that is a prefix of another
//! P(7)  = P("7")
//! P(3) ≤ min(least top probability, 1 − sum of the top probabilities)      if "3" is not among them
//! ```
//!
//! If the server accepts token ids, it returns the first tokens of all answers
//! ([`LogprobSource::RequestedIds`]), so no first token needs a bound.
//!
//! A prefix with a probability below [`NEGLIGIBLE`] gets no request. Its own probability is the upper bound
//! of its answers.

use std::collections::BTreeMap;

use erank_core::{AnswerDistribution, AnswerError, AnswerFormat, AnswerLogProb};

use crate::api::Token;

/// The probability below which a prefix of answers gets no request.
const NEGLIGIBLE: f64 = 1e-4;
/// The assumed rounding error in the sum of a server's probabilities.
const ROUNDING_ERROR: f64 = 1e-6;

/// The selection of tokens whose log-probabilities a server returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogprobSource {
    /// The most probable tokens, and the generated one.
    TopLogprobs,
    /// The first tokens of the answers, requested by id, and the generated one.
    RequestedIds,
}

/// The generated token at one position, and the log-probabilities of tokens by their text.
struct Position {
    generated: String,
    log_probs: BTreeMap<String, f64>,
    /// An upper bound on the log-probability of any other token.
    bound: f64,
}

impl Position {
    fn new(token: &Token, source: LogprobSource) -> Self {
        let text = |bytes: &[u8]| str::from_utf8(bytes).map(str::to_owned).ok();
        let generated = text(&token.bytes).unwrap_or_default();
        let mut log_probs: BTreeMap<String, f64> = BTreeMap::new();
        let top = token.top_logprobs.iter().map(|(bytes, log_prob)| (bytes, *log_prob));
        // A sampled token need not be among the most probable ones.
        for (bytes, log_prob) in top.chain([(&token.bytes, token.log_prob)]) {
            if let Some(text) = text(bytes).filter(|text| !text.is_empty()) {
                log_probs.entry(text).or_insert(log_prob);
            }
        }
        let probabilities = token.top_logprobs.iter().map(|(_, log_prob)| log_prob.exp());
        let remainder = (1.0 - probabilities.sum::<f64>()).max(0.0) + ROUNDING_ERROR;
        // vLLM adds a sampled token that is not among the most probable ones. Other tokens may be missing
        // although they are more probable. So its probability is no upper bound for them.
        let others = token.top_logprobs.iter().filter(|(bytes, _)| *bytes != token.bytes);
        let least = others.filter(|_| source == LogprobSource::TopLogprobs);
        let least = least.map(|(_, log_prob)| *log_prob);
        let bound = least.fold(remainder.ln(), f64::min).min(0.0);
        Self { generated, log_probs, bound }
    }

    /// Returns the longest token that is a prefix of `text`, with its log-probability.
    fn longest_prefix(&self, text: &str) -> Option<(&str, f64)> {
        let is_prefix = |token: &&String| text.starts_with(token.as_str());
        let token = self.log_probs.keys().filter(is_prefix).max_by_key(|token| token.len())?;
        Some((token, self.log_probs[token]))
    }
}

/// The distribution over the labels of an answer format.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LabelDistribution {
    pub(crate) distribution: AnswerDistribution,
    /// The index of the answer that the generated tokens form, if they form one.
    pub(crate) generated: Option<usize>,
    /// The tokens of each answer with their log-probabilities, as far as they are known.
    pub(crate) tokens: Vec<Vec<(String, f64)>>,
}

/// Computes the distribution. `request` returns the token after the prompt and the given prefix of an
/// answer. With `follow_generated`, the generated tokens are followed even if they are improbable.
///
/// # Errors
/// Returns the errors of `request`, or an [`AnswerError`] if the server returned no answer at all.
pub(crate) fn label_distribution<E: From<AnswerError>>(
    format: &AnswerFormat,
    follow_generated: bool,
    mut request: impl FnMut(&str) -> Result<(Token, LogprobSource), E>,
) -> Result<LabelDistribution, E> {
    let labels: Vec<&str> = format.answers().map(|(label, _)| label).collect();
    let mut positions: BTreeMap<String, Position> = BTreeMap::new();
    // A stack of the prefixes of answers to request, with their log-probabilities.
    let mut open = vec![(String::new(), 0.0_f64)];
    let mut negligible = Vec::new();
    while let Some((prefix, log_prob)) = open.pop() {
        let (token, source) = request(&prefix)?;
        let position = Position::new(&token, source);
        let mut extended: BTreeMap<String, f64> = BTreeMap::new();
        for rest in labels.iter().filter_map(|label| label.strip_prefix(prefix.as_str())) {
            let token = position.longest_prefix(rest).filter(|(token, _)| *token != rest);
            if let Some((token, token_log_prob)) = token {
                extended.insert(format!("{prefix}{token}"), log_prob + token_log_prob);
            }
        }
        let generated = format!("{prefix}{}", position.generated);
        for (text, log_prob) in extended {
            if log_prob.exp() >= NEGLIGIBLE || (follow_generated && text == generated) {
                open.push((text, log_prob));
            } else {
                negligible.push(text);
            }
        }
        positions.insert(prefix, position);
    }

    let generated = generated_label(&labels, &positions);
    let (log_probs, tokens): (Vec<_>, Vec<_>) =
        labels.iter().map(|label| label_log_prob(label, &labels, &positions, &negligible)).unzip();
    let distribution = AnswerDistribution::with_bounds(log_probs).map_err(|error| {
        let root = positions.get("");
        let found = root.map(|root| root.generated.clone()).unwrap_or_default();
        match positions.values().any(|p| p.log_probs.values().any(|value| value.is_nan())) {
            true => error,
            false => AnswerError::NotAnAnswer { found },
        }
    })?;
    Ok(LabelDistribution { distribution, generated, tokens })
}

/// Returns the log-probability of a label, and its tokens.
fn label_log_prob(
    label: &str,
    labels: &[&str],
    positions: &BTreeMap<String, Position>,
    negligible: &[String],
) -> (AnswerLogProb, Vec<(String, f64)>) {
    let (mut tokens, mut prefix, mut sum) = (Vec::new(), String::new(), 0.0);
    loop {
        let Some(position) = positions.get(&prefix) else {
            let is_bound = prefix != label || negligible.contains(&prefix);
            let log_prob =
                if is_bound { AnswerLogProb::UpperBound(sum) } else { AnswerLogProb::Exact(sum) };
            return (log_prob, tokens);
        };
        if prefix == label {
            // The label is a prefix of others, so subtract the probability of their further tokens.
            let further = position.log_probs.iter().filter(|(token, _)| {
                labels.iter().any(|other| {
                    other.strip_prefix(label).is_some_and(|rest| rest.starts_with(token.as_str()))
                })
            });
            let further: f64 = further.map(|(_, log_prob)| log_prob.exp()).sum();
            return (AnswerLogProb::Exact(sum + (1.0 - further).max(0.0).ln()), tokens);
        }
        match position.longest_prefix(&label[prefix.len()..]) {
            None => return (AnswerLogProb::UpperBound(sum + position.bound), tokens),
            Some((token, log_prob)) => {
                sum += log_prob;
                tokens.push((token.to_owned(), log_prob));
                prefix.push_str(token);
            }
        }
    }
}

/// Returns the index of the label that the generated tokens form.
fn generated_label(labels: &[&str], positions: &BTreeMap<String, Position>) -> Option<usize> {
    let mut text = String::new();
    while let Some(position) = positions.get(&text) {
        let further = format!("{text}{}", position.generated);
        let is_prefix = labels.iter().any(|label| label.starts_with(&further));
        if position.generated.is_empty() || !is_prefix {
            break;
        }
        text = further;
    }
    labels.iter().position(|label| *label == text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(probabilities: &[(&str, f64)]) -> Token {
        let top_logprobs: Vec<_> =
            probabilities.iter().map(|(text, p)| (text.as_bytes().to_vec(), p.ln())).collect();
        let (bytes, log_prob) = top_logprobs.first().cloned().unwrap_or_default();
        Token { bytes, log_prob, top_logprobs }
    }

    /// Computes the distribution from these positions. Also returns the requested prefixes.
    fn distribution_of(
        format: &AnswerFormat,
        follow_generated: bool,
        positions: &[(&str, &[(&str, f64)])],
    ) -> (Result<LabelDistribution, AnswerError>, Vec<String>) {
        let mut requests = Vec::new();
        let result = label_distribution(format, follow_generated, |prefix| {
            requests.push(prefix.to_owned());
            let position = positions.iter().find(|(text, _)| *text == prefix);
            Ok((token(position.expect("a known prefix").1), LogprobSource::TopLogprobs))
        });
        (result, requests)
    }

    fn assert_probability(log_prob: f64, probability: f64) {
        assert!((log_prob.exp() - probability).abs() < 2e-6, "{} {probability}", log_prob.exp());
    }

    #[test]
    fn label_distribution_splits_one_from_ten_and_bounds_missing_labels() {
        let (result, requests) = distribution_of(
            &AnswerFormat::zero_to_ten(),
            true,
            &[
                ("", &[("1", 0.5), ("7", 0.3), (" 7", 0.1), ("9", 0.04)]),
                ("1", &[("0", 0.8), ("<", 0.1)]),
            ],
        );
        let LabelDistribution { distribution, generated, tokens } = result.expect("a distribution");
        assert_eq!(requests, ["", "1"]);
        assert_probability(distribution.log_probs()[10], 0.4);
        assert_probability(distribution.log_probs()[1], 0.1);
        assert_probability(distribution.log_probs()[7], 0.3);
        let bounds: Vec<usize> = (0..11).filter(|index| distribution.is_bound(*index)).collect();
        assert_eq!(bounds, [0, 2, 3, 4, 5, 6, 8]);
        // The least top probability, 0.04, is below the remainder, 0.06.
        assert_probability(distribution.log_probs()[3], 0.04);
        assert_eq!(generated, Some(10));
        assert_eq!(tokens[10].len(), 2);
        assert!(tokens[3].is_empty());
    }

    #[test]
    fn remainder_bounds_missing_labels_if_below_least_top_probability() {
        let root: &[(&str, f64)] = &[("7", 0.6), ("8", 0.399)];
        let (result, requests) = distribution_of(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let distribution = result.expect("a distribution").distribution;
        assert_eq!(requests, [""], "\"1\" is not among the top tokens");
        assert_probability(distribution.log_probs()[10], 0.001);
        assert!(distribution.is_bound(10) && distribution.is_bound(1));
    }

    #[test]
    fn negligible_prefix_is_requested_only_if_generated() {
        let root: &[(&str, f64)] = &[("7", 0.9), ("1", 1e-5)];
        let (result, requests) = distribution_of(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let distribution = result.expect("a distribution").distribution;
        assert_eq!(requests, [""]);
        assert!(distribution.is_bound(1) && distribution.is_bound(10));
        assert_probability(distribution.log_probs()[10], 1e-5);

        let sampled: &[(&str, f64)] = &[("1", 1e-5), ("7", 0.9)];
        let positions: &[(&str, &[(&str, f64)])] =
            &[("", sampled), ("1", &[("<", 0.9), ("0", 0.1)])];
        let (result, requests) = distribution_of(&AnswerFormat::zero_to_ten(), true, positions);
        assert_eq!((requests.len(), result.map(|result| result.generated)), (2, Ok(Some(1))));
        let (_, requests) = distribution_of(&AnswerFormat::zero_to_ten(), false, positions);
        assert_eq!(requests.len(), 1, "the generated token is not followed");
    }

    #[test]
    fn label_of_one_token_needs_no_second_request() {
        let root: &[(&str, f64)] = &[("10", 0.7), ("1", 0.2)];
        let (result, requests) = distribution_of(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let LabelDistribution { distribution, generated, .. } = result.expect("a distribution");
        assert_eq!((requests.len(), generated), (1, Some(10)));
        assert_probability(distribution.log_probs()[10], 0.7);
        assert_probability(distribution.log_probs()[1], 0.2);
    }

    #[test]
    fn label_distribution_reads_words_of_several_tokens() {
        let positions: &[(&str, &[(&str, f64)])] =
            &[("", &[("ye", 0.6), ("no", 0.3)]), ("ye", &[("s", 0.9), ("ah", 0.1)])];
        let (result, _) = distribution_of(&AnswerFormat::yes_no(), true, positions);
        let LabelDistribution { distribution, generated, .. } = result.expect("a distribution");
        assert_probability(distribution.log_probs()[1], 0.54);
        assert_probability(distribution.log_probs()[0], 0.3);
        assert_eq!(generated, Some(1));
    }

    #[test]
    fn label_distribution_rejects_tokens_without_any_label() {
        let root: &[(&str, f64)] = &[("\n", 0.9), ("7", 0.05)];
        let (result, _) = distribution_of(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let result = result.expect("a distribution");
        assert_eq!((result.generated, result.distribution.most_probable()), (None, 7));

        let root: &[(&str, f64)] = &[("yes", 0.9), ("no", 0.05)];
        let (result, _) = distribution_of(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        assert_eq!(result, Err(AnswerError::NotAnAnswer { found: "yes".into() }));
        let nan = label_distribution(&AnswerFormat::zero_to_ten(), true, |_| {
            Ok((token(&[("7", f64::NAN)]), LogprobSource::TopLogprobs))
        });
        assert_eq!(nan, Err::<LabelDistribution, _>(AnswerError::InvalidProbability));
    }

    #[test]
    fn sampled_token_outside_top_logprobs_bounds_no_label() {
        // vLLM adds the sampled token to the requested ones.
        let mut root = token(&[("7", 0.6), ("8", 0.2), ("9", 0.1), ("x", 1e-6)]);
        (root.bytes, root.log_prob) = (b"x".to_vec(), 1e-6_f64.ln());
        let next = |_: &str| Ok::<_, AnswerError>((root.clone(), LogprobSource::TopLogprobs));
        let result =
            label_distribution(&AnswerFormat::zero_to_ten(), true, next).expect("a distribution");
        let distribution = result.distribution;
        // The bound of 3 is the remainder, which equals the probability of 9.
        assert!(distribution.is_bound(3));
        assert_probability(distribution.log_probs()[3], 0.1);
        // If only the answers were requested, the least of them does not bound the missing ones.
        root.top_logprobs = token(&[("7", 0.3), ("8", 0.2)]).top_logprobs;
        let next = |_: &str| Ok::<_, AnswerError>((root.clone(), LogprobSource::RequestedIds));
        let result =
            label_distribution(&AnswerFormat::zero_to_ten(), true, next).expect("a distribution");
        assert_probability(result.distribution.log_probs()[3], 0.5);
    }

    #[test]
    fn sampled_token_outside_top_logprobs_has_exact_probability() {
        let mut root = token(&[("7", 0.9)]);
        (root.bytes, root.log_prob) = (b"3".to_vec(), 0.01_f64.ln());
        let next = |_: &str| Ok::<_, AnswerError>((root.clone(), LogprobSource::TopLogprobs));
        let result =
            label_distribution(&AnswerFormat::zero_to_ten(), true, next).expect("a distribution");
        assert_eq!(result.generated, Some(3));
        assert!(!result.distribution.is_bound(3));
    }
}
