//! The answers that a prompt allows.

use std::ops::RangeInclusive;

use thiserror::Error;

/// The answers that a prompt allows. An answer is a label that the model writes, with an integer value.
///
/// By default, the model writes the label between the tags `<answer>` and `</answer>`, after its reasoning. A
/// [bare](Self::bare) label is the whole turn of the model.
///
/// A label with a larger value means a more relevant document. Values may repeat and may come in any
/// order. The prompt must ask for the labels. [`PromptTemplate::custom`] joins a prompt and its format.
///
/// ```
/// use erank_core::{AnswerFormat, AnswerProbability, Completion};
///
/// let one_to_five = AnswerFormat::range(1..=5)?;
/// let grades = AnswerFormat::labels([("A", 4), ("B", 3), ("C", 2), ("D", 1), ("E", 0)])?;
/// let yes_no = AnswerFormat::labels([("No", 0), ("Yes", 1)])?;
/// for (format, text, value) in [
///     (&one_to_five, "<answer>5</answer>", 5),
///     (&grades, "<answer>B</answer>", 3),
///     (&yes_no, "<answer>Yes</answer>", 1),
/// ] {
///     let answer = format.parse(&Completion::new(text), AnswerProbability::Joint)?;
///     assert_eq!(answer.integer, value);
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// [`PromptTemplate::custom`]: crate::PromptTemplate::custom
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerFormat {
    /// Labels with their values.
    answers: Vec<(String, u32)>,
    /// Whether the label is the whole turn, without reasoning and tags.
    is_bare: bool,
}

impl AnswerFormat {
    /// The largest number of answers in a format.
    ///
    /// A distribution holds a number for each answer, and a backend may need a further step for each
    /// text that begins several labels.
    pub const MAX_ANSWERS: usize = 256;

    /// Returns ERank's own scale, 0 to 10.
    pub fn zero_to_ten() -> Self {
        Self::integers(0..=10)
    }

    /// Returns the coarser scale that the paper compares with, 0 to 3 (arXiv 2509.00520, table 1).
    pub fn zero_to_three() -> Self {
        Self::integers(0..=3)
    }

    /// Returns the format with the labels `no` (value 0) and `yes` (value 1) (the same table). To
    /// generate other spellings, such as `No` and `Yes`, use [`labels`](Self::labels); the parser
    /// ignores ASCII case in every format.
    pub fn yes_no() -> Self {
        Self { answers: vec![("no".into(), 0), ("yes".into(), 1)], is_bare: false }
    }

    /// Returns the same labels as the whole turn of the model, without reasoning and tags.
    ///
    /// Rerankers of one pass answer in this way: the distribution over the labels is read where the prompt
    /// ends, and nothing is generated. Such a format implies [`Mode::AnswerOnly`](crate::Mode::AnswerOnly).
    ///
    /// ```
    /// use erank_core::{AnswerFormat, AnswerProbability, Completion};
    ///
    /// let format = AnswerFormat::yes_no().bare();
    /// let answer = format.parse(&Completion::new("yes"), AnswerProbability::Joint)?;
    /// assert_eq!(answer.integer, 1);
    /// # Ok::<(), erank_core::AnswerError>(())
    /// ```
    #[must_use]
    pub fn bare(mut self) -> Self {
        self.is_bare = true;
        self
    }

    /// Returns whether the label is the whole turn of the model, without reasoning and tags.
    pub fn is_bare(&self) -> bool {
        self.is_bare
    }

    /// Returns a format whose labels are the integers in `range`. The value of a label is its integer.
    ///
    /// # Errors
    /// Returns [`AnswerFormatError::Count`] if the range has fewer than 2 or more than
    /// [`MAX_ANSWERS`](Self::MAX_ANSWERS) integers.
    pub fn range(range: RangeInclusive<u32>) -> Result<Self, AnswerFormatError> {
        let (first, last) = (u64::from(*range.start()), u64::from(*range.end()));
        check_count((last + 1).saturating_sub(first))?;
        Ok(Self::integers(range))
    }

