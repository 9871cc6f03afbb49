//! The distribution over the allowed answers, from the alternatives that a server names.
//!
//! The answers are texts, and the tokens of the server are known only by their texts. Reading begins
//! at the root, where the answer begins, and goes on at every text that begins another answer: with
//! Qwen's tokenizer "10" is "1" and then "0".
//!
//! ```text
//! P(10) = P("1") · P("0" | "1")
//! P(1)  = P("1") · (1 − P("0" | "1"))      an answer that begins another: what does not go on
//! P(7)  = P("7")
//! P(3) ≤ the least probability named, and what all those named leave over, if "3" is not among them
//! ```
//!
//! A server that takes the ids of tokens names the first tokens of all answers ([`Named::Answers`]), so
//! that there is nothing to bound.
//!
//! Going on takes a request, so a text as improbable as [`NEGLIGIBLE`] is left at its bound.

use std::collections::BTreeMap;

use erank_core::{AnswerDistribution, AnswerError, AnswerFormat, AnswerLogProb};

use crate::api::Token;

/// The probability below which a text that begins answers is not looked into.
const NEGLIGIBLE: f64 = 1e-4;
/// How far the probabilities that a server names may be off in their sum.
const ROUNDING: f64 = 1e-6;

/// Which alternatives a server named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Named {
    /// The most probable, and the one it chose.
    MostProbable,
    /// The beginnings of the answers, and the one it chose.
    Answers,
}

/// What the server said about one place: the token it chose, and the alternatives by their text.
struct Node {
    chosen: String,
    log_probs: BTreeMap<String, f64>,
    /// No token that is not among them has a log-probability above this.
    rest: f64,
}

impl Node {
    fn new(token: &Token, named: Named) -> Self {
        let text = |bytes: &[u8]| str::from_utf8(bytes).map(str::to_owned).ok();
        let chosen = text(&token.bytes).unwrap_or_default();
        let mut log_probs: BTreeMap<String, f64> = BTreeMap::new();
        let others = token.alternatives.iter().map(|(bytes, log_prob)| (bytes, *log_prob));
        // A sampled token need not be among the most probable.
        for (bytes, log_prob) in others.chain([(&token.bytes, token.log_prob)]) {
            if let Some(text) = text(bytes).filter(|text| !text.is_empty()) {
                log_probs.entry(text).or_insert(log_prob);
            }
        }
        let probabilities = token.alternatives.iter().map(|(_, log_prob)| log_prob.exp());
        let left_over = (1.0 - probabilities.sum::<f64>()).max(0.0) + ROUNDING;
        // vLLM adds a token sampled beyond the most probable, which says nothing of those between.
        let others = token.alternatives.iter().filter(|(bytes, _)| *bytes != token.bytes);
        let least = others.filter(|_| named == Named::MostProbable);
        let least = least.map(|(_, log_prob)| *log_prob);
        let rest = least.fold(left_over.ln(), f64::min).min(0.0);
        Self { chosen, log_probs, rest }
    }

