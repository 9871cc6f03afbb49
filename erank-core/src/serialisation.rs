//! What serde cannot derive: log-probabilities that are minus infinity, and errors.

use std::borrow::Cow;
use std::error::Error;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::answer::{AnswerDistribution, AnswerError};
use crate::backend::DocumentError;

/// The log-probabilities, `None` for minus infinity, which JSON does not have.
impl Serialize for AnswerDistribution {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let finite = |log_prob: &f64| Some(*log_prob).filter(|log_prob| log_prob.is_finite());
        serializer.collect_seq(self.log_probs().iter().map(finite))
    }
}

impl<'de> Deserialize<'de> for AnswerDistribution {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let log_probs = Vec::<Option<f64>>::deserialize(deserializer)?;
        let log_probs = log_probs.into_iter().map(|given| given.unwrap_or(f64::NEG_INFINITY));
        Self::new(log_probs).map_err(de::Error::custom)
    }
}

/// A [`DocumentError`] with its message.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    code: Code<'a>,
    message: String,
}

/// A [`DocumentError`] that holds only text and numbers.
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

/// What may be missing, as text that lives as long as the error.
fn known(missing: &str) -> &'static str {
    let all = ["log-probabilities", "distribution over the answers"];
    all.into_iter().find(|known| *known == missing).unwrap_or("probability")
}

/// An error's message with those of its sources.
fn chain(error: &dyn Error) -> String {
    let sources = std::iter::successors(error.source(), |&error| error.source());
    sources.fold(error.to_string(), |text, source| format!("{text}: {source}"))
}

impl Serialize for DocumentError {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Report { code: self.into(), message: self.to_string() }.serialize(serializer)
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

    /// Every kind of error as JSON, and back.
    #[test]
    fn errors_have_codes() {
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
        let missing = json!({"code": "no_probability", "missing": "patience"});
        let read: DocumentError = from_value(missing).expect("an error");
        assert_eq!(
            read.to_string(),
            "the backend gave no probability, which the chosen score needs; rank by the integer, or have the backend give it"
        );
        assert!(from_value::<DocumentError>(json!({"code": "too_late"})).is_err());
    }

    #[test]
    fn a_cause_is_told_with_its_sources() {
        let cause = BackendError::Unavailable("connection reset".into());
        let json = to_value(DocumentError::Backend(cause.into())).expect("JSON");
        assert_eq!(
            json,
            json!({
                "code": "backend",
                "cause": "the backend is unavailable for now; try again: connection reset",
                "message": "the backend failed on the document; its cause says why",
            })
        );
    }

    #[test]
    fn impossible_answers_are_null_and_not_certain() {
        let distribution = AnswerDistribution::new([-0.5, f64::NEG_INFINITY]).expect("one");
        let json = to_value(&distribution).expect("JSON");
        assert_eq!(json, json!([-0.5, null]));
        assert_eq!(from_value::<AnswerDistribution>(json).expect("one"), distribution);
        for none in [json!([]), json!([null]), json!([0.5]), json!(null), json!([-0.5, "x"])] {
            assert!(from_value::<AnswerDistribution>(none).is_err());
        }
    }
}