    /// Returns the format of these labels with their values.
    ///
    /// # Errors
    /// Returns an [`AnswerFormatError`] for the first label that the parser could not distinguish from the
    /// text around it or from another label. Also returns one if there are fewer than 2 or more than
    /// [`MAX_ANSWERS`](Self::MAX_ANSWERS) labels.
    ///
    /// ```
    /// use erank_core::{AnswerFormat, answer_format::AnswerFormatError};
    ///
    /// let error = AnswerFormat::labels([("good", 1), ("bad", 0), ("Good", 2)]);
    /// assert_eq!(error, Err(AnswerFormatError::Repeated { label: "Good".into() }));
    /// ```
    pub fn labels<L: Into<String>>(
        labels: impl IntoIterator<Item = (L, u32)>,
    ) -> Result<Self, AnswerFormatError> {
        let mut answers: Vec<(String, u32)> = Vec::new();
        let mut count = 0;
        for (label, value) in labels {
            count += 1;
            if answers.len() == Self::MAX_ANSWERS {
                // Counts the rest without storing it.
                continue;
            }
            let label = label.into();
            check_label(&label)?;
            if answers.iter().any(|(other, _)| is_same_label(other, &label)) {
                return Err(AnswerFormatError::Repeated { label });
            }
            answers.push((label, value));
        }
        check_count(count)?;
        Ok(Self { answers, is_bare: false })
    }

    fn integers(range: RangeInclusive<u32>) -> Self {
        let answers = range.map(|value| (value.to_string(), value)).collect();
        Self { answers, is_bare: false }
    }

    /// Returns the labels with their values, in the order of an
    /// [`AnswerDistribution`](crate::AnswerDistribution).
    pub fn answers(&self) -> impl ExactSizeIterator<Item = (&str, u32)> {
        self.answers.iter().map(|(label, value)| (label.as_str(), *value))
    }

    /// Returns the smallest and the largest value of an answer.
    pub fn value_range(&self) -> (u32, u32) {
        let values = || self.answers.iter().map(|(_, value)| *value);
        (values().min().unwrap_or_default(), values().max().unwrap_or_default())
    }

    /// Returns `value` on a scale from 0, the smallest value of an answer, to 1, the largest value:
    /// `(value − smallest) / (largest − smallest)`. `None` if all answers have the same value, or if `value` is NaN.
    ///
    /// ```
    /// use erank_core::AnswerFormat;
    ///
    /// assert_eq!(AnswerFormat::zero_to_ten().relevance(7.5), Some(0.75));
    /// assert_eq!(AnswerFormat::range(1..=5)?.relevance(2.0), Some(0.25));
    /// // The expected value of `no` (0) and `yes` (1) is the probability of `yes`.
    /// assert_eq!(AnswerFormat::yes_no().relevance(0.3), Some(0.3));
    /// # Ok::<(), erank_core::AnswerFormatError>(())
    /// ```
    pub fn relevance(&self, value: f64) -> Option<f64> {
        let (smallest, largest) = self.value_range();
        let (smallest, largest) = (f64::from(smallest), f64::from(largest));
        let relevance = (value - smallest) / (largest - smallest);
        // Rounding can put an expected value slightly outside the range of the values.
        relevance.is_finite().then_some(relevance.clamp(0.0, 1.0))
    }

    /// Returns the value of the answer at `index`.
    pub(crate) fn value(&self, index: usize) -> u32 {
        self.answers[index].1
    }

    /// Returns the index of the label that `found` stands for.
    pub(crate) fn index_of(&self, found: &str) -> Option<usize> {
        self.answers.iter().position(|(label, _)| is_same_label(label, found))
    }
}

/// Returns whether the parser takes two labels for the same. Such labels differ in ASCII case only, or are
/// the same integer, such as `7` and `07`.
fn is_same_label(a: &str, b: &str) -> bool {
    let integer = |label: &str| label.parse::<i128>().ok();
    a.eq_ignore_ascii_case(b) || integer(a).is_some_and(|value| integer(b) == Some(value))
}

fn check_label(label: &str) -> Result<(), AnswerFormatError> {
    let label_owned = || label.to_owned();
    if label.is_empty() {
        return Err(AnswerFormatError::Empty);
    }
    if label.trim() != label {
        return Err(AnswerFormatError::OuterWhiteSpace { label: label_owned() });
    }
    if label.contains('<') {
        return Err(AnswerFormatError::AngleBracket { label: label_owned() });
    }
    Ok(())
}

fn check_count(count: u64) -> Result<(), AnswerFormatError> {
    match count {
        2.. if count <= AnswerFormat::MAX_ANSWERS as u64 => Ok(()),
        _ => Err(AnswerFormatError::Count { count }),
    }
}