    /// The alternative that leads to `text`: itself, or its longest beginning.
    fn towards(&self, text: &str) -> Option<(&str, f64)> {
        let leads = |token: &&String| text.starts_with(token.as_str());
        let token = self.log_probs.keys().filter(leads).max_by_key(|token| token.len())?;
        Some((token, self.log_probs[token]))
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Reading {
    pub(crate) distribution: AnswerDistribution,
    /// The answer that the server's choices make, if they make one.
    pub(crate) chosen: Option<usize>,
    /// By answer: its tokens with their log-probabilities, as far as they are known.
    pub(crate) tokens: Vec<Vec<(String, f64)>>,
}

/// Reads the distribution. `next` asks what comes after the prompt and the beginning of an answer;
/// with `follow`, the server's choices are followed however improbable they are.
///
/// # Errors
/// Those of `next`, or [`AnswerError`] if no answer at all is among the alternatives.
pub(crate) fn read<E: From<AnswerError>>(
    format: &AnswerFormat,
    follow: bool,
    mut next: impl FnMut(&str) -> Result<(Token, Named), E>,
) -> Result<Reading, E> {
    let labels: Vec<&str> = format.answers().map(|(label, _)| label).collect();
    let begins_another =
        |text: &str| labels.iter().any(|label| label.len() > text.len() && label.starts_with(text));
    let mut nodes: BTreeMap<String, Node> = BTreeMap::new();
    // Beginnings of answers, with their log-probabilities, the next one last.
    let mut open = vec![(String::new(), 0.0_f64)];
    let mut negligible = Vec::new();
    while let Some((beginning, log_prob)) = open.pop() {
        let (token, named) = next(&beginning)?;
        let node = Node::new(&token, named);
        let mut onward: BTreeMap<String, f64> = BTreeMap::new();
        for label in labels.iter().filter_map(|label| label.strip_prefix(beginning.as_str())) {
            if let Some((token, token_log_prob)) = node.towards(label).filter(|(t, _)| *t != label)
            {
                onward.insert(format!("{beginning}{token}"), log_prob + token_log_prob);
            }
        }
        let chosen = format!("{beginning}{}", node.chosen);
        for (text, log_prob) in onward {
            if log_prob.exp() >= NEGLIGIBLE || (follow && text == chosen) {
                open.push((text, log_prob));
            } else {
                negligible.push(text);
            }
        }
        nodes.insert(beginning, node);
    }

    let chosen = chosen_label(&labels, &nodes, &begins_another);
    let (log_probs, tokens): (Vec<_>, Vec<_>) =
        labels.iter().map(|label| log_prob(label, &labels, &nodes, &negligible)).unzip();
    let distribution = AnswerDistribution::with_bounds(log_probs).map_err(|error| {
        let found = nodes.get("").map(|root| root.chosen.clone()).unwrap_or_default();
        match nodes.values().any(|node| node.log_probs.values().any(|value| value.is_nan())) {
            true => error,
            false => AnswerError::NotAnAnswer { found },
        }
    })?;
    Ok(Reading { distribution, chosen, tokens })
}

/// The log-probability of an answer, and its tokens.
fn log_prob(
    label: &str,
    labels: &[&str],
    nodes: &BTreeMap<String, Node>,
    negligible: &[String],
) -> (AnswerLogProb, Vec<(String, f64)>) {
    let (mut tokens, mut done, mut sum) = (Vec::new(), String::new(), 0.0);
    loop {
        let Some(node) = nodes.get(&done) else {
            let is_bound = done != label || negligible.contains(&done);
            let known =
                if is_bound { AnswerLogProb::UpperBound(sum) } else { AnswerLogProb::Exact(sum) };
            return (known, tokens);
        };
        if done == label {
            let goes_on = node.log_probs.iter().filter(|(token, _)| {
                labels.iter().any(|other| {
                    other.strip_prefix(label).is_some_and(|rest| rest.starts_with(token.as_str()))
                })
            });
            let goes_on: f64 = goes_on.map(|(_, log_prob)| log_prob.exp()).sum();
            return (AnswerLogProb::Exact(sum + (1.0 - goes_on).max(0.0).ln()), tokens);
        }
        match node.towards(&label[done.len()..]) {
            None => return (AnswerLogProb::UpperBound(sum + node.rest), tokens),
            Some((token, log_prob)) => {
                sum += log_prob;
                tokens.push((token.to_owned(), log_prob));
                done.push_str(token);
            }
        }
    }
}

/// The answer that the chosen tokens make.
fn chosen_label(
    labels: &[&str],
    nodes: &BTreeMap<String, Node>,
    begins_another: &dyn Fn(&str) -> bool,
) -> Option<usize> {
    let mut done = String::new();
    while let Some(node) = nodes.get(&done) {
        let further = format!("{done}{}", node.chosen);
        let leads = !node.chosen.is_empty()
            && (labels.contains(&further.as_str()) || begins_another(&further));
        if !leads {
            break;
        }
        done = further;
    }
    labels.iter().position(|label| *label == done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(probabilities: &[(&str, f64)]) -> Token {
        let alternatives: Vec<_> =
            probabilities.iter().map(|(text, p)| (text.as_bytes().to_vec(), p.ln())).collect();
        let (bytes, log_prob) = alternatives.first().cloned().unwrap_or_default();
        Token { bytes, log_prob, alternatives }
    }

    /// Reads with these nodes, and gives the beginnings that were asked for.
    fn read_all(
        format: &AnswerFormat,
        follow: bool,
        nodes: &[(&str, &[(&str, f64)])],
    ) -> (Result<Reading, AnswerError>, Vec<String>) {
        let mut asked = Vec::new();
        let reading = read(format, follow, |beginning| {
            asked.push(beginning.to_owned());
            let node = nodes.iter().find(|(text, _)| *text == beginning);
            Ok((token(node.expect("a node that is there").1), Named::MostProbable))
        });
        (reading, asked)
    }

    fn near(log_prob: f64, probability: f64) {
        assert!((log_prob.exp() - probability).abs() < 2e-6, "{} {probability}", log_prob.exp());
    }

    #[test]
    fn ten_takes_its_share_of_one_and_the_missing_have_bounds() {
        let (reading, asked) = read_all(
            &AnswerFormat::zero_to_ten(),
            true,
            &[
                ("", &[("1", 0.5), ("7", 0.3), (" 7", 0.1), ("9", 0.04)]),
                ("1", &[("0", 0.8), ("<", 0.1)]),
            ],
        );
        let Reading { distribution, chosen, tokens } = reading.expect("a distribution");
        assert_eq!(asked, ["", "1"]);
        near(distribution.log_probs()[10], 0.4);
        near(distribution.log_probs()[1], 0.1);
        near(distribution.log_probs()[7], 0.3);
        let bounds: Vec<usize> = (0..11).filter(|index| distribution.is_bound(*index)).collect();
        assert_eq!(bounds, [0, 2, 3, 4, 5, 6, 8]);
        // The least that is named, 0.04, is below what is left over, 0.06.
        near(distribution.log_probs()[3], 0.04);
        assert_eq!(chosen, Some(10));
        assert_eq!(tokens[10].len(), 2);
        assert!(tokens[3].is_empty());
    }

    #[test]
    fn what_is_left_over_bounds_the_missing_more_tightly_than_the_least_named() {
        let root: &[(&str, f64)] = &[("7", 0.6), ("8", 0.399)];
        let (reading, asked) = read_all(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let distribution = reading.expect("a distribution").distribution;
        assert_eq!(asked, [""], "there is no 1 to look into");
        near(distribution.log_probs()[10], 0.001);
        assert!(distribution.is_bound(10) && distribution.is_bound(1));
    }

    #[test]
    fn a_negligible_beginning_bounds_its_answers_unless_it_was_chosen() {
        let root: &[(&str, f64)] = &[("7", 0.9), ("1", 1e-5)];
        let (reading, asked) = read_all(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let distribution = reading.expect("a distribution").distribution;
        assert_eq!(asked, [""]);
        assert!(distribution.is_bound(1) && distribution.is_bound(10));
        near(distribution.log_probs()[10], 1e-5);

        let sampled: &[(&str, f64)] = &[("1", 1e-5), ("7", 0.9)];
        let nodes: &[(&str, &[(&str, f64)])] = &[("", sampled), ("1", &[("<", 0.9), ("0", 0.1)])];
        let (reading, asked) = read_all(&AnswerFormat::zero_to_ten(), true, nodes);
        assert_eq!((asked.len(), reading.map(|reading| reading.chosen)), (2, Ok(Some(1))));
        let (_, asked) = read_all(&AnswerFormat::zero_to_ten(), false, nodes);
        assert_eq!(asked.len(), 1, "only where the choice counts");
    }

    #[test]
    fn a_ten_of_one_token_needs_no_second_look() {
        let root: &[(&str, f64)] = &[("10", 0.7), ("1", 0.2)];
        let (reading, asked) = read_all(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let Reading { distribution, chosen, .. } = reading.expect("a distribution");
        assert_eq!((asked.len(), chosen), (1, Some(10)));
        near(distribution.log_probs()[10], 0.7);
        near(distribution.log_probs()[1], 0.2);
    }

    #[test]
    fn words_are_read_by_their_tokens() {
        let nodes: &[(&str, &[(&str, f64)])] =
            &[("", &[("ye", 0.6), ("no", 0.3)]), ("ye", &[("s", 0.9), ("ah", 0.1)])];
        let (reading, _) = read_all(&AnswerFormat::yes_no(), true, nodes);
        let Reading { distribution, chosen, .. } = reading.expect("a distribution");
        near(distribution.log_probs()[1], 0.54);
        near(distribution.log_probs()[0], 0.3);
        assert_eq!(chosen, Some(1));
    }

    #[test]
    fn something_else_than_an_answer_is_no_choice_and_no_answer_at_all_is_an_error() {
        let root: &[(&str, f64)] = &[("\n", 0.9), ("7", 0.05)];
        let (reading, _) = read_all(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        let reading = reading.expect("a distribution");
        assert_eq!((reading.chosen, reading.distribution.most_probable()), (None, 7));

        let root: &[(&str, f64)] = &[("yes", 0.9), ("no", 0.05)];
        let (reading, _) = read_all(&AnswerFormat::zero_to_ten(), true, &[("", root)]);
        assert_eq!(reading, Err(AnswerError::NotAnAnswer { found: "yes".into() }));
        let nan = read(&AnswerFormat::zero_to_ten(), true, |_| {
            Ok((token(&[("7", f64::NAN)]), Named::MostProbable))
        });
        assert_eq!(nan, Err::<Reading, _>(AnswerError::InvalidProbability));
    }

    #[test]
    fn a_token_sampled_beyond_the_alternatives_bounds_no_other() {
        // vLLM adds the sampled token to those that were asked for.
        let mut root = token(&[("7", 0.6), ("8", 0.2), ("9", 0.1), ("x", 1e-6)]);
        (root.bytes, root.log_prob) = (b"x".to_vec(), 1e-6_f64.ln());
        let next = |_: &str| Ok::<_, AnswerError>((root.clone(), Named::MostProbable));
        let reading = read(&AnswerFormat::zero_to_ten(), true, next).expect("a distribution");
        let distribution = reading.distribution;
        // 3 may have all that is left over, which is as much as 9 has.
        assert!(distribution.is_bound(3));
        near(distribution.log_probs()[3], 0.1);
        // Where only answers were named, the least of them says nothing of what is missing.
        root.alternatives = token(&[("7", 0.3), ("8", 0.2)]).alternatives;
        let next = |_: &str| Ok::<_, AnswerError>((root.clone(), Named::Answers));
        let reading = read(&AnswerFormat::zero_to_ten(), true, next).expect("a distribution");
        near(reading.distribution.log_probs()[3], 0.5);
    }

    #[test]
    fn a_token_outside_of_the_alternatives_counts_by_its_own_probability() {
        let mut root = token(&[("7", 0.9)]);
        (root.bytes, root.log_prob) = (b"3".to_vec(), 0.01_f64.ln());
        let next = |_: &str| Ok::<_, AnswerError>((root.clone(), Named::MostProbable));
        let reading = read(&AnswerFormat::zero_to_ten(), true, next).expect("a distribution");
        assert_eq!(reading.chosen, Some(3));
        assert!(!reading.distribution.is_bound(3));
    }
}
