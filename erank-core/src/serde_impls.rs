//! The serde implementations that cannot be derived: those of distributions and document errors.

use std::borrow::Cow;
use std::ops::Range;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::backend::DocumentError;
use crate::distribution::{AnswerDistribution, AnswerLogProb};
use crate::error::{AnswerError, chain};

/// A log-probability, with `None` for minus infinity, which JSON cannot represent.
type FiniteLogProb = Option<f64>;

/// One entry of an [`AnswerDistribution`].
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Entry {
    Exact(FiniteLogProb),
    UpperBound(UpperBound),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpperBound {
    // The attribute makes the field required. Without it, a missing field would be `None`.
    #[serde(deserialize_with = "Option::deserialize")]
    at_most: FiniteLogProb,
}

/// Serializes the distribution as an array of entries.
impl Serialize for AnswerDistribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entry = |(index, log_prob): (usize, &f64)| {
            let finite = Some(*log_prob).filter(|log_prob| log_prob.is_finite());
            match self.is_bound(index) {
                false => Entry::Exact(finite),
                true => Entry::UpperBound(UpperBound { at_most: finite }),
            }
        };
        serializer.collect_seq(self.log_probs().iter().enumerate().map(entry))
    }
}

impl<'de> Deserialize<'de> for AnswerDistribution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = |log_prob: FiniteLogProb| log_prob.unwrap_or(f64::NEG_INFINITY);
        let entries = Vec::<Entry>::deserialize(deserializer)?.into_iter();
        let log_probs = entries.map(|entry| match entry {
            Entry::Exact(log_prob) => AnswerLogProb::Exact(value(log_prob)),
            Entry::UpperBound(bound) => AnswerLogProb::UpperBound(value(bound.at_most)),
        });
        Self::with_bounds(log_probs).map_err(de::Error::custom)
    }
}

/// A [`DocumentError`] with its message.
#[derive(Serialize, Deserialize)]
struct Report<'a> {
    #[serde(flatten)]
    code: Code<'a>,
    #[serde(skip_deserializing)]
    message: String,
}

impl<'a> From<&'a DocumentError> for Report<'a> {
    fn from(error: &'a DocumentError) -> Self {
        Self { code: error.into(), message: error.to_string() }
    }
}

