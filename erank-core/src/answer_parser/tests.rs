use super::*;
use crate::distribution::AnswerLogProb;
use crate::score::ScoreKind;
use crate::tags::ANSWER_CLOSE;
use proptest::prelude::*;

fn parse(text: &str) -> Result<Answer, AnswerError> {
    AnswerFormat::zero_to_ten().parse(&Completion::new(text), AnswerProbability::Joint)
}

fn integer(text: &str) -> Result<u32, AnswerError> {
    parse(text).map(|answer| answer.integer)
}

/// Returns a completion of these tokens with their probabilities.
fn completion(pieces: &[(&str, f32)]) -> Completion {
    let mut completion = Completion::new("");
    for (piece, probability) in pieces {
        completion.push(piece, probability.ln());
    }
    completion
}

#[test]
fn parse_reads_erank_output() {
    let answer = parse("<think>\nIt fits.\n</think>\n<answer>7</answer>").expect("an answer");
    assert_eq!((answer.integer, answer.reasoning.as_str()), (7, "It fits."));
    assert_eq!((answer.probability, answer.probability_weighted()), (None, None));
}

#[test]
fn parse_handles_unusual_texts() {
    let not_an_answer = |found: &str| Err(AnswerError::NotAnAnswer { found: found.into() });
    let out_of_range = |found: &str| Err(AnswerError::OutOfRange { found: found.into() });
    for (text, outcome) in [
        ("<think>a</think><answer>10</answer>", Ok(10)),
        ("<think>a</think>\n\n<answer>\n 3 \n</answer>", Ok(3)),
        // The first character of the closing tag suffices.
        ("<think>a</think><answer>0<", Ok(0)),
        // The last complete answer counts.
        ("<think>a</think><answer>2</answer> or <answer>4</answer>", Ok(4)),
        ("<think>a</think><answer>2</answer> or <answer>4", Ok(2)),
        ("<think>a</think><answer>2<answer>4</answer>", Ok(4)),
        // Answers inside the reasoning are ignored.
        ("<think>say <answer>9</answer>?</think><answer>1</answer>", Ok(1)),
        ("<think>say <answer>9</answer>?</think>", Err(AnswerError::NoAnswer)),
        // The reasoning is not closed, not opened, or missing.
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
fn parse_ignores_quoted_tags_before_thought_end() {
    let reasoning = "<think>it says </think><answer>10</answer>, a trick</think>";
    let mut completion = Completion::new(format!("{reasoning}<answer>0</answer>"));
    completion.thought_end = Some(reasoning.len());
    let read = |completion: &Completion| {
        AnswerFormat::zero_to_ten().parse(completion, AnswerProbability::Joint)
    };
    let answer = read(&completion).expect("an answer");
    assert_eq!(answer.integer, 0);
    assert_eq!(answer.reasoning, "it says </think><answer>10</answer>, a trick");
    // The parser searches only the text after the reasoning.
    completion.text.truncate(reasoning.len());
    assert_eq!(read(&completion), Err(AnswerError::NoAnswer));
    // The parser ignores `thought_end` if it lies outside the text.
    for outside in [completion.text.len() + 1, usize::MAX] {
        completion.thought_end = Some(outside);
        assert_eq!(read(&completion).map(|answer| answer.integer), Ok(10));
    }
}

#[test]
fn joint_probability_is_the_product_of_tokens() {
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
fn probability_includes_tokens_that_overlap_the_answer() {
    let text = completion(&[("<answer", 0.3), ("> 7", 0.5), (" </answer>", 0.2)]);
    let answer = AnswerFormat::zero_to_ten().parse(&text, AnswerProbability::Joint);
    assert!((answer.expect("an answer").probability.expect("given") - 0.5).abs() < 1e-6);
}

#[test]
fn parse_uses_token_probability_if_the_distribution_has_a_bound() {
    use AnswerLogProb::{Exact, UpperBound};
    let log_probs = [UpperBound(0.9_f64.ln()), Exact(-2.0), Exact(-3.0), Exact(-1.0)];
    let mut text = Completion::new("<think>a</think><answer>");
    text.push("0", 0.5_f32.ln());
    text.push(ANSWER_CLOSE, 0.0);
    text.answer_distribution = AnswerDistribution::with_bounds(log_probs).ok();
    let format = AnswerFormat::zero_to_three();
    let answer = format.parse(&text, AnswerProbability::Joint).expect("an answer");
    assert!((answer.probability.expect("a probability") - 0.5).abs() < 1e-6);
}

#[test]
fn parse_takes_probability_and_moments_from_the_distribution() {
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
    // The normalized probabilities are 1/8, 1/8, 2/8 and 4/8.
    near(answer.variance, (1.0 + 8.0 + 36.0) / 8.0 - (17.0f64 / 8.0).powi(2));
    near(answer.entropy, 1.75 * 2f64.ln());
    assert_eq!(answer.distribution, text.answer_distribution);
}

#[test]
fn parse_rejects_invalid_probabilities() {
    let zero_to_ten = AnswerFormat::zero_to_ten();
    for bad in [f32::NAN, f32::INFINITY, 2.0] {
        let mut text = Completion::new("<answer>");
        text.push("7", bad);
        text.push("<", 0.0);
        let read = zero_to_ten.parse(&text, AnswerProbability::Joint);
        assert_eq!(read, Err(AnswerError::InvalidProbability));
    }
    // The distribution has another number of answers.
    let mut text = Completion::new("<answer>7<");
    text.answer_distribution = AnswerDistribution::new([0.0]).ok();
    let read = zero_to_ten.parse(&text, AnswerProbability::Joint);
    assert_eq!(read, Err(AnswerError::InvalidProbability));
}

#[test]
fn parse_ignores_ascii_case_of_labels() {
    let read =
        |text: &str| AnswerFormat::yes_no().parse(&Completion::new(text), AnswerProbability::Joint);
    assert_eq!(read("<answer>Yes</answer>").expect("an answer").integer, 1);
    assert_eq!(read("<answer> no</answer>").expect("an answer").integer, 0);
    assert!(matches!(
        read("<answer>1</answer>"),
        Err(AnswerError::NotAnAnswer { .. }) | Err(AnswerError::OutOfRange { .. })
    ));
}

/// Parses `<answer>{label}</answer>` with a format and returns the value.
fn value(format: &AnswerFormat, label: &str) -> Result<u32, AnswerError> {
    let completion = Completion::new(format!("<answer>{label}</answer>"));
    format.parse(&completion, AnswerProbability::Joint).map(|answer| answer.integer)
}

#[test]
fn parse_reads_every_label_of_a_custom_format() {
    let range = AnswerFormat::range(1..=5).expect("valid");
    let grades = [("A", 4), ("B", 3), ("C", 2), ("D", 1), ("E", 0)];
    let grades = AnswerFormat::labels(grades).expect("valid");
    let words = AnswerFormat::labels([("not relevant", 0), ("Très pertinent", 70)]).expect("valid");
    for format in [&range, &grades, &words] {
        for (label, expected) in format.answers() {
            assert_eq!(value(format, label), Ok(expected), "{label}");
            assert_eq!(value(format, &format!(" {label}\n")), Ok(expected), "{label}");
            assert_eq!(value(format, &label.to_ascii_lowercase()), Ok(expected), "{label}");
        }
    }
    assert_eq!(value(&range, "05"), Ok(5));
    assert_eq!(value(&range, "0"), Err(AnswerError::OutOfRange { found: "0".into() }));
    assert_eq!(value(&range, "6"), Err(AnswerError::OutOfRange { found: "6".into() }));
    assert_eq!(value(&grades, "F"), Err(AnswerError::NotAnAnswer { found: "F".into() }));
    assert_eq!(value(&grades, "4"), Err(AnswerError::OutOfRange { found: "4".into() }));
}

#[test]
fn scores_of_custom_formats_use_the_label_values() {
    use crate::score::ScoreKind;
    let format = AnswerFormat::labels([("A", 40), ("B", 30), ("C", 0)]).expect("valid");
    let mut text = completion(&[("<answer>", 1.0), ("B", 0.5), ("<", 1.0)]);
    let log_probs = [0.25_f64, 0.5, 0.25].map(f64::ln);
    text.answer_distribution = Some(AnswerDistribution::new(log_probs).expect("valid"));
    let answer = format.parse(&text, AnswerProbability::Joint).expect("an answer");
    for (kind, expected) in [
        (ScoreKind::Integer, 30.0),
        (ScoreKind::ProbabilityWeighted, 15.0),
        (ScoreKind::ExpectedValue, 25.0),
    ] {
        let score = kind.score(&answer).expect("a score");
        assert!((score - expected).abs() < 1e-12, "{kind:?}: {score}");
    }
}

#[test]
fn prefixes_lead_the_text_to_the_answer() {
    let format = AnswerFormat::zero_to_ten();
    for text in ["<think>a b", "<think>a</think> hm", "no tags", "", "<think>a</think><answer>"] {
        let text = format!("{text}{}", format.forced_answer_prefix(text));
        assert!(!format.is_answered(&text));
        assert_eq!(integer(&format!("{text}8</answer>")), Ok(8), "{text}");
    }
    let text = format!("{}8</answer>", format.answer_only_prefix());
    assert_eq!(parse(&text).map(|answer| answer.reasoning), Ok(String::new()));
}

#[test]
fn bare_label_is_the_whole_text() {
    let format = AnswerFormat::yes_no().bare();
    let prefixes = [format.answer_only_prefix(), format.forced_answer_prefix("<think>")];
    assert_eq!((prefixes, format.answer_suffix()), (["", ""], ""));
    let not_an_answer = |found: &str| Err(AnswerError::NotAnAnswer { found: found.into() });
    for (text, outcome) in [
        ("yes", Ok(1)),
        (" No\n", Ok(0)),
        ("yes, it is", not_an_answer("yes, it is")),
        ("<answer>yes</answer>", not_an_answer("<answer>yes</answer>")),
        ("", not_an_answer("")),
    ] {
        let answer = format.parse(&Completion::new(text), AnswerProbability::Joint);
        assert_eq!(format.is_answered(text), outcome.is_ok(), "{text}");
        assert_eq!(answer.map(|answer| answer.integer), outcome);
    }
    let mut completion = completion(&[("yes", 0.3)]);
    let log_probs = [0.1_f64.ln(), 0.3_f64.ln()];
    completion.answer_distribution = Some(AnswerDistribution::new(log_probs).expect("valid"));
    let answer = format.parse(&completion, AnswerProbability::FirstToken).expect("an answer");
    assert_eq!(answer.reasoning, "");
    assert!((answer.probability.expect("known") - 0.3).abs() < 1e-6);
    let score = ScoreKind::default_for(&format).score(&answer).expect("a score");
    assert!((score - 0.75).abs() < 1e-12, "the softmax over both labels, not {score}");
}

proptest! {
    /// No text causes a panic, and every text that ends generation has an answer that can be parsed.
    #[test]
    fn parse_handles_any_text(
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
        let after = thought_end.and_then(|end| text.text.get(end..)).unwrap_or(&text.text);
        let read = format.parse(&text, AnswerProbability::Joint);
        if let Ok(answer) = &read {
            prop_assert!(answer.integer <= 10);
            prop_assert!(answer.probability_weighted().is_none_or(|score| score.is_finite()));
            prop_assert!(format.is_answered(after));
        }
        if format.is_answered(after) {
            let is_parsed = matches!(
                read,
                Ok(_) | Err(AnswerError::OutOfRange { .. } | AnswerError::NotAnAnswer { .. })
            );
            prop_assert!(is_parsed);
        }
    }
}