/// The reason that labels do not make an [`AnswerFormat`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AnswerFormatError {
    /// There are fewer than 2 labels, or more than [`AnswerFormat::MAX_ANSWERS`].
    #[error(
        "the answer format has {count} labels; give at least 2 and at most {}",
        AnswerFormat::MAX_ANSWERS
    )]
    Count {
        /// The number of labels.
        count: u64,
    },
    /// A label is empty.
    #[error("a label of the answer format is empty; give a text that the model can write")]
    Empty,
    /// A label begins or ends with white space, which the parser ignores.
    #[error("the label {label:?} begins or ends with white space; remove it")]
    OuterWhiteSpace {
        /// The label.
        label: String,
    },
    /// A label contains `<`, at which the parser ends an answer.
    #[error("the label {label:?} contains `<`, which ends an answer; choose another label")]
    AngleBracket {
        /// The label.
        label: String,
    },
    /// A label equals an earlier one, except for ASCII case or for another notation of the same
    /// integer.
    #[error(
        "the label {label:?} equals an earlier one when case and leading zeros are ignored; choose \
         another label"
    )]
    Repeated {
        /// The later label.
        label: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(format: &AnswerFormat) -> Vec<(&str, u32)> {
        format.answers().collect()
    }

    fn labels(labels: &[&str]) -> Result<AnswerFormat, AnswerFormatError> {
        AnswerFormat::labels(labels.iter().map(|label| (*label, 1)))
    }

    #[test]
    fn relevance_is_undefined_without_a_scale() {
        let labels = AnswerFormat::labels([("good", 9), ("fair", 4), ("bad", 2)]).expect("valid");
        assert_eq!(labels.value_range(), (2, 9));
        assert_eq!(
            [2.0, 5.5, 9.0, 9.5, 0.0].map(|value| labels.relevance(value)),
            [Some(0.0), Some(0.5), Some(1.0), Some(1.0), Some(0.0)]
        );
        assert_eq!(labels.relevance(f64::NAN), None);
        let equal = AnswerFormat::labels([("fits", 2), ("suits", 2)]).expect("valid");
        assert_eq!(equal.relevance(2.0), None);
    }

    #[test]
    fn range_holds_every_integer() {
        let format = AnswerFormat::range(1..=5).expect("valid");
        assert_eq!(answers(&format), [("1", 1), ("2", 2), ("3", 3), ("4", 4), ("5", 5)]);
        assert_eq!(AnswerFormat::range(0..=10), Ok(AnswerFormat::zero_to_ten()));
        let last = AnswerFormat::range(u32::MAX - 1..=u32::MAX).expect("valid");
        assert_eq!(last.answers().last(), Some(("4294967295", u32::MAX)));
    }

    #[test]
    #[expect(clippy::reversed_empty_ranges, reason = "the reversed range is under test")]
    fn range_rejects_wrong_counts() {
        for (range, count) in [(5..=1, 0), (3..=3, 1), (0..=256, 257), (0..=u32::MAX, 1 << 32)] {
            assert_eq!(AnswerFormat::range(range), Err(AnswerFormatError::Count { count }));
        }
        assert!(AnswerFormat::range(0..=255).is_ok());
    }

    #[test]
    fn labels_keep_order_and_values() {
        let given = [("A", 4), ("B", 3), ("C", 2), ("D", 1), ("E", 0)];
        assert_eq!(answers(&AnswerFormat::labels(given).expect("valid")), given);
        let given = [("not relevant", 0), ("relevant", 7), ("très pertinent", 7)];
        assert_eq!(answers(&AnswerFormat::labels(given).expect("valid")), given);
        let owned = AnswerFormat::labels([("no".to_owned(), 0), ("yes".to_owned(), 1)]);
        assert_eq!(owned, Ok(AnswerFormat::yes_no()));
    }

    #[test]
    fn labels_reject_unreadable_labels() {
        let label = |label: &str| label.to_owned();
        assert_eq!(labels(&["a", ""]), Err(AnswerFormatError::Empty));
        for text in [" a", "a\n", "\u{a0}a", " "] {
            let expected = AnswerFormatError::OuterWhiteSpace { label: label(text) };
            assert_eq!(labels(&["b", text]), Err(expected));
        }
        for text in ["<b>", "a < b", "</answer>"] {
            let expected = AnswerFormatError::AngleBracket { label: label(text) };
            assert_eq!(labels(&["b", text]), Err(expected));
        }
        for (first, text) in [("a", "a"), ("yes", "YES"), ("7", "07"), ("7", "+7"), ("0", "-0")] {
            let expected = AnswerFormatError::Repeated { label: label(text) };
            assert_eq!(labels(&[first, "b", text]), Err(expected));
        }
        let error = labels(&["b", "a "]).expect_err("a space at the end");
        assert!(error.to_string().contains("\"a \""), "{error}");
    }

    #[test]
    fn labels_reject_wrong_counts() {
        let numbered = |count: u32| AnswerFormat::labels((0..count).map(|n| (format!("n{n}"), n)));
        for count in [0, 1, 257, 5000] {
            let expected = AnswerFormatError::Count { count: count.into() };
            assert_eq!(numbered(count), Err(expected));
        }
        assert!(numbered(2).is_ok() && numbered(256).is_ok());
    }
}