/// The data of a [`DocumentError`], as text and numbers.
#[derive(Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
enum Code<'a> {
    Empty,
    NoFirstStageScore,
    PromptTooLong { tokens: usize, limit: usize },
    ThoughtNotClosed,
    NoAnswer,
    CutOff,
    OutOfRange { found: Cow<'a, str> },
    NotAnAnswer { found: Cow<'a, str> },
    InvalidProbability,
    NoProbability { missing: Cow<'a, str> },
    Cancelled,
    NotReported,
    NotReached,
    Backend { cause: Cow<'a, str> },
    Window { bytes: Range<usize>, error: Box<Report<'a>> },
}

impl<'a> From<&'a DocumentError> for Code<'a> {
    fn from(error: &'a DocumentError) -> Self {
        match error {
            DocumentError::Empty => Self::Empty,
            DocumentError::NoFirstStageScore => Self::NoFirstStageScore,
            DocumentError::PromptTooLong { tokens, limit } => {
                Self::PromptTooLong { tokens: *tokens, limit: *limit }
            }
            DocumentError::Answer(error) => match error {
                AnswerError::ThoughtNotClosed => Self::ThoughtNotClosed,
                AnswerError::NoAnswer => Self::NoAnswer,
                AnswerError::CutOff => Self::CutOff,
                AnswerError::OutOfRange { found } => Self::OutOfRange { found: found.into() },
                AnswerError::NotAnAnswer { found } => Self::NotAnAnswer { found: found.into() },
                AnswerError::InvalidProbability => Self::InvalidProbability,
                AnswerError::NoProbability(what) => {
                    Self::NoProbability { missing: Cow::Borrowed(what) }
                }
            },
            DocumentError::Cancelled => Self::Cancelled,
            DocumentError::NotReported => Self::NotReported,
            DocumentError::NotReached => Self::NotReached,
            DocumentError::Backend(cause) => Self::Backend { cause: chain(cause.as_ref()).into() },
            DocumentError::Window { bytes, source } => {
                Self::Window { bytes: bytes.clone(), error: Box::new(source.as_ref().into()) }
            }
        }
    }
}

impl From<Code<'_>> for DocumentError {
    fn from(code: Code<'_>) -> Self {
        let answer = match code {
            Code::Empty => return Self::Empty,
            Code::NoFirstStageScore => return Self::NoFirstStageScore,
            Code::PromptTooLong { tokens, limit } => return Self::PromptTooLong { tokens, limit },
            Code::Cancelled => return Self::Cancelled,
            Code::NotReported => return Self::NotReported,
            Code::NotReached => return Self::NotReached,
            Code::Backend { cause } => return Self::Backend(cause.into_owned().into()),
            Code::Window { bytes, error } => {
                return Self::Window { bytes, source: Box::new(error.code.into()) };
            }
            Code::ThoughtNotClosed => AnswerError::ThoughtNotClosed,
            Code::NoAnswer => AnswerError::NoAnswer,
            Code::CutOff => AnswerError::CutOff,
            Code::OutOfRange { found } => AnswerError::OutOfRange { found: found.into_owned() },
            Code::NotAnAnswer { found } => AnswerError::NotAnAnswer { found: found.into_owned() },
            Code::InvalidProbability => AnswerError::InvalidProbability,
            Code::NoProbability { missing } => AnswerError::NoProbability(known(&missing)),
        };
        Self::Answer(answer)
    }
}

/// Returns the static text for the missing part of an [`AnswerError::NoProbability`].
fn known(missing: &str) -> &'static str {
    let all = ["log-probabilities", "distribution over the answers"];
    all.into_iter().find(|known| *known == missing).unwrap_or("probability")
}

impl Serialize for DocumentError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Report::from(self).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for DocumentError {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Code::deserialize(deserializer).map(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::BackendError;
    use serde_json::{from_value, json, to_value};

    #[test]
    fn document_error_round_trips_with_its_code() {
        let found = || "11".to_owned();
        let expected = [
            (DocumentError::Empty, json!({"code": "empty"})),
            (DocumentError::NoFirstStageScore, json!({"code": "no_first_stage_score"})),
            (
                DocumentError::PromptTooLong { tokens: 9, limit: 8 },
                json!({"code": "prompt_too_long", "tokens": 9, "limit": 8}),
            ),
            (DocumentError::Cancelled, json!({"code": "cancelled"})),
            (DocumentError::NotReported, json!({"code": "not_reported"})),
            (DocumentError::NotReached, json!({"code": "not_reached"})),
            (
                DocumentError::Backend("timeout".into()),
                json!({"code": "backend", "cause": "timeout"}),
            ),
            (AnswerError::ThoughtNotClosed.into(), json!({"code": "thought_not_closed"})),
            (AnswerError::NoAnswer.into(), json!({"code": "no_answer"})),
            (AnswerError::CutOff.into(), json!({"code": "cut_off"})),
            (
                AnswerError::OutOfRange { found: found() }.into(),
                json!({"code": "out_of_range", "found": "11"}),
            ),
            (
                AnswerError::NotAnAnswer { found: found() }.into(),
                json!({"code": "not_an_answer", "found": "11"}),
            ),
            (AnswerError::InvalidProbability.into(), json!({"code": "invalid_probability"})),
            (
                AnswerError::NoProbability("log-probabilities").into(),
                json!({"code": "no_probability", "missing": "log-probabilities"}),
            ),
            (
                AnswerError::NoProbability("distribution over the answers").into(),
                json!({"code": "no_probability", "missing": "distribution over the answers"}),
            ),
        ];
        for (error, mut json) in expected {
            json["message"] = error.to_string().into();
            assert_eq!(to_value(&error).expect("JSON"), json);
            let read: DocumentError = from_value(json).expect("an error");
            assert_eq!(format!("{read:?}"), format!("{error:?}"));
        }
        let source = || Box::new(DocumentError::PromptTooLong { tokens: 9, limit: 8 });
        let window = DocumentError::Window { bytes: 5..7, source: source() };
        let expected = json!({
            "code": "window",
            "bytes": {"start": 5, "end": 7},
            "error": to_value(source()).expect("JSON"),
            "message": "the window from byte 5 to byte 7 failed",
        });
        assert_eq!(to_value(&window).expect("JSON"), expected);
        let read: DocumentError = from_value(expected).expect("an error");
        assert_eq!(format!("{read:?}"), format!("{window:?}"));

        let missing = json!({"code": "no_probability", "missing": "patience"});
        let read: DocumentError = from_value(missing).expect("an error");
        assert_eq!(
            read.to_string(),
            "the backend gave no probability, which the chosen score or its minimum needs; rank by the integer, or have the backend give it"
        );
        assert!(from_value::<DocumentError>(json!({"code": "too_late"})).is_err());
    }

    #[test]
    fn backend_error_includes_its_sources() {
        let cause = BackendError::Unavailable("connection reset".into());
        let json = to_value(DocumentError::Backend(cause.into())).expect("JSON");
        assert_eq!(
            json,
            json!({
                "code": "backend",
                "cause": "the backend is unavailable for now; try again: connection reset",
                "message": "the backend failed on the document; see the cause",
            })
        );
    }

    #[test]
    fn distribution_writes_null_for_minus_infinity() {
        let distribution = AnswerDistribution::new([-0.5, f64::NEG_INFINITY]).expect("valid");
        let json = to_value(&distribution).expect("JSON");
        assert_eq!(json, json!([-0.5, null]));
        assert_eq!(from_value::<AnswerDistribution>(json).expect("valid"), distribution);
    }

    #[test]
    fn distribution_keeps_bounds_in_a_round_trip() {
        use AnswerLogProb::{Exact, UpperBound};
        let log_probs = [
            UpperBound(-3.2),
            Exact(-0.1),
            UpperBound(f64::NEG_INFINITY),
            Exact(f64::NEG_INFINITY),
        ];
        let distribution = AnswerDistribution::with_bounds(log_probs).expect("valid");
        let json = to_value(&distribution).expect("JSON");
        assert_eq!(json, json!([{"at_most": -3.2}, -0.1, {"at_most": null}, null]));
        let read: AnswerDistribution = from_value(json).expect("valid");
        assert_eq!(read, distribution);
        assert!(read.is_bound(0) && !read.is_bound(1) && read.is_bound(2) && !read.is_bound(3));
    }

    #[test]
    fn distribution_reads_arrays_of_numbers() {
        let read: AnswerDistribution = from_value(json!([-1, null, -0.5])).expect("valid");
        let expected = AnswerDistribution::new([-1.0, f64::NEG_INFINITY, -0.5]).expect("valid");
        assert_eq!(read, expected);
    }

    #[test]
    fn distribution_rejects_invalid_json() {
        for invalid in [
            json!([]),
            json!([null]),
            json!([0.5]),
            json!(null),
            json!([-0.5, "x"]),
            json!([-0.5, {}]),
            json!([-0.5, {"at_most": 0.5}]),
            json!([-0.5, {"at_most": "x"}]),
            json!([-0.5, {"at_least": -1.0}]),
            json!([-0.5, {"at_most": -1.0, "at_least": -2.0}]),
            json!([{"at_most": -1.0}]),
        ] {
            assert!(from_value::<AnswerDistribution>(invalid.clone()).is_err(), "{invalid}");
        }
    }
}
